import type { RopeConfig } from './config.ts';

/**
 * Inverse frequencies of rotary embedding, headDim / 2 of them, in float64.
 * Formulas: RoFormer (2104.09864) and, for the scaled kinds, transformers' modeling_rope_utils: `linear` divides them by
 * the factor, `dynamic` (NTK) raises the base when the context is longer than the trained one, `llama3` scales low
 * frequencies only.
 * @param context the longest context the graph will see; only `dynamic` depends on it
 */
export function inverseFrequencies(rope: RopeConfig, headDim: number, context: number): Float64Array {
  const half = headDim / 2;
  let theta = rope.theta;
  if (rope.type === 'dynamic' && context > rope.originalPositions) {
    const stretch = (rope.factor * context) / rope.originalPositions - (rope.factor - 1);
    theta *= stretch ** (headDim / (headDim - 2));
  }
  return Float64Array.from({ length: half }, (_, i) => {
    const frequency = 1 / Math.fround(theta ** Math.fround((2 * i) / headDim));
    if (rope.type === 'linear') return frequency / rope.factor;
    return rope.type === 'llama3' ? scaleLlama3(frequency, rope) : frequency;
  });
}

function scaleLlama3(frequency: number, rope: RopeConfig): number {
  const wavelength = (2 * Math.PI) / frequency;
  const lowWavelength = rope.originalPositions / rope.lowFrequencyFactor;
  const highWavelength = rope.originalPositions / rope.highFrequencyFactor;
  if (wavelength < highWavelength) return frequency;
  if (wavelength > lowWavelength) return frequency / rope.factor;
  const smooth =
    (rope.originalPositions / wavelength - rope.lowFrequencyFactor) /
    (rope.highFrequencyFactor - rope.lowFrequencyFactor);
  return ((1 - smooth) * frequency) / rope.factor + smooth * frequency;
}

/** Cosine and sine tables, [positions, headDim / 2] row-major f32, for the given absolute positions. */
export function rotaryTables(
  frequencies: Float64Array,
  positions: readonly number[],
): { cos: Float32Array; sin: Float32Array } {
  const half = frequencies.length;
  const cos = new Float32Array(positions.length * half);
  const sin = new Float32Array(positions.length * half);
  positions.forEach((position, row) => {
    for (let i = 0; i < half; i++) {
      // transformers forms the angle in f32; so do we, or logits part from it at long positions.
      const angle = Math.fround(position * Math.fround(frequencies[i]!));
      cos[row * half + i] = Math.cos(angle);
      sin[row * half + i] = Math.sin(angle);
    }
  });
  return { cos, sin };
}

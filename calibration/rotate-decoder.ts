import type { DecoderModel } from '../compiler/import/decoder-model.ts';
import type { DecoderConfig } from '../compiler/import/huggingface/config.ts';
import { Tensor, transposeTensor } from '../compiler/ir/tensor.ts';
import { reachOf, type Statistics, type ValueStatistics } from './statistics.ts';

/** What a rotation changes of a decoder. */
export type DecoderSource = Pick<DecoderModel, 'config' | 'weights' | 'embed'>;

/**
 * Rotates the residual stream, and the values of each head, by fixed orthogonal matrices that are merged into the weights:
 * the logits stay what they are, but outliers of single channels are spread over all (QuaRot 2404.00456, section 4; SpinQuant
 * 2405.16406, R1 and R2). Norm weights move into the matrices behind them first, because a norm commutes with a rotation only
 * without them. Nothing is added to the graph; head and embedding are no longer the same table.
 * @param sink direction of the residual stream's largest rows (findSinkDirection)
 */
export function rotateDecoder({ config, weights, embed }: DecoderSource, sink?: Float64Array): DecoderSource {
  const { hiddenSize, headDim, layers } = config;
  const stream = createRotation(hiddenSize, 1, sink);
  const head = createRotation(headDim, 2);
  const rotated = new Map(weights);
  const readers = (norm: string, names: readonly string[]): void => {
    const gains = weights.get(norm)!;
    for (const name of names) {
      rotated.set(
        name,
        mapRows(rotated.get(name)!, (rows) => {
          multiplyColumns(rows, gains.toFloats());
          stream(rows);
        }),
      );
    }
    rotated.set(norm, Tensor.of('f32', gains.shape, new Float32Array(gains.size).fill(1)));
  };
  const writer = (name: string): void => {
    rotated.set(`${name}.weight`, mapColumns(rotated.get(`${name}.weight`)!, stream));
    rotateBias(rotated, `${name}.bias`, stream);
  };
  rotated.set('model.embed_tokens.weight', mapMatrix(weights.get('model.embed_tokens.weight')!, stream));
  for (let layer = 0; layer < layers; layer++) {
    const at = `model.layers.${layer}`;
    const attention = `${at}.self_attn`;
    rotated.set(`${attention}.v_proj.weight`, mapColumns(rotated.get(`${attention}.v_proj.weight`)!, head));
    rotateBias(rotated, `${attention}.v_proj.bias`, head);
    rotated.set(`${attention}.o_proj.weight`, mapRows(rotated.get(`${attention}.o_proj.weight`)!, head));
    readers(
      `${at}.input_layernorm.weight`,
      ['q_proj', 'k_proj', 'v_proj'].map((name) => `${attention}.${name}.weight`),
    );
    readers(
      `${at}.post_attention_layernorm.weight`,
      ['gate_proj', 'up_proj'].map((name) => `${at}.mlp.${name}.weight`),
    );
    writer(`${attention}.o_proj`);
    writer(`${at}.mlp.down_proj`);
    if (rotated.has(`${at}.mlp.down_proj.outliers.weight`)) writer(`${at}.mlp.down_proj.outliers`);
  }
  readers('model.norm.weight', ['lm_head.weight']);
  return {
    config,
    weights: rotated,
    embed: (ids) => {
      const rows = embed(ids).slice();
      stream(rows);
      return rows;
    },
  };
}

/** Largest value of the residual stream, as a multiple of a typical row's root mean square, from which rotation pays. */
const OUTLIERS = 100;

/** Values of the residual stream behind every layer's halves. */
function streamValues({ layers }: DecoderConfig): string[] {
  return Array.from({ length: layers }, (_, layer) => [
    `layers.${layer}.attn_residual`,
    `layers.${layer}.mlp_residual`,
  ]).flat();
}

/** Whether single channels of the residual stream dwarf the rest, so that 16 bits of one scale leave the rest few steps. */
export function hasStreamOutliers(config: DecoderConfig, statistics: Statistics): boolean {
  return streamValues(config).some((name) => {
    const seen = statistics.get(name);
    return seen !== undefined && reachOf(seen) > OUTLIERS * seen.typical;
  });
}

/**
 * The direction, of length 1, of the largest rows that the residual stream ever had: attention sinks, all nearly the same row.
 * Of each channel it has the extreme value of either sign where the stream was largest.
 */
export function findSinkDirection(config: DecoderConfig, statistics: Statistics): Float64Array | undefined {
  let largest: ValueStatistics | undefined;
  for (const name of streamValues(config)) {
    const seen = statistics.get(name);
    if (seen?.channels && (!largest || reachOf(seen) > reachOf(largest))) largest = seen;
  }
  if (!largest || reachOf(largest) === 0) return undefined;
  const { min, max } = largest.channels!;
  const row = Float64Array.from(max, (value, channel) => (-min[channel]! > value ? min[channel]! : value));
  const length = Math.hypot(...row);
  return row.map((value) => value / length);
}

/** Rotates every group of `width` floats of an array in place. */
type Rotation = (values: Float32Array) => void;

/**
 * x R S (H ⊗ C): a reflection R, random signs S, a Hadamard matrix H of the largest power of two that divides the width, and
 * the cosine transform C of the rest (orthonormal DCT-III): spreads one channel over all. R takes the direction `sink`, a unit
 * vector, to channel 0, which is spread evenly and with one sign: such rows then widen the range of the others least, and to
 * one side alone, where a zero point spares the other half.
 */
export function createRotation(width: number, seed: number, sink?: Float64Array): Rotation {
  let power = 1;
  while (width % (2 * power) === 0) power *= 2;
  const rest = width / power;
  const signs = randomSigns(width, seed);
  signs[0] = 1;
  const reflect = createReflection(sink);
  const cosines = Float64Array.from({ length: rest * rest }, (_, i) => {
    const [row, column] = [Math.floor(i / rest), i % rest];
    return Math.sqrt((row === 0 ? 1 : 2) / rest) * Math.cos((Math.PI * (column + 0.5) * row) / rest);
  });
  const scale = 1 / Math.sqrt(power);
  const row = new Float64Array(width);
  const part = new Float64Array(rest);
  return (values) => {
    for (let start = 0; start < values.length; start += width) {
      for (let i = 0; i < width; i++) row[i] = values[start + i]!;
      reflect(row);
      for (let i = 0; i < width; i++) row[i] = row[i]! * signs[i]!;
      for (let half = rest; half < width; half *= 2) {
        for (let at = 0; at < width; at += 2 * half) {
          for (let i = at; i < at + half; i++) {
            const [a, b] = [row[i]!, row[i + half]!];
            row[i] = a + b;
            row[i + half] = a - b;
          }
        }
      }
      for (let at = 0; at < width; at += rest) {
        if (rest > 1) {
          part.fill(0);
          for (let i = 0; i < rest; i++)
            for (let j = 0; j < rest; j++) part[j] = part[j]! + row[at + i]! * cosines[i * rest + j]!;
          row.set(part, at);
        }
        for (let i = at; i < at + rest; i++) values[start + i] = row[i]! * scale;
      }
    }
  };
}

/** x - 2 w (w x) / (w w) with w = sink - e_0 (Householder): takes `sink` to channel 0. */
function createReflection(sink: Float64Array | undefined): (row: Float64Array) => void {
  const normal = sink?.map((value, i) => (i === 0 ? value - 1 : value));
  const square = normal?.reduce((sum, value) => sum + value * value, 0) ?? 0;
  if (!normal || square < 1e-12) return () => {};
  return (row) => {
    let dot = 0;
    for (let i = 0; i < row.length; i++) dot += normal[i]! * row[i]!;
    const factor = (2 * dot) / square;
    for (let i = 0; i < row.length; i++) row[i] = row[i]! - factor * normal[i]!;
  };
}

function randomSigns(count: number, seed: number): Float64Array {
  let state = seed;
  return Float64Array.from({ length: count }, () => {
    // Numerical Recipes' generator; its upper bits are the random ones.
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state >>> 31 ? 1 : -1;
  });
}

/** A matrix whose rows are changed when it is read. */
function mapMatrix(matrix: Tensor, change: Rotation): Tensor {
  return new Tensor('f32', matrix.shape, {
    kind: 'derived',
    compute: () => {
      const floats = matrix.toFloats().slice();
      change(floats);
      return new Uint8Array(floats.buffer);
    },
  });
}

/** A linear weight [K, N] whose rows [N, K], one per output, are changed. */
function mapRows(weight: Tensor, change: Rotation): Tensor {
  return transposeTensor(mapMatrix(transposeTensor(weight), change));
}

/** A linear weight [K, N] whose columns, one row of outputs for each input, are changed; stored as rows [N, K] as others are. */
function mapColumns(weight: Tensor, change: Rotation): Tensor {
  const [inputs, outputs] = weight.shape as [number, number];
  const compute = (): Uint8Array => transposeTensor(mapMatrix(weight, change)).read();
  return transposeTensor(new Tensor('f32', [outputs, inputs], { kind: 'derived', compute }));
}

function rotateBias(weights: Map<string, Tensor>, name: string, change: Rotation): void {
  const bias = weights.get(name);
  if (bias) weights.set(name, mapMatrix(bias, change));
}

function multiplyColumns(rows: Float32Array, gains: Float32Array): void {
  for (let start = 0; start < rows.length; start += gains.length) {
    for (let i = 0; i < gains.length; i++) rows[start + i] = rows[start + i]! * gains[i]!;
  }
}

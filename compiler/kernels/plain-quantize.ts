import { roundEven } from '../ir/encoding.ts';
import type { QuantRange } from './kernels.ts';
import { absmaxBits, bitsOf } from './plain-range.ts';

/** Twins of assembly/quantize.ts. */

/** round(value / scale) within low..high; NaN stays NaN. */
function roundClamped(value: number, scale: number, low: number, high: number): number {
  const rounded = roundEven(Math.fround(value / scale));
  return rounded < low ? low : rounded > high ? high : rounded;
}

export function quantizeI8(
  source: Float32Array,
  group: number,
  scales: Float32Array,
  range: QuantRange,
  target: Int8Array,
): number {
  for (let g = 0; g < scales.length; g++) {
    for (let i = g * group; i < (g + 1) * group; i++) {
      target[i] = roundClamped(source[i], scales[g], range.min, range.max);
    }
  }
  return absmaxBits(bitsOf(source));
}

export function quantizeI4(
  source: Float32Array,
  group: number,
  scales: Float32Array,
  range: QuantRange,
  target: Uint8Array,
): number {
  const integers = new Int8Array(source.length);
  const bits = quantizeI8(source, group, scales, range, integers);
  packI4(integers, target);
  return bits;
}

export function fakeQuantize(
  source: Float32Array,
  group: number,
  scales: Float32Array,
  range: QuantRange,
  target: Float32Array,
): number {
  const bits = absmaxBits(bitsOf(source));
  for (let g = 0; g < scales.length; g++) {
    const scale = scales[g];
    for (let i = g * group; i < (g + 1) * group; i++) {
      target[i] = roundClamped(source[i], scale, range.min, range.max) * scale + 0;
    }
  }
  return bits;
}

export function fakeQuantizeAffine(
  source: Float32Array,
  scale: number,
  min: number,
  max: number,
  target: Float32Array,
): void {
  const step = Math.fround(scale);
  for (let i = 0; i < source.length; i++) target[i] = roundClamped(source[i], step, min, max) * step + 0;
}

export function packI4(source: Int8Array, target: Uint8Array): boolean {
  let fits = true;
  for (let i = 0; i < source.length; i += 2) {
    const first = source[i];
    const second = i + 1 < source.length ? source[i + 1] : 0;
    if (first < -8 || first > 7 || second < -8 || second > 7) fits = false;
    target[i >> 1] = (first & 15) | ((second & 15) << 4);
  }
  return fits;
}

export function unpackI4(source: Uint8Array, target: Int8Array): void {
  for (let i = 0; i < target.length; i++) target[i] = (source[i >> 1] << (i & 1 ? 24 : 28)) >> 28;
}

export function dequantizeI8(source: Int8Array, group: number, scales: Float32Array, target: Float32Array): void {
  for (let g = 0; g < scales.length; g++) {
    for (let i = g * group; i < (g + 1) * group; i++) target[i] = source[i] * scales[g];
  }
}

export function dequantizeI4(source: Uint8Array, group: number, scales: Float32Array, target: Float32Array): void {
  const integers = new Int8Array(target.length);
  unpackI4(source, integers);
  dequantizeI8(integers, group, scales, target);
}

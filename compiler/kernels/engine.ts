import type { FiniteRange, QuantRange } from './kernels.ts';

/**
 * What an implementation provides: each kernel on one window of data that is already checked and small enough.
 * `create-kernels.ts` adds the checks and the windows once for all engines. Where a number is answered, it is the largest
 * absolute value of the source as f32 bits: INFINITE_BITS and above means that something was not finite.
 */
export interface Engine {
  decodeBf16(source: Uint8Array, target: Float32Array): void;
  decodeF16(source: Uint8Array, target: Float32Array): void;
  encodeF16(source: Float32Array, target: Uint8Array): void;

  absmax(source: Float32Array, group: number, target: Float32Array): number;
  minMax(source: Float32Array, group: number, minima: Float32Array, maxima: Float32Array): number;
  finiteRange(source: Float32Array): FiniteRange;
  channelStatistics(source: Float32Array, maxima: Float32Array, squares: Float64Array): number;
  /** Adds to counts; its last entry counts what is not finite. */
  histogram(source: Float32Array, low: number, perUnit: number, counts: Float64Array): void;
  /** Writes [a a, b b, a b, (a - b)^2, max |a - b|] and answers how many pairs were left out. */
  difference(a: Float32Array, b: Float32Array, result: Float64Array): number;

  quantizeI8(source: Float32Array, group: number, scales: Float32Array, range: QuantRange, target: Int8Array): number;
  quantizeI4(source: Float32Array, group: number, scales: Float32Array, range: QuantRange, target: Uint8Array): number;
  fakeQuantize(
    source: Float32Array,
    group: number,
    scales: Float32Array,
    range: QuantRange,
    target: Float32Array,
  ): number;
  /** min and max are the integer limits less the zero point. */
  fakeQuantizeAffine(source: Float32Array, scale: number, min: number, max: number, target: Float32Array): void;
  /** Answers false if a value does not fit. */
  packI4(source: Int8Array, target: Uint8Array): boolean;
  unpackI4(source: Uint8Array, target: Int8Array): void;
  dequantizeI8(source: Int8Array, group: number, scales: Float32Array, target: Float32Array): void;
  dequantizeI4(source: Uint8Array, group: number, scales: Float32Array, target: Float32Array): void;

  weightedErrors(
    source: Float32Array,
    importance: Float32Array,
    group: number,
    scales: Float32Array,
    range: QuantRange,
    errors: Float64Array,
  ): void;
  searchScales(
    source: Float32Array,
    importance: Float32Array,
    group: number,
    range: QuantRange,
    scales: Float32Array,
    errors: Float64Array,
  ): void;
  searchLpbq(
    source: Float32Array,
    importance: Float32Array,
    block: number,
    range: QuantRange,
    channelScales: Float32Array,
    blockScales: Uint8Array,
    errors: Float64Array,
  ): void;

  /** `stride` is diagonal.length rounded up to 8. Answers the row without a positive pivot, or -1. */
  factorHessian(hessian: Float32Array, stride: number, factors: Float32Array, diagonal: Float32Array): number;
  roundCompensated(
    source: Float32Array,
    stride: number,
    factors: Float32Array,
    diagonal: Float32Array,
    scales: Float32Array,
    groups: Uint32Array,
    range: QuantRange,
    integers: Int8Array,
    errors: Float64Array,
  ): void;

  transpose32(source: Float32Array, rows: number, columns: number, target: Float32Array): void;
  transpose8(source: Int8Array, rows: number, columns: number, target: Int8Array): void;
}

/** Bits of infinity: finite absolute values lie below. */
export const INFINITE_BITS = 0x7f800000;

/** Below this a scale could leave the normal f32 range when it shrinks; the block then gets scale 1. */
export const SMALLEST_SCALE = 2 ** -120;

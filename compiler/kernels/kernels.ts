/**
 * The hot loops of quantization, as typed functions over plain typed arrays. `index.ts` exports two implementations of
 * this interface that give the same bits: WebAssembly SIMD and plain TypeScript.
 *
 * Matrices are row-major [rows, columns]: a row is one output channel, its columns are contiguous input channels. `block`
 * cuts each row into equal blocks with a scale of their own; block = columns is one scale per row (per channel).
 * Rounding is ties to even and follows ONNX QuantizeLinear: q = clamp(round(x / scale)).
 */
export interface Kernels {
  /** bf16 bytes (little-endian, any alignment) to f32. */
  decodeBf16(source: Uint8Array, target: Float32Array): void;
  /** f16 bytes (little-endian, any alignment) to f32, exact. */
  decodeF16(source: Uint8Array, target: Float32Array): void;
  /** f32 to f16 bytes, ties to even; beyond 65519 becomes infinity, every NaN the quiet 0x7e00. */
  encodeF16(source: Float32Array, target: Uint8Array): void;

  /** Absolute maximum of each block. Throws QT010 if a weight is not finite. */
  findAbsmax(weights: Float32Array, layout: Layout): Float32Array;
  /** Minimum and maximum of each block; -0 counts as 0. Throws QT010 if a weight is not finite. */
  findMinMax(weights: Float32Array, layout: Layout): { min: Float32Array; max: Float32Array };
  /** Range of any array over its finite values; without any, min is Infinity and max -Infinity. */
  findRange(values: Float32Array): FiniteRange;
  /** Adds activations [tokens, channels] to running statistics. Throws QT010 (the statistics are then useless). */
  accumulateChannels(activations: Float32Array, statistics: ChannelStatistics): void;
  /** Counts values into a histogram; outside values go to the first or last bin, non-finite ones to `skipped`. */
  accumulateHistogram(values: Float32Array, histogram: Histogram): void;
  /** Adds pairs to running sums; a pair with a non-finite member is only counted, in `skipped`. */
  accumulateDifference(reference: Float32Array, other: Float32Array, sums: DifferenceSums): void;

  /** f32 to i8. Throws QT010 for a weight that is not finite, QT012 for a scale that is not positive and finite. */
  quantizeI8(weights: Float32Array, layout: Layout, scales: Float32Array, range: QuantRange, target: Int8Array): void;
  /**
   * f32 to int4, two a byte, the first in the low half, rows without padding. Errors as quantizeI8; QT014 for a range beyond
   * int4; QT015 for several blocks of an odd size above 131071.
   */
  quantizeI4(weights: Float32Array, layout: Layout, scales: Float32Array, range: QuantRange, target: Uint8Array): void;
  /** i8 in -8..7 to packed int4; an odd count leaves the last high half 0. Throws QT014 for other integers. */
  packI4(source: Int8Array, target: Uint8Array): void;
  /** Packed int4 to i8; target.length says how many. */
  unpackI4(source: Uint8Array, target: Int8Array): void;
  dequantizeI8(source: Int8Array, layout: Layout, scales: Float32Array, target: Float32Array): void;
  dequantizeI4(source: Uint8Array, layout: Layout, scales: Float32Array, target: Float32Array): void;
  /** f32 to the nearest value the quantized form holds: exactly dequantize(quantize(x)). `target` may be `weights`. */
  fakeQuantizeWeights(
    weights: Float32Array,
    layout: Layout,
    scales: Float32Array,
    range: QuantRange,
    target: Float32Array,
  ): void;
  /** The same for activations with one affine encoding. NaN stays NaN. `target` may be `values`. */
  fakeQuantizeActivations(values: Float32Array, encoding: AffineEncoding, target: Float32Array): void;

  /** sum h_k (w_k - q_k s)^2 of each block under the given scales. */
  measureErrors(weights: Float32Array, layout: Layout, scales: Float32Array, search: SearchOptions): Float64Array;
  /**
   * For each block the scale with the least weighted error among absmax / range.max times 128ths: from 1 down to 48/128,
   * coarse to fine. Never worse than absmax. A block without a usable scale (absmax / range.max < 2^-120) gets scale 1.
   * Throws QT010, QT013 (importance), QT015 (a row of more than about two million columns).
   */
  searchScales(weights: Float32Array, layout: Layout, search: SearchOptions): ScaleSearch;
  /**
   * Two-level scales (LPBQ): w ~ q * (blockScale * channelScale), block scales 1..15, one channel scale per row, chosen
   * together for the least weighted error of the row. Never worse than rounding absmax scales to their largest / 15.
   * Errors as searchScales.
   */
  searchLpbq(weights: Float32Array, layout: Layout, search: SearchOptions): LpbqSearch;

  /**
   * What error feedback needs of H = X^T X [columns, columns] (symmetric, row-major; the lower triangle is read): H = U D U^T
   * with U unit upper triangular. Throws QT017 if H is not positive definite: add damping to its diagonal.
   */
  factorHessian(hessian: Float32Array, columns: number, name?: string): HessianFactors;
  /**
   * Rounds the rows of a matrix under given scales, each column making up for the errors of those before it, so that the
   * error of the layer's output is least: GPTQ (2210.17323) in its equivalent form LDLQ (QuIP, 2307.13304, section 3.2).
   * @param scales [rows, scaleCount]; column k takes scale groups[k] of its row
   */
  roundCompensated(
    weights: Float32Array,
    layout: Layout,
    factors: HessianFactors,
    scales: Float32Array,
    groups: Uint32Array,
    range: QuantRange,
  ): CompensatedRounding;

  /** [rows, columns] to [columns, rows]. `target` must not overlap `source`; the same holds for the next two. */
  transposeF32(source: Float32Array, rows: number, columns: number, target: Float32Array): void;
  transposeI8(source: Int8Array, rows: number, columns: number, target: Int8Array): void;
  /** Packed int4 without row padding on both sides. */
  transposeI4(source: Uint8Array, rows: number, columns: number, target: Uint8Array): void;
}

export interface Layout {
  readonly rows: number;
  readonly columns: number;
  /** Values that share a scale; divides columns. */
  readonly block: number;
  /** The tensor's name, for error messages. */
  readonly name?: string;
}

/** Limits of the integers, within -128..127, min < 0 < max. */
export interface QuantRange {
  readonly min: number;
  readonly max: number;
}

/** The ranges that targets take: HTP and LiteRT int4 use -8, symmetric int8 leaves -128 out. */
export const INT4: QuantRange = { min: -8, max: 7 };
export const INT4_SYMMETRIC: QuantRange = { min: -7, max: 7 };
export const INT8_SYMMETRIC: QuantRange = { min: -127, max: 127 };

/** real = scale * (integer - zeroPoint), integers in min..max (u8, u16, s16 and so on). */
export interface AffineEncoding extends QuantRange {
  readonly scale: number;
  readonly zeroPoint: number;
}

export interface FiniteRange {
  readonly min: number;
  readonly max: number;
  /** How many values are NaN or infinite. */
  readonly skipped: number;
}

export interface ChannelStatistics {
  /** Largest absolute value of each channel. */
  readonly absmax: Float32Array;
  /** Sum of squares of each channel. */
  readonly sumSquares: Float64Array;
  tokens: number;
}

export function createChannelStatistics(channels: number): ChannelStatistics {
  return { absmax: new Float32Array(channels), sumSquares: new Float64Array(channels), tokens: 0 };
}

export interface Histogram {
  readonly min: number;
  readonly max: number;
  readonly counts: Float64Array;
  skipped: number;
}

/** An empty histogram of equal bins over min..max, min < max. */
export function createHistogram(min: number, max: number, bins = 2048): Histogram {
  return { min, max, counts: new Float64Array(bins), skipped: 0 };
}

export interface DifferenceSums {
  count: number;
  skipped: number;
  /** Sums of reference^2, other^2, reference * other, (reference - other)^2. */
  reference2: number;
  other2: number;
  product: number;
  difference2: number;
  maxDifference: number;
}

export function createDifferenceSums(): DifferenceSums {
  return { count: 0, skipped: 0, reference2: 0, other2: 0, product: 0, difference2: 0, maxDifference: 0 };
}

/** Signal to quantization noise in dB; Infinity where nothing differs. */
export function signalToNoise(sums: DifferenceSums): number {
  return sums.difference2 === 0 ? Infinity : 10 * Math.log10(sums.reference2 / sums.difference2);
}

/** Cosine similarity; 1 where both are zero. */
export function cosineSimilarity(sums: DifferenceSums): number {
  const norm = Math.sqrt(sums.reference2) * Math.sqrt(sums.other2);
  return norm === 0 ? (sums.reference2 === sums.other2 ? 1 : 0) : sums.product / norm;
}

export interface SearchOptions {
  readonly range: QuantRange;
  /** h_k: one finite non-negative weight per column, such as the mean square of the input channel; absent means 1. */
  readonly importance?: Float32Array | undefined;
}

/** U and D of H = U D U^T; see Kernels.factorHessian. */
export interface HessianFactors {
  /** Row k holds U[0..k-1, k], then zeros; `columns` rounded up to 8 values a row. */
  readonly rows: Float32Array;
  readonly diagonal: Float32Array;
}

export interface CompensatedRounding {
  /** [rows, columns]. */
  readonly integers: Int8Array;
  /** (w - q s) H (w - q s)^T of each row. */
  readonly errors: Float64Array;
}

export interface ScaleSearch {
  /** One per block. */
  readonly scales: Float32Array;
  readonly errors: Float64Array;
}

export interface LpbqSearch {
  /** One per row. */
  readonly channelScales: Float32Array;
  /** One per block, 1..15. */
  readonly blockScales: Uint8Array;
  /** Weighted error of each row. */
  readonly errors: Float64Array;
}

import { NpucError } from '../errors.ts';
import type { DType } from './dtype.ts';

/**
 * How a value's real numbers are written as integers: real = scale * (integer - zeroPoint).
 * - per tensor: one scale, no axis;
 * - per channel: `axis` and one scale per index of that axis;
 * - per block: `axis` is cut into blocks of `block`; `scale` has the value's shape with axis / block, row-major;
 * - LPBQ: as per block, but `scale` is one float per index of `channelAxis` and `blockScale` (1..15, the value's shape with
 *   axis / block) multiplies it: the two-level form that HTP runs as a native integer MatMul (facts qnn-htp 2).
 */
export interface Encoding {
  readonly dtype: 'i4' | 'u4' | 'i8' | 'u8' | 'i16' | 'u16' | 'i32';
  readonly scale: Float32Array;
  /** Absent means 0 everywhere; else one entry, or one per scale. */
  readonly zeroPoint?: Int32Array;
  readonly axis?: number;
  readonly block?: number;
  readonly channelAxis?: number;
  readonly blockScale?: Uint8Array;
}

export type EncodingForm = 'tensor' | 'channel' | 'block' | 'lpbq';

export function encodingForm(encoding: Encoding): EncodingForm {
  if (encoding.axis === undefined) return 'tensor';
  if (encoding.block === undefined) return 'channel';
  return encoding.blockScale ? 'lpbq' : 'block';
}

const RANGES: Record<Encoding['dtype'], readonly [number, number]> = {
  i4: [-8, 7],
  u4: [0, 15],
  i8: [-128, 127],
  u8: [0, 255],
  i16: [-32768, 32767],
  u16: [0, 65535],
  i32: [-2147483648, 2147483647],
};

/** The smallest and largest integer of an encoding's type. */
export function integerRange(dtype: Encoding['dtype']): readonly [number, number] {
  return RANGES[dtype];
}

/** Nearest integer, ties to even: the one rounding rule of the project (ONNX QuantizeLinear, TFLite, WASM f32.nearest). */
export function roundEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  if (rest < 0.5) return floor;
  if (rest > 0.5) return floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}

/**
 * Affine per-tensor encoding that covers [min, max] and holds 0 exactly. Arithmetic follows ONNX Runtime: f32 scale,
 * zero point rounded to even. A degenerate range gets a scale that holds its values.
 * @throws QT010 when the range is not finite
 */
export function affineEncoding(dtype: 'u8' | 'u16' | 'i8' | 'i16', min: number, max: number): Encoding {
  const [low, high] = integerRange(dtype);
  const from = Math.min(0, min);
  const to = Math.max(0, max);
  if (!Number.isFinite(from) || !Number.isFinite(to))
    throw new NpucError('QT010', { message: `range ${min}..${max} is not finite` });
  const scale = Math.fround(Math.max((to - from) / (high - low), 1e-9));
  const zero = Math.min(high, Math.max(low, roundEven(low - from / scale)));
  return { dtype, scale: Float32Array.of(scale), zeroPoint: Int32Array.of(zero) };
}

/**
 * Symmetric per-tensor encoding: zero point 0 for signed types, the middle (128, 32768) for unsigned ones.
 * @throws QT010 when the magnitude is not finite
 */
export function symmetricEncoding(dtype: 'u8' | 'u16' | 'i8' | 'i16', absmax: number): Encoding {
  const [low, high] = integerRange(dtype);
  const half = dtype.startsWith('u') ? (high - 1) / 2 : high;
  if (!Number.isFinite(absmax)) throw new NpucError('QT010', { message: `largest magnitude ${absmax} is not finite` });
  const scale = Math.fround(Math.max(absmax / half, 1e-9));
  return low === 0
    ? { dtype, scale: Float32Array.of(scale), zeroPoint: Int32Array.of((high + 1) / 2) }
    : { dtype, scale: Float32Array.of(scale), zeroPoint: Int32Array.of(0) };
}

/** Two encodings that write every real number as the same integer. */
export function sameEncoding(a: Encoding, b: Encoding): boolean {
  return (
    a.dtype === b.dtype &&
    a.axis === b.axis &&
    a.block === b.block &&
    a.channelAxis === b.channelAxis &&
    sameArray(a.scale, b.scale) &&
    sameArray(a.zeroPoint ?? [0], b.zeroPoint ?? [0]) &&
    sameArray(a.blockScale ?? [], b.blockScale ?? [])
  );
}

function sameArray(a: ArrayLike<number>, b: ArrayLike<number>): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** Bits of one integer of the encoding. */
export function encodingBits(dtype: Encoding['dtype']): number {
  return Number(dtype.slice(1));
}

export function isEncodingDType(dtype: DType): dtype is Encoding['dtype'] {
  return dtype in RANGES;
}

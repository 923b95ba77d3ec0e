/**
 * Element types. Names follow the field's short spelling; `code` is ONNX TensorProto.DataType (onnx.proto, 1.20).
 * Sub-byte types lie packed in tensor bytes (low nibble first, as ONNX says) and unpacked, one element a byte, in TensorData.
 */
export type DType =
  | 'f32'
  | 'f64'
  | 'f16'
  | 'bf16'
  | 'i8'
  | 'u8'
  | 'i16'
  | 'u16'
  | 'i32'
  | 'u32'
  | 'i64'
  | 'u64'
  | 'i4'
  | 'u4'
  | 'i2'
  | 'u2'
  | 'bool'
  | 'string'
  | 'c64'
  | 'c128'
  | 'f8e4m3fn'
  | 'f8e4m3fnuz'
  | 'f8e5m2'
  | 'f8e5m2fnuz'
  | 'f4e2m1'
  | 'f8e8m0';

export type TypedArray =
  | Float32Array
  | Float64Array
  | Int8Array
  | Uint8Array
  | Int16Array
  | Uint16Array
  | Int32Array
  | Uint32Array
  | BigInt64Array
  | BigUint64Array;

type ArrayConstructor = new (buffer: ArrayBufferLike, byteOffset: number, length: number) => TypedArray;

interface DTypeInfo {
  /** ONNX TensorProto.DataType. */
  code: number;
  /** Bits of one element in tensor bytes; 0 for strings. */
  bits: number;
  /** The typed array of TensorData; f16 and bf16 are raw bits in a Uint16Array. */
  array: ArrayConstructor;
}

export const DTYPES: Readonly<Record<DType, DTypeInfo>> = {
  f32: { code: 1, bits: 32, array: Float32Array },
  u8: { code: 2, bits: 8, array: Uint8Array },
  i8: { code: 3, bits: 8, array: Int8Array },
  u16: { code: 4, bits: 16, array: Uint16Array },
  i16: { code: 5, bits: 16, array: Int16Array },
  i32: { code: 6, bits: 32, array: Int32Array },
  i64: { code: 7, bits: 64, array: BigInt64Array },
  string: { code: 8, bits: 0, array: Uint8Array },
  bool: { code: 9, bits: 8, array: Uint8Array },
  f16: { code: 10, bits: 16, array: Uint16Array },
  f64: { code: 11, bits: 64, array: Float64Array },
  u32: { code: 12, bits: 32, array: Uint32Array },
  u64: { code: 13, bits: 64, array: BigUint64Array },
  c64: { code: 14, bits: 64, array: Float32Array },
  c128: { code: 15, bits: 128, array: Float64Array },
  bf16: { code: 16, bits: 16, array: Uint16Array },
  f8e4m3fn: { code: 17, bits: 8, array: Uint8Array },
  f8e4m3fnuz: { code: 18, bits: 8, array: Uint8Array },
  f8e5m2: { code: 19, bits: 8, array: Uint8Array },
  f8e5m2fnuz: { code: 20, bits: 8, array: Uint8Array },
  u4: { code: 21, bits: 4, array: Uint8Array },
  i4: { code: 22, bits: 4, array: Int8Array },
  f4e2m1: { code: 23, bits: 4, array: Uint8Array },
  f8e8m0: { code: 24, bits: 8, array: Uint8Array },
  u2: { code: 25, bits: 2, array: Uint8Array },
  i2: { code: 26, bits: 2, array: Int8Array },
};

const BY_CODE = new Map<number, DType>(
  (Object.entries(DTYPES) as [DType, DTypeInfo][]).map(([name, info]) => [info.code, name]),
);

/** The type of an ONNX TensorProto.DataType code, or undefined when ONNX 1.20 does not know it. */
export function dtypeOfOnnxCode(code: number): DType | undefined {
  return BY_CODE.get(code);
}

/** Bytes that `elements` elements take in tensor bytes (sub-byte types are packed, the last byte padded). */
export function byteLengthOf(dtype: DType, elements: number): number {
  return Math.ceil((elements * DTYPES[dtype].bits) / 8);
}

export function isFloat(dtype: DType): boolean {
  return (
    dtype === 'f32' ||
    dtype === 'f64' ||
    dtype === 'f16' ||
    dtype === 'bf16' ||
    dtype.startsWith('f8') ||
    dtype === 'f4e2m1'
  );
}

const scratch = new DataView(new ArrayBuffer(4));

/** IEEE half bits to number. */
export function halfToNumber(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** Number to IEEE half bits, ties to even, overflow to infinity. */
export function numberToHalf(value: number): number {
  scratch.setFloat32(0, value);
  const bits = scratch.getUint32(0);
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x47800000) return sign | 0x7c00;
  if (magnitude < 0x33000000) return sign;
  let exponent = (magnitude >>> 23) - 112;
  let fraction = (magnitude & 0x7fffff) | 0x800000;
  let shift = 13;
  if (exponent <= 0) {
    shift += 1 - exponent;
    exponent = 0;
  }
  const kept = fraction >>> shift;
  const rest = fraction & ((1 << shift) - 1);
  const half = 1 << (shift - 1);
  fraction = kept + (rest > half || (rest === half && kept & 1) ? 1 : 0);
  // The implicit bit adds one to the exponent field of a normal number, so the carry is right by itself.
  return sign | (exponent === 0 ? fraction : ((exponent - 1) << 10) + fraction);
}

/** bfloat16 bits to number. */
export function bfloatToNumber(bits: number): number {
  scratch.setUint32(0, bits << 16);
  return scratch.getFloat32(0);
}

/** Number to bfloat16 bits, ties to even. */
export function numberToBfloat(value: number): number {
  scratch.setFloat32(0, value);
  const bits = scratch.getUint32(0);
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

import { NpucError } from '../errors.ts';
import {
  bfloatToNumber,
  DTYPES,
  type DType,
  halfToNumber,
  numberToBfloat,
  numberToHalf,
  type TypedArray,
} from '../ir/dtype.ts';
import { elementCount, encodeStrings, Tensor, type TensorData } from '../ir/tensor.ts';
import { encodeMiniFloat, type MiniFloat, miniFloatValues } from './float8.ts';

/** A typed array whose elements are JavaScript numbers. */
export type NumberArray = Exclude<TypedArray, BigInt64Array | BigUint64Array>;

const MINI_FLOATS: ReadonlySet<DType> = new Set(['f8e4m3fn', 'f8e4m3fnuz', 'f8e5m2', 'f8e5m2fnuz', 'f8e8m0', 'f4e2m1']);

export function isMiniFloat(dtype: DType): dtype is MiniFloat {
  return MINI_FLOATS.has(dtype);
}

/** Whether elements are 64-bit integers, BigInts in TensorData. */
export function isBig(dtype: DType): dtype is 'i64' | 'u64' {
  return dtype === 'i64' || dtype === 'u64';
}

export function isInteger(dtype: DType): boolean {
  return /^[iu]\d+$/.test(dtype);
}

/** A zeroed array of the type that TensorData uses. */
export function newArray(dtype: DType, length: number): TypedArray {
  const { array } = DTYPES[dtype];
  const width = (array as unknown as { BYTES_PER_ELEMENT: number }).BYTES_PER_ELEMENT;
  return new array(new ArrayBuffer(length * width), 0, length);
}

/**
 * The elements as numbers: the tensor's own array where that is one (do not write to it), else a decoded copy.
 * 64-bit integers lose what lies beyond 2^53. @throws XX001 for strings and complex numbers
 */
export function readReals(tensor: TensorData): NumberArray {
  const { dtype, data } = tensor;
  if (dtype === 'string' || dtype === 'c64' || dtype === 'c128')
    throw new NpucError('XX001', { message: `${dtype} elements are not real numbers` });
  if (data instanceof BigInt64Array || data instanceof BigUint64Array) {
    const out = new Float64Array(data.length);
    for (let i = 0; i < out.length; i++) out[i] = Number(data[i]);
    return out;
  }
  if (dtype === 'f16' || dtype === 'bf16') {
    const decode = dtype === 'f16' ? halfToNumber : bfloatToNumber;
    const out = new Float32Array(data.length);
    for (let i = 0; i < out.length; i++) out[i] = decode(data[i]!);
    return out;
  }
  if (isMiniFloat(dtype)) {
    const values = miniFloatValues(dtype);
    const out = new Float32Array(data.length);
    for (let i = 0; i < out.length; i++) out[i] = values[data[i]!]!;
    return out;
  }
  return data;
}

/** The elements as a Float32Array or Float64Array, so that hot loops see one kind of array. */
export function readFloats(tensor: TensorData): Float32Array | Float64Array {
  const reals = readReals(tensor);
  return reals instanceof Float32Array || reals instanceof Float64Array ? reals : Float64Array.from(reals);
}

/** Where results of a type are computed before `encodeReals`: the final array itself where it takes numbers. */
export function newReals(dtype: DType, length: number): NumberArray {
  if (isBig(dtype) || dtype === 'f16' || dtype === 'bf16' || isMiniFloat(dtype)) return new Float64Array(length);
  return newArray(dtype, length) as NumberArray;
}

/**
 * A tensor from numbers. Floats round to nearest even (8-bit floats saturate), integers are truncated and wrap as
 * two's complement. An array of the right kind is taken over, not copied.
 */
export function encodeReals(dtype: DType, shape: readonly number[], values: ArrayLike<number>): TensorData {
  const count = elementCount(shape);
  if (values.length !== count)
    throw new NpucError('XX001', { message: `${values.length} elements computed for shape [${shape}]` });
  const out = newArray(dtype, 0);
  const own =
    !isBig(dtype) && dtype !== 'f16' && dtype !== 'bf16' && !isMiniFloat(dtype) && DTYPES[dtype].bits >= 8
      ? values.constructor === out.constructor
      : false;
  if (own) return { dtype, shape, data: values as NumberArray };
  return { dtype, shape, data: convert(dtype, values) };
}

function convert(dtype: DType, values: ArrayLike<number>): TypedArray {
  const count = values.length;
  const out = newArray(dtype, count);
  if (out instanceof BigInt64Array || out instanceof BigUint64Array) {
    for (let i = 0; i < count; i++) {
      const value = values[i]!;
      out[i] = Number.isFinite(value) ? BigInt(Math.trunc(value)) : 0n;
    }
  } else if (dtype === 'f16' || dtype === 'bf16') {
    const encode = dtype === 'f16' ? doubleToHalf : doubleToBfloat;
    for (let i = 0; i < count; i++) out[i] = encode(values[i]!);
  } else if (isMiniFloat(dtype)) {
    for (let i = 0; i < count; i++) out[i] = encodeMiniFloat(dtype, values[i]!);
  } else if (DTYPES[dtype].bits < 8) {
    const { bits } = DTYPES[dtype];
    const signed = dtype.startsWith('i');
    for (let i = 0; i < count; i++) out[i] = wrapBits(values[i]!, bits, signed);
  } else {
    for (let i = 0; i < count; i++) out[i] = values[i]!;
  }
  return out;
}

/** The low `bits` of an integer as two's complement. */
export function wrapBits(value: number, bits: number, signed: boolean): number {
  const raw = Math.trunc(value) & ((1 << bits) - 1);
  return signed && raw >= 1 << (bits - 1) ? raw - (1 << bits) : raw;
}

/**
 * Double to half in one rounding: numberToHalf rounds to f32 first, and a double just off a half's tie would be taken
 * for the tie. The f32 next to it on the double's side breaks the tie the right way.
 */
function doubleToHalf(value: number): number {
  return numberToHalf(awayFromTie(value));
}

function doubleToBfloat(value: number): number {
  return numberToBfloat(awayFromTie(value));
}

const bits = new DataView(new ArrayBuffer(4));

/** Rounds to f32 "to odd": an inexact result gets an odd last bit, so that a second rounding is the only one that counts. */
function awayFromTie(value: number): number {
  const near = Math.fround(value);
  if (near === value || !Number.isFinite(near)) return near;
  bits.setFloat32(0, near);
  const raw = bits.getUint32(0);
  if (raw & 1) return near;
  const grow = Math.abs(near) < Math.abs(value);
  bits.setUint32(0, grow ? raw + 1 : raw - 1);
  return bits.getFloat32(0);
}

/** An i64 tensor of small integers. */
export function int64s(shape: readonly number[], values: ArrayLike<number>): TensorData {
  return encodeReals('i64', shape, values);
}

/** The elements of a small integer tensor (axes, sizes) as numbers. */
export function readInts(tensor: TensorData): number[] {
  return Array.from(readReals(tensor));
}

/** A tensor input that must be there. @throws IR021 */
export function need(inputs: readonly (TensorData | undefined)[], index: number, op: string): TensorData {
  const tensor = inputs[index];
  if (!tensor) throw new NpucError('IR021', { message: `${op} needs input ${index}`, where: op });
  return tensor;
}

/** Same elements under another shape. */
export function withShape(tensor: TensorData, shape: readonly number[]): TensorData {
  return tensor.strings
    ? { dtype: tensor.dtype, shape, data: tensor.data, strings: tensor.strings }
    : { dtype: tensor.dtype, shape, data: tensor.data };
}

/** The elements at `offsets`, in that order; `fill` stands for offsets below zero. */
export function takeElements(
  tensor: TensorData,
  shape: readonly number[],
  offsets: Int32Array,
  fill?: TensorData,
): TensorData {
  if (tensor.dtype === 'string') {
    const strings = Array.from(offsets, (at) => (at < 0 ? (fill?.strings?.[0] ?? '') : tensor.strings![at]!));
    return { dtype: 'string', shape, data: tensor.data, strings };
  }
  const out = newArray(tensor.dtype, offsets.length) as Float32Array;
  const source = tensor.data as Float32Array;
  const blank = (fill?.data[0] ?? out[0] ?? 0) as number;
  if (blank === 0 || (blank as unknown) === 0n) {
    for (let i = 0; i < offsets.length; i++) {
      const at = offsets[i]!;
      if (at >= 0) out[i] = source[at]!;
    }
  } else {
    for (let i = 0; i < offsets.length; i++) {
      const at = offsets[i]!;
      out[i] = at < 0 ? blank : source[at]!;
    }
  }
  return { dtype: tensor.dtype, shape, data: out };
}

/** A tensor in memory from evaluated data: sub-byte elements are packed, strings encoded. */
export function packTensor(data: TensorData): Tensor {
  if (!data.strings) return Tensor.of(data.dtype, data.shape, data.data);
  return new Tensor('string', [...data.shape], { kind: 'memory', bytes: encodeStrings(data.strings) });
}

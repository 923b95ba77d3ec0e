import type { DType } from '../ir/dtype.ts';
import { elementCount, type TensorData } from '../ir/tensor.ts';
import { encodeReals, isBig, newArray, newReals, readReals, withShape } from './elements.ts';
import { broadcastDims, broadcastOffsets } from './indexing.ts';

/** Applies a function to every element; the result has the same type unless one is given. */
export function mapElements(
  tensor: TensorData,
  real: (x: number) => number,
  big?: (x: bigint) => bigint,
  dtype: DType = tensor.dtype,
): TensorData {
  if (big && isBig(tensor.dtype)) {
    const source = tensor.data as BigInt64Array;
    const out = newArray(dtype, source.length) as BigInt64Array;
    for (let i = 0; i < source.length; i++) out[i] = big(source[i]!);
    return { dtype, shape: tensor.shape, data: out };
  }
  const source = readReals(tensor);
  const out = newReals(dtype, source.length);
  for (let i = 0; i < source.length; i++) out[i] = real(source[i]!);
  return encodeReals(dtype, tensor.shape, out);
}

export interface BinaryRule {
  readonly real: (x: number, y: number) => number;
  /** Exact arithmetic on 64-bit integers, where both operands are such. */
  readonly big?: (x: bigint, y: bigint) => bigint;
}

/** Applies a function to every pair of elements under numpy broadcasting. @throws IR020 when the shapes do not fit */
export function combineElements(
  a: TensorData,
  b: TensorData,
  rule: BinaryRule,
  dtype: DType,
  where: string,
): TensorData {
  const shape = broadcastDims([a.shape, b.shape], where);
  const count = elementCount(shape);
  if (rule.big && isBig(a.dtype) && isBig(b.dtype)) {
    const x = a.data as BigInt64Array;
    const y = b.data as BigInt64Array;
    const out = newArray(isBig(dtype) ? dtype : 'i64', count) as BigInt64Array;
    combineInto(out, x, y, rule.big, a.shape, b.shape, shape);
    const result: TensorData = { dtype: isBig(dtype) ? dtype : 'i64', shape, data: out };
    return result.dtype === dtype ? result : encodeReals(dtype, shape, readReals(result));
  }
  const out = newReals(dtype, count);
  combineInto(
    out as Float32Array,
    readReals(a) as Float32Array,
    readReals(b) as Float32Array,
    rule.real,
    a.shape,
    b.shape,
    shape,
  );
  return encodeReals(dtype, shape, out);
}

interface Elements<T> {
  readonly length: number;
  [index: number]: T;
}

function combineInto<T>(
  out: Elements<T>,
  x: Elements<T>,
  y: Elements<T>,
  f: (x: T, y: T) => T,
  xShape: readonly number[],
  yShape: readonly number[],
  shape: readonly number[],
): void {
  const count = out.length;
  const xWhole = x.length === count;
  const yWhole = y.length === count;
  if (xWhole && yWhole) for (let i = 0; i < count; i++) out[i] = f(x[i]!, y[i]!);
  else if (xWhole && y.length === 1) for (let i = 0; i < count; i++) out[i] = f(x[i]!, y[0]!);
  else if (yWhole && x.length === 1) for (let i = 0; i < count; i++) out[i] = f(x[0]!, y[i]!);
  else {
    const xAt = broadcastOffsets(xShape, shape);
    const yAt = broadcastOffsets(yShape, shape);
    for (let i = 0; i < count; i++) out[i] = f(x[xAt[i]!]!, y[yAt[i]!]!);
  }
}

/** A tensor repeated up to a broadcast shape. */
export function expandTo(tensor: TensorData, shape: readonly number[], where: string): TensorData {
  const out = broadcastDims([tensor.shape, shape], where);
  if (elementCount(out) === elementCount(tensor.shape)) return withShape(tensor, out);
  const offsets = broadcastOffsets(tensor.shape, out);
  if (tensor.dtype === 'string')
    return { ...tensor, shape: out, strings: Array.from(offsets, (at) => tensor.strings![at]!) };
  const data = newArray(tensor.dtype, offsets.length) as Float32Array;
  const source = tensor.data as Float32Array;
  for (let i = 0; i < offsets.length; i++) data[i] = source[offsets[i]!]!;
  return { dtype: tensor.dtype, shape: out, data };
}

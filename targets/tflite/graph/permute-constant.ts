import type { TypedArray } from '../../../compiler/ir/dtype.ts';
import { DTYPES } from '../../../compiler/ir/dtype.ts';
import type { Encoding } from '../../../compiler/ir/encoding.ts';
import { elementCount, packSubByte, Tensor } from '../../../compiler/ir/tensor.ts';
import { isIdentity } from './order.ts';

/** One result per source and permutation, so that two readers of a constant share its bytes. */
const known = new WeakMap<Tensor, Map<string, Tensor>>();

/**
 * A constant under another shape of as many elements, then transposed: dimension k of the result is dimension
 * `permutation[k]` of that shape. Elements are moved when the bytes are asked for.
 */
export function permuteConstant(source: Tensor, shape: readonly number[], permutation: readonly number[]): Tensor {
  if (isIdentity(permutation) && shape.join() === source.shape.join()) return source;
  let results = known.get(source);
  if (!results) {
    results = new Map();
    known.set(source, results);
  }
  const key = `${shape}:${permutation}`;
  let result = results.get(key);
  if (!result) {
    const dims = permutation.map((axis) => shape[axis]!);
    const compute = (): Uint8Array => {
      if (isIdentity(permutation)) return source.read();
      const moved = permuteElements(source.toData().data, shape, permutation);
      const { bits } = DTYPES[source.dtype];
      if (bits < 8) return packSubByte(moved as Int8Array, bits);
      return new Uint8Array(moved.buffer, moved.byteOffset, moved.byteLength);
    };
    result = new Tensor(source.dtype, dims, { kind: 'derived', compute });
    results.set(key, result);
  }
  return result;
}

/** Row-major elements of a shape in transposed order. */
export function permuteElements(
  source: TypedArray,
  shape: readonly number[],
  permutation: readonly number[],
): TypedArray {
  const from = source as Float32Array;
  const to = new (source.constructor as new (length: number) => Float32Array)(source.length);
  const strides = shape.map((_, axis) => elementCount(shape.slice(axis + 1)));
  const dims = permutation.map((axis) => shape[axis]!);
  const steps = permutation.map((axis) => strides[axis]!);
  const index = dims.map(() => 0);
  let at = 0;
  for (let i = 0; i < to.length; i++) {
    to[i] = from[at]!;
    for (let axis = dims.length - 1; axis >= 0; axis--) {
      index[axis]!++;
      at += steps[axis]!;
      if (index[axis]! < dims[axis]!) break;
      at -= steps[axis]! * dims[axis]!;
      index[axis] = 0;
    }
  }
  return to;
}

const moved = new WeakMap<Encoding, Map<number, Encoding>>();

/** The same scales along another axis; one object per source, as integers are shared by tensor and encoding. */
export function moveEncoding(encoding: Encoding, axis: number): Encoding {
  if (encoding.axis === undefined || encoding.axis === axis) return encoding;
  let results = moved.get(encoding);
  if (!results) {
    results = new Map();
    moved.set(encoding, results);
  }
  let result = results.get(axis);
  if (!result) {
    result = { ...encoding, axis };
    results.set(axis, result);
  }
  return result;
}

import { sameShape } from './ir/dims.ts';
import { type DType, isFloat, numberToBfloat, numberToHalf } from './ir/dtype.ts';
import type { Node, Shape, Value } from './ir/graph.ts';
import { elementCount, Tensor } from './ir/tensor.ts';

/** Questions that passes ask of values, answered `undefined` or `false` where nothing is known. */

export function knownDType(value: Value | undefined): DType | undefined {
  return value?.type?.kind === 'tensor' ? value.type.dtype : undefined;
}

export function knownShape(value: Value | undefined): Shape | undefined {
  return value?.type?.kind === 'tensor' ? value.type.shape : undefined;
}

export function knownRank(value: Value | undefined): number | undefined {
  return knownShape(value)?.length;
}

/** The length of the last axis, when it is a number. */
export function lastLength(value: Value | undefined): number | undefined {
  const last = knownShape(value)?.at(-1);
  return typeof last === 'number' ? last : undefined;
}

/** Whether two values have the same shape, known on both sides, whatever their symbols stand for. */
export function sameKnownShape(a: Value | undefined, b: Value | undefined): boolean {
  const left = knownShape(a);
  const right = knownShape(b);
  return left !== undefined && right !== undefined && sameShape(left, right);
}

/** Whether two values have the same element type and shape, both known. */
export function sameKnownType(a: Value | undefined, b: Value | undefined): boolean {
  return knownDType(a) !== undefined && knownDType(a) === knownDType(b) && sameKnownShape(a, b);
}

export function isFloatValue(value: Value): boolean {
  const dtype = knownDType(value);
  return dtype !== undefined && isFloat(dtype);
}

/** Axes of a reducing, squeezing or unsqueezing node, from the input or the attribute; undefined when not constant. */
export function axesOfNode(node: Node, input = 1): number[] | undefined {
  return node.ints('axes') ?? node.inputs[input]?.data?.toNumbers();
}

/** Whether a reduction runs over the last axis only and keeps it. */
export function reducesLastAxis(node: Node): boolean {
  const axes = axesOfNode(node);
  const rank = knownRank(node.inputs[0]);
  if (axes?.length !== 1 || node.int('keepdims', 1) !== 1) return false;
  return axes[0] === -1 || (rank !== undefined && axes[0] === rank - 1);
}

/** One number in any real type: f16 and bf16 as their bits. */
export function scalarTensor(dtype: DType, value: number): Tensor {
  if (dtype === 'f16') return Tensor.scalar('f16', numberToHalf(value));
  return Tensor.scalar(dtype, dtype === 'bf16' ? numberToBfloat(value) : value);
}

/** A vector that repeats one number, in any real type. */
export function filledVector(dtype: DType, length: number, value: number): Tensor {
  return Tensor.of(
    dtype,
    [length],
    new Array<number>(length).fill(Number(scalarTensor(dtype, value).toData().data[0])),
  );
}

/**
 * The same elements under another shape of as many: nothing is copied.
 * A tensor read lazily stays lazy.
 */
export function reshapeTensor(tensor: Tensor, shape: readonly number[]): Tensor {
  if (elementCount(shape) !== tensor.size) throw new RangeError(`[${tensor.shape}] does not fit [${shape}]`);
  const { storage } = tensor;
  return new Tensor(
    tensor.dtype,
    shape,
    storage.kind === 'derived' ? { kind: 'derived', compute: () => tensor.read() } : storage,
  );
}

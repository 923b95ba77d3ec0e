import { elementCount } from '../../compiler/ir/tensor.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { cosineSimilarity, createDifferenceSums, signalToNoise } from '../../compiler/kernels/kernels.ts';

/** Real numbers with a shape, row-major. */
export interface RealTensor {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

/** How one value compares with another, whatever their layouts and scales. */
export interface AlignedComparison {
  /** Axes of the other value in the reference's order; absent where it lies as the reference does. */
  readonly permutation?: readonly number[];
  /** dB as they are, the layout undone. */
  readonly sqnr: number;
  readonly cosine: number;
  /** What the other value must be multiplied with to come nearest to the reference. */
  readonly gain: number;
  /** dB with that factor. */
  readonly scaledSqnr: number;
}

/** Elements that a layout is chosen by. */
const PROBE = 4096;
/** Axes of which all orders are tried. */
const MOST_AXES = 5;
/** A factor this near to one is no change of scale. */
const SAME_SCALE = 0.02;
/** dB under which two values are not the same one at another scale. */
const ALIKE_DB = 10;

/**
 * Compares a value with another of the same elements that may lie in another order (NCHW for NHWC, a transposed weight) and
 * may carry another scale. The order is the one that fits the shapes and agrees best; axes of length one do not count.
 * @returns undefined where no order fits
 */
export function compareAligned(reference: RealTensor, other: RealTensor): AlignedComparison | undefined {
  const permutation = findPermutation(reference, other);
  if (!permutation) return undefined;
  const moved = isIdentity(permutation) ? other.data : permute(other, permutation);
  const sums = createDifferenceSums();
  wasmKernels.accumulateDifference(reference.data, moved, sums);
  const gain = sums.other2 === 0 ? 1 : sums.product / sums.other2;
  const rest = sums.reference2 - gain * sums.product;
  return {
    ...(isIdentity(permutation) ? {} : { permutation }),
    sqnr: signalToNoise(sums),
    cosine: cosineSimilarity(sums),
    gain,
    scaledSqnr: rest <= 0 ? Number.POSITIVE_INFINITY : 10 * Math.log10(sums.reference2 / rest),
  };
}

/** What a comparison says beside its dB: another layout, another scale. */
export function describeAlignment({ permutation, gain, sqnr, scaledSqnr }: AlignedComparison): string[] {
  return [
    ...(permutation ? [`axes in the order ${permutation.join(', ')}`] : []),
    ...(Math.abs(gain - 1) > SAME_SCALE && scaledSqnr - sqnr > 3 && scaledSqnr > ALIKE_DB
      ? [`${(1 / gain).toFixed(3)} times as large: ${scaledSqnr.toFixed(1)} dB but for that`]
      : []),
  ];
}

function isIdentity(order: readonly number[]): boolean {
  return order.every((axis, i) => axis === i);
}

/** The order of the other's axes that gives the reference's shape and agrees best with it. */
function findPermutation(reference: RealTensor, other: RealTensor): readonly number[] | undefined {
  const rank = reference.shape.length;
  if (elementCount(reference.shape) !== elementCount(other.shape) || rank !== other.shape.length) return undefined;
  const straight = reference.shape.every((length, axis) => length === other.shape[axis]);
  if (rank > MOST_AXES) return straight ? reference.shape.map((_, axis) => axis) : undefined;
  const orders = listOrders(rank).filter((order) => order.every((axis, i) => other.shape[axis] === reference.shape[i]));
  if (orders.length < 2) return orders[0];
  // Where axes have equal lengths several orders fit: the elements decide, and a draw goes to the plain one.
  const step = Math.max(1, Math.floor(reference.data.length / PROBE));
  let best: { order: readonly number[]; error: number } | undefined;
  for (const order of orders) {
    const strides = stridesOf(other.shape);
    let error = 0;
    for (let i = 0; i < reference.data.length; i += step)
      error += (reference.data[i]! - other.data[sourceOf(i, reference.shape, order, strides)]!) ** 2;
    if (!best || error < best.error * (1 - 1e-6)) best = { order, error };
  }
  return best!.order;
}

function listOrders(rank: number): number[][] {
  if (rank === 0) return [[]];
  const orders: number[][] = [];
  const extend = (order: number[]): void => {
    if (order.length === rank) orders.push(order);
    for (let axis = 0; axis < rank; axis++) if (!order.includes(axis)) extend([...order, axis]);
  };
  extend([]);
  return orders;
}

function stridesOf(shape: readonly number[]): number[] {
  const strides = new Array<number>(shape.length).fill(1);
  for (let axis = shape.length - 2; axis >= 0; axis--) strides[axis] = strides[axis + 1]! * shape[axis + 1]!;
  return strides;
}

/** Where element `index` of the reference lies in the other tensor. */
function sourceOf(
  index: number,
  shape: readonly number[],
  order: readonly number[],
  strides: readonly number[],
): number {
  let rest = index;
  let source = 0;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    const length = shape[axis]!;
    source += (rest % length) * strides[order[axis]!]!;
    rest = Math.floor(rest / length);
  }
  return source;
}

/** Elements with axis i of the result being axis order[i] of the tensor, row-major. */
export function permute({ shape, data }: RealTensor, order: readonly number[]): Float32Array {
  const strides = stridesOf(shape);
  const moved = order.map((axis) => shape[axis]!);
  return Float32Array.from(data, (_, i) => data[sourceOf(i, moved, order, strides)]!);
}

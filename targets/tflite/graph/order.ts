/**
 * In which order a tensor holds the axes of a value: dimension k of the tensor is axis `order[k]` of the value. ONNX values are
 * channels first; TFLite's convolutions, pools and resizes want channels last.
 */
export type Order = readonly number[];

/** What a node can run in: the axes as ONNX has them, or axis 1 behind all others. */
export type Layout = 'plain' | 'last';

/** The order of a value of so many axes in a layout; below three axes both are the same. */
export function orderOf(layout: Layout, rank: number): Order {
  const axes = Array.from({ length: rank }, (_, axis) => axis);
  return layout === 'plain' || rank < 3 ? axes : [0, ...axes.slice(2), 1];
}

/** The lengths of a value's axes as a tensor has them. */
export function orderedDims(dims: readonly number[], order: Order): number[] {
  return order.map((axis) => dims[axis]!);
}

/** The TRANSPOSE that makes one order of another: dimension k of the result is dimension `permutation[k]` of the source. */
export function permutationBetween(from: Order, to: Order): number[] {
  return to.map((axis) => from.indexOf(axis));
}

export function isIdentity(permutation: readonly number[]): boolean {
  return permutation.every((from, to) => from === to);
}

/** Whether a transpose leaves the elements where they are, because it only moves axes of length 1. */
export function movesNothing(dims: readonly number[], permutation: readonly number[]): boolean {
  return isIdentityOrder(permutation.filter((axis) => dims[axis] !== 1));
}

function isIdentityOrder(axes: readonly number[]): boolean {
  return axes.every((axis, i) => i === 0 || axes[i - 1]! < axis);
}

/** The position of a value's axis, counted from the end when negative, in a tensor of an order. */
export function placeOf(axis: number, order: Order): number {
  return order.indexOf(axis < 0 ? axis + order.length : axis);
}

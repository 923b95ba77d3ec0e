import { NpucError } from '../errors.ts';

/** Row-major strides of a shape, in elements. */
export function stridesOf(shape: readonly number[]): number[] {
  const strides = new Array<number>(shape.length);
  let stride = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    strides[axis] = stride;
    stride *= shape[axis]!;
  }
  return strides;
}

/** Offsets `base + sum(index * stride)` of every index of `shape`, row-major: transpose, slice, expand and broadcast are this. */
export function stridedOffsets(shape: readonly number[], strides: readonly number[], base = 0): Int32Array {
  let offsets = Int32Array.of(base);
  for (let axis = 0; axis < shape.length; axis++) {
    const size = shape[axis]!;
    const stride = strides[axis]!;
    const next = new Int32Array(offsets.length * size);
    for (let i = 0, at = 0; i < offsets.length; i++) {
      const start = offsets[i]!;
      for (let j = 0; j < size; j++) next[at++] = start + j * stride;
    }
    offsets = next;
  }
  return offsets;
}

/** Strides that read a tensor of `shape` as if it had the broadcast shape `out`. */
export function broadcastStrides(shape: readonly number[], out: readonly number[]): number[] {
  const strides = stridesOf(shape);
  const skip = out.length - shape.length;
  return out.map((_, axis) => (axis < skip || shape[axis - skip] === 1 ? 0 : strides[axis - skip]!));
}

/** For every element of the broadcast shape `out`, the element of a tensor of `shape`. */
export function broadcastOffsets(shape: readonly number[], out: readonly number[]): Int32Array {
  return stridedOffsets(out, broadcastStrides(shape, out));
}

/** The numpy broadcast of fixed shapes. @throws IR020 when they do not fit */
export function broadcastDims(shapes: readonly (readonly number[])[], where: string): number[] {
  const rank = Math.max(0, ...shapes.map((shape) => shape.length));
  return Array.from({ length: rank }, (_, axis) => {
    let size = 1;
    for (const shape of shapes) {
      const own = shape[axis - rank + shape.length] ?? 1;
      if (own === size || own === 1) continue;
      if (size !== 1)
        throw new NpucError('IR020', {
          message: `shapes ${shapes.map((dims) => `[${dims}]`).join(' and ')} do not broadcast`,
          where,
        });
      size = own;
    }
    return size;
  });
}

/** An axis counted from the front. @throws IR022 when it lies outside the rank */
export function normalizeAxis(axis: number, rank: number, where: string): number {
  const positive = axis < 0 ? axis + rank : axis;
  if (!Number.isInteger(axis) || positive < 0 || positive >= Math.max(rank, 1))
    throw new NpucError('IR022', { message: `axis ${axis} lies outside rank ${rank}`, where });
  return positive;
}

/** Several axes, counted from the front, ascending. @throws IR022 when one is outside or twice */
export function normalizeAxes(axes: readonly number[], rank: number, where: string): number[] {
  const positive = axes.map((axis) => normalizeAxis(axis, rank, where)).sort((a, b) => a - b);
  if (positive.some((axis, index) => index > 0 && axis === positive[index - 1]))
    throw new NpucError('IR022', { message: `axes [${axes}] name one axis twice`, where });
  return positive;
}

/** Elements before, along and after an axis: how most loops see a tensor. */
export function splitAtAxis(shape: readonly number[], axis: number): { outer: number; size: number; inner: number } {
  let outer = 1;
  for (let i = 0; i < axis; i++) outer *= shape[i]!;
  let inner = 1;
  for (let i = axis + 1; i < shape.length; i++) inner *= shape[i]!;
  return { outer, size: shape[axis] ?? 1, inner };
}

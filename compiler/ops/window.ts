import { NpucError } from '../errors.ts';
import { addDims, ceilDivDims, divDims, minDims } from '../ir/dims.ts';
import type { Dim, Node, Shape } from '../ir/graph.ts';
import { elementCount } from '../ir/tensor.ts';
import { stridesOf } from './indexing.ts';
import { nodeName } from './shape-rules.ts';

/** How a sliding window (Conv, pooling) moves over the spatial axes. */
export interface WindowPlan {
  readonly kernel: readonly number[];
  readonly strides: readonly number[];
  readonly dilations: readonly number[];
  readonly autoPad: string;
  /** Explicit pads, used when autoPad is NOTSET. */
  readonly before: readonly number[];
  readonly after: readonly number[];
  readonly ceil: boolean;
}

/** Reads the window attributes of a node. @throws IR022 when their lengths do not fit the kernel */
export function windowPlan(node: Node, kernel: readonly number[]): WindowPlan {
  const rank = kernel.length;
  const ones = kernel.map(() => 1);
  const pads = node.ints('pads') ?? new Array<number>(2 * rank).fill(0);
  const strides = node.ints('strides') ?? ones;
  const dilations = node.ints('dilations') ?? ones;
  if (pads.length !== 2 * rank || strides.length !== rank || dilations.length !== rank)
    throw new NpucError('IR022', {
      message: `pads [${pads}], strides [${strides}], dilations [${dilations}] do not fit kernel [${kernel}]`,
      where: nodeName(node),
    });
  return {
    kernel,
    strides,
    dilations,
    autoPad: node.string('auto_pad', 'NOTSET'),
    before: pads.slice(0, rank),
    after: pads.slice(rank),
    ceil: node.int('ceil_mode', 0) === 1,
  };
}

function extentOf(plan: WindowPlan, axis: number): number {
  return (plan.kernel[axis]! - 1) * plan.dilations[axis]! + 1;
}

/** Output sizes of the spatial axes. @throws IR020 when a window is larger than the padded axis */
export function windowShape(spatial: Shape, plan: WindowPlan): Dim[] {
  const sizes = spatial.map((dim, axis) => {
    const stride = plan.strides[axis]!;
    if (plan.autoPad.startsWith('SAME')) return ceilDivDims(dim, stride);
    const pads = plan.autoPad === 'VALID' ? 0 : plan.before[axis]! + plan.after[axis]!;
    const room = addDims(dim, pads - extentOf(plan, axis));
    if (!plan.ceil) return addDims(divDims(room, stride), 1);
    // Windows that would start behind the input and its leading pad are dropped (as ONNX Runtime and PyTorch do).
    const before = plan.autoPad === 'VALID' ? 0 : plan.before[axis]!;
    return minDims(addDims(ceilDivDims(room, stride), 1), ceilDivDims(addDims(dim, before), stride));
  });
  if (sizes.some((size) => typeof size === 'number' && size < 0))
    throw new NpucError('IR020', { message: `a window of [${plan.kernel}] does not fit into [${spatial}]` });
  return sizes;
}

/** Pads of every axis once the sizes are known. */
export function windowPads(spatial: readonly number[], plan: WindowPlan): { before: number[]; after: number[] } {
  if (plan.autoPad === 'NOTSET' || plan.autoPad === '') return { before: [...plan.before], after: [...plan.after] };
  if (plan.autoPad === 'VALID') return { before: spatial.map(() => 0), after: spatial.map(() => 0) };
  const total = spatial.map((dim, axis) => {
    const stride = plan.strides[axis]!;
    return Math.max(0, (Math.ceil(dim / stride) - 1) * stride + extentOf(plan, axis) - dim);
  });
  const small = total.map((pad) => Math.floor(pad / 2));
  const large = total.map((pad) => Math.ceil(pad / 2));
  return plan.autoPad === 'SAME_UPPER' ? { before: small, after: large } : { before: large, after: small };
}

/** Padding that counts as an element of the window, and what lies beyond even that (ceil mode). */
export const PADDED = -1;
export const BEYOND = -2;

/**
 * For every kernel tap and output position (tap-major) the spatial input offset it reads, PADDED or BEYOND.
 */
export function windowOffsets(spatial: readonly number[], out: readonly number[], plan: WindowPlan): Int32Array {
  const { before, after } = windowPads(spatial, plan);
  const inStrides = stridesOf(spatial);
  const outStrides = stridesOf(out);
  const tapStrides = stridesOf(plan.kernel);
  const taps = elementCount(plan.kernel);
  const positions = elementCount(out);
  const offsets = new Int32Array(taps * positions);
  for (let tap = 0; tap < taps; tap++) {
    for (let axis = 0; axis < spatial.length; axis++) {
      const size = spatial[axis]!;
      const index = Math.floor(tap / tapStrides[axis]!) % plan.kernel[axis]!;
      const shift = index * plan.dilations[axis]! - before[axis]!;
      const stride = plan.strides[axis]!;
      const places = out[axis]!;
      const step = outStrides[axis]!;
      for (let position = 0, to = tap * positions; position < positions; position++, to++) {
        if (offsets[to]! === BEYOND) continue;
        const at = (Math.floor(position / step) % places) * stride + shift;
        if (at >= 0 && at < size) {
          if (offsets[to]! >= 0) offsets[to] = offsets[to]! + at * inStrides[axis]!;
        } else offsets[to] = at >= size + after[axis]! ? BEYOND : PADDED;
      }
    }
  }
  return offsets;
}

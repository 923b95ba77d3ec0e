import { NpucError } from '../errors.ts';
import { addDims, ceilDivDims, maxDims, minDims, sameDim, subtractDims } from '../ir/dims.ts';
import type { Dim } from '../ir/graph.ts';
import type { TensorData } from '../ir/tensor.ts';
import { encodeReals, need, readInts, takeElements } from './elements.ts';
import { normalizeAxis, stridedOffsets, stridesOf } from './indexing.ts';
import { defineOp, type InferContext, type OpDefinition } from './op.ts';
import { inputDtype, nodeName, typeOrUnknown, unknownDim } from './shape-rules.ts';

/** Starts, ends, axes and steps are attributes up to opset 9 and inputs since 10. */
interface SliceBounds<T> {
  readonly starts: readonly T[];
  readonly ends: readonly T[];
  readonly axes: readonly number[];
  readonly steps: readonly number[];
}

/** Ends at or above this mean "to the end": exporters write INT_MAX or INT64_MAX. */
const UNBOUNDED = 2 ** 31 - 1;

/**
 * Length of `start:end:1` of a symbolic dimension; undefined where it cannot be said. Symbols in bounds count as
 * non-negative, as lengths are.
 */
export function slicedDim(dim: Dim, start: Dim, end: Dim, step: number): Dim | undefined {
  if (typeof dim === 'number' && typeof start === 'number' && typeof end === 'number')
    return sliceRange(dim, start, end, step).count;
  if (step < 0) {
    const whole = start === -1 && typeof end === 'number' && end <= -UNBOUNDED;
    return whole ? ceilDivDims(dim, -step) : undefined;
  }
  const place = (bound: Dim): Dim => {
    if (typeof bound !== 'number') return sameDim(bound, dim) ? dim : minDims(bound, dim);
    if (bound >= UNBOUNDED) return dim;
    if (bound < 0) return typeof dim === 'number' ? Math.max(0, dim + bound) : maxDims(0, addDims(dim, bound));
    return typeof dim === 'number' ? Math.min(bound, dim) : bound === 0 ? 0 : minDims(bound, dim);
  };
  const from = place(start);
  const to = place(end);
  if (from === 0) return ceilDivDims(to, step);
  // From a number up to the end: n - min(start, n), said without the min.
  if (sameDim(to, dim) && typeof start === 'number' && start > 0)
    return ceilDivDims(maxDims(0, subtractDims(dim, start)), step);
  return ceilDivDims(maxDims(0, subtractDims(to, from)), step);
}

/** Start, count of one axis of a slice, clamped as numpy does. */
export function sliceRange(dim: number, start: number, end: number, step: number): { from: number; count: number } {
  const clamp = (value: number, low: number, high: number): number => Math.min(high, Math.max(low, value));
  const from = start < 0 ? start + dim : start;
  const to = end < 0 ? end + dim : end;
  if (step > 0) {
    const first = clamp(from, 0, dim);
    return { from: first, count: Math.max(0, Math.ceil((clamp(to, 0, dim) - first) / step)) };
  }
  const first = clamp(from, 0, dim - 1);
  return { from: first, count: Math.max(0, Math.ceil((clamp(to, -1, dim - 1) - first) / step)) };
}

function inferBounds(context: InferContext): Partial<SliceBounds<Dim | undefined>> {
  const { node } = context;
  if (context.opset < 10) {
    const starts = node.ints('starts') ?? [];
    return {
      starts,
      ends: node.ints('ends') ?? [],
      axes: node.ints('axes') ?? starts.map((_, i) => i),
      steps: starts.map(() => 1),
    };
  }
  const starts = context.content(1);
  const ends = context.content(2);
  const length = starts?.length ?? ends?.length ?? (context.shape(1)?.[0] as number | undefined);
  const numbers = (index: number, fallback: (i: number) => number): number[] | undefined => {
    if (!node.inputs[index])
      return typeof length === 'number' ? Array.from({ length }, (_, i) => fallback(i)) : undefined;
    const content = context.content(index);
    return content?.every((entry): entry is number => typeof entry === 'number') ? [...content] : undefined;
  };
  const axes = numbers(3, (i) => i);
  const steps = numbers(4, () => 1);
  return { ...(starts && { starts }), ...(ends && { ends }), ...(axes && { axes }), ...(steps && { steps }) };
}

const slice = defineOp({
  name: 'Slice',
  since: 1,
  quantization: 'passthrough',
  infer: (context) => {
    const { node } = context;
    const shape = context.shape(0);
    const dtype = inputDtype(context, 0);
    if (!shape) return [typeOrUnknown(dtype, undefined)];
    const { starts, ends, axes, steps } = inferBounds(context);
    // Without axes any dimension may have been cut.
    if (!axes)
      return [
        typeOrUnknown(
          dtype,
          shape.map((_, axis) => unknownDim(node, 0, axis)),
        ),
      ];
    const out = [...shape];
    axes.forEach((named, index) => {
      const axis = normalizeAxis(named, shape.length, nodeName(node));
      const start = starts?.[index];
      const end = ends?.[index];
      const step = steps?.[index];
      const size =
        start === undefined || end === undefined || step === undefined
          ? undefined
          : slicedDim(shape[axis]!, start, end, step);
      out[axis] = size ?? unknownDim(node, 0, axis);
    });
    return [typeOrUnknown(dtype, out)];
  },
  evaluate: (inputs, { node, opset }) => {
    const x = need(inputs, 0, nodeName(node));
    const old = opset < 10;
    const starts = old ? (node.ints('starts') ?? []) : readInts(need(inputs, 1, nodeName(node)));
    const ends = old ? (node.ints('ends') ?? []) : readInts(need(inputs, 2, nodeName(node)));
    const axes = (old ? node.ints('axes') : inputs[3] && readInts(inputs[3])) ?? starts.map((_, i) => i);
    const steps = (old ? undefined : inputs[4] && readInts(inputs[4])) ?? starts.map(() => 1);
    return [sliceData(x, { starts, ends, axes, steps }, nodeName(node))];
  },
});

function sliceData(x: TensorData, { starts, ends, axes, steps }: SliceBounds<number>, where: string): TensorData {
  const strides = stridesOf(x.shape);
  const shape = [...x.shape];
  const taken = [...strides];
  let base = 0;
  axes.forEach((named, index) => {
    const axis = normalizeAxis(named, x.shape.length, where);
    const step = steps[index]!;
    if (step === 0) throw new NpucError('IR022', { message: 'a slice has step 0', where });
    const { from, count } = sliceRange(x.shape[axis]!, starts[index]!, ends[index]!, step);
    shape[axis] = count;
    taken[axis] = strides[axis]! * step;
    base += from * strides[axis]!;
  });
  return takeElements(x, shape, stridedOffsets(shape, taken, base));
}

/** Where index `at` (possibly outside) of an axis of `size` reads from; -1 for the constant. */
function padSource(at: number, size: number, mode: string): number {
  if (at >= 0 && at < size) return at;
  if (mode === 'constant' || size === 0) return -1;
  if (mode === 'edge') return at < 0 ? 0 : size - 1;
  if (mode === 'wrap') return ((at % size) + size) % size;
  // reflect: a walk to and fro that does not repeat the ends.
  const period = Math.max(1, 2 * (size - 1));
  const place = ((at % period) + period) % period;
  return place < size ? place : period - place;
}

/** Pads a tensor: `before` and `after` per axis, negative ones cut. */
export function padData(
  x: TensorData,
  before: readonly number[],
  after: readonly number[],
  mode: string,
  fill?: TensorData,
): TensorData {
  const strides = stridesOf(x.shape);
  let offsets = Int32Array.of(0);
  const shape: number[] = [];
  x.shape.forEach((size, axis) => {
    const length = Math.max(0, size + before[axis]! + after[axis]!);
    shape.push(length);
    const next = new Int32Array(offsets.length * length);
    for (let j = 0; j < length; j++) {
      const source = padSource(j - before[axis]!, size, mode);
      for (let i = 0; i < offsets.length; i++)
        next[i * length + j] = source < 0 || offsets[i]! < 0 ? -1 : offsets[i]! + source * strides[axis]!;
    }
    offsets = next;
  });
  return takeElements(x, shape, offsets, fill);
}

/** Pads come from an attribute up to opset 10 and from inputs since 11; opset 18 adds axes, 19 the mode `wrap`. */
const pad = defineOp({
  name: 'Pad',
  since: 1,
  quantization: 'passthrough',
  infer: (context) => {
    const { node } = context;
    const shape = context.shape(0);
    const dtype = inputDtype(context, 0);
    if (!shape) return [typeOrUnknown(dtype, undefined)];
    const pads = node.ints('pads') ?? node.ints('paddings') ?? context.content(1);
    const named = node.inputs[3] ? context.content(3) : shape.map((_, axis) => axis);
    if (!named?.every((axis): axis is number => typeof axis === 'number'))
      return [
        typeOrUnknown(
          dtype,
          shape.map((_, axis) => unknownDim(node, 0, axis)),
        ),
      ];
    const out = [...shape];
    named.forEach((given, index) => {
      const axis = normalizeAxis(given, shape.length, nodeName(node));
      const before = pads?.[index];
      const after = pads?.[index + named.length];
      out[axis] =
        before === undefined || after === undefined
          ? unknownDim(node, 0, axis)
          : addDims(addDims(shape[axis]!, before), after);
    });
    return [typeOrUnknown(dtype, out)];
  },
  evaluate: (inputs, { node, opset }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const rank = x.shape.length;
    const pads = node.ints('pads') ?? node.ints('paddings') ?? readInts(need(inputs, 1, where));
    const axes = (inputs[3] && readInts(inputs[3])) ?? x.shape.map((_, axis) => axis);
    const before = new Array<number>(rank).fill(0);
    const after = new Array<number>(rank).fill(0);
    axes.forEach((named, index) => {
      const axis = normalizeAxis(named, rank, where);
      before[axis] = pads[index]!;
      after[axis] = pads[index + axes.length]!;
    });
    const fill = opset < 11 ? encodeReals(x.dtype, [], [node.float('value', 0)]) : inputs[2];
    return [padData(x, before, after, node.string('mode', 'constant'), fill)];
  },
});

/** Crops or pads axes, centred, to a given shape. */
const centerCropPad = defineOp({
  name: 'CenterCropPad',
  since: 18,
  quantization: 'passthrough',
  infer: (context) => {
    const shape = context.shape(0);
    const target = context.content(1);
    const axes = context.node.ints('axes') ?? shape?.map((_, axis) => axis);
    const out = shape && [...shape];
    axes?.forEach((named, index) => {
      if (!out) return;
      const axis = normalizeAxis(named, out.length, nodeName(context.node));
      out[axis] = target?.[index] ?? unknownDim(context.node, 0, axis);
    });
    return [typeOrUnknown(inputDtype(context, 0), out)];
  },
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const target = readInts(need(inputs, 1, where));
    const before = x.shape.map(() => 0);
    const after = x.shape.map(() => 0);
    (node.ints('axes') ?? x.shape.map((_, axis) => axis)).forEach((named, index) => {
      const axis = normalizeAxis(named, x.shape.length, where);
      const extra = target[index]! - x.shape[axis]!;
      // The odd element is padded behind, and cut behind.
      before[axis] = extra >= 0 ? Math.floor(extra / 2) : -Math.floor(-extra / 2);
      after[axis] = extra - before[axis]!;
    });
    return [padData(x, before, after, 'constant', encodeReals(x.dtype, [], [0]))];
  },
});

export const SLICE_PAD_OPS: readonly OpDefinition[] = [slice, pad, centerCropPad];

import { NpucError } from '../errors.ts';
import { mulDims } from '../ir/dims.ts';
import type { Dim, Node } from '../ir/graph.ts';
import type { TensorData } from '../ir/tensor.ts';
import { encodeReals, need, newReals, readReals } from './elements.ts';
import { normalizeAxis, splitAtAxis } from './indexing.ts';
import { defineOp, type InferContext, type OpDefinition } from './op.ts';
import { inputDtype, knownContent, nodeName, typeOrUnknown, unknownDim } from './shape-rules.ts';

/** How one axis is resized. */
interface AxisPlan {
  readonly axis: number;
  readonly from: number;
  readonly to: number;
  readonly scale: number;
  /** Region of interest in normalized coordinates, for tf_crop_and_resize. */
  readonly roi: readonly [number, number];
}

interface ResizePlan {
  readonly axes: readonly AxisPlan[];
  readonly mode: string;
  readonly coordinates: string;
  readonly nearest: string;
  readonly cubic: number;
  readonly excludeOutside: boolean;
  readonly extrapolation: number;
  readonly antialias: boolean;
}

/** Where index x of the output lies in the input (ONNX Resize, coordinate_transformation_mode). */
function originOf(x: number, { from, to, scale, roi }: AxisPlan, mode: string): number {
  switch (mode) {
    case 'asymmetric':
      return x / scale;
    case 'align_corners':
      return to === 1 ? 0 : (x * (from - 1)) / (to - 1);
    case 'pytorch_half_pixel':
      return to > 1 ? (x + 0.5) / scale - 0.5 : 0;
    case 'tf_half_pixel_for_nn':
      return (x + 0.5) / scale;
    case 'half_pixel_symmetric':
      // The output is whole pixels of `scale * from`; the rest is shared by both sides.
      return (from / 2) * (1 - to / (scale * from)) + (x + 0.5) / scale - 0.5;
    case 'tf_crop_and_resize':
      return to > 1
        ? roi[0] * (from - 1) + (x * (roi[1] - roi[0]) * (from - 1)) / (to - 1)
        : 0.5 * (roi[0] + roi[1]) * (from - 1);
    default:
      return (x + 0.5) / scale - 0.5;
  }
}

function nearestIndex(x: number, mode: string): number {
  if (mode === 'floor') return Math.floor(x);
  if (mode === 'ceil') return Math.ceil(x);
  if (mode === 'round_prefer_ceil') return Math.floor(x + 0.5);
  return Math.ceil(x - 0.5);
}

/** Keys' cubic kernel. */
export function cubicWeight(distance: number, a: number): number {
  const x = Math.abs(distance);
  if (x <= 1) return (a + 2) * x ** 3 - (a + 3) * x ** 2 + 1;
  return x < 2 ? a * x ** 3 - 5 * a * x ** 2 + 8 * a * x - 4 * a : 0;
}

/** Input indices and weights that make one output index. */
export interface Taps {
  readonly indices: readonly number[];
  readonly weights: readonly number[];
  readonly outside: boolean;
}

function tapsOf(x: number, axis: AxisPlan, plan: ResizePlan): Taps {
  const origin = originOf(x, axis, plan.coordinates);
  const outside = plan.coordinates === 'tf_crop_and_resize' && (origin < 0 || origin > axis.from - 1);
  const inside = (index: number): number => Math.min(axis.from - 1, Math.max(0, index));
  if (plan.mode === 'nearest') return { indices: [inside(nearestIndex(origin, plan.nearest))], weights: [1], outside };
  const cubic = plan.mode === 'cubic';
  // When shrinking with antialias the kernel is stretched over all the pixels it replaces.
  const stretch = plan.antialias ? Math.min(1, axis.scale) : 1;
  const reach = (cubic ? 2 : 1) / stretch;
  const indices: number[] = [];
  const weights: number[] = [];
  for (let index = Math.floor(origin - reach) + 1; index < origin + reach; index++) {
    const distance = (index - origin) * stretch;
    const within = index >= 0 && index < axis.from;
    const weight = cubic ? cubicWeight(distance, plan.cubic) : Math.max(0, 1 - Math.abs(distance));
    indices.push(inside(index));
    weights.push(plan.excludeOutside && !within ? 0 : weight);
  }
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return { indices, weights: weights.map((weight) => weight / sum), outside };
}

/** Resizes axis after axis: all modes are separable. */
function resizeData(x: TensorData, plan: ResizePlan): TensorData {
  let shape = [...x.shape];
  let values: ArrayLike<number> = readReals(x);
  const outsideBy = new Map<number, boolean[]>();
  for (const axis of plan.axes) {
    if (axis.from === axis.to && axis.scale === 1 && plan.coordinates !== 'tf_crop_and_resize') continue;
    const { outer, size, inner } = splitAtAxis(shape, axis.axis);
    const taps = Array.from({ length: axis.to }, (_, at) => tapsOf(at, axis, plan));
    const next = new Float64Array(outer * axis.to * inner);
    for (let o = 0; o < outer; o++) {
      taps.forEach(({ indices, weights }, at) => {
        const to = (o * axis.to + at) * inner;
        for (let k = 0; k < indices.length; k++) {
          const from = (o * size + indices[k]!) * inner;
          const weight = weights[k]!;
          for (let i = 0; i < inner; i++) next[to + i] = next[to + i]! + weight * values[from + i]!;
        }
      });
    }
    values = next;
    shape = shape.map((dim, at) => (at === axis.axis ? axis.to : dim));
    if (taps.some((tap) => tap.outside))
      outsideBy.set(
        axis.axis,
        taps.map((tap) => tap.outside),
      );
  }
  const out = newReals(x.dtype, values.length);
  for (let i = 0; i < out.length; i++) out[i] = values[i]!;
  for (const [axis, outside] of outsideBy) {
    const { size, inner } = splitAtAxis(shape, axis);
    for (let i = 0; i < out.length; i++) if (outside[Math.floor(i / inner) % size]) out[i] = plan.extrapolation;
  }
  return encodeReals(x.dtype, shape, out);
}

/** Inputs of Resize: X, roi, scales, sizes since opset 11; X, scales in opset 10, as Upsample 9. */
function inputIndexes(node: Node, opset: number): { roi: number; scales: number; sizes: number } {
  return node.op === 'Upsample' || opset < 11 ? { roi: -1, scales: 1, sizes: -1 } : { roi: 1, scales: 2, sizes: 3 };
}

/** The common scale that keeps the aspect ratio, or the sizes' own ones. */
function scalesFromSizes(
  sizes: readonly number[],
  dims: readonly number[],
  policy: string,
): { scale: number; to: number }[] {
  const own = sizes.map((size, at) => size / dims[at]!);
  if (policy === 'stretch') return own.map((scale, at) => ({ scale, to: sizes[at]! }));
  const scale = policy === 'not_larger' ? Math.min(...own) : Math.max(...own);
  return dims.map((dim) => ({ scale, to: Math.floor(scale * dim + 0.5) }));
}

function planOf(x: TensorData, inputs: readonly (TensorData | undefined)[], node: Node, opset: number): ResizePlan {
  const where = nodeName(node);
  const at = inputIndexes(node, opset);
  const filled = (index: number): number[] | undefined => {
    const tensor = index < 0 ? undefined : inputs[index];
    return tensor && tensor.data.length > 0 ? Array.from(readReals(tensor)) : undefined;
  };
  const axes = (node.ints('axes') ?? x.shape.map((_, axis) => axis)).map((axis) =>
    normalizeAxis(axis, x.shape.length, where),
  );
  const dims = axes.map((axis) => x.shape[axis]!);
  const sizes = filled(at.sizes);
  const scales = node.floats('scales') ?? filled(at.scales);
  if (!sizes && !scales) throw new NpucError('IR021', { message: `${node.op} has neither scales nor sizes`, where });
  const targets = sizes
    ? scalesFromSizes(sizes, dims, node.string('keep_aspect_ratio_policy', 'stretch'))
    : dims.map((dim, index) => ({ scale: scales![index]!, to: Math.floor(dim * scales![index]!) }));
  const roi = filled(at.roi);
  const old = node.op === 'Upsample' || opset < 11;
  const mode = node.string('mode', 'nearest');
  return {
    axes: axes.map((axis, index) => ({
      axis,
      from: dims[index]!,
      ...targets[index]!,
      roi: [roi?.[index] ?? 0, roi?.[index + axes.length] ?? 1],
    })),
    mode: mode === 'bilinear' ? 'linear' : mode,
    coordinates: old ? 'asymmetric' : node.string('coordinate_transformation_mode', 'half_pixel'),
    nearest: old ? 'floor' : node.string('nearest_mode', 'round_prefer_floor'),
    cubic: node.float('cubic_coeff_a', -0.75),
    excludeOutside: node.int('exclude_outside', 0) === 1,
    extrapolation: node.float('extrapolation_value', 0),
    antialias: node.int('antialias', 0) === 1,
  };
}

/** One resized axis as a table: which inputs make every output. */
export interface ResizedAxis {
  readonly axis: number;
  readonly from: number;
  readonly taps: readonly Taps[];
}

/**
 * What a Resize of fixed shape computes, axis by axis: all modes are separable.
 * @returns undefined where scales or sizes are not constant
 */
export function resizedAxes(node: Node, opset: number): ResizedAxis[] | undefined {
  if (node.inputs.slice(1).some((input) => input && !input.data)) return undefined;
  const x: TensorData = { dtype: 'f32', shape: node.input(0).dims, data: new Float32Array(0) };
  const plan = planOf(x, [x, ...node.inputs.slice(1).map((input) => input?.data?.toData())], node, opset);
  return plan.axes
    .filter(({ from, to, scale }) => from !== to || scale !== 1 || plan.coordinates === 'tf_crop_and_resize')
    .map((axis) => ({
      axis: axis.axis,
      from: axis.from,
      taps: Array.from({ length: axis.to }, (_, at) => tapsOf(at, axis, plan)),
    }));
}

function inferResize(context: InferContext): Dim[] | undefined {
  const { node, opset } = context;
  const shape = context.shape(0);
  if (!shape) return undefined;
  const at = inputIndexes(node, opset);
  const axes = (node.ints('axes') ?? shape.map((_, axis) => axis)).map((axis) =>
    normalizeAxis(axis, shape.length, nodeName(node)),
  );
  const out: Dim[] = shape.map((dim, axis) => (axes.includes(axis) ? unknownDim(node, 0, axis) : dim));
  const sizes = at.sizes < 0 ? undefined : knownContent(context, at.sizes);
  const policy = node.string('keep_aspect_ratio_policy', 'stretch');
  if (sizes && sizes.length > 0) {
    const dims = axes.map((axis) => shape[axis]!);
    const fixed = [...sizes, ...dims].every((dim) => typeof dim === 'number');
    if (policy === 'stretch') axes.forEach((axis, index) => (out[axis] = sizes[index]!));
    else if (fixed)
      scalesFromSizes(sizes as number[], dims as number[], policy).forEach(({ to }, index) => (out[axes[index]!] = to));
    return out;
  }
  const scales = node.floats('scales') ?? context.constant(at.scales)?.toNumbers();
  axes.forEach((axis, index) => {
    const dim = shape[axis]!;
    const scale = scales?.[index];
    if (scale === undefined) return;
    if (typeof dim === 'number') out[axis] = Math.floor(dim * scale);
    else if (Number.isInteger(scale)) out[axis] = mulDims(dim, scale);
  });
  return out;
}

function resize(name: string, since: number): OpDefinition {
  return defineOp({
    name,
    since,
    quantization: 'passthrough',
    infer: (context) => [typeOrUnknown(inputDtype(context, 0), inferResize(context))],
    evaluate: (inputs, { node, opset }) => {
      const x = need(inputs, 0, nodeName(node));
      return [resizeData(x, planOf(x, inputs, node, opset))];
    },
  });
}

export const RESIZE_OPS: readonly OpDefinition[] = [resize('Resize', 10), resize('Upsample', 7)];

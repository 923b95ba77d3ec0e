import { integerRange } from '../../../compiler/ir/encoding.ts';
import type { Node, Value } from '../../../compiler/ir/graph.ts';
import { Tensor } from '../../../compiler/ir/tensor.ts';
import { windowPads, windowPlan } from '../../../compiler/ops/window.ts';
import { addIntegerBias, isDynamicProduct } from '../lower-matmul.ts';
import { Padding, TensorType } from '../schema-enums.ts';
import { quantizationOf, typeOf } from '../subgraph-builder.ts';
import { type GraphLowering, isConstant } from './graph-lowering.ts';
import type { GraphOps } from './graph-op.ts';

/** One spatial axis of a window op, everything as numbers. */
interface Axis {
  readonly size: number;
  readonly out: number;
  readonly kernel: number;
  readonly stride: number;
  readonly dilation: number;
  readonly before: number;
  /** What the windows really reach behind the input; less than the model's pad where the last stride leaves some over. */
  readonly after: number;
}

/** The spatial axes as rows and columns: a 1-D op is one of a single row. */
function axesOf(node: Node, kernel: readonly number[]): Axis[] {
  const plan = windowPlan(node, kernel);
  const spatial = node.input(0).dims.slice(2);
  const outs = node.output().dims.slice(2);
  const { before } = windowPads(spatial, plan);
  const axes = spatial.map((size, i): Axis => {
    const [stride, dilation] = [plan.strides[i]!, plan.dilations[i]!];
    const extent = (kernel[i]! - 1) * dilation + 1;
    const reach = (outs[i]! - 1) * stride + extent - size - before[i]!;
    return { size, out: outs[i]!, kernel: kernel[i]!, stride, dilation, before: before[i]!, after: reach };
  });
  const row: Axis = { size: 1, out: 1, kernel: 1, stride: 1, dilation: 1, before: 0, after: 0 };
  return axes.length === 1 ? [row, axes[0]!] : axes;
}

/** What TFLite's SAME pads at each end of an axis. */
function samePads({ size, kernel, stride, dilation }: Axis): readonly [number, number] {
  const out = Math.ceil(size / stride);
  const total = Math.max(0, (out - 1) * stride + (kernel - 1) * dilation + 1 - size);
  return [Math.floor(total / 2), Math.ceil(total / 2)];
}

/** The padding that an operator does itself, or what a PAD must do before it. */
function paddingOf(axes: readonly Axis[]): { readonly padding: number; readonly explicit: boolean } {
  if (axes.every(({ before, after }) => before === 0 && after <= 0)) return { padding: Padding.VALID, explicit: false };
  const same = axes.every((axis) => {
    const [before, after] = samePads(axis);
    return (
      axis.out === Math.ceil(axis.size / axis.stride) && axis.before === before && Math.max(0, axis.after) === after
    );
  });
  return same ? { padding: Padding.SAME, explicit: false } : { padding: Padding.VALID, explicit: true };
}

/** [N, H, W, C] dimensions of a value of the layout `last`, a single row added to a 1-D one. */
function imageDims(dims: readonly number[]): number[] {
  const [batch, channels, ...spatial] = dims as [number, number, ...number[]];
  return [batch, ...(spatial.length === 1 ? [1] : []), ...spatial, channels];
}

function image(node: Node, lowering: GraphLowering): number {
  const x = node.input(0);
  return lowering.reshape(lowering.input(node, 0), imageDims(x.dims), x.name);
}

/** PAD with the number zero, or PADV2 with the smallest one, where the operator cannot pad like the model. */
function padded(node: Node, axes: readonly Axis[], lowering: GraphLowering, lowest = false): number {
  const { builder } = lowering;
  const from = image(node, lowering);
  const { shape, type, quantization } = builder.tensor(from);
  const pads = [[0, 0], ...axes.map(({ before, after }) => [before, Math.max(0, after)]), [0, 0]] as [number, number][];
  const dims = shape.map((dim, i) => dim + pads[i]![0] + pads[i]![1]);
  const { name } = node.input(0);
  const to = builder.addTensor(`${name}.padded`, type, dims, quantization);
  const paddings = builder.addConstant('paddings', Tensor.of('i32', [4, 2], pads.flat()));
  if (!lowest) builder.addOperator('PAD', [from, paddings], [to], { options: { kind: 'PadOptions' } });
  else {
    const integer = type === TensorType.INT8 ? 'i8' : type === TensorType.INT16 ? 'i16' : undefined;
    const floor = integer
      ? Tensor.of(integer, [1], [integerRange(integer)[0]])
      : Tensor.of('f32', [1], [-3.4028234663852886e38]);
    const constant = builder.addConstant('lowest', floor, quantization);
    builder.addOperator('PADV2', [from, paddings, constant], [to], { options: { kind: 'PadV2Options' } });
  }
  return to;
}

const NO_ACTIVATION = { fusedActivationFunction: 0 } as const;

function kernelOf(node: Node): number[] {
  return node.ints('kernel_shape') ?? [...node.input(1).dims.slice(2)];
}

function refuseConv(node: Node): string | undefined {
  const rank = node.input(0).dims.length;
  if (rank !== 3 && rank !== 4) return `${node.op} over ${rank - 2} axes`;
  if (!isConstant(node.input(1))) return `${node.op} with a computed weight`;
  const bias = node.inputs[2];
  return bias && !bias.data ? `${node.op} with a computed bias` : undefined;
}

/** The kernel has neither groups nor dilations: merge-transposed-groups has made zeros of them. */
function refuseConvTranspose(node: Node): string | undefined {
  const plain = node.int('group', 1) === 1 && (node.ints('dilations') ?? []).every((each) => each === 1);
  return refuseConv(node) ?? (plain ? undefined : 'ConvTranspose in groups or with dilations');
}

/** Dimensions of a weight with two spatial axes: [O, I, 1, K] for a 1-D one. */
function weightDims(weight: Value): number[] {
  const [a, b, ...kernel] = weight.dims as [number, number, ...number[]];
  return [a, b, ...(kernel.length === 1 ? [1] : []), ...kernel];
}

/** Whether a weighted op computes on integers: its input, weight and output all are. */
export function isInteger(node: Node): boolean {
  const [x, y] = [node.input(0).encoding?.dtype, node.output().encoding?.dtype];
  return x !== undefined && x === y && node.input(1).encoding !== undefined;
}

/**
 * Whether CONV_2D quantizes its input while it runs: floats and integer weights. Convolutions in groups and transposed ones
 * have no such kernel that a delegate takes: their weights become floats before.
 */
export function isDynamicConv(node: Node): boolean {
  return node.op === 'Conv' && node.int('group', 1) === 1 && isDynamicProduct(node, node.input(1));
}

/** The input and the weight as the kernel takes them: both integers, both floats, or floats and integers. */
function operandsOf(node: Node, x: number, weight: number, lowering: GraphLowering): readonly [number, number] {
  if (isInteger(node) || isDynamicConv(node)) return [x, weight];
  return [lowering.toFloat(x), lowering.toFloat(weight)];
}

/** A bias, zeros where the model has none: some vendors' compilers want one. */
export function biasOf(node: Node, channels: number, lowering: GraphLowering): number {
  const bias = node.inputs[2];
  const floats = bias?.data?.toFloats() ?? new Float32Array(channels);
  const name = bias?.name ?? `${node.output().name}.bias`;
  const [input, weight] = [node.input(0).encoding, node.input(1).encoding];
  if (isInteger(node)) return addIntegerBias(lowering.builder, name, floats, input!, weight!);
  return lowering.builder.addConstant(name, Tensor.of('f32', [channels], floats));
}

/** CONV_2D with weights [O, H, W, I / group], DEPTHWISE_CONV_2D with [1, H, W, O] where every channel is a group. */
function lowerConv(node: Node, lowering: GraphLowering): void {
  const weight = node.input(1);
  const axes = axesOf(node, kernelOf(node));
  const [rows, columns] = axes as [Axis, Axis];
  const { padding, explicit } = paddingOf(axes);
  const x = explicit ? padded(node, axes, lowering) : image(node, lowering);
  const dims = weightDims(weight);
  const [outputs] = dims as [number, number];
  const channels = node.input(0).dims[1]!;
  const group = node.int('group', 1);
  const windows = {
    padding,
    strideH: rows.stride,
    strideW: columns.stride,
    dilationHFactor: rows.dilation,
    dilationWFactor: columns.dilation,
    ...NO_ACTIVATION,
  };
  const bias = biasOf(node, outputs, lowering);
  const result = { dims: imageDims(node.output().dims), activations: [0] };
  if (group > 1 && group === channels) {
    const turned = lowering.constant(weight, dims, [1, 2, 3, 0], { axis: 3 });
    const options = { kind: 'DepthwiseConv2DOptions', depthMultiplier: outputs / channels, ...windows } as const;
    lowering.emit('DEPTHWISE_CONV_2D', node, [...operandsOf(node, x, turned, lowering), bias], { ...result, options });
    return;
  }
  const turned = lowering.constant(weight, dims, [0, 2, 3, 1], { axis: 0 });
  const options = { kind: 'Conv2DOptions', ...windows } as const;
  lowering.emit('CONV_2D', node, [...operandsOf(node, x, turned, lowering), bias], { ...result, options });
}

/** One spatial axis of a transposed convolution: the whole result, and the part of it that is kept. */
interface SpreadAxis {
  readonly full: number;
  readonly before: number;
  readonly out: number;
  readonly same: boolean;
}

function spreadAxes(node: Node): SpreadAxis[] {
  const kernel = kernelOf(node);
  const plan = windowPlan(node, kernel);
  const spatial = node.input(0).dims.slice(2);
  const outs = node.output().dims.slice(2);
  const given = node.ints('output_shape') !== undefined || plan.autoPad.startsWith('SAME');
  const axes = spatial.map((size, i): SpreadAxis => {
    const extent = (kernel[i]! - 1) * plan.dilations[i]! + 1;
    const stride = plan.strides[i]!;
    const padding = node.ints('output_padding')?.[i] ?? 0;
    const full = (size - 1) * stride + extent;
    const total = Math.max(0, full + padding - outs[i]!);
    const half = plan.autoPad === 'SAME_UPPER' ? Math.floor(total / 2) : Math.ceil(total / 2);
    const before = given ? half : plan.autoPad === 'VALID' ? 0 : plan.before[i]!;
    const same = outs[i] === size * stride && before === Math.floor(Math.max(0, full - outs[i]!) / 2);
    return { full: Math.max(full, before + outs[i]!), before, out: outs[i]!, same };
  });
  return axes.length === 1 ? [{ full: 1, before: 0, out: 1, same: true }, axes[0]!] : axes;
}

/** TRANSPOSE_CONV with weights [O, H, W, I]. What its padding cannot cut off, a SLICE does. */
function lowerConvTranspose(node: Node, lowering: GraphLowering): void {
  const { builder } = lowering;
  const axes = spreadAxes(node);
  const strides = windowPlan(node, kernelOf(node)).strides;
  const [strideH, strideW] = (strides.length === 1 ? [1, strides[0]!] : strides) as [number, number];
  const [batch, channels] = node.output().dims as [number, number];
  const valid = axes.every(({ before, full, out }) => before === 0 && full === out);
  const same = !valid && axes.every((axis) => axis.same);
  const own = [batch, ...axes.map(({ out, full }) => (same ? out : full)), channels];
  const options = {
    kind: 'TransposeConvOptions',
    padding: same ? Padding.SAME : Padding.VALID,
    strideH,
    strideW,
    ...NO_ACTIVATION,
  } as const;
  const size = builder.addInts('output_shape', own);
  const weight = lowering.constant(node.input(1), weightDims(node.input(1)), [1, 2, 3, 0], { axis: 0 });
  const [x, w] = operandsOf(node, image(node, lowering), weight, lowering);
  const inputs = [size, w, x, biasOf(node, channels, lowering)];
  if (valid || same) {
    // An activation of its own came late to this kernel, and delegates refuse it.
    lowering.emit('TRANSPOSE_CONV', node, inputs, { options, dims: own, activations: [2], output: node.output() });
    return;
  }
  const output = node.output();
  const quantization = quantizationOf(output.encoding, output.name);
  const full = builder.addTensor(`${output.name}.spread`, typeOf(output), own, quantization);
  lowering.run('TRANSPOSE_CONV', node, inputs, full, { options, activations: [2] });
  const kept = imageDims(node.output().dims);
  const begin = builder.addInts('begin', [0, ...axes.map(({ before }) => before), 0]);
  lowering.emit('SLICE', node, [full, begin, builder.addInts('size', kept)], {
    options: { kind: 'SliceOptions' },
    dims: kept,
    output: node.output(),
  });
}

type PoolName = 'MAX_POOL_2D' | 'AVERAGE_POOL_2D';

function lowerPool(name: PoolName, node: Node, lowering: GraphLowering): void {
  const axes = axesOf(node, node.ints('kernel_shape')!);
  const [rows, columns] = axes as [Axis, Axis];
  const { padding, explicit } = paddingOf(axes);
  const counted = name === 'AVERAGE_POOL_2D' && node.int('count_include_pad', 0) === 1 && padding === Padding.SAME;
  const from = explicit || counted ? padded(node, axes, lowering, name === 'MAX_POOL_2D') : image(node, lowering);
  lowering.emit(name, node, [from], {
    dims: imageDims(node.output().dims),
    options: {
      kind: 'Pool2DOptions',
      padding: counted ? Padding.VALID : padding,
      strideH: rows.stride,
      strideW: columns.stride,
      filterHeight: rows.kernel,
      filterWidth: columns.kernel,
      ...NO_ACTIVATION,
    },
  });
}

function refusePool(node: Node): string | undefined {
  const rank = node.input(0).dims.length;
  if (rank !== 3 && rank !== 4) return `${node.op} over ${rank - 2} axes`;
  if (node.outputs[1]) return `${node.op} with indices`;
  if (node.ints('dilations')?.some((each) => each !== 1)) return `${node.op} with dilations`;
  return undefined;
}

/** AVERAGE_POOL_2D leaves out what it pads itself, and counts what a PAD has added. */
function refuseAveragePool(node: Node): string | undefined {
  const refused = refusePool(node);
  if (refused) return refused;
  const axes = axesOf(node, node.ints('kernel_shape')!);
  const { explicit } = paddingOf(axes);
  const counts = node.int('count_include_pad', 0) === 1;
  if (explicit && !counts) return 'AveragePool whose pads are neither counted nor those of SAME';
  const plan = windowPlan(node, node.ints('kernel_shape')!);
  const beyond = axes.slice(-plan.kernel.length).some(({ after }, i) => after > plan.after[i]!);
  return counts && beyond ? 'AveragePool whose windows leave its pads' : undefined;
}

/** A mean over rows and columns. */
function lowerGlobalAverage(node: Node, lowering: GraphLowering): void {
  const rank = node.input(0).dims.length;
  const axes = lowering.builder.addInts(
    'axes',
    Array.from({ length: rank - 2 }, (_, i) => i + 1),
  );
  lowering.emit('MEAN', node, [lowering.input(node, 0), axes], { options: { kind: 'ReducerOptions', keepDims: true } });
}

function lowerGlobalMax(node: Node, lowering: GraphLowering): void {
  const rank = node.input(0).dims.length;
  const axes = lowering.builder.addInts(
    'axes',
    Array.from({ length: rank - 2 }, (_, i) => i + 1),
  );
  lowering.emit('REDUCE_MAX', node, [lowering.input(node, 0), axes], {
    options: { kind: 'ReducerOptions', keepDims: true },
  });
}

export const WINDOWS: GraphOps = {
  Conv: { layout: 'last', refuse: refuseConv, lower: lowerConv },
  ConvTranspose: { layout: 'last', refuse: refuseConvTranspose, lower: lowerConvTranspose },
  MaxPool: { layout: 'last', refuse: refusePool, lower: (node, lowering) => lowerPool('MAX_POOL_2D', node, lowering) },
  AveragePool: {
    layout: 'last',
    refuse: refuseAveragePool,
    lower: (node, lowering) => lowerPool('AVERAGE_POOL_2D', node, lowering),
  },
  GlobalAveragePool: { layout: 'last', lower: lowerGlobalAverage },
  GlobalMaxPool: { layout: 'last', lower: lowerGlobalMax },
};

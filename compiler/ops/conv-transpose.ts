import { NpucError } from '../errors.ts';
import { addDims, mulDims } from '../ir/dims.ts';
import type { Dim, Node, Shape } from '../ir/graph.ts';
import { elementCount } from '../ir/tensor.ts';
import { encodeReals, need, newReals, readFloats, readInts, readReals } from './elements.ts';
import { defineOp, type OpDefinition } from './op.ts';
import {
  inputDtype,
  knownContent,
  knownIntegers,
  nodeName,
  typeOrUnknown,
  unknownDim,
  unknownShape,
} from './shape-rules.ts';
import { type WindowPlan, windowOffsets, windowPlan } from './window.ts';

/** Ops that spread windows over an output: each input element is added at the places its window covers. */

/** Output size of one axis and the pads that lead to it (ONNX ConvTranspose-11, `output_shape` before `pads`). */
function transposedAxis(dim: Dim, axis: number, plan: WindowPlan, node: Node): { size: Dim; before: number } {
  const stride = plan.strides[axis]!;
  const extent = (plan.kernel[axis]! - 1) * plan.dilations[axis]! + 1;
  const extra = node.ints('output_padding')?.[axis] ?? 0;
  const full = addDims(mulDims(addDims(dim, -1), stride), extra + extent);
  const given = node.ints('output_shape');
  const wanted = given ? given[given.length - plan.kernel.length + axis]! : undefined;
  const same = plan.autoPad.startsWith('SAME');
  if (wanted === undefined && !same) {
    const pads = plan.autoPad === 'VALID' ? [0, 0] : [plan.before[axis]!, plan.after[axis]!];
    const cut = addDims(full, -pads[0]! - pads[1]!);
    if (typeof cut === 'number' && cut < 0)
      throw new NpucError('IR020', { message: `pads [${pads}] cut away all of axis ${axis}`, where: nodeName(node) });
    return { size: cut, before: pads[0]! };
  }
  const size = wanted ?? mulDims(dim, stride);
  const total = typeof full === 'number' && typeof size === 'number' ? Math.max(0, full - size) : 0;
  return { size, before: plan.autoPad === 'SAME_UPPER' ? Math.floor(total / 2) : Math.ceil(total / 2) };
}

/** Weight [C, M / group, kernel...]. */
const convTranspose = defineOp({
  name: 'ConvTranspose',
  since: 1,
  quantization: 'weighted',
  infer: (context) => {
    const { node } = context;
    const x = context.shape(0);
    const w = context.shape(1);
    const kernel = node.ints('kernel_shape') ?? w?.slice(2);
    if (!x || !kernel?.every((size): size is number => typeof size === 'number'))
      return [typeOrUnknown(inputDtype(context, 0), x && unknownShape(node, 0, x.length))];
    const plan = windowPlan(node, kernel);
    const spatial = x.slice(2).map((dim, axis) => transposedAxis(dim, axis, plan, node).size);
    const features = w ? mulDims(w[1]!, node.int('group', 1)) : unknownDim(node, 0, 1);
    return [typeOrUnknown(inputDtype(context, 0), [x[0]!, features, ...spatial])];
  },
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const w = need(inputs, 1, where);
    const plan = windowPlan(node, node.ints('kernel_shape') ?? w.shape.slice(2));
    const axes = x.shape.slice(2).map((dim, axis) => transposedAxis(dim, axis, plan, node));
    const spatial = axes.map((axis) => axis.size as number);
    const [batch, channels] = x.shape as [number, number];
    const group = node.int('group', 1);
    const perGroup = w.shape[1]!;
    const features = perGroup * group;
    const area = elementCount(spatial);
    const inArea = elementCount(x.shape.slice(2));
    const taps = elementCount(plan.kernel);
    // Seen from the output, the input's positions are those of a convolution over it.
    const offsets = windowOffsets(spatial, x.shape.slice(2), {
      ...plan,
      autoPad: 'NOTSET',
      before: axes.map((axis) => axis.before),
    });
    const source = readFloats(x);
    const weight = readFloats(w);
    const bias = inputs[2] && readFloats(inputs[2]);
    const sums = new Float64Array(batch * features * area);
    for (let n = 0; n < batch; n++) {
      for (let c = 0; c < channels; c++) {
        const first = Math.floor(c / (channels / group)) * perGroup;
        for (let m = 0; m < perGroup; m++) {
          const to = (n * features + first + m) * area;
          for (let tap = 0; tap < taps; tap++) {
            const factor = weight[(c * perGroup + m) * taps + tap]!;
            for (let p = 0; p < inArea; p++) {
              const offset = offsets[tap * inArea + p]!;
              if (offset >= 0)
                sums[to + offset] = sums[to + offset]! + factor * source[(n * channels + c) * inArea + p]!;
            }
          }
        }
      }
    }
    const out = newReals(x.dtype, sums.length);
    for (let i = 0; i < out.length; i++) out[i] = sums[i]! + (bias ? bias[Math.floor(i / area) % features]! : 0);
    return [encodeReals(x.dtype, [batch, features, ...spatial], out)];
  },
});

/** Columns [N, C * taps, positions] back to an image, overlaps added. */
const col2Im = defineOp({
  name: 'Col2Im',
  since: 18,
  quantization: 'independent',
  infer: (context) => {
    const x = context.shape(0);
    const image = knownContent(context, 1);
    const block = knownIntegers(context, 2);
    if (!x || !image) return [typeOrUnknown(inputDtype(context, 0), undefined)];
    const taps = block && elementCount(block);
    const channels = taps && typeof x[1] === 'number' ? x[1] / taps : unknownDim(context.node, 0, 1);
    return [typeOrUnknown(inputDtype(context, 0), [x[0]!, channels, ...image])];
  },
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const image = readInts(need(inputs, 1, where));
    const block = readInts(need(inputs, 2, where));
    const plan = windowPlan(node, block);
    const positions = image.map((dim, axis) => {
      const extent = (block[axis]! - 1) * plan.dilations[axis]! + 1;
      return Math.floor((dim + plan.before[axis]! + plan.after[axis]! - extent) / plan.strides[axis]!) + 1;
    });
    const taps = elementCount(block);
    const count = elementCount(positions);
    const area = elementCount(image);
    const offsets = windowOffsets(image, positions, plan);
    const planes = (x.shape[0]! * x.shape[1]!) / taps;
    const source = readReals(x);
    const sums = new Float64Array(planes * area);
    for (let plane = 0; plane < planes; plane++)
      for (let i = 0; i < taps * count; i++) {
        const offset = offsets[i]!;
        if (offset >= 0) sums[plane * area + offset] = sums[plane * area + offset]! + source[plane * taps * count + i]!;
      }
    const out = newReals(x.dtype, sums.length);
    for (let i = 0; i < out.length; i++) out[i] = sums[i]!;
    return [encodeReals(x.dtype, [x.shape[0]!, x.shape[1]! / taps, ...image], out)];
  },
});

/** The spatial sizes that a MaxPool with the same attributes had, unless `output_shape` (input 2) says them. */
function unpooledShape(shape: Shape, node: Node): Dim[] {
  const plan = windowPlan(node, node.ints('kernel_shape') ?? []);
  return shape.map((dim, at): Dim => {
    const axis = at - 2;
    if (axis < 0) return dim;
    const pads = plan.before[axis]! + plan.after[axis]!;
    return addDims(mulDims(addDims(dim, -1), plan.strides[axis]!), plan.kernel[axis]! - pads);
  });
}

/** Puts elements back where a MaxPool found them. */
const maxUnpool = defineOp({
  name: 'MaxUnpool',
  since: 9,
  quantization: 'passthrough',
  infer: (context) => {
    const shape = context.shape(0);
    const given = context.node.inputs[2] ? knownContent(context, 2) : undefined;
    if (context.node.inputs[2])
      return [typeOrUnknown(inputDtype(context, 0), given ?? (shape && unknownShape(context.node, 0, shape.length)))];
    return [typeOrUnknown(inputDtype(context, 0), shape && unpooledShape(shape, context.node))];
  },
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const places = readReals(need(inputs, 1, where));
    const natural = unpooledShape(x.shape, node) as number[];
    const shape = inputs[2] ? readInts(inputs[2]) : natural;
    const source = readReals(x);
    const out = newReals(x.dtype, elementCount(shape));
    // Indices count in the natural shape; a larger output keeps each plane's rows where they were.
    for (let i = 0; i < source.length; i++) {
      let rest = places[i]!;
      let at = 0;
      let stride = 1;
      for (let axis = natural.length - 1; axis >= 0; axis--) {
        at += (rest % natural[axis]!) * stride;
        rest = Math.floor(rest / natural[axis]!);
        stride *= shape[axis]!;
      }
      if (at >= out.length)
        throw new NpucError('IR020', { message: `index ${places[i]} lies outside [${shape}]`, where });
      out[at] = source[i]!;
    }
    return [encodeReals(x.dtype, shape, out)];
  },
});

export const CONV_TRANSPOSE_OPS: readonly OpDefinition[] = [convTranspose, col2Im, maxUnpool];

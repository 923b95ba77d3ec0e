import { NpucError } from '../errors.ts';
import { addDims, divDims, mulDims } from '../ir/dims.ts';
import type { Dim, Shape } from '../ir/graph.ts';
import { elementCount, type TensorData } from '../ir/tensor.ts';
import { expandTo } from './broadcast.ts';
import { need, newArray, readInts, takeElements } from './elements.ts';
import { normalizeAxis, splitAtAxis, stridedOffsets, stridesOf } from './indexing.ts';
import { defineOp, type OpDefinition } from './op.ts';
import { splitSizes } from './reshape.ts';
import {
  axisOf,
  broadcastShapes,
  inputDtype,
  knownContent,
  knownIntegers,
  nodeName,
  typeOrUnknown,
  unknownDim,
  unknownShape,
} from './shape-rules.ts';

/** Ops that move elements and change none. */

const transpose = defineOp({
  name: 'Transpose',
  since: 1,
  quantization: 'passthrough',
  infer: (context) => {
    const shape = context.shape(0);
    const order = context.node.ints('perm') ?? shape?.map((_, axis) => axis).reverse();
    if (shape && order && order.length !== shape.length)
      throw new NpucError('IR022', {
        message: `perm [${order}] does not fit [${shape}]`,
        where: nodeName(context.node),
      });
    return [typeOrUnknown(inputDtype(context, 0), shape && order?.map((axis) => shape[axis]!))];
  },
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    return [transposeData(x, node.ints('perm') ?? x.shape.map((_, axis) => axis).reverse())];
  },
});

/** Axis i of the result is axis `order[i]` of the tensor. */
export function transposeData(x: TensorData, order: readonly number[]): TensorData {
  const strides = stridesOf(x.shape);
  const shape = order.map((axis) => x.shape[axis]!);
  return takeElements(
    x,
    shape,
    stridedOffsets(
      shape,
      order.map((axis) => strides[axis]!),
    ),
  );
}

const concat = defineOp({
  name: 'Concat',
  since: 4,
  quantization: 'passthrough',
  infer: (context) => {
    const { node } = context;
    const where = nodeName(node);
    const shapes = node.inputs.map((_, index) => context.shape(index));
    const dtype = inputDtype(context, 0) ?? inputDtype(context, 1);
    const known = shapes.filter((shape): shape is Shape => shape !== undefined);
    const first = known[0];
    if (!first) return [typeOrUnknown(dtype, undefined)];
    const axis = axisOf(context, 'axis', 0, first.length);
    const out = first.map((dim, at): Dim => {
      if (at === axis) return shapes.reduce<Dim>((sum, shape) => addDims(sum, shape?.[axis] ?? 0), 0);
      for (const shape of known) {
        const other = shape[at];
        if (other === undefined || (typeof other === 'number' && typeof dim === 'number' && other !== dim))
          throw new NpucError('IR020', { message: `[${first}] and [${shape}] differ outside axis ${axis}`, where });
      }
      return known.map((shape) => shape[at]!).find((size) => typeof size === 'number') ?? dim;
    });
    if (known.length < shapes.length) out[axis] = unknownDim(node, 0, axis);
    return [typeOrUnknown(dtype, out)];
  },
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const parts = inputs.map((_, index) => need(inputs, index, where));
    return [concatData(parts, normalizeAxis(node.int('axis', 0), parts[0]!.shape.length, where), where)];
  },
});

/** Joins tensors along an axis. @throws IR020 when their other axes differ */
export function concatData(parts: readonly TensorData[], axis: number, where: string): TensorData {
  const first = parts[0]!;
  const shape = [...first.shape];
  shape[axis] = parts.reduce((sum, part) => sum + part.shape[axis]!, 0);
  for (const part of parts)
    if (part.shape.length !== shape.length || part.shape.some((dim, at) => at !== axis && dim !== shape[at]))
      throw new NpucError('IR020', {
        message: `[${first.shape}] and [${part.shape}] differ outside axis ${axis}`,
        where,
      });
  const { outer, inner } = splitAtAxis(shape, axis);
  const runs = parts.map((part) => part.shape[axis]! * inner);
  if (first.dtype === 'string') {
    const strings: string[] = [];
    for (let o = 0; o < outer; o++)
      parts.forEach((part, index) => strings.push(...part.strings!.slice(o * runs[index]!, (o + 1) * runs[index]!)));
    return { dtype: 'string', shape, data: first.data, strings };
  }
  const data = newArray(first.dtype, elementCount(shape)) as Float32Array;
  let at = 0;
  for (let o = 0; o < outer; o++) {
    parts.forEach((part, index) => {
      const run = runs[index]!;
      data.set((part.data as Float32Array).subarray(o * run, (o + 1) * run), at);
      at += run;
    });
  }
  return { dtype: first.dtype, shape, data };
}

/** Part of a tensor along one axis. */
export function sliceAxis(x: TensorData, axis: number, from: number, to: number): TensorData {
  const strides = stridesOf(x.shape);
  const shape = x.shape.map((dim, at) => (at === axis ? to - from : dim));
  return takeElements(x, shape, stridedOffsets(shape, strides, from * strides[axis]!));
}

/** Sizes come from an attribute up to opset 12, from input 1 since 13; opset 18 adds num_outputs. */
const split = defineOp({
  name: 'Split',
  since: 2,
  quantization: 'passthrough',
  infer: (context) => {
    const { node } = context;
    const shape = context.shape(0);
    const dtype = inputDtype(context, 0);
    if (!shape) return node.outputs.map(() => typeOrUnknown(dtype, undefined));
    const axis = axisOf(context, 'axis', 0, shape.length);
    const given = node.ints('split') ?? knownContent(context, 1);
    const sizes = given || !node.inputs[1] ? splitSizes(shape[axis]!, node.outputs.length, given) : undefined;
    return node.outputs.map((_, index) =>
      typeOrUnknown(
        dtype,
        shape.map((dim, at) => (at === axis ? (sizes?.[index] ?? unknownDim(node, index, axis)) : dim)),
      ),
    );
  },
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const axis = normalizeAxis(node.int('axis', 0), x.shape.length, nodeName(node));
    const given = node.ints('split') ?? (inputs[1] && readInts(inputs[1]));
    const sizes = splitSizes(x.shape[axis]!, node.outputs.length, given) as number[];
    if (sizes.reduce((sum, size) => sum + size, 0) !== x.shape[axis])
      throw new NpucError('IR020', {
        message: `parts [${sizes}] of axis ${axis} of [${x.shape}]`,
        where: nodeName(node),
      });
    let from = 0;
    return sizes.map((size) => {
      from += size;
      return sliceAxis(x, axis, from - size, from);
    });
  },
});

const expand = defineOp({
  name: 'Expand',
  since: 8,
  quantization: 'passthrough',
  infer: (context) => {
    const target = context.content(1);
    const rank = context.shape(1)?.[0];
    const shape = context.shape(0);
    const dtype = inputDtype(context, 0);
    if (!target) {
      const known = shape && typeof rank === 'number';
      return [typeOrUnknown(dtype, known ? unknownShape(context.node, 0, Math.max(rank, shape.length)) : undefined)];
    }
    const full = target.map((dim, axis) => dim ?? unknownDim(context.node, 0, axis));
    return [typeOrUnknown(dtype, broadcastShapes([shape, full], nodeName(context.node)))];
  },
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    return [expandTo(need(inputs, 0, where), readInts(need(inputs, 1, where)), where)];
  },
});

const tile = defineOp({
  name: 'Tile',
  since: 6,
  quantization: 'passthrough',
  infer: (context) => {
    const shape = context.shape(0);
    const repeats = context.content(1);
    return [
      typeOrUnknown(
        inputDtype(context, 0),
        shape?.map((dim, axis) => {
          const times = repeats?.[axis];
          return times === undefined ? unknownDim(context.node, 0, axis) : mulDims(dim, times);
        }),
      ),
    ];
  },
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const repeats = readInts(need(inputs, 1, where));
    const strides = stridesOf(x.shape);
    // Every axis becomes two, repeat and size; the repeat has stride 0.
    const shape = x.shape.flatMap((dim, axis) => [repeats[axis]!, dim]);
    const steps = strides.flatMap((stride) => [0, stride]);
    const out = x.shape.map((dim, axis) => dim * repeats[axis]!);
    return [takeElements(x, out, stridedOffsets(shape, steps))];
  },
});

/** Blocks of an image to channels and back; the axis orders are those of the ONNX specification. */
const depthToSpace = defineOp({
  name: 'DepthToSpace',
  since: 1,
  quantization: 'passthrough',
  infer: (context) => {
    const shape = context.shape(0);
    const size = context.node.int('blocksize', 1);
    if (!shape) return [typeOrUnknown(inputDtype(context, 0), unknownShape(context.node, 0, 4))];
    const [n, c, h, w] = shape as [Dim, Dim, Dim, Dim];
    return [typeOrUnknown(inputDtype(context, 0), [n, divDims(c, size * size), mulDims(h, size), mulDims(w, size)])];
  },
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const [n, c, h, w] = x.shape as [number, number, number, number];
    const size = node.int('blocksize', 1);
    const channels = c / (size * size);
    const dcr = node.string('mode', 'DCR') === 'DCR';
    const blocks: TensorData = {
      ...x,
      shape: dcr ? [n, size, size, channels, h, w] : [n, channels, size, size, h, w],
    };
    const moved = transposeData(blocks, dcr ? [0, 3, 4, 1, 5, 2] : [0, 1, 4, 2, 5, 3]);
    return [{ ...moved, shape: [n, channels, h * size, w * size] }];
  },
});

const spaceToDepth = defineOp({
  name: 'SpaceToDepth',
  since: 1,
  quantization: 'passthrough',
  infer: (context) => {
    const shape = context.shape(0);
    const size = context.node.int('blocksize', 1);
    if (!shape) return [typeOrUnknown(inputDtype(context, 0), unknownShape(context.node, 0, 4))];
    const [n, c, h, w] = shape as [Dim, Dim, Dim, Dim];
    return [typeOrUnknown(inputDtype(context, 0), [n, mulDims(c, size * size), divDims(h, size), divDims(w, size)])];
  },
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const [n, c, h, w] = x.shape as [number, number, number, number];
    const size = node.int('blocksize', 1);
    const blocks: TensorData = { ...x, shape: [n, c, h / size, size, w / size, size] };
    const moved = transposeData(blocks, [0, 3, 5, 1, 2, 4]);
    return [{ ...moved, shape: [n, c * size * size, h / size, w / size] }];
  },
});

/** The upper or lower triangle of the last two axes; the rest is zero. */
const trilu = defineOp({
  name: 'Trilu',
  since: 14,
  quantization: 'passthrough',
  infer: (context) => [typeOrUnknown(inputDtype(context, 0), context.shape(0))],
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const k = inputs[1] ? readInts(inputs[1])[0]! : 0;
    const upper = node.int('upper', 1) === 1;
    const rank = x.shape.length;
    const rows = x.shape[rank - 2]!;
    const columns = x.shape[rank - 1]!;
    const offsets = Int32Array.from({ length: elementCount(x.shape) }, (_, at) => {
      const row = Math.floor(at / columns) % rows;
      const column = at % columns;
      return (upper ? column - row >= k : column - row <= k) ? at : -1;
    });
    return [takeElements(x, x.shape, offsets)];
  },
});

const reverseSequence = defineOp({
  name: 'ReverseSequence',
  since: 10,
  quantization: 'passthrough',
  infer: (context) => [typeOrUnknown(inputDtype(context, 0), context.shape(0))],
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const lengths = readInts(need(inputs, 1, nodeName(node)));
    const batchAxis = node.int('batch_axis', 1);
    const timeAxis = node.int('time_axis', 0);
    const strides = stridesOf(x.shape);
    const offsets = stridedOffsets(x.shape, strides).map((at) => {
      const batch = Math.floor(at / strides[batchAxis]!) % x.shape[batchAxis]!;
      const time = Math.floor(at / strides[timeAxis]!) % x.shape[timeAxis]!;
      const length = lengths[batch]!;
      return time < length ? at + (length - 1 - 2 * time) * strides[timeAxis]! : at;
    });
    return [takeElements(x, x.shape, offsets)];
  },
});

/** Keeps the slices of an axis (or of the flattened tensor) where a condition holds. */
const compress = defineOp({
  name: 'Compress',
  since: 9,
  quantization: 'passthrough',
  infer: (context) => {
    const shape = context.shape(0);
    const axis = context.node.int('axis');
    const kept = knownIntegers(context, 1)?.filter((flag) => flag !== 0).length;
    if (axis === undefined) return [typeOrUnknown(inputDtype(context, 0), [kept ?? unknownDim(context.node, 0, 0)])];
    const at = shape && normalizeAxis(axis, shape.length, nodeName(context.node));
    const out = shape?.map((dim, index) => (index === at ? (kept ?? unknownDim(context.node, 0, index)) : dim));
    return [typeOrUnknown(inputDtype(context, 0), out)];
  },
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const given = need(inputs, 0, where);
    const named = node.int('axis');
    const x = named === undefined ? { ...given, shape: [elementCount(given.shape)] } : given;
    const axis = normalizeAxis(named ?? 0, x.shape.length, where);
    const kept: number[] = [];
    readInts(need(inputs, 1, where)).forEach((flag, index) => {
      if (flag !== 0 && index < x.shape[axis]!) kept.push(index);
    });
    const { outer, size, inner } = splitAtAxis(x.shape, axis);
    const offsets = new Int32Array(outer * kept.length * inner);
    let to = 0;
    for (let o = 0; o < outer; o++)
      for (const k of kept) for (let i = 0; i < inner; i++) offsets[to++] = (o * size + k) * inner + i;
    const shape = x.shape.map((dim, at) => (at === axis ? kept.length : dim));
    return [takeElements(x, shape, offsets)];
  },
});

export const MOVEMENT_OPS: readonly OpDefinition[] = [
  transpose,
  concat,
  split,
  expand,
  tile,
  depthToSpace,
  spaceToDepth,
  trilu,
  reverseSequence,
  compress,
];

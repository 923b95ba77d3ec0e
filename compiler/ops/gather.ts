import { NpucError } from '../errors.ts';
import type { Dim } from '../ir/graph.ts';
import { elementCount, type TensorData } from '../ir/tensor.ts';
import { need, readReals, takeElements } from './elements.ts';
import { normalizeAxis, splitAtAxis, stridesOf } from './indexing.ts';
import { defineOp, type OpDefinition } from './op.ts';
import { axisOf, inputDtype, nodeName, typeOrUnknown } from './shape-rules.ts';

/** An index counted from the front. @throws IR020 when it lies outside */
export function indexInside(index: number, size: number, where: string): number {
  const positive = index < 0 ? index + size : index;
  if (positive < 0 || positive >= size || Number.isNaN(index))
    throw new NpucError('IR020', { message: `index ${index} lies outside 0..${size - 1}`, where });
  return positive;
}

const gather = defineOp({
  name: 'Gather',
  since: 1,
  quantization: 'passthrough',
  infer: (context) => {
    const shape = context.shape(0);
    const indices = context.shape(1);
    if (!shape || !indices) return [typeOrUnknown(inputDtype(context, 0), undefined)];
    const axis = axisOf(context, 'axis', 0, shape.length);
    return [typeOrUnknown(inputDtype(context, 0), [...shape.slice(0, axis), ...indices, ...shape.slice(axis + 1)])];
  },
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const indices = need(inputs, 1, where);
    const axis = normalizeAxis(node.int('axis', 0), x.shape.length, where);
    const { outer, size, inner } = splitAtAxis(x.shape, axis);
    const picks = Array.from(readReals(indices), (index) => indexInside(index, size, where));
    const offsets = new Int32Array(outer * picks.length * inner);
    let to = 0;
    for (let o = 0; o < outer; o++)
      for (const pick of picks) for (let i = 0; i < inner; i++) offsets[to++] = (o * size + pick) * inner + i;
    return [takeElements(x, [...x.shape.slice(0, axis), ...indices.shape, ...x.shape.slice(axis + 1)], offsets)];
  },
});

/** For every element of `indices`, the offset in `x` where the coordinate along `axis` is that index. */
export function elementOffsets(x: TensorData, indices: TensorData, axis: number, where: string): Int32Array {
  const strides = stridesOf(x.shape);
  const own = stridesOf(indices.shape);
  const values = readReals(indices);
  const offsets = new Int32Array(values.length);
  for (let at = 0; at < offsets.length; at++) {
    let offset = 0;
    for (let k = 0; k < own.length; k++) {
      const place =
        k === axis ? indexInside(values[at]!, x.shape[k]!, where) : Math.floor(at / own[k]!) % indices.shape[k]!;
      offset += place * strides[k]!;
    }
    offsets[at] = offset;
  }
  return offsets;
}

const gatherElements = defineOp({
  name: 'GatherElements',
  since: 11,
  quantization: 'passthrough',
  infer: (context) => [typeOrUnknown(inputDtype(context, 0), context.shape(1))],
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const indices = need(inputs, 1, where);
    const axis = normalizeAxis(node.int('axis', 0), x.shape.length, where);
    return [takeElements(x, indices.shape, elementOffsets(x, indices, axis, where))];
  },
});

/** Start offsets in `shape` of the slices that [..., depth] index tuples name, behind `batch` leading axes. */
export function sliceStarts(shape: readonly number[], indices: TensorData, batch: number, where: string): Int32Array {
  const strides = stridesOf(shape);
  const depth = indices.shape[indices.shape.length - 1]!;
  const values = readReals(indices);
  const tuples = depth === 0 ? elementCount(indices.shape.slice(0, -1)) : values.length / depth;
  const perBatch = tuples / elementCount(shape.slice(0, batch));
  const batchSize = elementCount(shape.slice(batch));
  const starts = new Int32Array(tuples);
  for (let t = 0; t < tuples; t++) {
    let offset = Math.floor(t / perBatch) * batchSize;
    for (let k = 0; k < depth; k++)
      offset += indexInside(values[t * depth + k]!, shape[batch + k]!, where) * strides[batch + k]!;
    starts[t] = offset;
  }
  return starts;
}

const gatherNd = defineOp({
  name: 'GatherND',
  since: 11,
  quantization: 'passthrough',
  infer: (context) => {
    const shape = context.shape(0);
    const indices = context.shape(1);
    const depth = indices?.[indices.length - 1];
    if (!shape || !indices || typeof depth !== 'number') return [typeOrUnknown(inputDtype(context, 0), undefined)];
    const batch = context.node.int('batch_dims', 0);
    const out: Dim[] = [...indices.slice(0, -1), ...shape.slice(batch + depth)];
    return [typeOrUnknown(inputDtype(context, 0), out)];
  },
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const indices = need(inputs, 1, where);
    const batch = node.int('batch_dims', 0);
    const depth = indices.shape[indices.shape.length - 1]!;
    const tail = x.shape.slice(batch + depth);
    const run = elementCount(tail);
    const starts = sliceStarts(x.shape, indices, batch, where);
    const offsets = new Int32Array(starts.length * run);
    for (let t = 0; t < starts.length; t++) for (let i = 0; i < run; i++) offsets[t * run + i] = starts[t]! + i;
    return [takeElements(x, [...indices.shape.slice(0, -1), ...tail], offsets)];
  },
});

export const GATHER_OPS: readonly OpDefinition[] = [gather, gatherElements, gatherNd];

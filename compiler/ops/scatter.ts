import { NpucError } from '../errors.ts';
import type { Dim, Node } from '../ir/graph.ts';
import { elementCount, type TensorData } from '../ir/tensor.ts';
import { encodeReals, isBig, need, newArray, readInts, readReals } from './elements.ts';
import { elementOffsets, sliceStarts } from './gather.ts';
import { normalizeAxis, splitAtAxis, stridesOf } from './indexing.ts';
import { defineOp, type OpDefinition } from './op.ts';
import { inputDtype, likeInput, nodeName, typeOrUnknown, unknownDim } from './shape-rules.ts';

/** Writes `updates` at `offsets` of a copy of x, combining by `reduction`. */
function scatterInto(
  x: TensorData,
  offsets: Int32Array,
  updates: TensorData,
  reduction: string,
  where: string,
): TensorData {
  if (x.strings) {
    const strings = [...x.strings];
    offsets.forEach((offset, i) => {
      strings[offset] = updates.strings![i]!;
    });
    return { ...x, strings };
  }
  if (reduction === 'none') {
    const out = x.data.slice() as Float32Array;
    const source = updates.data as Float32Array;
    for (let i = 0; i < offsets.length; i++) out[offsets[i]!] = source[i]!;
    return { dtype: x.dtype, shape: x.shape, data: out };
  }
  const combine = REDUCTIONS[reduction];
  if (!combine) throw new NpucError('IR022', { message: `reduction ${reduction} is not known`, where });
  if (isBig(x.dtype)) {
    const out = x.data.slice() as BigInt64Array;
    const source = updates.data as BigInt64Array;
    for (let i = 0; i < offsets.length; i++) out[offsets[i]!] = combine(out[offsets[i]!]!, source[i]!);
    return { dtype: x.dtype, shape: x.shape, data: out };
  }
  const out = Float64Array.from(readReals(x));
  const source = readReals(updates);
  for (let i = 0; i < offsets.length; i++) out[offsets[i]!] = combine(out[offsets[i]!]!, source[i]!);
  return encodeReals(x.dtype, x.shape, x.dtype === 'f64' ? out : Array.from(out));
}

type Combine = <T extends number | bigint>(a: T, b: T) => T;

const REDUCTIONS: Readonly<Record<string, Combine>> = {
  add: (a, b) => ((a as number) + (b as number)) as typeof a,
  mul: (a, b) => ((a as number) * (b as number)) as typeof a,
  max: (a, b) => (b > a ? b : a),
  min: (a, b) => (b < a ? b : a),
};

function scatterElements(name: string, since: number): OpDefinition {
  return defineOp({
    name,
    since,
    quantization: 'passthrough',
    infer: likeInput(),
    evaluate: (inputs, { node }) => {
      const where = nodeName(node);
      const x = need(inputs, 0, where);
      const axis = normalizeAxis(node.int('axis', 0), x.shape.length, where);
      const offsets = elementOffsets(x, need(inputs, 1, where), axis, where);
      return [scatterInto(x, offsets, need(inputs, 2, where), node.string('reduction', 'none'), where)];
    },
  });
}

const scatterNd = defineOp({
  name: 'ScatterND',
  since: 11,
  quantization: 'passthrough',
  infer: likeInput(),
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const indices = need(inputs, 1, where);
    const starts = sliceStarts(x.shape, indices, 0, where);
    const run = elementCount(x.shape.slice(indices.shape[indices.shape.length - 1]));
    const offsets = new Int32Array(starts.length * run);
    for (let t = 0; t < starts.length; t++) for (let i = 0; i < run; i++) offsets[t * run + i] = starts[t]! + i;
    return [scatterInto(x, offsets, need(inputs, 2, where), node.string('reduction', 'none'), where)];
  },
});

/** Writes an update into a cache along an axis, at an index per batch entry (0 without one); `circular` wraps around. */
const tensorScatter = defineOp({
  name: 'TensorScatter',
  since: 24,
  quantization: 'passthrough',
  infer: likeInput(),
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const update = need(inputs, 1, where);
    const axis = normalizeAxis(node.int('axis', -2), x.shape.length, where);
    const indices = inputs[2] && readInts(inputs[2]);
    const circular = node.string('mode', 'linear') === 'circular';
    const strides = stridesOf(x.shape);
    const own = stridesOf(update.shape);
    const offsets = Int32Array.from({ length: elementCount(update.shape) }, (_, at) => {
      let offset = 0;
      for (let k = 0; k < own.length; k++) {
        let place = Math.floor(at / own[k]!) % update.shape[k]!;
        if (k === axis) {
          place += indices?.[Math.floor(at / own[0]!)] ?? 0;
          if (circular) place %= x.shape[k]!;
          if (place >= x.shape[k]!)
            throw new NpucError('IR020', {
              message: `index ${place} lies outside axis ${axis} of [${x.shape}]`,
              where,
            });
        }
        offset += place * strides[k]!;
      }
      return offset;
    });
    return [scatterInto(x, offsets, update, 'none', where)];
  },
});

function oneHotAxis(node: Node, rank: number): number {
  return normalizeAxis(node.int('axis', -1), rank + 1, nodeName(node));
}

/** Values are [off, on]; indices outside the depth give a row of `off`. */
const oneHot = defineOp({
  name: 'OneHot',
  since: 9,
  quantization: 'never',
  infer: (context) => {
    const indices = context.shape(0);
    const depth: Dim = context.content(1)?.[0] ?? context.constant(1)?.toNumbers()[0] ?? unknownDim(context.node, 0, 0);
    if (!indices) return [typeOrUnknown(inputDtype(context, 2), undefined)];
    const axis = oneHotAxis(context.node, indices.length);
    return [typeOrUnknown(inputDtype(context, 2), [...indices.slice(0, axis), depth, ...indices.slice(axis)])];
  },
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const indices = need(inputs, 0, where);
    const depth = readReals(need(inputs, 1, where))[0]!;
    const values = need(inputs, 2, where);
    const axis = oneHotAxis(node, indices.shape.length);
    const shape = [...indices.shape.slice(0, axis), depth, ...indices.shape.slice(axis)];
    const { inner } = splitAtAxis(shape, axis);
    const picks = readReals(indices);
    const off = values.data[0] as number;
    const on = values.data[1] as number;
    const out = (newArray(values.dtype, elementCount(shape)) as Float32Array).fill(off);
    for (let at = 0; at < picks.length; at++) {
      const pick = picks[at]! < 0 ? picks[at]! + depth : picks[at]!;
      if (pick < 0 || pick >= depth) continue;
      out[(Math.floor(at / inner) * depth + Math.trunc(pick)) * inner + (at % inner)] = on;
    }
    return [{ dtype: values.dtype, shape, data: out }];
  },
});

export const SCATTER_OPS: readonly OpDefinition[] = [
  scatterElements('Scatter', 9),
  scatterElements('ScatterElements', 11),
  scatterNd,
  tensorScatter,
  oneHot,
];

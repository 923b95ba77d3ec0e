import { NpucError } from '../errors.ts';
import type { DType } from '../ir/dtype.ts';
import type { Dim, Node, Shape } from '../ir/graph.ts';
import { elementCount, type TensorData } from '../ir/tensor.ts';
import { encodeReals, isBig, need, newReals, readInts, readReals } from './elements.ts';
import { normalizeAxes, normalizeAxis, splitAtAxis, stridedOffsets, stridesOf } from './indexing.ts';
import { defineOp, type InferContext, type OpDefinition } from './op.ts';
import { axesOf, inputDtype, nodeName, typeOrUnknown, unknownShape } from './shape-rules.ts';

/** Folds the elements of one reduced group. */
interface Reduction {
  readonly start: number;
  readonly step: (sum: number, x: number) => number;
  /** Turns the fold into the result; `count` elements were folded. */
  readonly finish?: (sum: number, count: number) => number;
  /** The same on 64-bit integers, exactly. */
  readonly big?: { readonly start: bigint; readonly step: (sum: bigint, x: bigint) => bigint };
}

/** Since 18 (ReduceSum: 13) axes are an input; before, an attribute. */
function axesFromInput(name: string, opset: number): boolean {
  return opset >= (name === 'ReduceSum' ? 13 : 18);
}

function inferReduction(context: InferContext): Shape | undefined {
  const shape = context.shape(0);
  if (!shape) return undefined;
  const { node } = context;
  const keep = node.int('keepdims', 1) === 1;
  const given = axesFromInput(node.op, context.opset) ? node.inputs[1] !== undefined : node.ints('axes') !== undefined;
  const axes = axesOf(context, 1);
  if (given && axes === undefined) return keep ? unknownShape(node, 0, shape.length) : undefined;
  if (!given || axes!.length === 0) {
    if (node.int('noop_with_empty_axes', 0) === 1) return shape;
    return keep ? shape.map(() => 1) : [];
  }
  const reduced = new Set(normalizeAxes(axes!, shape.length, nodeName(node)));
  const out: Dim[] = [];
  shape.forEach((dim, axis) => {
    if (!reduced.has(axis)) out.push(dim);
    else if (keep) out.push(1);
  });
  return out;
}

/** The axes of a run: undefined means that nothing is reduced (noop_with_empty_axes). */
function axesOfRun(node: Node, opset: number, axesInput: TensorData | undefined, rank: number): number[] | undefined {
  const listed = (axesFromInput(node.op, opset) ? axesInput && readInts(axesInput) : node.ints('axes')) ?? [];
  if (listed.length > 0) return normalizeAxes(listed, rank, nodeName(node));
  return node.int('noop_with_empty_axes', 0) === 1 ? undefined : Array.from({ length: rank }, (_, axis) => axis);
}

function reduction(name: string, fold: Reduction): OpDefinition {
  return defineOp({
    name,
    since: 1,
    quantization: 'independent',
    infer: (context) => [typeOrUnknown(inputDtype(context, 0), inferReduction(context))],
    evaluate: (inputs, { node, opset }) => {
      const x = need(inputs, 0, nodeName(node));
      const rank = x.shape.length;
      const axes = axesOfRun(node, opset, inputs[1], rank);
      if (axes === undefined) return [reduceAxes(x, [], fold, true)];
      return [reduceAxes(x, axes, fold, node.int('keepdims', 1) === 1)];
    },
  });
}

/** Reduces sorted axes of a tensor; without axes every element is a group of its own. */
export function reduceAxes(x: TensorData, axes: readonly number[], fold: Reduction, keep: boolean): TensorData {
  const reduced = new Set(axes);
  const kept = x.shape.map((_, axis) => axis).filter((axis) => !reduced.has(axis));
  const strides = stridesOf(x.shape);
  const pick = (list: readonly number[], from: readonly number[]): number[] => list.map((axis) => from[axis]!);
  const starts = stridedOffsets(pick(kept, x.shape), pick(kept, strides));
  const steps = stridedOffsets(pick(axes, x.shape), pick(axes, strides));
  const shape = keep ? x.shape.map((dim, axis) => (reduced.has(axis) ? 1 : dim)) : pick(kept, x.shape);
  if (isBig(x.dtype) && fold.big) {
    const out = new (x.dtype === 'i64' ? BigInt64Array : BigUint64Array)(starts.length);
    const source = x.data as BigInt64Array;
    for (let i = 0; i < starts.length; i++) {
      let sum = fold.big.start;
      for (let j = 0; j < steps.length; j++) sum = fold.big.step(sum, source[starts[i]! + steps[j]!]!);
      out[i] = sum;
    }
    return { dtype: x.dtype, shape, data: out };
  }
  const source = readReals(x);
  const out = newReals(x.dtype, starts.length);
  for (let i = 0; i < starts.length; i++) {
    const start = starts[i]!;
    let sum = fold.start;
    for (let j = 0; j < steps.length; j++) sum = fold.step(sum, source[start + steps[j]!]!);
    out[i] = fold.finish ? fold.finish(sum, steps.length) : sum;
  }
  return encodeReals(x.dtype, shape, out);
}

export const SUM: Reduction = { start: 0, step: (sum, x) => sum + x, big: { start: 0n, step: (sum, x) => sum + x } };
export const MEAN: Reduction = { start: 0, step: (sum, x) => sum + x, finish: (sum, count) => sum / count };

/** log(sum(exp(x))) needs the largest element first, so it cannot be one fold. */
const reduceLogSumExp = defineOp({
  name: 'ReduceLogSumExp',
  since: 1,
  quantization: 'independent',
  infer: (context) => [typeOrUnknown(inputDtype(context, 0), inferReduction(context))],
  evaluate: (inputs, { node, opset }) => {
    const x = need(inputs, 0, nodeName(node));
    const axes = axesOfRun(node, opset, inputs[1], x.shape.length) ?? [];
    const source = readReals(x);
    let max = Number.NEGATIVE_INFINITY;
    for (let i = 0; i < source.length; i++)
      if (source[i]! > max && source[i]! < Number.POSITIVE_INFINITY) max = source[i]!;
    const shift = Number.isFinite(max) ? max : 0;
    const keep = node.int('keepdims', 1) === 1;
    return [
      reduceAxes(
        x,
        axes,
        { start: 0, step: (sum, value) => sum + Math.exp(value - shift), finish: (sum) => Math.log(sum) + shift },
        keep || axes.length === 0,
      ),
    ];
  },
});

/** ArgMax and ArgMin: the index of the first (or last) extreme along one axis. */
function argExtreme(name: string, better: (x: number, best: number) => boolean): OpDefinition {
  return defineOp({
    name,
    since: 1,
    quantization: 'never',
    infer: (context) => {
      const shape = context.shape(0);
      if (!shape) return [typeOrUnknown('i64', undefined)];
      const axis = normalizeAxis(context.node.int('axis', 0), shape.length, nodeName(context.node));
      const keep = context.node.int('keepdims', 1) === 1;
      const out = keep ? shape.map((dim, at) => (at === axis ? 1 : dim)) : shape.filter((_, at) => at !== axis);
      return [typeOrUnknown('i64', out)];
    },
    evaluate: (inputs, { node }) => {
      const x = need(inputs, 0, nodeName(node));
      const axis = normalizeAxis(node.int('axis', 0), x.shape.length, nodeName(node));
      const last = node.int('select_last_index', 0) === 1;
      const { outer, size, inner } = splitAtAxis(x.shape, axis);
      if (size === 0) throw new NpucError('IR020', { message: `${name} of an empty axis`, where: nodeName(node) });
      const source = readReals(x);
      const out = new BigInt64Array(outer * inner);
      for (let o = 0; o < outer; o++) {
        for (let i = 0; i < inner; i++) {
          const start = o * size * inner + i;
          let best = 0;
          for (let k = 1; k < size; k++) {
            const value = source[start + k * inner]!;
            const leader = source[start + best * inner]!;
            if (better(value, leader) || (last && value === leader)) best = k;
          }
          out[o * inner + i] = BigInt(best);
        }
      }
      const keep = node.int('keepdims', 1) === 1;
      const shape = keep ? x.shape.map((dim, at) => (at === axis ? 1 : dim)) : x.shape.filter((_, at) => at !== axis);
      return [{ dtype: 'i64', shape, data: out }];
    },
  });
}

/** Running sum along an axis; `exclusive` leaves the element itself out, `reverse` starts at the end. */
const cumSum = defineOp({
  name: 'CumSum',
  since: 11,
  quantization: 'independent',
  infer: (context) => [typeOrUnknown(inputDtype(context, 0), context.shape(0))],
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const axis = normalizeAxis(readInts(need(inputs, 1, nodeName(node)))[0]!, x.shape.length, nodeName(node));
    const { outer, size, inner } = splitAtAxis(x.shape, axis);
    const source = readReals(x);
    const out = newReals(x.dtype, elementCount(x.shape));
    const exclusive = node.int('exclusive', 0) === 1;
    const reverse = node.int('reverse', 0) === 1;
    for (let o = 0; o < outer; o++) {
      for (let i = 0; i < inner; i++) {
        let sum = 0;
        for (let k = 0; k < size; k++) {
          const at = (o * size + (reverse ? size - 1 - k : k)) * inner + i;
          if (exclusive) out[at] = sum;
          sum += source[at]!;
          if (!exclusive) out[at] = sum;
        }
      }
    }
    return [encodeReals(x.dtype, x.shape, out)];
  },
});

/** The least and the largest number of a type: what ReduceMax and ReduceMin of nothing give. */
function emptyExtreme(dtype: DType, largest: boolean): number {
  if (dtype === 'bool') return largest ? 1 : 0;
  const match = /^([iu])(\d+)$/.exec(dtype);
  if (!match) return largest ? Number.POSITIVE_INFINITY : Number.NEGATIVE_INFINITY;
  const width = Number(match[2]);
  if (match[1] === 'u') return largest ? 2 ** width - 1 : 0;
  return largest ? 2 ** (width - 1) - 1 : -(2 ** (width - 1));
}

/** ReduceMax and ReduceMin: NaN wins, and an empty group gives the type's own limit. */
function extremeReduction(
  name: string,
  pick: (x: number, y: number) => number,
  bigPick: (x: bigint, y: bigint) => bigint,
): OpDefinition {
  const plain = reduction(name, { start: 0, step: pick });
  return defineOp({
    ...plain,
    evaluate: (inputs, { node, opset }) => {
      const x = need(inputs, 0, nodeName(node));
      const axes = axesOfRun(node, opset, inputs[1], x.shape.length);
      const keep = node.int('keepdims', 1) === 1;
      const limit = emptyExtreme(x.dtype, name === 'ReduceMin');
      const wide = x.dtype === 'u64' ? 2n ** 64n - 1n : 2n ** 63n - 1n;
      const low = x.dtype === 'u64' ? 0n : -(2n ** 63n);
      const fold: Reduction = {
        start: limit,
        step: pick,
        big: { start: name === 'ReduceMin' ? wide : low, step: bigPick },
      };
      return [reduceAxes(x, axes ?? [], fold, keep || axes === undefined)];
    },
  });
}

export const REDUCE_OPS: readonly OpDefinition[] = [
  reduction('ReduceSum', SUM),
  reduction('ReduceMean', MEAN),
  reduction('ReduceProd', { start: 1, step: (sum, x) => sum * x, big: { start: 1n, step: (sum, x) => sum * x } }),
  reduction('ReduceL1', { start: 0, step: (sum, x) => sum + Math.abs(x) }),
  reduction('ReduceL2', { start: 0, step: (sum, x) => sum + x * x, finish: Math.sqrt }),
  reduction('ReduceSumSquare', { start: 0, step: (sum, x) => sum + x * x }),
  reduction('ReduceLogSum', { start: 0, step: (sum, x) => sum + x, finish: Math.log }),
  extremeReduction('ReduceMax', Math.max, (x, y) => (x > y ? x : y)),
  extremeReduction('ReduceMin', Math.min, (x, y) => (x < y ? x : y)),
  reduceLogSumExp,
  argExtreme('ArgMax', (x, best) => x > best),
  argExtreme('ArgMin', (x, best) => x < best),
  cumSum,
];

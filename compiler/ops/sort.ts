import { minDims } from '../ir/dims.ts';
import type { Dim } from '../ir/graph.ts';
import { elementCount } from '../ir/tensor.ts';
import { int64s, isBig, need, readInts, readReals, takeElements } from './elements.ts';
import { normalizeAxis, splitAtAxis, stridesOf } from './indexing.ts';
import { defineOp, type OpDefinition } from './op.ts';
import { inputDtype, nodeName, typeOrUnknown, unknownDim } from './shape-rules.ts';

/** Ops that order or search elements. */

/** The k largest (or smallest) of an axis; equal elements keep the lower index first. k is an attribute up to opset 9. */
const topK = defineOp({
  name: 'TopK',
  since: 1,
  quantization: 'passthrough',
  infer: (context) => {
    const shape = context.shape(0);
    const k = context.node.int('k') ?? context.content(1)?.[0];
    if (!shape) return [typeOrUnknown(inputDtype(context, 0), undefined), typeOrUnknown('i64', undefined)];
    const axis = normalizeAxis(context.node.int('axis', -1), shape.length, nodeName(context.node));
    const out = shape.map(
      (dim, at): Dim =>
        at === axis
          ? k === undefined
            ? unknownDim(context.node, 0, axis)
            : typeof k === 'number'
              ? k
              : minDims(k, dim)
          : dim,
    );
    return [typeOrUnknown(inputDtype(context, 0), out), typeOrUnknown('i64', out)];
  },
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const k = node.int('k') ?? readInts(need(inputs, 1, where))[0]!;
    const axis = normalizeAxis(node.int('axis', -1), x.shape.length, where);
    const sign = node.int('largest', 1) === 1 ? -1 : 1;
    const { outer, size, inner } = splitAtAxis(x.shape, axis);
    const source: ArrayLike<number | bigint> = isBig(x.dtype) ? (x.data as BigInt64Array) : readReals(x);
    const shape = x.shape.map((dim, at) => (at === axis ? k : dim));
    const offsets = new Int32Array(outer * k * inner);
    const indices = new BigInt64Array(offsets.length);
    for (let o = 0; o < outer; o++) {
      for (let i = 0; i < inner; i++) {
        const start = o * size * inner + i;
        const order = Array.from({ length: size }, (_, at) => at).sort((a, b) => {
          const x1 = source[start + a * inner]!;
          const x2 = source[start + b * inner]!;
          return x1 === x2 ? a - b : x1 < x2 ? -sign : sign;
        });
        for (let rank = 0; rank < k; rank++) {
          const to = (o * k + rank) * inner + i;
          offsets[to] = start + order[rank]! * inner;
          indices[to] = BigInt(order[rank]!);
        }
      }
    }
    return [takeElements(x, shape, offsets), { dtype: 'i64', shape, data: indices }];
  },
});

/** Coordinates of the non-zero elements, [rank, count]. */
const nonZero = defineOp({
  name: 'NonZero',
  since: 9,
  quantization: 'never',
  infer: (context) => [
    typeOrUnknown('i64', [context.shape(0)?.length ?? unknownDim(context.node, 0, 0), unknownDim(context.node, 0, 1)]),
  ],
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const source = readReals(x);
    const found: number[] = [];
    for (let i = 0; i < source.length; i++) if (source[i] !== 0) found.push(i);
    const strides = stridesOf(x.shape);
    const out = new BigInt64Array(x.shape.length * found.length);
    strides.forEach((stride, axis) =>
      found.forEach((at, index) => {
        out[axis * found.length + index] = BigInt(Math.floor(at / stride) % x.shape[axis]!);
      }),
    );
    return [{ dtype: 'i64', shape: [x.shape.length, found.length], data: out }];
  },
});

/** Distinct elements (or slices of an axis), sorted or in order of appearance; with first places, inverse and counts. */
const unique = defineOp({
  name: 'Unique',
  since: 11,
  quantization: 'never',
  infer: (context) => {
    const shape = context.shape(0);
    const axis = context.node.int('axis');
    const count = unknownDim(context.node, 0, 0);
    const at = axis === undefined ? undefined : shape && normalizeAxis(axis, shape.length, nodeName(context.node));
    const out = axis === undefined ? [count] : shape?.map((dim, index) => (index === at ? count : dim));
    const whole: Dim = axis === undefined || at === undefined ? unknownDim(context.node, 2, 0) : shape![at]!;
    return [
      typeOrUnknown(inputDtype(context, 0), out),
      typeOrUnknown('i64', [count]),
      typeOrUnknown('i64', [whole]),
      typeOrUnknown('i64', [count]),
    ];
  },
  evaluate: (inputs, { node }) => {
    const given = need(inputs, 0, nodeName(node));
    const named = node.int('axis');
    const x = named === undefined ? { ...given, shape: [elementCount(given.shape)] } : given;
    const axis = normalizeAxis(named ?? 0, x.shape.length, nodeName(node));
    const { outer, size, inner } = splitAtAxis(x.shape, axis);
    const source: ArrayLike<number | bigint | string> = x.strings ?? (isBig(x.dtype) ? x.data : readReals(x));
    const element = (k: number, i: number): number | bigint | string =>
      source[(Math.floor(i / inner) * size + k) * inner + (i % inner)]!;
    const width = outer * inner;
    const compare = (a: number, b: number): number => {
      for (let i = 0; i < width; i++) {
        const [p, q] = [element(a, i), element(b, i)];
        if (p !== q) return p < q ? -1 : 1;
      }
      return 0;
    };
    const order = Array.from({ length: size }, (_, k) => k).sort((a, b) => compare(a, b) || a - b);
    // Runs of equal slices; the first of each run is its first place, as ties are ordered by place.
    const groups: number[][] = [];
    for (const k of order) {
      const last = groups[groups.length - 1];
      if (last && compare(last[0]!, k) === 0) last.push(k);
      else groups.push([k]);
    }
    if (node.int('sorted', 1) === 0) groups.sort((a, b) => a[0]! - b[0]!);
    const inverse = new Array<number>(size).fill(0);
    groups.forEach((group, index) => {
      for (const k of group) inverse[k] = index;
    });
    const shape = x.shape.map((dim, at) => (at === axis ? groups.length : dim));
    const offsets = new Int32Array(elementCount(shape));
    let to = 0;
    for (let o = 0; o < outer; o++)
      for (const group of groups) for (let i = 0; i < inner; i++) offsets[to++] = (o * size + group[0]!) * inner + i;
    return [
      takeElements(x, shape, offsets),
      int64s(
        [groups.length],
        groups.map((group) => group[0]!),
      ),
      int64s([size], inverse),
      int64s(
        [groups.length],
        groups.map((group) => group.length),
      ),
    ];
  },
});

export const SORT_OPS: readonly OpDefinition[] = [topK, nonZero, unique];

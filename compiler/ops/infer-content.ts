import {
  addDims,
  divDims,
  divDimsExactly,
  maxDims,
  minDims,
  modDims,
  mulDims,
  productOfDims,
  sameDim,
  subtractDims,
} from '../ir/dims.ts';
import type { Dim, Node, Shape } from '../ir/graph.ts';
import { castTarget, shapeContent } from './constant.ts';
import { isInteger } from './elements.ts';
import { indexInside } from './gather.ts';
import { nodeName } from './shape-rules.ts';
import { sliceRange } from './slice-pad.ts';

/** The content of a small integer tensor of rank 0 or 1; unknown entries are undefined. */
export type Content = readonly (Dim | undefined)[];

export interface ContentContext {
  readonly node: Node;
  readonly opset: number;
  content(index: number): Content | undefined;
  shape(index: number): Shape | undefined;
}

type Rule = (context: ContentContext) => Content | readonly (Content | undefined)[] | undefined;

/** Longer tensors are data, not shapes. */
export const CONTENT_LIMIT = 64;

function elementwise(combine: (a: Dim, b: Dim) => Dim | undefined): Rule {
  return (context) => {
    const a = context.content(0);
    const b = context.content(1);
    if (!a || !b || (a.length !== b.length && a.length !== 1 && b.length !== 1)) return undefined;
    return Array.from({ length: Math.max(a.length, b.length) }, (_, i) => {
      const x = a[a.length === 1 ? 0 : i];
      const y = b[b.length === 1 ? 0 : i];
      return x === undefined || y === undefined ? undefined : combine(x, y);
    });
  };
}

const passOn: Rule = (context) => context.content(0);

/** Whether a symbolic dimension is certainly not that: names stand for lengths, never for -1. */
function equalDims(a: Dim, b: Dim): Dim | undefined {
  if (sameDim(a, b)) return 1;
  const numbers = typeof a === 'number' && typeof b === 'number';
  const negative = (typeof a === 'number' && a < 0) || (typeof b === 'number' && b < 0);
  return numbers || negative ? 0 : undefined;
}

function reduced(fold: (entries: readonly Dim[]) => Dim): Rule {
  return (context) => {
    const entries = context.content(0);
    return entries?.every((entry): entry is Dim => entry !== undefined) ? [fold(entries)] : undefined;
  };
}

/** How shape arithmetic carries symbolic contents; ops on plain numbers are evaluated instead. */
const RULES: Readonly<Record<string, Rule>> = {
  Shape: ({ node, shape }) => {
    const dims = shape(0);
    return dims && shapeContent(node, dims);
  },
  Size: ({ shape }) => {
    const dims = shape(0);
    return dims && [productOfDims(dims)];
  },
  Identity: passOn,
  Cast: (context) => {
    const to = castTarget(context.node, 'to');
    return to && isInteger(to) ? context.content(0) : undefined;
  },
  Squeeze: passOn,
  Unsqueeze: passOn,
  Flatten: passOn,
  Reshape: passOn,
  Gather: (context) => {
    const entries = context.content(0);
    const picks = context.content(1);
    return (
      entries &&
      picks?.map((pick) =>
        typeof pick === 'number' ? entries[indexInside(pick, entries.length, nodeName(context.node))] : undefined,
      )
    );
  },
  Concat: ({ node, content }) => {
    const parts = node.inputs.map((_, index) => content(index));
    return parts.every((part): part is Content => part !== undefined) ? parts.flat() : undefined;
  },
  Slice: (context) => {
    const entries = context.content(0);
    const list = (attribute: string, index: number): Content | undefined =>
      context.opset < 10 ? context.node.ints(attribute) : context.content(index);
    const [start] = list('starts', 1) ?? [];
    const [end] = list('ends', 2) ?? [];
    const step = context.opset >= 10 && context.node.inputs[4] ? context.content(4)?.[0] : 1;
    if (!entries || typeof start !== 'number' || typeof end !== 'number' || typeof step !== 'number') return undefined;
    const { from, count } = sliceRange(entries.length, start, end, step);
    return Array.from({ length: count }, (_, i) => entries[from + i * step]);
  },
  Split: ({ node, content }) => {
    const entries = content(0);
    if (!entries) return undefined;
    const given = node.ints('split') ?? content(1);
    const even = Math.ceil(entries.length / node.outputs.length);
    let from = 0;
    return node.outputs.map((_, index) => {
      const size = given ? given[index] : even;
      if (typeof size !== 'number') return undefined;
      from += size;
      return entries.slice(from - size, from);
    });
  },
  Add: elementwise(addDims),
  Sub: elementwise(subtractDims),
  Mul: elementwise(mulDims),
  // Names stand for lengths: with a positive divisor rounding down is truncation.
  Div: elementwise((a, b) =>
    b === 0 || (typeof b === 'number' && b < 0) ? undefined : (divDimsExactly(a, b) ?? divDims(a, b)),
  ),
  Mod: elementwise((a, b) => (b === 0 ? undefined : modDims(a, b))),
  Max: elementwise(maxDims),
  Min: elementwise(minDims),
  Equal: elementwise(equalDims),
  Not: ({ content }) => content(0)?.map((flag) => (typeof flag === 'number' ? 1 - flag : undefined)),
  Where: ({ content }) => {
    const [condition, yes, no] = [content(0), content(1), content(2)];
    if (!condition || !yes || !no) return undefined;
    const length = Math.max(condition.length, yes.length, no.length);
    const at = (list: Content, i: number): Dim | undefined => list[list.length === 1 ? 0 : i];
    return Array.from({ length }, (_, i) => {
      const flag = at(condition, i);
      if (typeof flag === 'number') return flag !== 0 ? at(yes, i) : at(no, i);
      const [a, b] = [at(yes, i), at(no, i)];
      return a !== undefined && b !== undefined && sameDim(a, b) ? a : undefined;
    });
  },
  ReduceProd: reduced(productOfDims),
  ReduceSum: reduced((entries) => entries.reduce<Dim>((sum, entry) => addDims(sum, entry), 0)),
  ReduceMax: reduced((entries) => entries.reduce((a, b) => maxDims(a, b))),
  ReduceMin: reduced((entries) => entries.reduce((a, b) => minDims(a, b))),
  Expand: ({ content, shape }) => {
    const entries = content(0);
    const length = content(1);
    const target = length?.length === 1 ? length[0] : undefined;
    if (entries?.length === 1 && typeof target === 'number' && target <= CONTENT_LIMIT && shape(0)!.length <= 1)
      return new Array<Dim | undefined>(target).fill(entries[0]);
    return undefined;
  },
};

/** The contents of a node's outputs where shape arithmetic gives them, else undefined. */
export function inferContent(context: ContentContext): readonly (Content | undefined)[] {
  const { node } = context;
  if (node.domain !== '' || !Object.hasOwn(RULES, node.op)) return [];
  const result = RULES[node.op]!(context);
  if (result === undefined) return [];
  return node.op === 'Split' ? (result as readonly (Content | undefined)[]) : [result as Content];
}

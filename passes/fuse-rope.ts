import { sameDim } from '../compiler/ir/dims.ts';
import type { Node, Value } from '../compiler/ir/graph.ts';
import { any, constant, either, type Match, op, type Pattern } from '../compiler/match.ts';
import { type Builder, rewritePass } from '../compiler/rewrite.ts';
import { axesOfNode, isFloatValue, knownRank, knownShape, lastLength } from '../compiler/value-facts.ts';

const x = any('x');

function slice(as: string): Pattern {
  const starts = constant(`${as}-starts`);
  const ends = constant(`${as}-ends`);
  const axes = constant(`${as}-axes`);
  return either(
    op('Slice', [x, starts, ends, axes], { as }),
    op('Slice', [x, starts, ends, axes, constant(`${as}-steps`)], { as }),
  );
}

function split(output: number): Pattern {
  return either(
    op('Split', [x, constant('lengths')], { as: 'split', output }),
    op('Split', [x], { as: 'split', output }),
  );
}

/** The halves of x swapped, the one that comes first negated. */
const rotated = either(
  op('Concat', [op('Neg', [slice('high')]), slice('low')], { as: 'concat' }),
  op('Concat', [op('Neg', [split(1)]), split(0)], { as: 'concat' }),
);

/**
 *     x * cos + Concat(-x[d/2:], x[:d/2]) * sin   ->   RotaryEmbedding(x, cos', sin')
 *
 * x is [batch, heads, tokens, d]; cos and sin are [batch, 1, tokens, d] with two equal halves, as transformers makes them;
 * cos' and sin' are their first halves, [batch, tokens, d/2].
 */
export const fuseRope = rewritePass({
  name: 'fuse-rope',
  about: 'the rotate-half form of rotary embedding becomes RotaryEmbedding',
  rules: [
    {
      opset: 23,
      pattern: op('Add', [op('Mul', [x, any('cos')]), op('Mul', [rotated, any('sin')])]),
      check: checkRope,
      rewrite: (match, build) =>
        build.emit('RotaryEmbedding', [
          match.value('x'),
          ...firstHalves([match.value('cos'), match.value('sin')], build),
        ]),
    },
  ],
});

function checkRope(match: Match): true | string {
  const input = match.value('x');
  const shape = knownShape(input);
  const width = lastLength(input);
  if (shape?.length !== 4 || !isFloatValue(input)) return `%${input.name} is not [batch, heads, tokens, width]`;
  if (width === undefined || width % 2 !== 0) return `the width of %${input.name} is not an even number`;
  if (!swapsHalves(match, width)) return `%${input.name} is not cut into halves of its last axis`;
  for (const name of ['cos', 'sin']) {
    const table = match.value(name);
    const dims = knownShape(table);
    if (dims?.length !== 4 || dims[1] !== 1 || dims[3] !== width)
      return `%${table.name} is not [batch, 1, tokens, width]`;
    if (!sameDim(dims[0]!, shape[0]!) || !sameDim(dims[2]!, shape[2]!))
      return `%${table.name} has another batch or length than %${input.name}`;
    if (!hasEqualHalves(table)) return `the halves of %${table.name} are not known to be equal`;
  }
  return true;
}

function swapsHalves(match: Match, width: number): boolean {
  const isLast = (axis: number): boolean => axis === -1 || axis === 3;
  if (!isLast(match.node('concat').int('axis', 0))) return false;
  if (match.has('split')) {
    const node = match.node('split');
    const lengths = match.has('lengths') ? match.value('lengths').data!.toNumbers() : node.ints('split');
    const isHalf = lengths ? lengths.length === 2 && lengths[0] === width / 2 : node.outputs.length === 2;
    return isLast(node.int('axis', 0)) && isHalf;
  }
  const spans = (name: string, from: number, to: number): boolean => {
    const numbers = (part: string): number[] => match.value(`${name}-${part}`).data!.toNumbers();
    const [start, end, axis] = [numbers('starts'), numbers('ends'), numbers('axes')];
    const step = match.has(`${name}-steps`) ? numbers('steps') : [1];
    if (start.length !== 1 || !isLast(axis[0]!) || step[0] !== 1) return false;
    const clamp = (at: number): number => Math.min(width, Math.max(0, at < 0 ? at + width : at));
    return clamp(start[0]!) === from && clamp(end[0]!) === to;
  };
  return spans('low', 0, width / 2) && spans('high', width / 2, width);
}

/** Both tables, [batch, 1, tokens, d] -> [batch, tokens, d / 2]. */
function firstHalves(tables: readonly Value[], build: Builder): Value[] {
  const [start, end] = [build.integers('start', [0]), build.integers('end', [lastLength(tables[0])! / 2])];
  const [axis, heads] = [build.integers('axis', [-1]), build.integers('heads', [1])];
  return tables.map((table) => build.emit('Squeeze', [build.emit('Slice', [table, start, end, axis]), heads]));
}

const UNARY: ReadonlySet<string> = new Set(['Cos', 'Sin', 'Cast', 'Identity', 'Neg']);

/** Whether the last axis of a value is some vector twice: follows how tables are computed back to where they double. */
function hasEqualHalves(value: Value): boolean {
  if (value.data) return dataHasEqualHalves(value);
  const node = value.producer;
  if (node?.domain !== '') return false;
  const { op: name, inputs } = node;
  if (name === 'Concat')
    return inputs.length === 2 && inputs[0] === inputs[1] && isLastAxis(node.int('axis', 0), knownRank(value));
  if (UNARY.has(name)) return hasEqualHalves(node.input(0));
  if (name === 'Mul' || name === 'Add') return isScaled(node);
  if (name === 'Unsqueeze') return keepsLastAxis(node, knownRank(value)) && hasEqualHalves(node.input(0));
  if (name === 'Squeeze' || name === 'Slice')
    return keepsLastAxis(node, knownRank(inputs[0]), name === 'Slice' ? 3 : 1) && hasEqualHalves(node.input(0));
  if (name === 'Gather')
    return node.int('axis', 0) === 0 && (knownRank(inputs[0]) ?? 0) > 1 && hasEqualHalves(node.input(0));
  return false;
}

function dataHasEqualHalves(value: Value): boolean {
  const width = lastLength(value);
  if (width === undefined || width % 2 !== 0 || value.encoding) return false;
  const data = value.data!.toFloats();
  for (let at = 0; at < data.length; at += width)
    for (let i = 0; i < width / 2; i++) if (data[at + i] !== data[at + width / 2 + i]) return false;
  return true;
}

/** A product or sum with one number. */
function isScaled(node: Node): boolean {
  const [a, b] = [node.input(0), node.input(1)];
  if (b.data?.size === 1) return hasEqualHalves(a);
  return a.data?.size === 1 && hasEqualHalves(b);
}

function isLastAxis(axis: number, rank: number | undefined): boolean {
  return axis === -1 || (rank !== undefined && axis === rank - 1);
}

function keepsLastAxis(node: Node, rank: number | undefined, input = 1): boolean {
  const axes = axesOfNode(node, input);
  return axes !== undefined && rank !== undefined && !axes.some((axis) => isLastAxis(axis, rank));
}

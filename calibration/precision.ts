import type { Graph, Node, Use, Value } from '../compiler/ir/graph.ts';
import { findOp } from '../compiler/ops/index.ts';
import { capturedOutputs } from '../compiler/rewrite.ts';
import { promotionReason } from './promotion.ts';
import { cacheBits, compileMatch, type NumberFormat, type Recipe } from './recipe.ts';
import type { Statistics } from './statistics.ts';

export type Bits = 8 | 16;

/** Values that must share one encoding because ops only move their elements, and the group's width. */
export interface ValueGroup {
  readonly values: Value[];
  bits: Bits;
  /** Set for the key/value caches. */
  cache: boolean;
  /** Empty: nothing computes with the group, it stays float. */
  why: string;
}

export interface PrecisionPlan {
  readonly groups: ReadonlyMap<Value, ValueGroup>;
  readonly nodes: ReadonlyMap<Node, Bits>;
  readonly remarks: readonly string[];
}

/** Whether quantization concerns the value: floating, and of this graph. */
export function isReal(value: Value | undefined): value is Value {
  return value?.type?.kind === 'tensor' && (value.type.dtype === 'f32' || value.type.dtype === 'f16');
}

function ruleOf(node: Node, opset: number): string | { readonly fixed: readonly [number, number] } {
  return findOp(node.domain, node.op, opset)?.quantization ?? 'never';
}

/** Whether a node only moves elements, so that its data inputs and outputs share one encoding. */
export function movesData(node: Node, opset: number): boolean {
  return ruleOf(node, opset) === 'passthrough' && node.op !== 'Identity';
}

/** Whether a node computes on real numbers and takes part in quantization. */
export function computes(node: Node, opset: number): boolean {
  const rule = ruleOf(node, opset);
  return rule !== 'never' && rule !== 'passthrough' && node.outputs.some(isReal);
}

/** Movement ops that hand on the elements of their first input alone: other real ones are scales, grids or fillers. */
const ONE_DATA_INPUT: ReadonlySet<string> = new Set([
  'Dropout',
  'Gather',
  'GatherElements',
  'GatherND',
  'GridSample',
  'MaxUnpool',
  'Pad',
  'Resize',
  'Slice',
  'Tile',
  'TopK',
  'Upsample',
]);

/** Inputs whose elements a movement op hands on. */
function movedInputs(node: Node): Value[] {
  const inputs = ONE_DATA_INPUT.has(node.op) ? node.inputs.slice(0, 1) : node.inputs;
  return inputs.filter(isReal);
}

/** Whether a computing node reads an input as data; the bounds of a Clip are parameters and stay floats. */
export function readsAsData({ node, index }: Use): boolean {
  return node.op !== 'Clip' || index === 0;
}

/**
 * Values that a Relu or a Clip of constant bounds clamps, and nothing else reads: they take the range that is left, and
 * saturation does the clamping exactly. A range of their own would spend integers on what is thrown away.
 */
export function clampedValues(graph: Graph, opset: number): Set<Value> {
  const captured = capturedOutputs(graph);
  const clamped = new Set<Value>();
  for (const node of graph.nodes) {
    if (node.op !== 'Relu' && (node.op !== 'Clip' || node.inputs.slice(1).some((bound) => bound && !bound.data)))
      continue;
    const value = node.input(0);
    if (!isReal(value) || !value.producer || !computes(value.producer, opset)) continue;
    if (value.uses.size === 1 && !graph.isOutput(value) && !captured.has(value)) clamped.add(value);
  }
  return clamped;
}

/**
 * Chooses 8 or 16 bits for every computing node and for every group of values: the recipe's width, overrides by regular
 * expression, and automatic promotion of nodes whose values would drown at 8 bits (promotion.ts).
 */
export function planPrecision(
  graph: Graph,
  opset: number,
  recipe: Recipe,
  format: NumberFormat,
  statistics: Statistics,
): PrecisionPlan {
  const groups = groupValues(graph, opset);
  const remarks: string[] = [];
  const caches = new Set([...graph.states.values()].flatMap((port) => [port.input, port.output]));
  for (const cache of caches) {
    const group = groups.get(cache);
    if (group) group.cache = true;
  }
  const overrides = recipe.overrides
    .filter((override) => override.activation)
    .map((override) => ({ ...override, expression: compileMatch(override.match) }));
  const cacheReason = (node: Node): string | undefined =>
    node.op === 'MatMul' && cacheBits(recipe, format) === 16 && groups.get(node.input(1))?.cache
      ? 'a 16-bit cache is multiplied with 16-bit values only'
      : undefined;
  const nodes = new Map<Node, Bits>();
  for (const node of graph.nodes) {
    if (!computes(node, opset)) continue;
    let bits: Bits = recipe.activation;
    let why = `scheme ${recipe.scheme}`;
    const reason =
      recipe.activation === 8 ? (cacheReason(node) ?? promotionReason(graph, node, recipe, statistics)) : undefined;
    if (reason) {
      bits = 16;
      why = reason;
      remarks.push(`${node.output().name}: 16 bits, ${reason}`);
    }
    const override = overrides.find(
      ({ expression }) => expression.test(node.output().name) || node.from.some((name) => expression.test(name)),
    );
    if (override) {
      bits = override.activation!;
      why = override.why ?? `override ${override.match}`;
    }
    nodes.set(node, bits);
    for (const output of node.outputs) {
      const group = output && groups.get(output);
      if (!group || group.cache || (group.why !== '' && bits <= group.bits)) continue;
      group.bits = bits;
      group.why = why;
    }
  }
  // What is clamped and what is left of it are one value: its two nodes work at one width.
  for (const value of clampedValues(graph, opset)) {
    const [maker, clamp] = [value.producer!, value.consumers[0]!];
    const bits = Math.max(nodes.get(maker)!, nodes.get(clamp)!) as Bits;
    nodes.set(maker, bits).set(clamp, bits);
  }
  // A node writes its group's width: where movement joins the outputs of several nodes, the widest counts for all.
  for (const [node, bits] of nodes) {
    const wide = node.outputs.some((output) => {
      const group = output && groups.get(output);
      return group && !group.cache && group.why !== '' && group.bits > bits;
    });
    if (wide) nodes.set(node, 16);
  }
  for (const group of new Set(groups.values())) {
    if (group.cache) {
      group.bits = cacheBits(recipe, format);
      group.why = `key/value cache, ${format.cache[group.bits]}`;
    } else if (group.why === '') {
      const uses = group.values.flatMap((value) => [...value.uses].filter(readsAsData));
      const readers = uses.map((use) => nodes.get(use.node));
      group.bits = readers.includes(16) ? 16 : readers.includes(8) ? 8 : recipe.activation;
      group.why = readers.some((bits) => bits !== undefined) ? 'graph input' : '';
    }
  }
  return { groups, nodes, remarks };
}

/** Union of values over movement ops, and of clamped values with what is left of them. */
function groupValues(graph: Graph, opset: number): Map<Value, ValueGroup> {
  const groups = new Map<Value, ValueGroup>();
  for (const value of graph.values)
    if (isReal(value)) groups.set(value, { values: [value], bits: 16, cache: false, why: '' });
  const join = (a: Value, b: Value): void => {
    const left = groups.get(a)!;
    const right = groups.get(b)!;
    if (left === right) return;
    const [large, small] = left.values.length >= right.values.length ? [left, right] : [right, left];
    for (const value of small.values) {
      large.values.push(value);
      groups.set(value, large);
    }
  };
  for (const node of graph.nodes) {
    if (!movesData(node, opset)) continue;
    const members = [...movedInputs(node), ...node.outputs.filter(isReal)].filter((value) => groups.has(value));
    for (const member of members.slice(1)) join(members[0]!, member);
  }
  for (const value of clampedValues(graph, opset)) join(value, value.consumers[0]!.output());
  return groups;
}

import { NpucError } from './errors.ts';
import type { DType } from './ir/dtype.ts';
import type { Node, Value } from './ir/graph.ts';

/**
 * Patterns over a graph, written as if building it:
 *
 *     const x = any('x');
 *     op('Mul', [x, op('Sigmoid', [x])])
 *
 * The same name twice means the same value twice. Inputs of commutative operators match in both orders.
 */
export type Pattern =
  | { readonly kind: 'any'; readonly name: string }
  | { readonly kind: 'constant'; readonly name: string }
  | { readonly kind: 'number'; readonly value: number }
  | {
      readonly kind: 'op';
      readonly op: string;
      readonly domain: string;
      /** Undefined is an input that must be absent. */
      readonly inputs: readonly (Pattern | undefined)[];
      readonly name: string | undefined;
      /** Which of the node's outputs stands here. */
      readonly output: number;
    }
  | { readonly kind: 'either'; readonly patterns: readonly Pattern[] };

/** Any value. */
export function any(name: string): Pattern {
  return { kind: 'any', name };
}

/** Any constant. */
export function constant(name: string): Pattern {
  return { kind: 'constant', name };
}

/** A constant whose only element is this number, as closely as its element type can hold it. */
export function number(value: number): Pattern {
  return { kind: 'number', value };
}

/**
 * A node with exactly these inputs; `as` makes it known to `check` and `rewrite`, and the same name twice is the same node;
 * `output` is the output that stands here, the first by default.
 */
export function op(
  name: string,
  inputs: readonly (Pattern | undefined)[],
  options: { readonly as?: string; readonly domain?: string; readonly output?: number } = {},
): Pattern {
  const { as, domain = '', output = 0 } = options;
  return { kind: 'op', op: name, domain, inputs, name: as, output };
}

/** The first of several patterns that matches. */
export function either(...patterns: readonly Pattern[]): Pattern {
  return { kind: 'either', patterns };
}

/** What a pattern's names stand for in one place of a graph. */
export class Match {
  readonly root: Node;
  /** The matched nodes, each once, the root last. */
  readonly nodes: readonly Node[];
  readonly #values: ReadonlyMap<string, Value>;
  readonly #named: ReadonlyMap<string, Node>;

  constructor(root: Node, bindings: Bindings) {
    this.root = root;
    this.nodes = [...new Set(bindings.nodes)];
    this.#values = bindings.values;
    this.#named = bindings.named;
  }

  /** The value that a name stands for. @throws XX001 when the matched alternative has no such name */
  value(name: string): Value {
    const value = this.#values.get(name);
    if (!value) throw new NpucError('XX001', { message: `the pattern has no value ${name}`, where: this.root.name });
    return value;
  }

  /** Whether the matched alternative has the name. */
  has(name: string): boolean {
    return this.#values.has(name) || this.#named.has(name);
  }

  /** The node that a name stands for. @throws XX001 when the matched alternative has no such name */
  node(name: string): Node {
    const node = this.#named.get(name);
    if (!node) throw new NpucError('XX001', { message: `the pattern has no node ${name}`, where: this.root.name });
    return node;
  }

  /** The number in a constant of one element, or undefined when the value is another thing or has an encoding. */
  number(name: string): number | undefined {
    const value = this.value(name);
    return value.encoding ? undefined : soleNumber(value);
  }
}

interface Bindings {
  readonly values: ReadonlyMap<string, Value>;
  readonly named: ReadonlyMap<string, Node>;
  /** In the order in which they were completed, so that the root is last. */
  readonly nodes: readonly Node[];
}

const COMMUTATIVE: ReadonlySet<string> = new Set(['Add', 'Mul', 'And', 'Or', 'Xor', 'Equal', 'Max', 'Min', 'Sum']);

/** Matches a pattern whose root is a node; the first way that fits, or undefined. */
export function matchPattern(pattern: Pattern, root: Node): Match | undefined {
  const none: Bindings = { values: new Map(), named: new Map(), nodes: [] };
  for (const bindings of matchNode(pattern, root, none)) return new Match(root, bindings);
  return undefined;
}

function* matchNode(pattern: Pattern, node: Node, before: Bindings): Generator<Bindings> {
  if (pattern.kind === 'either') {
    for (const alternative of pattern.patterns) yield* matchNode(alternative, node, before);
    return;
  }
  if (pattern.kind !== 'op' || node.op !== pattern.op || node.domain !== pattern.domain) return;
  const count = pattern.inputs.length;
  if (node.inputs.slice(count).some((value) => value !== undefined)) return;
  const orders = count === 2 && COMMUTATIVE.has(pattern.op) ? BOTH_ORDERS : AS_WRITTEN;
  for (const isSwapped of orders) {
    const inputs = isSwapped ? [node.inputs[1], node.inputs[0]] : node.inputs;
    for (const bindings of matchInputs(pattern.inputs, inputs, 0, before)) {
      const known = pattern.name === undefined ? node : bindings.named.get(pattern.name);
      if (known !== undefined && known !== node) continue;
      const named = pattern.name === undefined ? bindings.named : new Map(bindings.named).set(pattern.name, node);
      yield { values: bindings.values, named, nodes: [...bindings.nodes, node] };
    }
  }
}

const AS_WRITTEN: readonly boolean[] = [false];
const BOTH_ORDERS: readonly boolean[] = [false, true];

function* matchInputs(
  patterns: readonly (Pattern | undefined)[],
  inputs: readonly (Value | undefined)[],
  index: number,
  before: Bindings,
): Generator<Bindings> {
  if (index === patterns.length) {
    yield before;
    return;
  }
  const pattern = patterns[index];
  const value = inputs[index];
  if (pattern === undefined || value === undefined) {
    if (pattern === undefined && value === undefined) yield* matchInputs(patterns, inputs, index + 1, before);
    return;
  }
  for (const bindings of matchValue(pattern, value, before)) yield* matchInputs(patterns, inputs, index + 1, bindings);
}

function* matchValue(pattern: Pattern, value: Value, before: Bindings): Generator<Bindings> {
  switch (pattern.kind) {
    case 'any':
    case 'constant': {
      if (pattern.kind === 'constant' && !value.data) return;
      const known = before.values.get(pattern.name);
      if (known === value) yield before;
      else if (!known) yield { ...before, values: new Map(before.values).set(pattern.name, value) };
      return;
    }
    case 'number': {
      const found = value.encoding ? undefined : soleNumber(value);
      if (found !== undefined && isNear(found, pattern.value, value.dtype)) yield before;
      return;
    }
    case 'either':
      for (const alternative of pattern.patterns) yield* matchValue(alternative, value, before);
      return;
    case 'op':
      if (value.producer && value.producer.outputs[pattern.output] === value)
        yield* matchNode(pattern, value.producer, before);
  }
}

/** The number in a constant of one element, else undefined. */
export function soleNumber(value: Value | undefined): number | undefined {
  const { data } = value ?? {};
  return data && data.size === 1 && data.dtype !== 'string' ? data.toNumbers()[0] : undefined;
}

/** Relative error that writing a number in an element type may cost, with room for how exporters computed it. */
const TOLERANCE: Partial<Record<DType, number>> = { f16: 1e-3, bf16: 8e-3 };

/** Whether a stored number is the one that was meant. */
export function isNear(found: number, meant: number, dtype: DType): boolean {
  return Math.abs(found - meant) <= Math.abs(meant) * (TOLERANCE[dtype] ?? 1e-6);
}

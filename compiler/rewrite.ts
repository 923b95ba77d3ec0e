import { NpucError } from './errors.ts';
import { sameEncoding } from './ir/encoding.ts';
import {
  type Attribute,
  capturedOutputs,
  type Graph,
  type Module,
  type Node,
  type Value,
  type ValueType,
} from './ir/graph.ts';
import { Tensor } from './ir/tensor.ts';
import { defaultNodeName } from './ir/text-lex.ts';
import { type Match, matchPattern, type Pattern } from './match.ts';
import type { Pass, PassContext } from './pass.ts';
import { scalarTensor } from './value-facts.ts';

/**
 * One rewrite of a graph: what to look for, when to refuse, what to build instead.
 * `pattern` is written as if building the graph (compiler/match.ts).
 */
export interface Rule {
  /** First opset of the ONNX domain that has what the rule builds. */
  readonly opset?: number;
  readonly pattern: Pattern;
  /**
   * Side conditions: true, or the reason for refusing, which is kept as a remark. The engine has refused before when inner
   * values are read elsewhere, are outputs, are tied or carry encodings.
   */
  readonly check?: (match: Match, context: PassContext) => true | string;
  /** Builds the replacement and returns the fresh value that takes the place of the root's output. */
  readonly rewrite: (match: Match, build: Builder) => Value;
}

/** Builds nodes in front of the node that is being replaced; they inherit the user's node names of the whole match. */
export class Builder {
  readonly graph: Graph;
  /** Opset of the ONNX domain: some operators take as an input what older ones had as an attribute. */
  readonly opset: number;
  readonly #before: Node;
  readonly #from: readonly string[];

  constructor(graph: Graph, before: Node, from: readonly string[], opset: number) {
    this.graph = graph;
    this.opset = opset;
    this.#before = before;
    this.#from = from;
  }

  /** A node with one fresh output, named after the operator unless a name is given. */
  emit(
    op: string,
    inputs: readonly (Value | undefined)[],
    options: {
      attributes?: Record<string, Attribute>;
      domain?: string;
      type?: ValueType | undefined;
      name?: string;
    } = {},
  ): Value {
    const { attributes, domain, type, name } = options;
    return this.graph.emit(op, inputs, {
      before: this.#before,
      from: this.#from,
      ...(name === undefined ? {} : { name }),
      ...(attributes === undefined ? {} : { attributes }),
      ...(domain === undefined ? {} : { domain }),
      ...(type === undefined ? {} : { type }),
    });
  }

  /** A node with the given outputs. */
  node(
    op: string,
    inputs: readonly (Value | undefined)[],
    outputs: readonly Value[],
    attributes: Record<string, Attribute> = {},
  ): Node {
    const name = defaultNodeName(op, outputs);
    return this.graph.addNode({ op, name, inputs, outputs, attributes, from: this.#from }, this.#before);
  }

  /** A constant that holds one number, in the element type of another value. */
  scalar(name: string, value: number, like: Value): Value {
    return this.graph.addConstant(name, scalarTensor(like.dtype, value));
  }

  /** A vector of 64-bit integers: axes, shapes, split lengths, ends. What is too large for the type becomes its limit. */
  integers(name: string, values: readonly number[]): Value {
    const whole = BigInt64Array.from(values, (value) => (value >= 2 ** 63 ? 2n ** 63n - 1n : BigInt(value)));
    return this.graph.addConstant(name, Tensor.of('i64', [values.length], whole));
  }
}

/** A pass that applies rules wherever they match, until none does. */
export function rewritePass(pass: Omit<Pass, 'run'> & { readonly rules: readonly Rule[] }): Pass {
  const { rules, ...rest } = pass;
  return { ...rest, run: (graph, context) => applyRules(graph, rules, context) };
}

/** Applies rules in topological order, the first that fits at each node, until nothing changes. */
export function applyRules(graph: Graph, rules: readonly Rule[], context: PassContext): boolean {
  const limit = graph.nodes.length + 100;
  let sweeps = 0;
  while (applyOnce(graph, rules, context)) {
    sweeps += 1;
    if (sweeps > limit) throw new NpucError('XX001', { message: 'rewrite rules undo each other', where: graph.name });
  }
  return sweeps > 0;
}

function applyOnce(graph: Graph, rules: readonly Rule[], context: PassContext): boolean {
  const byRoot = new Map<string, Rule[]>();
  for (const rule of rules)
    for (const op of new Set(rootOps(rule.pattern))) byRoot.set(op, [...(byRoot.get(op) ?? []), rule]);
  let changed = false;
  for (const node of [...graph.nodes]) {
    if (node.graph !== graph) continue;
    if (byRoot.get(node.op)?.some((rule) => applyAt(graph, node, rule, context))) changed = true;
  }
  return changed;
}

function rootOps(pattern: Pattern): string[] {
  if (pattern.kind === 'either') return pattern.patterns.flatMap(rootOps);
  if (pattern.kind !== 'op') throw new NpucError('XX001', { message: 'the root of a pattern must be an operator' });
  return [pattern.op];
}

function applyAt(graph: Graph, node: Node, rule: Rule, context: PassContext): boolean {
  const match = matchPattern(rule.pattern, node);
  if (!match) return false;
  const refusal = refuse(graph, match, rule, context);
  if (refusal !== undefined) {
    context.remark(node, refusal);
    return false;
  }
  const from = match.nodes.flatMap((matched) => matched.from);
  const fresh = rule.rewrite(match, new Builder(graph, node, from, context.opset()));
  if (!fresh.producer || fresh.uses.size > 0)
    throw new NpucError('XX001', {
      message: `the replacement of ${node.output().name} is not fresh`,
      where: node.name,
    });
  replaceByFresh(graph, node.output(), fresh);
  removeDeadNodes(graph, match.nodes);
  return true;
}

/** Why a structural match must not be rewritten, or undefined when it may. */
function refuse(graph: Graph, match: Match, rule: Rule, context: PassContext): string | undefined {
  const inside = new Set(match.nodes);
  const side = match.root.outputs.find((value, index) => index > 0 && value && isRead(graph, value));
  if (side) return `its output %${side.name} is read too`;
  for (const matched of match.nodes) {
    if (matched === match.root) continue;
    for (const value of matched.outputs) {
      if (!value) continue;
      const reader = value.consumers.find((consumer) => !inside.has(consumer));
      if (reader) return `%${value.name} is also read by ${reader.name || reader.op}`;
      const bond = bondOf(graph, value, context.module);
      if (bond) return `%${value.name} ${bond}`;
    }
  }
  const verdict = rule.check?.(match, context) ?? true;
  if (verdict !== true) return verdict;
  const opset = context.opset('');
  if (rule.opset !== undefined && opset < rule.opset) return `opset ${opset} is too old: ${rule.opset} is needed`;
  return undefined;
}

/** What ties a value to the outside, so that it cannot vanish: being an output, tied, or having an encoding. */
export function bondOf(graph: Graph, value: Value, module: Module): string | undefined {
  if (graph.isOutput(value)) return 'is an output of the graph';
  if (capturedOutputs(graph).has(value)) return 'is an output of a subgraph';
  if (isTied(module, value)) return 'is in a tie group';
  return value.encoding ? 'has an encoding that would be lost' : undefined;
}

function isTied(module: Module, value: Value): boolean {
  return module.tieGroups.some((group) => group.includes(value.name));
}

export { capturedOutputs };

/** Every reader of a value, graph outputs, states and subgraphs that give it out included, reads another one instead. */
function redirect(graph: Graph, from: Value, to: Value): void {
  graph.replaceUses(from, to);
  if (graph.quantizedPorts.delete(from)) graph.quantizedPorts.add(to);
  const walk = (scope: Graph): void => {
    for (const node of scope.nodes)
      for (const inner of node.subgraphs) {
        inner.outputs.forEach((output, index) => {
          if (output === from) inner.outputs[index] = to;
        });
        walk(inner);
      }
  };
  walk(graph);
}

/** A fresh value takes the place of another one: readers, name, encoding, and the type where it has none. */
export function replaceByFresh(graph: Graph, old: Value, fresh: Value): void {
  redirect(graph, old, fresh);
  fresh.type ??= old.type;
  fresh.encoding = old.encoding;
  const { name, producer } = old;
  if (producer) removeDeadNodes(graph, [producer]);
  if (graph.find(name) === old) graph.removeValue(old);
  graph.renameValue(fresh, name);
  if (fresh.producer && producer) fresh.producer.name = renamed(producer, fresh.producer.op);
}

/** What becomes other in a node that is made anew; the rest stays. */
export interface NodeChange {
  readonly op?: string;
  readonly inputs?: readonly (Value | undefined)[];
  readonly outputs?: readonly (Value | undefined)[];
  readonly attributes?: ReadonlyMap<string, Attribute>;
}

/** Makes a node anew in its place, with other parts; outputs that it no longer has leave the graph. */
export function remakeNode(node: Node, change: NodeChange): Node {
  const graph = node.graph!;
  const { overload, domain, from, extras } = node;
  const { op = node.op, inputs = node.inputs, outputs = node.outputs, attributes = node.attributes } = change;
  const kept = [...inputs];
  const name = op === node.op ? node.name : renamed(node, op);
  for (const value of node.outputs) if (value && !outputs.includes(value)) graph.removeValue(value);
  const fresh = graph.addNode({ op, domain, overload, name, inputs: kept, outputs, attributes, from, extras }, node);
  node.inputs.forEach((_, index) => node.setInput(index, undefined));
  graph.nodes.splice(graph.nodes.indexOf(node), 1);
  node.graph = undefined;
  return fresh;
}

/**
 * The outputs of a node are read from other values instead, through Identity nodes that keep names, types and encodings
 * (eliminate-noops removes those that need not stay); the node goes.
 */
export function replaceByIdentities(
  graph: Graph,
  node: Node,
  values: readonly (Value | undefined)[],
  opset: number,
): void {
  const build = new Builder(graph, node, node.from, opset);
  const replaced = node.outputs.flatMap((old, index) => {
    const value = values[index];
    if (!old || !value || !isRead(graph, old)) return [];
    const fresh = build.emit('Identity', [value], { type: value.type ?? old.type });
    fresh.encoding = old.encoding;
    redirect(graph, old, fresh);
    return [{ fresh, name: old.name }];
  });
  removeDeadNodes(graph, [node]);
  for (const { fresh, name } of replaced) {
    graph.renameValue(fresh, name);
    fresh.producer!.name = defaultNodeName('Identity', [fresh]);
  }
}

/** The name of a node that takes another one's place: made from the output's name if the other one's was. */
function renamed(old: Node, op: string): string {
  return old.name.endsWith(`/${old.op}`) ? `${old.name.slice(0, -old.op.length)}${op}` : old.name;
}

/**
 * The readers of a value read an equal one instead, and its producer goes. An output of the graph keeps its name: the other
 * value takes it over when it is no input, output or constant itself.
 * @returns true, or why the value must stay
 */
export function bypass(graph: Graph, old: Value, by: Value, context: PassContext): true | string {
  if (!(old.encoding && by.encoding ? sameEncoding(old.encoding, by.encoding) : old.encoding === by.encoding))
    return `%${old.name} and %${by.name} have different encodings`;
  const isNamed = graph.isOutput(old) || isTied(context.module, old);
  if (isNamed) {
    const owner = graph.find(by.name) === by;
    if (!owner || !by.producer || graph.isOutput(by) || isTied(context.module, by))
      return `%${old.name} is an output, and %${by.name} cannot take its name`;
  }
  redirect(graph, old, by);
  by.type ??= old.type;
  const { name, producer } = old;
  if (producer) removeDeadNodes(graph, [producer]);
  if (isNamed) {
    // Another output of the producer may still be read: then the value stays, under another name.
    if (graph.find(name) === old) graph.renameValue(old, graph.uniqueName(name));
    graph.renameValue(by, name);
  }
  return true;
}

/** The outputs of a node become constants of the same names, with the same encodings; the node goes. */
export function replaceByConstants(graph: Graph, node: Node, tensors: readonly (Tensor | undefined)[]): void {
  const constants = node.outputs.flatMap((old, index) => {
    const data = tensors[index];
    if (!old || !data) return [];
    const constant = graph.addConstant(old.name, data);
    constant.encoding = old.encoding;
    redirect(graph, old, constant);
    return [{ constant, name: old.name }];
  });
  removeDeadNodes(graph, [node]);
  for (const { constant, name } of constants) graph.renameValue(constant, name);
}

/** Removes those of the given nodes that nothing reads any more, and what only they read: constants and other nodes. */
export function removeDeadNodes(graph: Graph, nodes: readonly Node[]): void {
  const pending = [...nodes];
  for (let node = pending.pop(); node; node = pending.pop()) {
    if (node.graph !== graph || node.outputs.some((value) => value && isRead(graph, value))) continue;
    const inputs = node.inputs.filter((value): value is Value => value !== undefined);
    graph.removeNode(node);
    for (const value of inputs) {
      if (graph.find(value.name) !== value || isRead(graph, value)) continue;
      if (value.producer) pending.push(value.producer);
      else if (value.data && !graph.inputs.includes(value)) graph.removeValue(value);
    }
  }
}

/** Whether a node, an output, or a subgraph's output reads the value. */
export function isRead(graph: Graph, value: Value): boolean {
  return graph.isUsed(value) || capturedOutputs(graph).has(value);
}

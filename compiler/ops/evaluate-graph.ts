import { NpucError } from '../errors.ts';
import { type Graph, type Node, nodeReads, type Value } from '../ir/graph.ts';
import type { TensorData } from '../ir/tensor.ts';
import { evaluateControl } from './control.ts';
import { findOp } from './index.ts';
import { isTensorData, type RuntimeValue } from './runtime-value.ts';
import { evaluateSequence } from './sequence.ts';
import { nodeName } from './shape-rules.ts';

export { packTensor } from './elements.ts';

export interface EvaluateOptions {
  /** Names of the values to give back, graph outputs or any other; the graph's outputs by default. */
  readonly outputs?: readonly string[];
  /** Sees every tensor that is computed, in order, values of subgraphs included. */
  readonly onValue?: (value: Value, data: TensorData) => void;
}

/**
 * Evaluates a graph with the reference semantics of its ops. If, Loop, Scan and SequenceMap run their subgraphs; calls of
 * local functions have to be inlined before.
 * @throws RT010 for an op without reference semantics, RT011 for feeds that do not fit, and the ops' own errors
 */
export function evaluateGraph(
  graph: Graph,
  opsets: ReadonlyMap<string, number>,
  feeds: Readonly<Record<string, TensorData>>,
  options: EvaluateOptions = {},
): Record<string, TensorData> {
  const results: Record<string, TensorData> = {};
  for (const [name, value] of Object.entries(evaluateValues(graph, opsets, feeds, options))) {
    if (!isTensorData(value))
      throw new NpucError('RT011', {
        message: `${name} is no tensor but a sequence or an empty optional`,
        where: name,
      });
    results[name] = value;
  }
  return results;
}

/** As evaluateGraph, with sequences and optionals as inputs and outputs. */
export function evaluateValues(
  graph: Graph,
  opsets: ReadonlyMap<string, number>,
  feeds: Readonly<Record<string, RuntimeValue>>,
  options: EvaluateOptions = {},
): Record<string, RuntimeValue> {
  const evaluation = new Evaluation(opsets, options.onValue);
  for (const input of graph.inputs) {
    const feed = Object.hasOwn(feeds, input.name) ? feeds[input.name]! : input.data?.toData();
    if (feed === undefined) {
      if (input.type?.kind === 'optional') continue;
      throw new NpucError('RT011', { message: `no data for the input ${input.name}`, where: input.name });
    }
    checkFeed(input, feed);
    evaluation.set(input, feed);
  }
  const wanted = (options.outputs ?? graph.outputs.map((output) => output.name)).map((name) => findValue(graph, name));
  evaluation.run(graph, wanted);
  return Object.fromEntries(wanted.map((value) => [value.name, evaluation.get(value)]));
}

function findValue(graph: Graph, name: string): Value {
  const value = graph.find(name) ?? graph.outputs.find((output) => output.name === name);
  if (!value) throw new NpucError('RT011', { message: `the graph has no value ${name}`, where: name });
  return value;
}

function checkFeed(input: Value, feed: RuntimeValue): void {
  const type = input.type;
  if (type?.kind !== 'tensor' || !isTensorData(feed)) return;
  const misfit =
    feed.dtype !== type.dtype ||
    (type.shape !== undefined &&
      (type.shape.length !== feed.shape.length ||
        type.shape.some((dim, axis) => typeof dim === 'number' && dim !== feed.shape[axis])));
  if (misfit)
    throw new NpucError('RT011', {
      message: `${input.name} is ${type.dtype}[${type.shape ?? '?'}], the feed is ${feed.dtype}[${feed.shape}]`,
      where: input.name,
    });
}

/** One evaluation: the values computed so far. Subgraphs share it, as they read their parents' values. */
export class Evaluation {
  readonly opsets: ReadonlyMap<string, number>;
  readonly #values: Map<Value, RuntimeValue> = new Map();
  readonly #onValue: EvaluateOptions['onValue'];

  constructor(opsets: ReadonlyMap<string, number>, onValue?: EvaluateOptions['onValue']) {
    this.opsets = opsets;
    this.#onValue = onValue;
  }

  set(value: Value, data: RuntimeValue): void {
    this.#values.set(value, data);
    if (isTensorData(data)) this.#onValue?.(value, data);
  }

  /** @throws XX001 when the value has not been computed */
  get(value: Value): RuntimeValue {
    const known = this.#values.get(value) ?? value.data?.toData();
    if (known === undefined)
      throw new NpucError('XX001', { message: `${value.name} is read before it is computed`, where: value.name });
    return known;
  }

  /** Runs the nodes that `wanted` depends on; data that nothing reads any more is let go. */
  run(graph: Graph, wanted: readonly Value[]): void {
    const keep = new Set(wanted);
    const nodes = neededNodes(graph, keep);
    const lastReader = new Map<Value, number>();
    nodes.forEach((node, index) => {
      for (const value of nodeReads(node)) lastReader.set(value, index);
    });
    const own = new Set(nodes.flatMap((node) => node.outputs));
    const expiring = new Map<number, Value[]>();
    for (const [value, index] of lastReader) {
      if (keep.has(value) || !own.has(value)) continue;
      const list = expiring.get(index);
      if (list) list.push(value);
      else expiring.set(index, [value]);
    }
    nodes.forEach((node, index) => {
      this.#runNode(node);
      for (const value of expiring.get(index) ?? []) this.#values.delete(value);
    });
  }

  #runNode(node: Node): void {
    const inputs = node.inputs.map((value) => (value ? this.get(value) : undefined));
    const opset = this.opsets.get(node.domain) ?? 1;
    const results =
      evaluateControl(node, inputs, this) ??
      evaluateSequence(node, inputs) ??
      this.#evaluateTensors(node, inputs, opset);
    node.outputs.forEach((output, index) => {
      if (!output) return;
      const result = results[index];
      if (result === undefined)
        throw new NpucError('RT010', {
          message: `output ${index} of ${node.op} has no reference semantics`,
          where: nodeName(node),
        });
      this.set(output, result);
    });
  }

  #evaluateTensors(
    node: Node,
    inputs: readonly (RuntimeValue | undefined)[],
    opset: number,
  ): readonly (RuntimeValue | undefined)[] {
    const op = findOp(node.domain, node.op, opset);
    // Identity passes a sequence on as it does a tensor.
    if (op?.name === 'Identity') return inputs;
    if (!op?.evaluate)
      throw new NpucError('RT010', {
        message: `${node.domain === '' ? '' : `${node.domain}.`}${node.op} (opset ${opset}) has no reference semantics`,
        where: nodeName(node),
      });
    const tensors = inputs.map((input, index) => {
      if (input !== undefined && !isTensorData(input))
        throw new NpucError('IR021', { message: `input ${index} of ${node.op} is no tensor`, where: nodeName(node) });
      // Two numbers an element: no op here would take them apart rightly.
      if (input?.dtype === 'c64' || input?.dtype === 'c128')
        throw new NpucError('RT010', { message: `${node.op} of complex numbers`, where: nodeName(node) });
      return input;
    });
    return op.evaluate(tensors, { node, opset });
  }
}

function neededNodes(graph: Graph, wanted: ReadonlySet<Value>): Node[] {
  const needed = new Set<Value>(wanted);
  const nodes: Node[] = [];
  for (let index = graph.nodes.length - 1; index >= 0; index--) {
    const node = graph.nodes[index]!;
    if (!node.outputs.some((output) => output && needed.has(output))) continue;
    nodes.push(node);
    for (const value of nodeReads(node)) needed.add(value);
  }
  return nodes.reverse();
}

import { NpucError } from '../compiler/errors.ts';
import { copyAttributes } from '../compiler/ir/clone.ts';
import { Graph, Module, type Node, nodeReads, type Value } from '../compiler/ir/graph.ts';

/** A stretch of a decoder between two places where it can be cut: the embedding, one layer, or the head. */
export interface DecoderStage {
  /** `embedding`, `layers.<i>` or `head`. */
  readonly name: string;
  /** The value that leaves it for the next stage; absent for the last one. */
  readonly end?: string;
  /** The constants that its nodes read, each once. */
  readonly constants: readonly Value[];
}

const EMBEDDING = 'embedding';
const LAYER_END = /^layers\.\d+\.mlp_residual$/;
const LAYER = /^layers\.\d+/;

/**
 * The stages of a lowered decoder, in order. The residual stream is all that passes from one to the next: between anchors of
 * the stream, where it is a sum of two values, there is no stage's end. A contract that takes embeddings has no embedding
 * stage; a graph without logits ends inside its last layer.
 */
export function decoderStages(graph: Graph): DecoderStage[] {
  const names = graph.nodes.flatMap((node) => node.outputs.map((output) => output?.name ?? ''));
  const ends = names.filter((name) => name === EMBEDDING || (LAYER_END.test(name) && !isSummand(graph, name)));
  const stages = groupNodes(graph, ends).map((nodes, index): DecoderStage => {
    const constants = new Set(nodes.flatMap(nodeReads).filter((value) => value.data !== undefined));
    const end = ends[index];
    if (end !== undefined) return { name: LAYER.exec(end)?.[0] ?? EMBEDDING, end, constants: [...constants] };
    const layer = nodes.flatMap(({ outputs }) => LAYER.exec(outputs[0]?.name ?? '') ?? [])[0];
    return { name: layer ?? 'head', constants: [...constants] };
  });
  return stages.at(-1)!.constants.length > 0 ? stages : stages.slice(0, -1);
}

/** Whether later layers read a summand of the stream behind a layer: what layers have added since the last anchor. */
function isSummand(graph: Graph, end: string): boolean {
  let [, last] = graph.find(end)?.producer?.inputs ?? [];
  // A change of number format stands between the sum and what it is a summand of.
  while (last?.producer?.op === 'Identity') last = last.producer.inputs[0];
  const readers = (value: Value): Node[] =>
    [...value.uses].flatMap(({ node }) => (node.op === 'Identity' ? readers(node.output()) : [node]));
  return last !== undefined && readers(last).some((node) => node.outputs[0]?.name !== end);
}

/**
 * Cuts a lowered decoder, encoded or float, into consecutive parts.
 *
 *     input_ids -> [embedding .. layers.7] -> layers.7.mlp_residual -> [layers.8 .. head] -> logits
 *
 * Each part has the inputs, states and weights that its own nodes read. The value of a cut is an output of one part and an
 * input of the next, an integer port with the same encoding on both sides where it has one: run one after the other the
 * parts give the whole graph's integers. What depends on no token (rotary tables from positions, a converted mask) is
 * computed again in every part that reads it.
 *
 * @param cuts names of the values to cut at, in order (`end` of a stage). A graph that does not reach the last ones, a
 *   prefill graph without logits, has fewer parts.
 * @returns one module a part, its graph named as the source's; tensors and encodings are shared with the source
 * @throws XX001 when anything else passes from one part to a later one
 */
export function splitDecoder(module: Module, cuts: readonly string[]): Module[] {
  const source = module.graph();
  const reached = cuts.filter((name) => source.find(name) !== undefined);
  const groups = groupNodes(source, reached).filter((nodes) => nodes.length > 0);
  return groups.map((nodes, part) => {
    const incoming = reached[part - 1];
    const outgoing = part < groups.length - 1 ? reached[part] : undefined;
    return copyPart(module, nodes, incoming, outgoing);
  });
}

/**
 * The nodes of each part, in the graph's order. A node belongs where its latest input is made, a cut counting as made by
 * the part behind it; nodes that depend on no token belong to every part that reads them.
 */
function groupNodes(graph: Graph, cuts: readonly string[]): Node[][] {
  const order = new Map(cuts.map((name, index) => [name, index]));
  const partOf = new Map<Node, number>();
  const tokens = graph.inputs[0];
  /** The part that a value is read in; none where it depends on no token. */
  const readIn = (value: Value): number | undefined => {
    const cut = order.get(value.name);
    if (cut !== undefined && value.producer) return cut + 1;
    if (value === tokens) return 0;
    return value.producer && partOf.get(value.producer);
  };
  for (const node of graph.nodes) {
    const parts = nodeReads(node).flatMap((value) => readIn(value) ?? []);
    if (parts.length === 0) continue;
    const part = Math.max(...parts);
    const stray = nodeReads(node).find((value) => (readIn(value) ?? part) !== part);
    if (stray) {
      throw new NpucError('XX001', {
        message: `${stray.name} passes over the cut ${cuts[part - 1]}`,
        where: node.from[0] ?? node.name,
      });
    }
    partOf.set(node, part);
  }
  return Array.from({ length: cuts.length + 1 }, (_, part) => {
    const wanted = new Set(graph.nodes.filter((node) => partOf.get(node) === part));
    for (const node of [...graph.nodes].reverse()) {
      if (partOf.has(node) || wanted.has(node)) continue;
      const isRead = node.outputs.some((output) => output?.consumers.some((reader) => wanted.has(reader)));
      if (isRead) wanted.add(node);
    }
    return graph.nodes.filter((node) => wanted.has(node));
  });
}

function copyPart(
  module: Module,
  nodes: readonly Node[],
  incoming: string | undefined,
  outgoing: string | undefined,
): Module {
  const source = module.graph();
  const graph = new Graph(source.name);
  const copies = new Map<Value, Value>();
  const copy = (value: Value): Value => {
    const known = copies.get(value);
    if (known) return known;
    const fresh = graph.addValue(value.name, value.type, value.data);
    fresh.encoding = value.encoding;
    fresh.payload = value.payload;
    fresh.extras = value.extras;
    copies.set(value, fresh);
    if (source.quantizedPorts.has(value)) graph.quantizedPorts.add(fresh);
    return fresh;
  };
  const made = new Set(nodes.flatMap((node) => node.outputs));
  const states = [...source.states].filter(([, port]) => made.has(port.output));
  // A prefill graph without logits reads no past in its last layer, but its state has one.
  const read = new Set([...nodes.flatMap(nodeReads), ...states.map(([, port]) => port.input)]);
  const ports: { value: Value; side: Value[] }[] = [];
  if (incoming !== undefined) ports.push({ value: source.find(incoming)!, side: graph.inputs });
  for (const value of source.inputs) if (read.has(value)) ports.push({ value, side: graph.inputs });
  for (const { value, side } of ports) side.push(copy(value));
  for (const node of nodes) {
    const { op, domain, overload, name, from, extras } = node;
    for (const value of nodeReads(node)) copy(value);
    const inputs = node.inputs.map((value) => value && copy(value));
    const outputs = node.outputs.map((value) => value && copy(value));
    graph.addNode({
      op,
      domain,
      overload,
      name,
      inputs,
      outputs,
      attributes: copyAttributes(node, graph, copies),
      from,
      extras,
    });
  }
  if (outgoing !== undefined) graph.outputs.push(copies.get(source.find(outgoing)!)!);
  for (const value of source.outputs) if (made.has(value)) graph.outputs.push(copies.get(value)!);
  for (const name of [incoming, outgoing]) {
    const port = name === undefined ? undefined : copies.get(source.find(name)!)!;
    if (port?.encoding) graph.quantizedPorts.add(port);
  }
  for (const [name, { input, output }] of states)
    graph.states.set(name, { input: copies.get(input)!, output: copies.get(output)! });
  for (const [key, value] of source.properties) graph.properties.set(key, value);
  for (const [key, value] of source.metadata) graph.metadata.set(key, value);
  return wrap(module, graph);
}

/** A module of one graph with what the source module says about it. */
function wrap(source: Module, graph: Graph): Module {
  const module = new Module();
  module.graphs.push(graph);
  for (const [name, state] of source.states) if (graph.states.has(name)) module.states.set(name, state);
  for (const group of source.tieGroups) {
    const kept = group.filter((name) => graph.find(name) !== undefined);
    if (kept.length > 1) module.tieGroups.push(kept);
  }
  module.opsets.clear();
  for (const [domain, version] of source.opsets) module.opsets.set(domain, version);
  module.functions.push(...source.functions);
  for (const [key, value] of source.metadata) module.metadata.set(key, value);
  module.irVersion = source.irVersion;
  module.producerName = source.producerName;
  module.producerVersion = source.producerVersion;
  return module;
}

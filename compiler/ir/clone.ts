import { type Attribute, Graph, Module, type Node, type Value } from './graph.ts';

/** A copy of a module's structure: graphs, nodes and values are fresh, tensors and encodings are shared. */
export function cloneModule(module: Module): Module {
  const copy = new Module();
  copy.graphs.push(...module.graphs.map((graph) => cloneGraph(graph)));
  for (const [name, state] of module.states) copy.states.set(name, state);
  copy.tieGroups.push(...module.tieGroups.map((group) => [...group]));
  copy.opsets.clear();
  for (const [domain, version] of module.opsets) copy.opsets.set(domain, version);
  copy.functions.push(...module.functions);
  for (const [key, value] of module.metadata) copy.metadata.set(key, value);
  copy.irVersion = module.irVersion;
  copy.producerName = module.producerName;
  copy.producerVersion = module.producerVersion;
  copy.doc = module.doc;
  copy.unknown = module.unknown;
  return copy;
}

/** A copy of a graph and its subgraphs under the same names. */
export function cloneGraph(graph: Graph): Graph {
  return copyGraph(graph, undefined, new Map());
}

/**
 * A copy of a graph below another parent. `outer` says what stands for the values it captures; those not named stay.
 * Names that the new parent uses get a suffix.
 */
export function copyGraph(graph: Graph, parent: Graph | undefined, outer: ReadonlyMap<Value, Value>): Graph {
  const copy = new Graph(graph.name, parent);
  const map = new Map(outer);
  for (const value of graph.values) {
    const fresh = copy.addValue(value.name, value.type, value.data);
    fresh.encoding = value.encoding;
    fresh.payload = value.payload;
    fresh.extras = value.extras;
    map.set(value, fresh);
  }
  const to = (value: Value | undefined): Value | undefined =>
    value === undefined ? undefined : (map.get(value) ?? value);
  for (const node of graph.nodes) {
    copy.addNode({
      op: node.op,
      domain: node.domain,
      overload: node.overload,
      name: node.name,
      inputs: node.inputs.map(to),
      outputs: node.outputs.map(to),
      attributes: copyAttributes(node, copy, map),
      from: node.from,
      extras: node.extras,
    });
  }
  copy.inputs.push(...graph.inputs.map((value) => map.get(value)!));
  copy.outputs.push(...graph.outputs.map((value) => map.get(value) ?? value));
  for (const value of graph.quantizedPorts) copy.quantizedPorts.add(map.get(value)!);
  for (const [name, port] of graph.states)
    copy.states.set(name, { input: map.get(port.input)!, output: map.get(port.output)! });
  for (const [key, value] of graph.properties) copy.properties.set(key, value);
  for (const [key, value] of graph.metadata) copy.metadata.set(key, value);
  copy.doc = graph.doc;
  copy.unknown = graph.unknown;
  return copy;
}

/** The attributes of a node for a copy of it in another graph: subgraphs are copied below that graph. */
export function copyAttributes(node: Node, graph: Graph, map: ReadonlyMap<Value, Value>): Map<string, Attribute> {
  const attributes = new Map<string, Attribute>();
  for (const [name, attribute] of node.attributes) {
    if (attribute.kind === 'graph')
      attributes.set(name, { kind: 'graph', value: copyGraph(attribute.value, graph, map) });
    else if (attribute.kind === 'graphs') {
      attributes.set(name, { kind: 'graphs', value: attribute.value.map((inner) => copyGraph(inner, graph, map)) });
    } else attributes.set(name, attribute);
  }
  return attributes;
}

import { NpucError } from '../errors.ts';
import { encodeMessage } from '../export/protobuf.ts';
import { type Attribute, type Extras, Graph, type Node, nodeReads, tensorType, type Value } from '../ir/graph.ts';
import { readAttribute, readSparseInitializer } from './onnx-attribute.ts';
import {
  type EntryMessage,
  type FunctionMessage,
  type GraphMessage,
  type NodeMessage,
  VALUE_INFO,
  type ValueInfoMessage,
} from './onnx-schema.ts';
import type { TensorSource } from './onnx-tensor.ts';
import { type DimensionNames, readEntries, readType } from './onnx-types.ts';

/** What every graph of one model shares while it is read. */
export interface ImportContext {
  readonly tensors: TensorSource;
  readonly dimensions: DimensionNames;
}

/** Names of a graph as the file spells them: a subgraph may shadow a name that the IR then writes with a suffix. */
interface Scope {
  readonly names: Map<string, Value>;
  readonly outer: Scope | undefined;
}

/**
 * A GraphProto as a graph. Nodes that are not in topological order are sorted.
 * @throws IM302 to IM306 naming the node or value; IM307, IM308 for external data
 */
export function readGraph(message: GraphMessage, context: ImportContext): Graph {
  return buildGraph(message, context, undefined, undefined);
}

/** The body of a local function as a graph with untyped inputs, unless the function's value_info types them. */
export function readFunctionBody(message: FunctionMessage, context: ImportContext): Graph {
  const named = (name: string): ValueInfoMessage => ({ name });
  const graph = { ...message, inputs: (message.inputs ?? []).map(named), outputs: (message.outputs ?? []).map(named) };
  return buildGraph(graph, context, undefined, undefined);
}

function buildGraph(
  message: GraphMessage,
  context: ImportContext,
  parent: Graph | undefined,
  outer: Scope | undefined,
): Graph {
  const graph = new Graph(message.name ?? '', parent);
  const scope: Scope = { names: new Map(), outer };
  graph.doc = message.doc ?? '';
  for (const [key, value] of readEntries(message.metadata) ?? []) graph.metadata.set(key, value);
  graph.unknown = message.unknown;

  const define = (name: string, what: string): Value => {
    if (name === '') throw new NpucError('IM302', { message: `${what} has no name`, where: graph.name });
    if (scope.names.has(name)) {
      throw new NpucError('IM303', { message: `'${name}' is defined again by ${what}`, where: name });
    }
    const value = graph.addValue(name);
    scope.names.set(name, value);
    return value;
  };

  for (const tensor of message.initializers ?? []) {
    const name = tensor.name ?? '';
    const value = define(name, 'an initializer');
    value.data = context.tensors.read(tensor, name);
    value.type = tensorType(value.data.dtype, value.data.shape);
    value.extras = readExtras(tensor.doc, tensor.metadata, undefined);
  }
  const sparse = (message.sparseInitializers ?? []).map((initializer) => {
    const name = initializer.values?.name ?? '';
    return { output: define(name, 'a sparse initializer'), attribute: readSparseInitializer(initializer, name) };
  });
  for (const info of message.inputs ?? []) {
    const name = info.name ?? '';
    // Up to IR version 3 every initializer is listed as an input, too: it is a constant all the same.
    if (scope.names.get(name)?.data) continue;
    const value = define(name, 'a graph input');
    describeValue(value, info, context);
    graph.inputs.push(value);
  }
  const nodes = message.nodes ?? [];
  const outputs = nodes.map((node) =>
    (node.outputs ?? []).map((name) => (name === '' ? undefined : define(name, `node ${nodeName(node)}`))),
  );
  for (const info of [...(message.valueInfos ?? []), ...(message.outputs ?? [])]) {
    const value = scope.names.get(info.name ?? '');
    // A value_info for a name that is not there says nothing; an unknown output is reported below.
    if (value && !value.data) describeValue(value, info, context);
  }
  for (const { output, attribute } of sparse) {
    const attributes = new Map([['sparse_value', attribute]]);
    graph.addNode({
      op: 'Constant',
      name: output.name,
      inputs: [],
      outputs: [output],
      attributes,
      from: [output.name],
    });
  }
  nodes.forEach((node, index) => addNode(node, outputs[index]!, graph, scope, context));
  for (const info of message.outputs ?? []) {
    const value = lookUp(scope, info.name ?? '');
    if (!value) {
      throw new NpucError('IM304', {
        message: `nothing produces the graph output '${info.name ?? ''}'`,
        where: graph.name,
      });
    }
    graph.outputs.push(value);
  }
  sortIfNeeded(graph);
  return graph;
}

function addNode(
  message: NodeMessage,
  outputs: readonly (Value | undefined)[],
  graph: Graph,
  scope: Scope,
  context: ImportContext,
): void {
  const where = nodeName(message);
  const attributes = new Map<string, Attribute>();
  for (const attribute of message.attributes ?? []) {
    if (attribute instanceof Uint8Array) continue;
    const name = attribute.name ?? '';
    if (attributes.has(name)) throw new NpucError('IM303', { message: `attribute '${name}' is given twice`, where });
    attributes.set(
      name,
      readAttribute(attribute, context, where, (inner) => buildGraph(inner, context, graph, scope)),
    );
  }
  graph.addNode({
    op: message.op ?? '',
    domain: message.domain === 'ai.onnx' ? '' : (message.domain ?? ''),
    overload: message.overload ?? '',
    name: message.name ?? '',
    inputs: (message.inputs ?? []).map((name) => {
      if (name === '') return undefined;
      const value = lookUp(scope, name);
      if (value) return value;
      throw new NpucError('IM304', { message: `${message.op} reads '${name}', which nothing produces`, where });
    }),
    outputs,
    attributes,
    from: [message.name || (outputs.find((output) => output)?.name ?? '')],
    extras: readExtras(message.doc, message.metadata, message.unknown),
  });
}

/** What errors and reports call a node: its name, else its first output, else its op. */
function nodeName(message: NodeMessage): string {
  return message.name || (message.outputs ?? []).find((name) => name !== '') || (message.op ?? '');
}

function lookUp(scope: Scope, name: string): Value | undefined {
  for (let at: Scope | undefined = scope; at; at = at.outer) {
    const value = at.names.get(name);
    if (value) return value;
  }
  return undefined;
}

function describeValue(value: Value, info: ValueInfoMessage, context: ImportContext): void {
  const type = readType(info.type, context.dimensions, value.name);
  if (type) value.type = type;
  // A type that the IR cannot say is kept as the field that it came in.
  const kept =
    type === undefined && info.type?.unknown ? [encodeMessage(VALUE_INFO, { type: info.type }).toBytes()] : [];
  if (info.unknown) kept.push(info.unknown);
  const extras = readExtras(info.doc, info.metadata, kept.length > 0 ? new Uint8Array(Buffer.concat(kept)) : undefined);
  if (extras) value.extras = extras;
}

function readExtras(
  doc: string | undefined,
  metadata: readonly EntryMessage[] | undefined,
  unknown: Uint8Array | undefined,
): Extras | undefined {
  if (!doc && !metadata && !unknown) return undefined;
  const entries = readEntries(metadata);
  return { ...(doc ? { doc } : {}), ...(entries ? { metadata: entries } : {}), ...(unknown ? { unknown } : {}) };
}

function sortIfNeeded(graph: Graph): void {
  const seen = new Set<Node>();
  const sorted = graph.nodes.every((node) => {
    const ready = nodeReads(node).every(({ producer }) => !producer || producer.graph !== graph || seen.has(producer));
    seen.add(node);
    return ready;
  });
  if (sorted) return;
  try {
    graph.sortNodes();
  } catch (cause) {
    const where = cause instanceof NpucError ? cause.where : undefined;
    throw new NpucError('IM305', {
      message: 'the nodes of the graph depend on each other in a circle',
      ...(where ? { where } : {}),
      cause,
    });
  }
}

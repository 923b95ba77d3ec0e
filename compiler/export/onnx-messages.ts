import {
  ATTRIBUTE_TYPE,
  type AttributeMessage,
  type EntryMessage,
  type FunctionMessage,
  type GraphMessage,
  type ModelMessage,
  type NodeMessage,
  type OpsetMessage,
  type TensorMessage,
  type TypeMessage,
  type ValueInfoMessage,
} from '../import/onnx-schema.ts';
import { DTYPES, type DType } from '../ir/dtype.ts';
import type { Attribute, Graph, LocalFunction, Module, Node, Value, ValueType } from '../ir/graph.ts';
import type { Tensor } from '../ir/tensor.ts';

/** Gives an initializer its message: its bytes inline, or a place in an external data file. */
export type PlaceTensor = (tensor: Tensor, name: string) => TensorMessage;

/** The first IR version that knows an element type; the others were there from the start. */
const DTYPE_IR_VERSIONS: Partial<Record<DType, number>> = {
  f8e4m3fn: 9,
  f8e4m3fnuz: 9,
  f8e5m2: 9,
  f8e5m2fnuz: 9,
  i4: 10,
  u4: 10,
  f4e2m1: 11,
  f8e8m0: 12,
  i2: 13,
  u2: 13,
};
/** Up to this IR version every initializer must also be a graph input. */
const INITIALIZERS_ARE_INPUTS = 3;
/** Version of ONNX Runtime's own domain, written where its nodes appear and the module does not say. */
const MICROSOFT = 'com.microsoft';

/** A module's graph as a ModelProto. Fields come in a fixed order, so the same module gives the same bytes. */
export function buildModelMessage(module: Module, graph: Graph, place: PlaceTensor): ModelMessage {
  const irVersion = Math.max(module.irVersion, ...[...usedDTypes(graph)].map((dtype) => DTYPE_IR_VERSIONS[dtype] ?? 1));
  const opsets = new Map(module.opsets);
  if (!opsets.has(MICROSOFT) && usesDomain(graph, MICROSOFT)) opsets.set(MICROSOFT, 1);
  return {
    irVersion,
    producerName: module.producerName || undefined,
    producerVersion: module.producerVersion || undefined,
    doc: module.doc || undefined,
    graph: buildGraphMessage(graph, place, irVersion <= INITIALIZERS_ARE_INPUTS),
    opsets: buildOpsets(opsets),
    metadata: buildEntries(module.metadata),
    functions: module.functions.map((entry) => buildFunctionMessage(entry, place)),
    unknown: module.unknown,
  };
}

function buildGraphMessage(graph: Graph, place: PlaceTensor, constantsAreInputs: boolean): GraphMessage {
  const { constants } = graph;
  const outputs = new Set(graph.outputs);
  const inner = nodeOutputs(graph).filter((value) => !outputs.has(value) && (value.type || value.extras));
  return {
    nodes: graph.nodes.map((node) => buildNodeMessage(node, place)),
    name: graph.name,
    initializers: constants.map((value) => ({
      ...place(value.data!, value.name),
      doc: value.extras?.doc,
      metadata: buildEntries(value.extras?.metadata),
    })),
    doc: graph.doc || undefined,
    inputs: [...graph.inputs, ...(constantsAreInputs ? constants : [])].map(buildValueInfo),
    outputs: graph.outputs.map(buildValueInfo),
    valueInfos: inner.map(buildValueInfo),
    metadata: buildEntries(graph.metadata),
    unknown: graph.unknown,
  };
}

function buildFunctionMessage(entry: LocalFunction, place: PlaceTensor): FunctionMessage {
  const { body } = entry;
  return {
    name: entry.name,
    inputs: body.inputs.map((value) => value.name),
    outputs: body.outputs.map((value) => value.name),
    attributes: [...entry.attributes],
    nodes: body.nodes.map((node) => buildNodeMessage(node, place)),
    doc: body.doc || undefined,
    opsets: buildOpsets(entry.opsets),
    domain: entry.domain,
    defaults: [...entry.defaults],
    valueInfos: [...body.inputs, ...nodeOutputs(body)]
      .filter((value) => value.type || value.extras)
      .map(buildValueInfo),
    overload: entry.overload || undefined,
    metadata: buildEntries(body.metadata),
    unknown: body.unknown,
  };
}

/** In the order of the nodes: what is read back and written again is then the same. */
function nodeOutputs(graph: Graph): Value[] {
  return graph.nodes.flatMap((node) => node.outputs.filter((value) => value !== undefined));
}

function buildNodeMessage(node: Node, place: PlaceTensor): NodeMessage {
  return {
    inputs: node.inputs.map((value) => value?.name ?? ''),
    outputs: node.outputs.map((value) => value?.name ?? ''),
    name: node.name || undefined,
    op: node.op,
    attributes: [...node.attributes].map(([name, attribute]) => buildAttribute(name, attribute, place)),
    doc: node.extras?.doc,
    domain: node.domain || undefined,
    overload: node.overload || undefined,
    metadata: buildEntries(node.extras?.metadata),
    unknown: node.extras?.unknown,
  };
}

function buildAttribute(name: string, attribute: Attribute, place: PlaceTensor): AttributeMessage | Uint8Array {
  if (attribute.kind === 'raw') return attribute.value;
  const type = ATTRIBUTE_TYPE[attribute.kind];
  switch (attribute.kind) {
    case 'int':
      return { name, int: attribute.value, type };
    case 'float':
      return { name, float: attribute.value, type };
    case 'string':
      return { name, string: Buffer.from(attribute.value, 'utf8'), type };
    case 'tensor':
      return { name, tensor: buildTensor(attribute.value), type };
    case 'graph':
      return { name, graph: buildGraphMessage(attribute.value, place, false), type };
    case 'ints':
      return { name, ints: [...attribute.value], type };
    case 'floats':
      return { name, floats: [...attribute.value], type };
    case 'strings':
      return { name, strings: attribute.value.map((text) => Buffer.from(text, 'utf8')), type };
    case 'tensors':
      return { name, tensors: attribute.value.map((tensor) => buildTensor(tensor)), type };
    case 'graphs':
      return { name, graphs: attribute.value.map((graph) => buildGraphMessage(graph, place, false)), type };
    case 'type':
      return { name, typeProto: buildType(attribute.value), type };
  }
}

/** A TensorProto with its bytes inline. */
export function buildTensor(tensor: Tensor, name?: string): TensorMessage {
  const message: TensorMessage = { dims: [...tensor.shape], dataType: DTYPES[tensor.dtype].code, name };
  if (tensor.dtype !== 'string') return { ...message, rawData: tensor };
  const bytes = tensor.read();
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const strings: Uint8Array[] = [];
  for (let at = 0; at < bytes.length; at += 4 + view.getUint32(at, true)) {
    strings.push(bytes.subarray(at + 4, at + 4 + view.getUint32(at, true)));
  }
  return { ...message, stringData: strings };
}

function buildValueInfo(value: Value): ValueInfoMessage {
  return {
    name: value.name,
    type: value.type && buildType(value.type),
    doc: value.data ? undefined : value.extras?.doc,
    metadata: value.data ? undefined : buildEntries(value.extras?.metadata),
    unknown: value.extras?.unknown,
  };
}

function buildType(type: ValueType): TypeMessage {
  switch (type.kind) {
    case 'tensor': {
      const dims = type.shape?.map((dim) => (typeof dim === 'number' ? { value: dim } : { param: dim }));
      return { tensor: { elementType: DTYPES[type.dtype].code, shape: dims && { dims } } };
    }
    case 'sequence':
      return { sequence: { element: type.element && buildType(type.element) } };
    case 'optional':
      return { optional: { element: type.element && buildType(type.element) } };
    case 'map':
      return { map: { keyType: DTYPES[type.key].code, element: type.element && buildType(type.element) } };
  }
}

function buildOpsets(opsets: ReadonlyMap<string, number>): OpsetMessage[] {
  return [...opsets].map(([domain, version]) => ({ domain, version }));
}

function buildEntries(entries: ReadonlyMap<string, string> | undefined): EntryMessage[] | undefined {
  return entries && [...entries].map(([key, value]) => ({ key, value }));
}

/** Every graph inside a graph, itself first. */
export function* nestedGraphs(graph: Graph): Generator<Graph> {
  yield graph;
  for (const node of graph.nodes) for (const inner of node.subgraphs) yield* nestedGraphs(inner);
}

function usesDomain(graph: Graph, domain: string): boolean {
  for (const inner of nestedGraphs(graph)) if (inner.nodes.some((node) => node.domain === domain)) return true;
  return false;
}

function usedDTypes(graph: Graph): Set<DType> {
  const dtypes = new Set<DType>();
  for (const inner of nestedGraphs(graph)) {
    for (const value of inner.values) {
      if (value.type?.kind === 'tensor') dtypes.add(value.type.dtype);
      if (value.data) dtypes.add(value.data.dtype);
    }
  }
  return dtypes;
}

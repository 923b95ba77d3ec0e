import { createHash } from 'node:crypto';
import type { Attribute, Extras, Graph, Module, Value, ValueType } from '../../compiler/ir/graph.ts';
import type { Tensor, TensorData } from '../../compiler/ir/tensor.ts';

/** Everything that a module says, as plain data: two modules are the same when their descriptions are deep-equal. */
export function describeModule(module: Module): object {
  return {
    irVersion: module.irVersion,
    opsets: [...module.opsets],
    producer: [module.producerName, module.producerVersion],
    doc: module.doc,
    metadata: [...module.metadata],
    unknown: hex(module.unknown),
    graphs: module.graphs.map(describeGraph),
    functions: module.functions.map((entry) => ({
      ...entry,
      opsets: [...entry.opsets],
      defaults: entry.defaults.map(hex),
      body: describeGraph(entry.body),
    })),
  };
}

function describeGraph(graph: Graph): object {
  return {
    name: graph.name,
    doc: graph.doc,
    metadata: [...graph.metadata],
    unknown: hex(graph.unknown),
    inputs: graph.inputs.map((value) => value.name),
    outputs: graph.outputs.map((value) => value.name),
    values: Object.fromEntries([...graph.values].map((value) => [value.name, describeValue(value)])),
    nodes: graph.nodes.map((node) => ({
      op: `${node.domain}::${node.op}:${node.overload}`,
      name: node.name,
      inputs: node.inputs.map((value) => value?.name),
      outputs: node.outputs.map((value) => value?.name),
      attributes: [...node.attributes].map(([name, attribute]) => [name, attribute.kind, describeAttribute(attribute)]),
      from: [...node.from],
      extras: describeExtras(node.extras),
    })),
  };
}

function describeValue(value: Value): object {
  return {
    type: describeType(value.type),
    data: value.data && describeTensor(value.data),
    extras: describeExtras(value.extras),
  };
}

export function describeType(type: ValueType | undefined): string {
  if (!type) return 'unknown';
  if (type.kind === 'tensor') return `${type.dtype}${type.shape ? JSON.stringify(type.shape) : '?'}`;
  if (type.kind === 'map') return `map(${type.key}, ${describeType(type.element)})`;
  return `${type.kind}(${describeType(type.element)})`;
}

function describeTensor(tensor: Tensor): string {
  return `${tensor.dtype}[${tensor.shape}] ${tensor.digest}`;
}

function describeAttribute(attribute: Attribute): unknown {
  switch (attribute.kind) {
    case 'tensor':
      return describeTensor(attribute.value);
    case 'tensors':
      return attribute.value.map(describeTensor);
    case 'graph':
      return describeGraph(attribute.value);
    case 'graphs':
      return attribute.value.map(describeGraph);
    case 'type':
      return describeType(attribute.value);
    case 'raw':
      return hex(attribute.value);
    default:
      return attribute.value;
  }
}

/** What runs give: comparing digests is quick where comparing large arrays element by element takes minutes. */
export function describeTensors(tensors: Readonly<Record<string, TensorData>>): Record<string, string> {
  const describeOne = ({ dtype, shape, data, strings }: TensorData): string => {
    const hash = createHash('sha256').update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    return `${dtype}[${shape}] ${hash.update(JSON.stringify(strings ?? [])).digest('hex')}`;
  };
  return Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, describeOne(tensor)]));
}

function describeExtras(extras: Extras | undefined): object | undefined {
  return extras && { doc: extras.doc, metadata: [...(extras.metadata ?? [])], unknown: hex(extras.unknown) };
}

function hex(bytes: Uint8Array | undefined): string | undefined {
  return bytes && Buffer.from(bytes).toString('hex');
}

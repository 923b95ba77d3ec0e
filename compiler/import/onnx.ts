import { NpucError } from '../errors.ts';
import { Module } from '../ir/graph.ts';
import { FileSource, type Tensor } from '../ir/tensor.ts';
import { type ImportContext, readFunctionBody, readGraph } from './onnx-graph.ts';
import {
  asMessage,
  type FunctionMessage,
  MODEL,
  type ModelMessage,
  NEWEST_IR_VERSION,
  OPSET_RANGE,
  type OpsetMessage,
  TENSOR,
  type TensorMessage,
} from './onnx-schema.ts';
import { TensorSource } from './onnx-tensor.ts';
import { DimensionNames, readEntries } from './onnx-types.ts';
import { BytesSource, decodeMessage, type RangeSource, WireReader } from './protobuf.ts';

/**
 * Opens an ONNX model as a module with one graph. Only structure is read: raw tensor bytes stay in the file (or in the
 * model's external data files) and are fetched when a tensor is asked for them. There is no size limit.
 * @throws IO001, IO003 for files that cannot be read; IM301 for versions out of range; IM302 to IM308 for bad models
 */
export function openOnnx(path: string): Module {
  const file = new FileSource(path);
  try {
    return readModel(file);
  } finally {
    file.close();
  }
}

/** A model in memory as a module: as openOnnx, but external data is refused. */
export function decodeOnnx(bytes: Uint8Array, name?: string): Module {
  return readModel(new BytesSource(bytes, name));
}

/**
 * A file that holds one TensorProto (`.pb`), as the ONNX backend suite keeps inputs and outputs.
 * @throws IO001, IO003, IM306
 */
export function openTensorFile(path: string): Tensor {
  const file = new FileSource(path);
  try {
    const message = decodeMessage(new WireReader(file), TENSOR, file.size);
    return new TensorSource(file).read(asMessage<TensorMessage>(message), path);
  } finally {
    file.close();
  }
}

function readModel(source: RangeSource): Module {
  const message = asMessage<ModelMessage>(decodeMessage(new WireReader(source), MODEL, source.size));
  const irVersion = Number(message.irVersion ?? 0);
  if (irVersion < 1 || irVersion > NEWEST_IR_VERSION) {
    throw new NpucError('IM301', {
      message: `IR version ${irVersion} is not supported (1 to ${NEWEST_IR_VERSION})`,
      where: source.path,
      ...(irVersion === 0 ? { hint: 'the file does not look like an ONNX model' } : {}),
    });
  }
  if (!message.graph) throw new NpucError('IM302', { message: 'the model has no graph', where: source.path });

  const module = new Module();
  module.opsets.clear();
  for (const [domain, version] of readOpsets(message.opsets, source.path)) module.opsets.set(domain, version);
  module.irVersion = irVersion;
  module.producerName = message.producerName ?? '';
  module.producerVersion = message.producerVersion ?? '';
  module.doc = message.doc ?? '';
  module.unknown = message.unknown;
  for (const [key, value] of readEntries(message.metadata) ?? []) module.metadata.set(key, value);

  const dimensions = new DimensionNames();
  dimensions.collect(message.graph);
  for (const entry of message.functions ?? []) {
    dimensions.collect({ nodes: entry.nodes, valueInfos: entry.valueInfos });
  }
  const context: ImportContext = { tensors: new TensorSource(source), dimensions };
  for (const entry of message.functions ?? []) readFunction(entry, module, context, source.path);
  module.graphs.push(readGraph(message.graph, context));
  return module;
}

function readFunction(message: FunctionMessage, module: Module, context: ImportContext, path: string): void {
  module.functions.push({
    domain: message.domain ?? '',
    name: message.name ?? '',
    overload: message.overload ?? '',
    attributes: message.attributes ?? [],
    defaults: message.defaults ?? [],
    opsets: readOpsets(message.opsets, path),
    body: readFunctionBody(message, context),
  });
}

function readOpsets(messages: readonly OpsetMessage[] | undefined, path: string): Map<string, number> {
  const opsets = new Map<string, number>();
  for (const { domain, version } of messages ?? []) {
    opsets.set(domain === 'ai.onnx' ? '' : (domain ?? ''), Number(version ?? 0));
  }
  const onnx = opsets.get('');
  const [oldest, newest] = OPSET_RANGE;
  if (onnx !== undefined && (onnx < oldest || onnx > newest)) {
    throw new NpucError('IM301', {
      message: `opset ${onnx} is not supported (${oldest} to ${newest})`,
      where: path,
      hint: "convert the model with onnx's version_converter",
    });
  }
  return opsets;
}

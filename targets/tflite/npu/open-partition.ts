import { closeSync, openSync, readSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { NpucError } from '../../../compiler/errors.ts';
import { writeOnnx } from '../../../compiler/export/onnx.ts';
import { Graph, intAttribute, Module, stringAttribute, tensorType } from '../../../compiler/ir/graph.ts';
import type { ContextInfo, ContextTensor } from '../../../compiler/runtime/native-qnn-system.ts';
import type { NativeHost, NativeSession } from '../../../compiler/runtime/ort-native.ts';
import type { DispatchPartition } from './read-dispatch.ts';

/** A partition on the HTP simulator; ports have the names of the compiled file's tensors. */
export interface OpenedPartition {
  readonly session: NativeSession;
  /** The context's own name of a tensor of the file. */
  readonly portOf: ReadonlyMap<string, ContextTensor>;
}

const CHUNK = 8 << 20;

/**
 * Opens the byte code of a partition on the HTP simulator: it is a context binary, which ONNX Runtime runs from a model of one
 * EPContext node (facts litert 5).
 * @param file the compiled TFLite file
 * @param folder where the context binary and the model are put
 * @throws QN014 when the byte code is no context binary, QN013 when its ports are not those of the partition, RT110
 */
export async function openPartition(
  host: NativeHost,
  file: string,
  partition: DispatchPartition,
  folder: string,
): Promise<OpenedPartition> {
  const context = await readPartition(host, file, partition, folder);
  const graph = context.graphs.find(({ name }) => name === partition.name);
  if (!graph) throw differs(file, `the byte code has no graph ${partition.name}`);
  const inputs = matchPorts(partition.inputs, graph.inputs, file);
  const outputs = matchPorts(partition.outputs, graph.outputs, file);
  const model = join(folder, `${partition.name}.onnx`);
  writeOnnx(contextModel(partition.name, binaryOf(partition), graph.inputs, graph.outputs), model);
  return { session: await host.openSession(model, { provider: 'qnn' }), portOf: new Map([...inputs, ...outputs]) };
}

/** Cuts the byte code of a partition out of a compiled file and reads what it holds. @throws QN014 */
export async function readPartition(
  host: NativeHost,
  file: string,
  partition: DispatchPartition,
  folder: string,
): Promise<ContextInfo> {
  const path = join(folder, binaryOf(partition));
  cutOut(file, partition, path);
  return await host.readContext(path);
}

const binaryOf = ({ name }: DispatchPartition): string => `${name}.bin`;

/** The plugin replaces in a tensor's name what no identifier has. */
function matchPorts(
  tensors: readonly string[],
  ports: readonly ContextTensor[],
  file: string,
): [string, ContextTensor][] {
  const plain = (name: string): string => name.replaceAll(/[^A-Za-z0-9]/g, '_');
  const known = new Map(ports.map((port) => [plain(port.name), port]));
  return tensors.map((tensor) => {
    const port = known.get(plain(tensor));
    if (!port) throw differs(file, `the byte code has no port ${tensor}`);
    return [tensor, port];
  });
}

function differs(where: string, message: string): NpucError {
  return new NpucError('QN013', { message, where, exitCode: 70 });
}

function contextModel(
  name: string,
  binary: string,
  inputs: readonly ContextTensor[],
  outputs: readonly ContextTensor[],
): Module {
  const module = new Module();
  module.opsets.set('com.microsoft', 1);
  const graph = new Graph(name);
  module.graphs.push(graph);
  graph.addNode({
    op: 'EPContext',
    domain: 'com.microsoft',
    name,
    inputs: inputs.map((port) => graph.addInput(port.name, tensorType(port.dtype, port.shape))),
    outputs: outputs.map((port) => graph.addValue(port.name, tensorType(port.dtype, port.shape))),
    attributes: {
      embed_mode: intAttribute(0),
      ep_cache_context: stringAttribute(binary),
      main_context: intAttribute(1),
      partition_name: stringAttribute(name),
      source: stringAttribute('QNNExecutionProvider'),
    },
  });
  graph.outputs.push(...outputs.map((port) => graph.find(port.name)!));
  return module;
}

/** Copies a range of a file. */
function cutOut(file: string, { offset, size }: DispatchPartition, target: string): void {
  writeFileSync(target, '');
  const [from, to] = [openSync(file, 'r'), openSync(target, 'w')];
  try {
    const chunk = Buffer.alloc(Math.min(CHUNK, size));
    for (let done = 0; done < size; ) {
      const count = readSync(from, chunk, 0, Math.min(chunk.length, size - done), offset + done);
      if (count === 0) throw differs(file, 'the byte code is cut');
      writeSync(to, chunk, 0, count);
      done += count;
    }
  } finally {
    closeSync(from);
    closeSync(to);
  }
}

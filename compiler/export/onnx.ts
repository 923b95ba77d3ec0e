import { basename, dirname, join } from 'node:path';
import { NpucError } from '../errors.ts';
import { EXTERNAL, MODEL, type TensorMessage } from '../import/onnx-schema.ts';
import { DTYPES } from '../ir/dtype.ts';
import type { Graph, Module } from '../ir/graph.ts';
import { type FileSource, Tensor } from '../ir/tensor.ts';
import { type AtomicSink, writeAtomically } from './atomic-files.ts';
import { hasEncodings, materializeQdq } from './materialize-qdq.ts';
import { buildModelMessage, buildTensor, nestedGraphs, type PlaceTensor } from './onnx-messages.ts';
import { encodeMessage, type ProtoWriter, readPiece } from './protobuf.ts';

export interface WriteOnnxOptions {
  /** The graph to write: its name in the module, or a graph of its own; the module's first by default. */
  graph?: string | Graph;
  /** Where weights go: beside the model when they outgrow `threshold` (auto, the default), never, or always. */
  externalData?: 'auto' | 'never' | 'always';
  /** Name of the data file, in the model's folder; `<model>.data` by default. */
  externalName?: string;
  /** Bytes of weights above which `auto` writes a data file; 1.5 GB by default. */
  threshold?: number;
}

export interface WrittenOnnx {
  /** The model first, then its data file. */
  files: { path: string; bytes: number }[];
}

/** Protobuf readers, ONNX Runtime among them, refuse a message of 2 GiB. */
const LARGEST_MESSAGE = 2 ** 31 - 1;
const EXTERNAL_THRESHOLD = 1.5e9;
/** Below this a tensor stays in the model file even when there is a data file. */
const SMALLEST_EXTERNAL = 1024;
/** Large tensors start on a page, so that a runtime can map them; small ones on a cache line. */
const PAGE = 4096;
const CACHE_LINE = 64;
const PAGE_ALIGNED_FROM = 64 << 10;
const WINDOW_BYTES = 8 << 20;

/**
 * Writes one graph of a module as an ONNX model. Tensors are streamed: at most one derived tensor, or a window of one in a
 * file, is in memory at a time. Encodings are materialised as QuantizeLinear / DequantizeLinear first (materializeQdq).
 * Files appear under their names only when all bytes are written; the same module gives the same bytes.
 * @throws IO002 when it cannot be written (nothing is left behind), IO004 when `never` meets 2 GiB, TG101 for an encoding
 * that the module's opset cannot say
 */
export function writeOnnx(module: Module, path: string, options: WriteOnnxOptions = {}): WrittenOnnx {
  const graph = graphToWrite(module, options.graph);
  const mode = options.externalData ?? 'auto';
  const isExternal =
    mode === 'always' || (mode === 'auto' && weightBytes(graph) > (options.threshold ?? EXTERNAL_THRESHOLD));
  if (!isExternal) {
    const writer = encode(module, graph, buildTensor);
    writeAtomically([path], ([sink]) => writePieces(writer, sink!));
    return { files: [{ path, bytes: writer.byteLength }] };
  }
  const name = options.externalName ?? `${basename(path)}.data`;
  if (name !== basename(name) || name === basename(path)) {
    throw new NpucError('IO002', { message: `'${name}' cannot be the name of the data file`, where: path });
  }
  const plan = new ExternalPlan(name);
  const writer = encode(module, graph, plan.place);
  const dataPath = join(dirname(path), name);
  // The data first: a model must never stand there without it.
  writeAtomically([dataPath, path], ([data, model]) => {
    plan.write(data!);
    writePieces(writer, model!);
  });
  return {
    files: [
      { path, bytes: writer.byteLength },
      { path: dataPath, bytes: plan.byteLength },
    ],
  };
}

/**
 * A small model as bytes, weights inline: what a runtime loads from memory.
 * @throws IO004 at 2 GiB; TG101
 */
export function encodeOnnx(module: Module, options: { graph?: string | Graph; inline?: true } = {}): Uint8Array {
  return encode(module, graphToWrite(module, options.graph), buildTensor).toBytes();
}

function graphToWrite(module: Module, choice: string | Graph | undefined): Graph {
  const graph = typeof choice === 'object' ? choice : module.graph(choice);
  return hasEncodings(graph) ? materializeQdq(graph, module.opsets.get('')) : graph;
}

function encode(module: Module, graph: Graph, place: PlaceTensor): ProtoWriter {
  const writer = encodeMessage(MODEL, buildModelMessage(module, graph, place));
  if (writer.byteLength <= LARGEST_MESSAGE) return writer;
  throw new NpucError('IO004', {
    message: `the model takes ${writer.byteLength} bytes, runtimes read at most ${LARGEST_MESSAGE} from one file`,
    hint: 'write the weights to a data file (externalData: auto)',
  });
}

function weightBytes(graph: Graph): number {
  let sum = 0;
  for (const inner of nestedGraphs(graph)) for (const value of inner.constants) sum += value.data!.byteLength;
  return sum;
}

/** A model of a bundle and where it goes. */
export interface BundleEntry {
  readonly module: Module;
  readonly path: string;
}

/** A tensor of a bundle's data file. */
export interface BundleTensor {
  /** In the first model that has it. */
  readonly name: string;
  readonly offset: number;
  readonly bytes: number;
  /** The models that have it, by their place among the entries. */
  readonly models: readonly number[];
}

export interface WrittenBundle extends WrittenOnnx {
  /** What lies in the data file, in order. */
  tensors: readonly BundleTensor[];
}

/**
 * Writes several models of one folder over one data file: tensors that they share lie there once.
 * All files appear together, or none.
 * @throws as writeOnnx
 */
export function writeOnnxBundle(entries: readonly BundleEntry[], dataName: string): WrittenBundle {
  const plan = new ExternalPlan(dataName);
  const writers = entries.map(({ module }, index) => {
    plan.model = index;
    return encode(module, graphToWrite(module, undefined), plan.place);
  });
  const dataPath = join(dirname(entries[0]!.path), dataName);
  const paths = entries.map((entry) => entry.path);
  writeAtomically([dataPath, ...paths], ([data, ...models]) => {
    plan.write(data!);
    writers.forEach((writer, i) => {
      writePieces(writer, models[i]!);
    });
  });
  return {
    files: [
      ...paths.map((path, i) => ({ path, bytes: writers[i]!.byteLength })),
      { path: dataPath, bytes: plan.byteLength },
    ],
    tensors: plan.list(),
  };
}

interface PlacedTensor {
  readonly tensor: Tensor;
  readonly name: string;
  readonly offset: number;
  readonly models: Set<number>;
}

/** Where each tensor lies in the data file; one object, one place in a source file, equal bytes in memory lie there once. */
class ExternalPlan {
  readonly #name: string;
  readonly #offsets: Map<Tensor | string, PlacedTensor> = new Map();
  byteLength = 0;
  /** The model whose tensors are being placed. */
  model = 0;

  constructor(name: string) {
    this.#name = name;
  }

  readonly place = (tensor: Tensor, name: string): TensorMessage => {
    if (tensor.dtype === 'string' || tensor.byteLength < SMALLEST_EXTERNAL) return buildTensor(tensor, name);
    const key = placeKey(tensor);
    let placed = this.#offsets.get(key);
    if (placed === undefined) {
      const alignment = alignmentOf(tensor);
      placed = { tensor, name, offset: Math.ceil(this.byteLength / alignment) * alignment, models: new Set() };
      this.#offsets.set(key, placed);
      this.byteLength = placed.offset + tensor.byteLength;
    }
    placed.models.add(this.model);
    const { offset } = placed;
    return {
      dims: [...tensor.shape],
      dataType: DTYPES[tensor.dtype].code,
      name,
      externalData: [
        { key: 'location', value: this.#name },
        { key: 'offset', value: String(offset) },
        { key: 'length', value: String(tensor.byteLength) },
      ],
      dataLocation: EXTERNAL,
    };
  };

  list(): BundleTensor[] {
    return Array.from(this.#offsets.values(), ({ tensor, name, offset, models }) => ({
      name,
      offset,
      bytes: tensor.byteLength,
      models: [...models],
    }));
  }

  write(sink: AtomicSink): void {
    const copy = new TensorCopier(sink);
    for (const { tensor } of this.#offsets.values()) {
      sink.align(alignmentOf(tensor));
      copy.write(tensor);
    }
    copy.close();
  }
}

/** What two tensors have in common when they are the same bytes, as far as that is known without reading weights. */
function placeKey(tensor: Tensor): Tensor | string {
  const { storage } = tensor;
  if (storage.kind === 'memory') return tensor.digest;
  if (storage.kind === 'file') return `${storage.file.path} ${storage.offset} ${tensor.byteLength}`;
  return tensor;
}

function alignmentOf(tensor: Tensor): number {
  return tensor.byteLength >= PAGE_ALIGNED_FROM ? PAGE : CACHE_LINE;
}

function writePieces(writer: ProtoWriter, sink: AtomicSink): void {
  const copy = new TensorCopier(sink);
  for (const piece of writer.pieces) {
    if (piece instanceof Tensor) copy.write(piece);
    else sink.write(readPiece(piece));
  }
  copy.close();
}

/** Copies tensors in windows and keeps at most one source file open: a model may have thousands. */
class TensorCopier {
  readonly #sink: AtomicSink;
  #file: FileSource | undefined;

  constructor(sink: AtomicSink) {
    this.#sink = sink;
  }

  write(tensor: Tensor): void {
    if (tensor.storage.kind !== 'file') {
      this.#sink.write(readPiece(tensor));
      return;
    }
    if (this.#file !== tensor.storage.file) this.close();
    this.#file = tensor.storage.file;
    for (let at = 0; at < tensor.byteLength; at += WINDOW_BYTES) {
      this.#sink.write(tensor.readRange(at, Math.min(WINDOW_BYTES, tensor.byteLength - at)));
    }
  }

  close(): void {
    this.#file?.close();
    this.#file = undefined;
  }
}

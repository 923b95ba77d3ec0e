import { NpucError } from '../errors.ts';
import { DTYPES, type DType, type TypedArray } from '../ir/dtype.ts';
import { elementCount, FileSource, type TensorData } from '../ir/tensor.ts';
import {
  type CompiledHandle,
  createLitertEngine,
  type Handle,
  isTrap,
  type LitertEngine,
  litertEngineName,
  type ModelHandle,
  type TensorBufferHandle,
  type TensorTypeHandle,
  type Vector,
} from './litert-engine.ts';
import { ELEMENT_TYPES } from './litert-types.ts';
import type { PortInfo, Runner, Tensors } from './runner.ts';

/** One callable entry of a loaded TFLite model. */
export interface LitertSignature {
  readonly key: string;
  readonly inputs: readonly PortInfo[];
  readonly outputs: readonly PortInfo[];
  /**
   * Runs once. Feeds and results are plain arrays: nothing of the runtime's memory stays behind. A dynamic dimension of the
   * file runs at 1, the only size that LiteRT.js computes correctly.
   * @throws RT011 for feeds that do not fit, RT111 when the runtime reports a failure
   */
  run(feeds: Tensors): Promise<Record<string, TensorData>>;
}

export interface LitertModel {
  /** Engine and version, for reports. */
  readonly engine: string;
  readonly signatures: Readonly<Record<string, LitertSignature>>;
  /** Frees the model's memory; its signatures then throw RT111. */
  dispose(): void;
}

const DTYPE_OF = new Map(Object.entries(ELEMENT_TYPES).map(([dtype, code]) => [code, dtype as DType]));

/** Bytes copied into the runtime's memory at a time. */
const CHUNK = 1 << 24;

/** From this size on memory is the likely reason for a refusal. */
const LARGE = 5e8;

/** Measured: 1,056 MB of f32 weights ran and 1,074 MB did not; 2,114 MB under int16 activations ran. */
const MEMORY_HINT =
  'LiteRT.js has 2 GiB: files of about 1 GB run (the weights are packed into a second copy), 2 GB with int16 activations';

/**
 * Loads a TFLite model into LiteRT (CPU, XNNPACK, one thread). Integer inputs and outputs work, so a quantized-I/O file runs.
 * Memory: the file itself plus a packed copy of the weights that XNNPACK takes over (float and int8 activations; int16
 * ones run on the file's own bytes), out of 2 GiB.
 * @param model the file's bytes, or its path (then never whole in JavaScript's memory)
 * @throws RT110 when the runtime refuses the model, IO001 when the path cannot be read
 */
export async function loadLitert(model: Uint8Array | string): Promise<LitertModel> {
  const where = typeof model === 'string' ? model : 'the TFLite model in memory';
  const file = typeof model === 'string' ? new FileSource(model) : undefined;
  try {
    const size = file ? file.size : (model as Uint8Array).byteLength;
    const read = file
      ? (offset: number, length: number) => file.read(offset, length)
      : (offset: number, length: number) => (model as Uint8Array).subarray(offset, offset + length);
    return new Loaded(await createLitertEngine(), size, read, where);
  } finally {
    file?.close();
  }
}

/** One signature of a TFLite file as a Runner; closing it frees the model. @throws RT110, also for an unknown signature */
export async function openLitert(model: Uint8Array | string, signature: string): Promise<Runner> {
  const loaded = await loadLitert(model);
  const entry = Object.hasOwn(loaded.signatures, signature) ? loaded.signatures[signature] : undefined;
  if (!entry) {
    loaded.dispose();
    throw new NpucError('RT110', {
      message: `the model has no signature ${signature}; it has ${Object.keys(loaded.signatures).join(', ')}`,
    });
  }
  return {
    engine: loaded.engine,
    inputs: entry.inputs,
    outputs: entry.outputs,
    async run(feeds, outputs) {
      const results = await entry.run(feeds);
      if (!outputs) return results;
      return Object.fromEntries(outputs.map((name) => [name, results[name] ?? unknownOutput(name, entry)]));
    },
    async close() {
      loaded.dispose();
    },
  };
}

class Loaded implements LitertModel {
  readonly engine = litertEngineName();
  readonly signatures: Record<string, LitertSignature> = {};
  readonly #where: string;
  #session: Session | undefined;

  constructor(engine: LitertEngine, size: number, read: (offset: number, length: number) => Uint8Array, where: string) {
    this.#where = where;
    this.#session = openSession(engine, size, read, where);
    const { model } = this.#session;
    for (let index = 0; index < model.getNumSignatures(); index++) {
      const signature = model.getSignature(index);
      const inputs = ports(signature.inputNames(), (i) => model.getInputTensorType(index, i), where);
      const outputs = ports(signature.outputNames(), (i) => model.getOutputTensorType(index, i), where);
      const key = signature.key();
      signature.delete();
      // The first run of a dynamic signature gives outputs of the size that the file has behind its -1; from then on the
      // runtime knows better.
      let settled = inputs.every((_, i) => !dimensions(model.getInputTensorType(index, i)).includes(-1));
      const run = async (feeds: Tensors) => {
        if (!settled) this.#run(index, key, inputs, outputs, feeds);
        settled = true;
        return this.#run(index, key, inputs, outputs, feeds);
      };
      this.signatures[key] = { key, inputs, outputs, run };
    }
  }

  dispose(): void {
    if (!this.#session) return;
    const { engine, address, model, compiled } = this.#session;
    this.#session = undefined;
    // The instance and its memory go when nothing refers to them; this frees what the memory holds before that.
    compiled.delete();
    model.delete();
    engine.wasm._free(address);
    engine.environment.delete();
  }

  #run(
    index: number,
    key: string,
    inputs: readonly PortInfo[],
    outputs: readonly PortInfo[],
    feeds: Tensors,
  ): Record<string, TensorData> {
    const session = this.#session;
    if (!session) throw new NpucError('RT111', { message: 'the model was disposed', where: this.#where });
    for (const port of inputs) checkFeed(port, feeds[port.name], key);
    const owned: TensorBufferHandle[] = [];
    try {
      for (const port of inputs) owned.push(createBuffer(session.engine, feeds[port.name]!));
      const fed = [...owned];
      const results = session.engine.attempt(() => {
        const buffers = session.compiled.run(index, fed);
        owned.push(...buffers);
        return buffers;
      });
      return Object.fromEntries(
        outputs.map((port, i) => [port.name, readBuffer(session.engine, results[i]!, port.dtype)]),
      );
    } catch (cause) {
      const { message } = cause as Error;
      // After a trap nothing of the instance can be trusted, not even to delete the buffers.
      if (isTrap(cause)) this.#session = undefined;
      throw new NpucError('RT111', {
        message: `LiteRT failed in signature ${key}: ${message}`,
        where: this.#where,
        ...(message.includes('unresolved custom op') && {
          hint: "LiteRT.js has the built-in operators only: a vendor-compiled file runs on that vendor's NPU",
        }),
        cause,
      });
    } finally {
      if (this.#session) for (const buffer of owned) buffer.delete();
    }
  }
}

interface Session {
  readonly engine: LitertEngine;
  readonly address: number;
  readonly model: ModelHandle;
  readonly compiled: CompiledHandle;
}

function openSession(
  engine: LitertEngine,
  size: number,
  read: (offset: number, length: number) => Uint8Array,
  where: string,
): Session {
  const { wasm, environment } = engine;
  const address = allocate(engine, size, where);
  for (let done = 0; done < size; done += CHUNK) {
    wasm.HEAPU8.set(read(done, Math.min(CHUNK, size - done)), address + done);
  }
  try {
    const model = engine.attempt(() => wasm.loadModel(environment, address, size));
    const compiled = engine.attempt(() =>
      wasm.compileModel(environment, model, {
        environment: { liteRtEnvironment: environment, webGpuDevice: null },
        accelerator: 'wasm',
        cpuOptions: { numThreads: 1 },
        gpuOptions: {},
        webNNOptions: {},
      }),
    );
    return { engine, address, model, compiled };
  } catch (cause) {
    throw new NpucError('RT110', {
      message: `LiteRT cannot load the model: ${(cause as Error).message}`,
      where,
      hint: size > LARGE ? MEMORY_HINT : 'check it with another reader of TFLite files; it may be damaged or too new',
      cause,
    });
  }
}

function allocate(engine: LitertEngine, size: number, where: string): number {
  let address = 0;
  let cause: unknown;
  try {
    address = engine.wasm._malloc(size);
  } catch (error) {
    cause = error;
  }
  if (address !== 0) return address;
  throw new NpucError('RT110', {
    message: `${size} bytes do not fit in LiteRT's 2 GiB of memory`,
    where,
    hint: MEMORY_HINT,
    cause,
  });
}

function ports(names: Vector<string>, typeOf: (index: number) => TensorTypeHandle, where: string): PortInfo[] {
  return drain(names).map((name, i) => {
    const type = typeOf(i);
    const code = type.elementType().value;
    // The runtime gives outputs the room that the file's static shape says, and writes over the end of it when a longer
    // feed makes them longer (measured: traps and garbage). 1 is never longer.
    const shape = dimensions(type).map((dim) => (dim === -1 ? 1 : dim));
    const dtype = DTYPE_OF.get(code);
    if (!dtype) {
      throw new NpucError('RT110', {
        message: `${name} has LiteRT's element type ${code}, which cannot be an input or output`,
        where,
        hint: 'convert the model with float, integer or bool inputs and outputs',
      });
    }
    return { name, dtype, shape };
  });
}

/** The shape in a type handle, -1 for dynamic dimensions; deletes the handle. */
function dimensions(type: TensorTypeHandle): number[] {
  const layout = type.layout();
  const shape = drain(layout.dimensions());
  layout.delete();
  type.delete();
  return shape;
}

function drain<T>(vector: Vector<T>): T[] {
  const items = Array.from({ length: vector.size() }, (_, i) => vector.get(i));
  vector.delete();
  return items;
}

function checkFeed(port: PortInfo, feed: TensorData | undefined, signature: string): void {
  const where = `input ${port.name} of signature ${signature}`;
  const fail = (message: string): never => {
    throw new NpucError('RT011', { message, where });
  };
  if (!feed) throw new NpucError('RT011', { message: 'it is not fed', where });
  if (feed.dtype !== port.dtype) fail(`it takes ${port.dtype} and is fed ${feed.dtype}`);
  const fits = feed.shape.length === port.shape.length && port.shape.every((dim, i) => dim === feed.shape[i]);
  if (!fits) fail(`it takes the shape [${port.shape}] and is fed [${feed.shape}]`);
  if (feed.data.length !== elementCount(feed.shape)) {
    fail(`the shape [${feed.shape}] and ${feed.data.length} elements do not fit`);
  }
}

function createBuffer({ wasm, environment }: LitertEngine, { dtype, shape, data }: TensorData): TensorBufferHandle {
  const dimensions = new wasm.VectorInt32();
  for (const dim of shape) dimensions.push_back(dim);
  const layout = wasm.LiteRtLayout.create(dimensions);
  const type = wasm.LiteRtRankedTensorType.create({ value: ELEMENT_TYPES[dtype]! }, layout);
  const buffer = wasm.LiteRtTensorBuffer.createManaged(
    environment,
    wasm.LiteRtTensorBufferType.HOST_MEMORY,
    type,
    data.byteLength,
  );
  const temporary: Handle[] = [dimensions, layout, type];
  for (const handle of temporary) handle.delete();
  const address = buffer.lock(wasm.LiteRtTensorBufferLockMode.WRITE);
  wasm.HEAPU8.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), address);
  buffer.unlock();
  return buffer;
}

function readBuffer({ wasm }: LitertEngine, buffer: TensorBufferHandle, dtype: DType): TensorData {
  const shape = dimensions(buffer.tensorType());
  const address = buffer.lock(wasm.LiteRtTensorBufferLockMode.READ);
  const bytes = wasm.HEAPU8.slice(address, address + buffer.packedSize());
  buffer.unlock();
  const { array, bits } = DTYPES[dtype];
  const count = elementCount(shape);
  if (count * (bits / 8) !== bytes.byteLength) {
    throw new Error(`an output of ${dtype} [${shape}] has ${bytes.byteLength} bytes`);
  }
  const data: TypedArray = new array(bytes.buffer, 0, count);
  return { dtype, shape, data };
}

function unknownOutput(name: string, signature: LitertSignature): never {
  throw new NpucError('RT011', {
    message: `there is no output ${name}`,
    where: `signature ${signature.key}`,
    hint: `its outputs are ${signature.outputs.map((port) => port.name).join(', ')}`,
  });
}

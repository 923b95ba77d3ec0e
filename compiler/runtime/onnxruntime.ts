import { readdirSync, readFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import type * as Ort from 'onnxruntime-web';
import { NpucError } from '../errors.ts';
import { DTYPES, type DType } from '../ir/dtype.ts';
import type { TensorData } from '../ir/tensor.ts';
import type { PortInfo, Runner, Tensors } from './runner.ts';
import { forbidTelemetry } from './telemetry.ts';

/** ONNX Runtime's JavaScript names of element types. */
const TYPE_NAMES: Readonly<Partial<Record<DType, Ort.Tensor.Type>>> = {
  f32: 'float32',
  f64: 'float64',
  f16: 'float16',
  i8: 'int8',
  u8: 'uint8',
  i16: 'int16',
  u16: 'uint16',
  i32: 'int32',
  u32: 'uint32',
  i64: 'int64',
  u64: 'uint64',
  bool: 'bool',
  string: 'string',
};
const DTYPE_OF = new Map(Object.entries(TYPE_NAMES).map(([dtype, name]) => [name as string, dtype as DType]));

export type JavaScriptEngine = 'onnxruntime-node' | 'onnxruntime-web';

/**
 * Opens an ONNX file in one of ONNX Runtime's JavaScript packages.
 * onnxruntime-web is always there and needs no native code; onnxruntime-node is used where it is installed.
 * @throws RT110 when the runtime refuses the model
 */
export async function openWithJavaScript(path: string, engine: JavaScriptEngine, threads = 1): Promise<Runner> {
  const ort = await loadPackage(engine);
  const options: Ort.InferenceSession.SessionOptions = {
    executionProviders: [engine === 'onnxruntime-web' ? 'wasm' : 'cpu'],
    intraOpNumThreads: threads,
    logSeverityLevel: 3,
    // Full precision in products with 4- and 8-bit weights: the default computes them in integers, 50 dB off.
    extra: { session: { qdq_matmulnbits_accuracy_level: '1' } },
  };
  try {
    const session =
      engine === 'onnxruntime-web'
        ? await ort.InferenceSession.create(new Uint8Array(readFileSync(path)), {
            ...options,
            externalData: readExternalData(path),
          })
        : await ort.InferenceSession.create(path, options);
    return new JavaScriptRunner(ort, session, await describeEngine(engine), basename(path));
  } catch (cause) {
    throw new NpucError('RT110', {
      message: `${engine} cannot load the model: ${(cause as Error).message}`,
      where: path,
      cause,
    });
  }
}

/** Name and version of an engine: its numbers depend on both. */
export async function describeEngine(engine: JavaScriptEngine): Promise<string> {
  const { versions } = (await loadPackage(engine)).env;
  return `${engine} ${(engine === 'onnxruntime-web' ? versions.web : versions.node) ?? ''}`.trim();
}

async function loadPackage(engine: JavaScriptEngine): Promise<typeof Ort> {
  forbidTelemetry();
  if (engine === 'onnxruntime-node') return (await import('onnxruntime-node')) as unknown as typeof Ort;
  const ort = await import('onnxruntime-web');
  ort.env.logLevel = 'error';
  return ort;
}

/** The external data files beside a model, which the WebAssembly runtime cannot open itself. */
function readExternalData(path: string): { path: string; data: Uint8Array }[] {
  const folder = dirname(path);
  return readdirSync(folder)
    .filter((name) => name.endsWith('.data'))
    .map((name) => ({ path: name, data: new Uint8Array(readFileSync(join(folder, name))) }));
}

class JavaScriptRunner implements Runner {
  readonly engine: string;
  readonly inputs: readonly PortInfo[];
  readonly outputs: readonly PortInfo[];
  readonly #ort: typeof Ort;
  readonly #session: Ort.InferenceSession;
  readonly #model: string;

  constructor(ort: typeof Ort, session: Ort.InferenceSession, engine: string, model: string) {
    this.#ort = ort;
    this.#session = session;
    this.#model = model;
    this.engine = engine;
    this.inputs = session.inputMetadata.map(portOf);
    this.outputs = session.outputMetadata.map(portOf);
  }

  async run(feeds: Tensors, outputs?: readonly string[]): Promise<Record<string, TensorData>> {
    const given: Record<string, Ort.Tensor> = {};
    for (const [name, tensor] of Object.entries(feeds)) {
      const type = TYPE_NAMES[tensor.dtype];
      if (!type) throw new NpucError('RT111', { message: `onnxruntime takes no ${tensor.dtype} input`, where: name });
      const data = tensor.dtype === 'string' ? [...(tensor.strings ?? [])] : tensor.data;
      given[name] = new this.#ort.Tensor(type as 'float32', data as Float32Array, tensor.shape);
    }
    let results: Ort.InferenceSession.OnnxValueMapType;
    try {
      results = await this.#session.run(given, outputs ?? this.outputs.map((output) => output.name));
    } catch (cause) {
      throw new NpucError('RT111', {
        message: `${this.engine} failed: ${(cause as Error).message}`,
        where: this.#model,
        cause,
      });
    }
    const out: Record<string, TensorData> = {};
    for (const [name, value] of Object.entries(results)) {
      const tensor = value as Ort.Tensor;
      const dtype = DTYPE_OF.get(tensor.type)!;
      const array = DTYPES[dtype].array;
      if (dtype === 'string') {
        out[name] = { dtype, shape: tensor.dims, data: new Uint8Array(0), strings: tensor.data as string[] };
        continue;
      }
      const raw = tensor.data as Float32Array;
      // f16 arrives as a Uint16Array or, on newer hosts, as a Float16Array: the bits are what we keep.
      const data = raw instanceof array ? raw : new array(raw.buffer, raw.byteOffset, raw.length);
      out[name] = { dtype, shape: tensor.dims, data };
    }
    return out;
  }

  async close(): Promise<void> {
    await this.#session.release();
  }
}

function portOf(metadata: Ort.InferenceSession.ValueMetadata): PortInfo {
  if (!metadata.isTensor) return { name: metadata.name, dtype: 'f32', shape: [] };
  return {
    name: metadata.name,
    dtype: DTYPE_OF.get(metadata.type) ?? 'f32',
    shape: metadata.shape.map((dim) => (typeof dim === 'number' ? dim : -1)),
  };
}

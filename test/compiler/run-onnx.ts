import * as ort from 'onnxruntime-node';
import { DTYPES, type DType } from '../../compiler/ir/dtype.ts';
import type { TensorData } from '../../compiler/ir/tensor.ts';

const NAMES: Readonly<Partial<Record<DType, ort.Tensor.Type>>> = {
  f32: 'float32',
  f64: 'float64',
  f16: 'float16',
  i64: 'int64',
  u64: 'uint64',
  i32: 'int32',
  u32: 'uint32',
  i16: 'int16',
  u16: 'uint16',
  u8: 'uint8',
  i8: 'int8',
  bool: 'bool',
};

export interface OnnxPort {
  readonly name: string;
  readonly dtype: DType;
  /** Dynamic dimensions are -1. */
  readonly shape: readonly number[];
}

export interface OnnxRun {
  readonly inputs: readonly OnnxPort[];
  readonly outputs: Record<string, TensorData>;
}

/**
 * Runs a model once in ONNX Runtime without any graph optimization, so that two models with the same nodes give the same
 * bits. `feed` sees the inputs and gives their tensors.
 */
export async function runOnnx(
  model: string | Uint8Array,
  feed: (inputs: readonly OnnxPort[]) => Readonly<Record<string, TensorData>>,
): Promise<OnnxRun> {
  const options: ort.InferenceSession.SessionOptions = { graphOptimizationLevel: 'disabled', logSeverityLevel: 3 };
  const session =
    typeof model === 'string'
      ? await ort.InferenceSession.create(model, options)
      : await ort.InferenceSession.create(model, options);
  try {
    const inputs = session.inputMetadata.map((port): OnnxPort => {
      if (!port.isTensor) throw new Error(`${port.name} is no tensor`);
      const [dtype] = Object.entries(NAMES).find(([, name]) => name === port.type)! as [DType, string];
      return { name: port.name, dtype, shape: port.shape.map((dim) => (typeof dim === 'number' ? dim : -1)) };
    });
    const given = Object.entries(feed(inputs)).map(([name, { dtype, data, shape }]) => [
      name,
      new ort.Tensor(NAMES[dtype] as 'float32', data as Float32Array, shape),
    ]);
    const results = await session.run(Object.fromEntries(given));
    const outputs = Object.entries(results).map(([name, value]): [string, TensorData] => {
      const [dtype] = Object.entries(NAMES).find(([, type]) => type === value.type)! as [DType, string];
      const raw = value.data as Float32Array;
      const data = new DTYPES[dtype].array(raw.buffer, raw.byteOffset, raw.length);
      return [name, { dtype, shape: value.dims, data }];
    });
    return { inputs, outputs: Object.fromEntries(outputs) };
  } finally {
    await session.release();
  }
}

/** Deterministic inputs: waves for floats, 16000 for i64 (a sampling rate). Dynamic dimensions become `free`. */
export function makeFeeds(ports: readonly OnnxPort[], free = 1): Record<string, TensorData> {
  return Object.fromEntries(
    ports.map(({ name, dtype, shape }): [string, TensorData] => {
      const dims = shape.map((dim) => (dim > 0 ? dim : free));
      const count = dims.reduce((product, dim) => product * dim, 1);
      if (dtype === 'i64') return [name, { dtype, shape: dims, data: new BigInt64Array(count).fill(16000n) }];
      const wave = Float32Array.from({ length: count }, (_, i) => Math.sin(i * 0.37) + Math.cos(i * 0.011));
      return [name, { dtype: 'f32', shape: dims, data: wave }];
    }),
  );
}

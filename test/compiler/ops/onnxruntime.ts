import * as ort from 'onnxruntime-node';
import { DTYPES, type DType, type TypedArray } from '../../../compiler/ir/dtype.ts';
import type { TensorData } from '../../../compiler/ir/tensor.ts';

/** ONNX Runtime's names of element types. */
const NAMES: Partial<Record<DType, string>> = {
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
};

/** Runs a model in ONNX Runtime on the CPU: the oracle that nobody here wrote. Outputs in the model's order. */
export async function runOnnxRuntime(
  model: Uint8Array | string,
  feeds: Readonly<Record<string, TensorData>>,
): Promise<Record<string, TensorData>> {
  const options: ort.InferenceSession.SessionOptions = { logSeverityLevel: 4, intraOpNumThreads: 1 };
  const session =
    typeof model === 'string'
      ? await ort.InferenceSession.create(model, options)
      : await ort.InferenceSession.create(model, options);
  const inputs: Record<string, ort.Tensor> = {};
  for (const [name, feed] of Object.entries(feeds)) {
    const type = NAMES[feed.dtype];
    if (!type) throw new Error(`ONNX Runtime's binding takes no ${feed.dtype}`);
    inputs[name] = new ort.Tensor(type as 'float32', feed.data as Float32Array, feed.shape);
  }
  const results = await session.run(inputs);
  await session.release();
  const outputs: Record<string, TensorData> = {};
  for (const name of session.outputNames) {
    const result = results[name]!;
    const dtype = (Object.keys(NAMES) as DType[]).find((key) => NAMES[key] === result.type)!;
    const { array } = DTYPES[dtype];
    const data = result.data as TypedArray;
    outputs[name] = { dtype, shape: [...result.dims], data: new array(data.buffer, data.byteOffset, data.length) };
  }
  return outputs;
}

import type { DType } from '../ir/dtype.ts';
import type { TensorData } from '../ir/tensor.ts';

/** An input or output of something that can be run. */
export interface PortInfo {
  readonly name: string;
  readonly dtype: DType;
  /** Dynamic dimensions are -1. */
  readonly shape: readonly number[];
}

export type Tensors = Readonly<Record<string, TensorData>>;

/** One executable graph in some engine: reference, ONNX Runtime, LiteRT, HTP simulator. `diff` compares any two. */
export interface Runner {
  /** Engine and version, for reports: `onnxruntime 1.32.0 cpu`. */
  readonly engine: string;
  readonly inputs: readonly PortInfo[];
  readonly outputs: readonly PortInfo[];
  /** Runs once. `outputs` limits what is fetched. @throws RT errors with the engine's own message */
  run(feeds: Tensors, outputs?: readonly string[]): Promise<Record<string, TensorData>>;
  close(): Promise<void>;
}

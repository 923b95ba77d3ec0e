import type { QuantizedGraph } from '../calibration/quantize-graph.ts';
import type { NumberFormat, Recipe } from '../calibration/recipe.ts';
import type { Encoding } from '../compiler/ir/encoding.ts';
import type { Graph, Module } from '../compiler/ir/graph.ts';
import type { PassReport } from '../compiler/pass.ts';
import type { Runner } from '../compiler/runtime/runner.ts';
import type { EncodingsVersion } from './onnx/encodings-json.ts';
import type { Toolchain } from './qnn/toolchain.ts';
import type { Soc } from './socs.ts';
import type { Execution, ManifestPort, ModelTargetName } from './target.ts';
import type { ManifestNpu } from './tflite/npu/compile-npu.ts';

/** An input or output of a compiled model: its type at the boundary, and how its integers are to be read. */
export interface ModelPort extends ManifestPort {
  readonly name: string;
  readonly shape: readonly number[];
}

/** One target's part of the manifest of a compiled ONNX model: enough to run the artifact without the model. */
export interface ModelTargetManifest {
  /** The file that is loaded, relative to the output folder. */
  readonly file: string;
  /** The QDQ model that it was compiled from. */
  readonly source?: string;
  readonly inputs: readonly ModelPort[];
  readonly outputs: readonly ModelPort[];
  readonly execution: Execution;
  readonly facts: Readonly<Record<string, string | number | boolean>>;
  /** Files that vendors' plugins compiled of the artifact. */
  readonly npu?: readonly ManifestNpu[];
  readonly files: readonly string[];
}

export interface EmitModelContext {
  /** The output folder; targets write into their own subfolder of it. */
  readonly out: string;
  readonly soc: Soc;
  readonly threads: number;
  /** Whether TFLite ports are floats or integers; floats when absent. */
  readonly io?: 'float' | 'quantized';
  readonly toolchain?: Toolchain;
  readonly signal?: AbortSignal;
  /** Version of AIMET's encodings file, where the target writes one. */
  readonly encodings?: EncodingsVersion;
}

export interface OpenModelOptions {
  readonly toolchain?: Toolchain;
}

/** What a target can do with any graph. All runners take and give real numbers, whatever the ports are. */
export interface ModelTarget {
  readonly name: ModelTargetName;
  /** Legal integers; they can depend on the SoC. */
  format(soc: Soc): NumberFormat;
  /** Rewrites a module of its own, in place, into what the target computes whole and rightly. */
  lower(module: Module, soc: Soc, recipe?: Recipe): PassReport;
  /** Writes the artifact. */
  emit(quantized: QuantizedGraph, context: EmitModelContext): Promise<ModelTargetManifest>;
  /** Opens the artifact itself. @param folder the output folder */
  open(folder: string, target: ModelTargetManifest, options: OpenModelOptions): Promise<Runner>;
  /** The same integers on ONNX Runtime's CPU kernels, for artifacts that are compiled from QDQ models. */
  openTwin?(folder: string, target: ModelTargetManifest): Promise<Runner>;
  /** Opens any encoded module in the target's engine without writing an artifact: to look at values inside. */
  openModule?(module: Module, soc: Soc, options: OpenModelOptions): Promise<Runner>;
}

/** The ports of a graph as it is emitted; those of `quantizedPorts` are integers. */
export function modelPorts(graph: Graph): Pick<ModelTargetManifest, 'inputs' | 'outputs'> {
  const describe = (values: Graph['inputs']): ModelPort[] =>
    values.map((value) => {
      const { encoding } = value;
      const { name, dims: shape } = value;
      if (!encoding || !graph.quantizedPorts.has(value)) return { name, dtype: value.dtype, shape };
      return { name, shape, dtype: encoding.dtype, scale: encoding.scale[0]!, zeroPoint: encoding.zeroPoint?.[0] ?? 0 };
    });
  return { inputs: describe(graph.inputs), outputs: describe(graph.outputs) };
}

/** Encodings of a model's integer ports, by name. */
export function modelEncodings(target: Pick<ModelTargetManifest, 'inputs' | 'outputs'>): Map<string, Encoding> {
  const quantized = [...target.inputs, ...target.outputs].filter((port) => port.scale !== undefined);
  return new Map(
    quantized.map(({ name, dtype, scale, zeroPoint }) => [
      name,
      {
        dtype: dtype as Encoding['dtype'],
        scale: Float32Array.of(scale!),
        zeroPoint: Int32Array.of(zeroPoint ?? 0),
      },
    ]),
  );
}

import type { QuantizedDecoder } from '../calibration/quantize-decoder.ts';
import type { Checkpoint } from '../compiler/import/checkpoint.ts';
import type { Encoding } from '../compiler/ir/encoding.ts';
import type { Progress } from '../compiler/progress.ts';
import type { DecoderProtocol, DecoderSession, EmbeddingLookup } from '../compiler/runtime/decoder-session.ts';
import type { OpenEngine } from '../compiler/runtime/engine.ts';
import type { EmbeddingForm } from './embedding-file.ts';
import type { ShapeRequest } from './graph-requests.ts';
import type { EncodingsVersion } from './onnx/encodings-json.ts';
import type { SplitRequest } from './qnn/plan-compile.ts';
import type { Toolchain } from './qnn/toolchain.ts';
import type { Soc } from './socs.ts';
import type { ManifestNpu } from './tflite/npu/compile-npu.ts';

export type TargetName = 'onnx' | 'qnn' | 'tflite' | 'hf';

/** Targets that take ONNX models too: a Hugging Face checkpoint holds a language model only. */
export type ModelTargetName = Exclude<TargetName, 'hf'>;

/**
 * Where the HTP's graphs have their embedding: inside, or in a table beside them that the host looks up, of half floats or
 * of 8 bits with a scale per row.
 */
export type EmbeddingChoice = 'in-graph' | 'lut-f16' | 'lut-u8';

/** What a TFLite file of a decoder is for: the NPU plugins, LiteRT-LM, or MediaTek's language-model flow. */
export const PROFILES = ['npu', 'litert-lm', 'mediatek'] as const;
export type Profile = (typeof PROFILES)[number];

/** What was done to show that an artifact is right (DESIGN 7). */
export type Execution = 'executed' | 'executed-as-twin' | 'read-back-only';

/** An integer or float port of an emitted graph, as the manifest says it. */
export interface ManifestPort {
  readonly dtype: string;
  readonly scale?: number;
  readonly zeroPoint?: number;
}

export interface ManifestGraph {
  readonly name: string;
  readonly tokens: number;
  readonly cache: number;
  /** File relative to the output folder; that of the first part where the graph was cut. */
  readonly file: string;
  /** Signature or partition inside the file, where it holds several graphs. */
  readonly entry?: string;
  /** The QDQ model that it was compiled from, where the artifact itself cannot be executed here. */
  readonly source?: string;
  /** Where the graph was cut: what to run one after the other. */
  readonly parts?: readonly ManifestPart[];
}

/** A part of a graph. Outputs that the next part has as inputs are handed on. */
export interface ManifestPart {
  /** The graph's name inside its binary. */
  readonly graph: string;
  readonly file: string;
  readonly source?: string;
}

/** One target's part of the manifest: enough to run the artifact without the checkpoint. */
export interface ManifestTarget {
  readonly contract: string;
  readonly protocol: DecoderProtocol;
  /** Ports that are integers at the boundary; all others are float or token ids. */
  readonly ports: Readonly<Record<string, ManifestPort>>;
  readonly graphs: readonly ManifestGraph[];
  /** The table that the host looks rows up in, where the graphs take rows. */
  readonly embedding?: { readonly file: string; readonly form: EmbeddingForm };
  readonly execution: Execution;
  /** Facts of the target's own: SoC read back, bytes shared, graph names. */
  readonly facts: Readonly<Record<string, string | number | boolean>>;
  /** Files that vendors' plugins compiled of the artifact. */
  readonly npu?: readonly ManifestNpu[];
  readonly files: readonly string[];
}

export interface EmitContext {
  /** The output folder; targets write into their own subfolder of it. */
  readonly out: string;
  readonly soc: Soc;
  readonly shapes: ShapeRequest;
  readonly threads: number;
  /** Whether TFLite ports are floats or integers. */
  readonly io: 'float' | 'quantized';
  /** Form of the table where the contract wants the host to look rows up and there is a choice. */
  readonly embedding?: EmbeddingForm;
  readonly progress: Progress;
  readonly toolchain?: Toolchain;
  readonly signal?: AbortSignal;
  /** How an artifact that is compiled in parts is cut; by default as few parts as the SoC allows. */
  readonly split?: SplitRequest;
  /** Version of AIMET's encodings file, where the target writes one. */
  readonly encodings?: EncodingsVersion;
  /** Files of the source that a checkpoint which is written takes over. */
  readonly checkpoint?: Pick<Checkpoint, 'config' | 'tokenizerFiles'>;
  /** The artifact, written already, whose weights a checkpoint is written with. */
  readonly follows?: { readonly name: TargetName; readonly target: ManifestTarget };
}

/** What graphs of one binary save by having their weights in common. */
export interface Sharing {
  readonly graphs: number;
  /** What is shipped: one binary, or one per part of a model that was cut. */
  readonly binaryBytes: number;
  /** The sum over the graphs, each in a binary of its own. */
  readonly aloneBytes: number;
  /** Whether that was measured, on the twins that the simulator runs; otherwise it is estimated. */
  readonly measured: boolean;
  /** All weights once. */
  readonly weightBytes: number;
  /** Weights that several graphs have: how many, and their bytes once. */
  readonly sharedWeights: number;
  readonly sharedWeightBytes: number;
}

/** What a target can do with a decoder. Emission writes files; opening runs what was written. */
export interface DecoderTarget {
  readonly name: TargetName;
  /** Its artifact has quantized weights but float activations: no value inside is compared. */
  readonly weightsOnly?: true;
  emit(decoder: QuantizedDecoder, context: EmitContext): Promise<ManifestTarget>;
  /**
   * Opens the emitted files for running, as a phone's runtime would drive them.
   * @param folder the output folder
   */
  open(folder: string, target: ManifestTarget, options: OpenOptions): Promise<DecoderSession>;
  /** The same integers on ONNX Runtime's CPU kernels, for targets whose artifact is compiled from QDQ models. */
  openReference?(folder: string, target: ManifestTarget): Promise<DecoderSession>;
  /** What the graphs take alone and together, where their artifact is a binary that they share. */
  readSharing?(folder: string, target: ManifestTarget, toolchain?: Toolchain): Sharing | undefined;
  /**
   * A twin that gives logits for every position, made from the same encodings and bytes, for targets whose prefill graphs
   * give none.
   */
  openForEvaluation?(
    decoder: QuantizedDecoder,
    folder: string,
    target: ManifestTarget,
    shape: { readonly tokens: number; readonly cache: number },
  ): Promise<DecoderSession>;
}

export interface OpenOptions {
  /** Engine for ONNX files, where a native one is there. */
  readonly openOnnx?: OpenEngine;
  readonly toolchain?: Toolchain;
  readonly soc?: Soc;
  /** A native library that runs TFLite files in the place of LiteRT.js, and what it is called. */
  readonly litert?: { readonly library: string; readonly engine: string };
}

/** Encodings of a manifest's integer ports. */
export function portEncodings(ports: ManifestTarget['ports']): Map<string, Encoding> {
  return new Map(
    Object.entries(ports).map(([name, port]) => [
      name,
      {
        dtype: port.dtype as Encoding['dtype'],
        scale: Float32Array.of(port.scale!),
        zeroPoint: Int32Array.of(port.zeroPoint ?? 0),
      },
    ]),
  );
}

export type { DecoderSession, EmbeddingLookup };

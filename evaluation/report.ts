import type { Execution, Sharing, TargetName } from '../targets/target.ts';
import type { NpuReport } from './compare-npu.ts';
import type { ValueComparison } from './compare-values.ts';
import type { LogitReport } from './logits.ts';

/** How one target's artifact compares with the float model. */
export interface TargetReport {
  readonly engine: string;
  readonly execution: Execution;
  readonly bytes: number;
  /** The artifact's files, the sources that stay at home among them. */
  readonly files?: readonly ReportFile[];
  /** On held-out text; absent where only a chunk could be run. */
  readonly logits?: LogitReport;
  /** On one prefill chunk and the tokens after it, for engines too slow for text. */
  readonly chunk?: ChunkReport;
  /** dB of one prefill chunk's logits against ONNX Runtime on the same QDQ models: how exactly the engine computes. */
  readonly twinSqnr?: number;
  /** Share of these logits' positions whose most likely token is the same. */
  readonly twinAgreement?: number;
  /** The graphs of every smaller cache beside those of the largest, which all other figures are of. */
  readonly caches?: readonly CacheCheck[];
  /** What the graphs take alone and in their common binary. */
  readonly sharing?: Sharing;
  /** Files that vendors' plugins compiled, beside LiteRT on the same inputs. */
  readonly npu?: readonly NpuReport[];
  /**
   * Every value of one prefill chunk, in order of computation: the target's QDQ graph against the float graph, both on ONNX
   * Runtime. Reports show the ten worst.
   */
  readonly values: readonly ValueComparison[];
  /** The first value, in order of computation, whose SQNR falls under the threshold. */
  readonly firstDivergence?: string;
  readonly seconds: number;
  readonly notes: readonly string[];
}

/** How the graphs of one cache size agree with those of the largest: on one chunk and the tokens decoded after it. */
export interface CacheCheck {
  readonly cache: number;
  /** dB of the logits, infinite where they are the same. */
  readonly sqnr: number;
  readonly topAgreement: number;
}

/** A written file and what it is for. `source` files stay at home: twins are made from them. */
export interface ReportFile {
  /** Relative to the output folder. */
  readonly path: string;
  readonly role: FileRole;
  readonly bytes: number;
}

/** `model` is a graph with its weights in one file, `graph` one whose weights lie elsewhere. */
export type FileRole = 'model' | 'graph' | 'weights' | 'binary' | 'embedding' | 'encodings' | 'source';

/** A decision of the quantization plan, and the targets that it holds for: their number formats differ. */
export interface PlanLine {
  readonly value: string;
  readonly dtype: string;
  readonly why: string;
  readonly targets: readonly TargetName[];
}

/** A chunk run on an engine and on its reference from the same integers. */
export interface ChunkReport {
  readonly tokens: number;
  /** dB of the logits against the float model. */
  readonly sqnr: number;
  readonly divergence: number;
  readonly topAgreement: number;
  /** Seconds of one prefill chunk and of one decoded token on this machine. */
  readonly secondsPerChunk: number;
  readonly secondsPerToken: number;
}

/** `report.json`; figures depend on the machine's engines, so it is not part of the manifest. */
export interface Report {
  /** 2 since a decoder can have several caches. */
  readonly format: 2;
  readonly source: string;
  readonly soc: string;
  readonly scheme: string;
  readonly tokens: readonly number[];
  /** From small to large; every figure but `caches` is at the largest. */
  readonly caches: readonly number[];
  /** Weights of the float model, a tied head counted once. */
  readonly parameters: number;
  readonly floatPerplexity: number;
  readonly evaluationTokens: number;
  readonly targets: Readonly<Partial<Record<TargetName, TargetReport>>>;
  readonly prompt: string;
  /** Greedy continuations of the prompt, the float model's first. */
  readonly samples: Readonly<Record<string, string>>;
  readonly plan: readonly PlanLine[];
  readonly remarks: readonly string[];
  /** dB under which a value counts as diverged. */
  readonly divergenceThreshold: number;
  /** The command line that makes this report again. */
  readonly command?: string;
  /** Versions of npuc and of the toolchain. */
  readonly versions?: Readonly<Record<string, string>>;
}

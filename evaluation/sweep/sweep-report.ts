import type { EstimateError, SpeedEstimate } from '../../targets/estimate-speed.ts';

/** Targets that a sweep compiles for. */
export const SWEEP_TARGETS = ['qnn', 'tflite', 'onnx'] as const;
export type SweepTarget = (typeof SWEEP_TARGETS)[number];

/** One choice of sizes: a prefill graph and a decode graph over one cache. */
export interface SweepPoint {
  /** Such as `qnn SM8750 w4a16 128x1024`. */
  readonly id: string;
  readonly target: SweepTarget;
  readonly soc: string;
  readonly arch: string;
  readonly scheme: string;
  readonly tokens: number;
  readonly cache: number;
  readonly plan: PointPlan;
  /** What compiling it gave; absent in a plan. */
  readonly result?: PointResult;
  /** Of the scheme, target and cache: points that differ in tokens or SoC have the same. */
  readonly quality?: CacheQuality;
  /** Why it could not be compiled or evaluated. */
  readonly failure?: { readonly code: string; readonly message: string };
  /** No other point of the same SoC is better in memory, time and quality at once. */
  readonly front: boolean;
}

/** Bytes from shapes and number formats, and estimates of speed. */
export interface PointPlan {
  readonly weightBytes: number;
  readonly embeddingBytes: number;
  /** Copies of the weights on the phone: two where the SoC cannot share them between graphs. */
  readonly copies: number;
  /** The artifact, embedding table included: weights and the code of the graphs. */
  readonly artifactBytes: number;
  /** Keys and values of the whole cache. */
  readonly cacheBytes: number;
  /** Values inside the larger of the graphs, laid out by when they are needed. */
  readonly arenaBytes: number;
  /** Inputs and outputs of the larger graph, caches aside. */
  readonly ioBytes: number;
  /** What cannot be in on-chip memory at the peak, at least; absent where the SoC's size of it is not known. */
  readonly spillFillBytes?: number;
  /** Artifact, cache, arena, inputs and outputs. */
  readonly memoryBytes: number;
  /** Parts that the HTP's context limit cuts the model into. */
  readonly parts: number;
  /** Why the SoC does not take the point; empty where it does. */
  readonly limits: readonly string[];
  readonly prefill?: SpeedEstimate;
  readonly decode?: SpeedEstimate;
  /** Estimated seconds of a request (REQUEST). */
  readonly seconds?: number;
  /** Bytes alive in the arena, run by run of the nodes. */
  readonly timeline: { readonly prefill: readonly number[]; readonly decode: readonly number[] };
}

/** What compiling a point gave, read back from what was written. */
export interface PointResult {
  readonly artifactBytes: number;
  /** Read back from the HTP binary; other runtimes do not reveal it. */
  readonly spillFill?: { readonly prefill: number; readonly decode: number };
  /** Ops of the decode graph that the target took, of all of them. */
  readonly ops: { readonly taken: number; readonly all: number };
  /** Over names and bytes of every weight as written. */
  readonly weightsDigest: string;
  readonly simulator?: SimulatorFigures;
  readonly seconds: number;
  /** Processor time of this process and of the vendor's compiler. */
  readonly cpuSeconds: number;
  readonly vendorCpuSeconds: number;
  readonly peakRssBytes: number;
  readonly files: readonly { readonly path: string; readonly bytes: number; readonly sha256: string }[];
}

/** One chunk and a decoded token on the vendor's simulator, against ONNX Runtime on the same QDQ models. */
export interface SimulatorFigures {
  readonly sqnr: number;
  readonly topAgreement: number;
  readonly seconds: number;
}

/** How the model predicts a long text that is streamed through a cache of a size. */
export interface CacheQuality {
  readonly perplexity: number;
  /** The float model's on the same text, through a cache of the same size. */
  readonly floatPerplexity: number;
  /** Perplexity over the float model's with the largest cache of the sweep. */
  readonly ratio: number;
  readonly divergence: number;
  readonly topAgreement: number;
  readonly predictions: number;
  /** How often the cache was full and slid. */
  readonly slides: number;
  readonly seconds: number;
}

/** The request that time stands for: a prompt and an answer. */
export const REQUEST = { prompt: 512, answer: 128 } as const;

/** `sweep.json`. */
export interface SweepReport {
  readonly format: 1;
  readonly kind: 'sweep';
  readonly npuc: string;
  readonly source: string;
  readonly parameters: number;
  readonly points: readonly SweepPoint[];
  /** How the text was streamed; absent where nothing was evaluated. */
  readonly stream?: { readonly tokens: number; readonly sinks: number; readonly positions: 'cache' | 'global' };
  /** The estimate beside published runs, each left out of its own estimate. */
  readonly published: readonly EstimateError[];
  readonly budget?: BudgetAnswer;
  readonly command?: string;
  /** What each kind of work took, where points were compiled. */
  readonly stages?: readonly StageCost[];
}

/** What one kind of work took, all its jobs together. */
export interface StageCost {
  readonly name: string;
  readonly jobs: number;
  readonly seconds: number;
  readonly cpuSeconds: number;
  /** The vendor's compiler, as part of that. */
  readonly vendorCpuSeconds: number;
}

/** Points of one scheme, target and architecture, and the digests of the weights that they were written with. */
export interface WeightSharing {
  readonly group: string;
  readonly points: number;
  readonly digests: readonly string[];
}

/** Whether all compiled points of a scheme, target and architecture have the same weights, byte for byte. */
export function listSharing(points: readonly SweepPoint[]): WeightSharing[] {
  const groups = new Map<string, string[]>();
  for (const { target, scheme, arch, result } of points) {
    if (!result) continue;
    const group = target === 'qnn' ? `${target} ${scheme} ${arch}` : `${target} ${scheme}`;
    groups.set(group, [...(groups.get(group) ?? []), result.weightsDigest]);
  }
  return [...groups].map(([group, all]) => ({ group, points: all.length, digests: [...new Set(all)] }));
}

/** `12 points of qnn w4a16 v79 have the same weights, SHA-256 0123456789abcdef`. */
export function describeSharing({ group, points, digests }: WeightSharing): string {
  const list = digests.map((digest) => digest.slice(0, 16)).join(', ');
  if (digests.length > 1) return `${points} points of ${group} have ${digests.length} different weights: ${list}`;
  if (points === 1) return `1 point of ${group}, weights SHA-256 ${list}`;
  return `${points} points of ${group} have the same weights, byte for byte: SHA-256 ${list}`;
}

/** What a budget chose, or why nothing satisfies it. */
export interface BudgetAnswer {
  readonly budget: string;
  /** The id of the best point that satisfies it. */
  readonly best?: string;
  readonly fitting: number;
  /** What to give up, where nothing satisfies it. */
  readonly impossible?: readonly string[];
}

/** Bytes on the phone while it runs: what was planned, with the size of the artifact where that is known. */
export function memoryOf({ plan, result }: Pick<SweepPoint, 'plan' | 'result'>): number {
  return result ? plan.memoryBytes - plan.artifactBytes + result.artifactBytes : plan.memoryBytes;
}

/** The id of a point's row in the page: links of the charts lead there. */
export function anchorOf({ id }: Pick<SweepPoint, 'id'>): string {
  return `p-${id.replaceAll(/[^\w-]+/g, '-')}`;
}

import { createHash } from 'node:crypto';
import type { CacheQuality, PointResult } from '../../../evaluation/sweep/sweep-report.ts';
import type { CompileConfig } from '../../config.ts';
import { version } from '../version.ts';

/** Raised when a job's result has other fields or means something else: older results are then not found. */
const FORMAT = 1;

/** A piece of a sweep that one process does. It is data: a queue carries it. */
export type SweepJob = QuantizeJob | CompileJob | EvaluateJob;

/** Fills the cache folder with what all shapes of a scheme, target and architecture class share. */
export interface QuantizeJob {
  readonly kind: 'quantize';
  readonly config: CompileConfig;
}

/** Compiles a point, runs a chunk of it on the simulator where that is asked for, and puts the files into the store. */
export interface CompileJob {
  readonly kind: 'compile';
  readonly config: CompileConfig;
  readonly simulate: boolean;
}

/** Streams a long text through a cache, the float model and the quantized one side by side. */
export interface EvaluateJob {
  readonly kind: 'evaluate';
  readonly config: CompileConfig;
  readonly sinks: number;
  readonly positions: 'cache' | 'global';
}

export type JobResult = QuantizeResult | CompileResult | EvaluateResult;

export interface QuantizeResult {
  readonly kind: 'quantize';
  readonly seconds: number;
  readonly cpuSeconds: number;
}

export interface CompileResult extends PointResult {
  readonly kind: 'compile';
}

export interface EvaluateResult extends Omit<CacheQuality, 'ratio'> {
  readonly kind: 'evaluate';
}

/** What a job reads, by content. */
export interface JobInputs {
  readonly checkpoint: string;
  readonly calibration: string;
  /** Absent where nothing is evaluated. */
  readonly evaluation?: string;
  readonly toolchain: Readonly<Record<string, string>>;
}

/**
 * The name of a job's result: equal for equal work. Paths, threads and limits of memory do not change the bytes and are no part
 * of it; what files hold is, by digest.
 */
export function keyOf(job: SweepJob, inputs: JobInputs): string {
  const {
    source: _source,
    out: _out,
    calibrate: _calibrate,
    evaluate: _evaluate,
    threads: _threads,
    prompt: _prompt,
    bind: _bind,
    ...config
  } = job.config;
  const rest = { ...job, config: job.kind === 'evaluate' ? config : { ...config, evalTokens: undefined } };
  const { evaluation, ...always } = inputs;
  const read = job.kind === 'evaluate' ? { ...always, evaluation } : always;
  return createHash('sha256')
    .update(JSON.stringify([FORMAT, version(), rest, read]))
    .digest('hex');
}

/** What a job is called where people read it. */
export function describeJob({ kind, config }: SweepJob): string {
  const { scheme, soc, tokens, cache, target } = config;
  const what = `${target!.join(',')} ${soc} ${scheme}`;
  if (kind === 'quantize') return `quantize ${what}`;
  if (kind === 'compile') return `compile ${what} ${tokens.join(',')}x${cache.join(',')}`;
  return `evaluate ${target!.join(',')} ${scheme}, cache ${cache.join(',')}`;
}

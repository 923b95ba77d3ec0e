import { appendFileSync, existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname, relative, resolve, sep } from 'node:path';
import { LineCounter, parseDocument } from 'yaml';
import { NpucError } from '../../compiler/errors.ts';
import { type Attribution, attributeError } from '../../evaluation/check/attribute-error.ts';
import {
  type Baseline,
  type CheckSubject,
  readBaseline,
  requireSameSubject,
  writeBaseline,
} from '../../evaluation/check/baseline.ts';
import type { Budgets } from '../../evaluation/check/budgets.ts';
import type { CheckReport } from '../../evaluation/check/check-report.ts';
import { decoderSubject } from '../../evaluation/check/decoder-subject.ts';
import { findCulprit, type Subject } from '../../evaluation/check/find-culprit.ts';
import { judge, requireNumbers } from '../../evaluation/check/judge.ts';
import { measureDecoder } from '../../evaluation/check/measure-decoder.ts';
import { measureModel } from '../../evaluation/check/measure-model.ts';
import { measureNoise } from '../../evaluation/check/noise-floor.ts';
import type { TargetName } from '../../targets/target.ts';
import { openSubject } from './check-decoder.ts';
import { openModelSubject } from './check-model.ts';
import type { CompileOptions } from './compile-decoder.ts';

export interface CheckOptions {
  readonly compile: CompileOptions;
  readonly bind: readonly string[];
  readonly target: TargetName;
  readonly baseline: string;
  /** Of the bootstrap, and of the draw of calibration windows; 0 draws all. */
  readonly seed: number;
  /** Draws that the noise is measured on, by --update. */
  readonly draws: number;
  /** The configuration file, where there is one. */
  readonly config?: string;
}

/** Something to check: measured on a draw, and looked into. */
interface Opened {
  readonly subject: CheckSubject;
  measure(seed: number): Promise<{ subject: Subject; attribute?: () => Promise<Attribution> }>;
  close(): void;
}

async function openAny({ compile, bind, target }: CheckOptions): Promise<Opened> {
  if (compile.source.endsWith('.onnx')) {
    if (target === 'hf') throw notForModels(target);
    const inputs = openModelSubject(compile, bind, target);
    const { name, digest, evaluation } = inputs(0);
    const samples = evaluation.feeds.length;
    return {
      subject: {
        kind: 'model',
        model: { name, digest },
        target,
        text: { digest: evaluation.digest, windows: samples, tokens: samples },
        predictions: evaluation.feeds.map(() => 1),
      },
      measure: async (seed) => ({ subject: await measureModel(inputs(seed)) }),
      close: () => {},
    };
  }
  const opened = await openSubject(compile, target);
  return {
    subject: opened.subject,
    measure: async (seed) => {
      const checked = await measureDecoder(await opened.calibrate(seed));
      return { subject: decoderSubject(checked), attribute: () => attributeError(checked) };
    },
    close: () => opened.close(),
  };
}

function notForModels(target: string): NpucError {
  return new NpucError('CL001', {
    message: `--target ${target} is for checkpoints, not for ONNX models`,
    hint: 'onnx, qnn or tflite',
  });
}

/** Measures and compares with the baseline; on a regression looks for the culprit and splits the error. */
export async function checkQuality(options: CheckOptions): Promise<CheckReport> {
  const { progress } = options.compile;
  // A baseline that cannot be used is said before minutes are spent.
  const baseline = readBaseline(options.baseline);
  const opened = await openAny(options);
  try {
    requireSameSubject(baseline, opened.subject);
    progress.stage('measure');
    const { subject, attribute } = await opened.measure(options.seed);
    const { measurement } = subject;
    const judgement = judge(baseline, measurement, options.seed);
    const shown: Baseline = { ...baseline, path: fromHere(options.baseline) };
    const config = options.config === undefined ? {} : { config: readLines(options.config) };
    const report: CheckReport = { measurement, baseline: shown, judgement, trials: [], ...config };
    if (!judgement.failed) return report;
    progress.stage('find culprit');
    const { culprit, trials } = await findCulprit(subject, baseline, judgement);
    progress.stage('attribute error');
    const attribution = await attribute?.();
    return { ...report, trials, ...(culprit ? { culprit } : {}), ...(attribution ? { attribution } : {}) };
  } finally {
    opened.close();
    progress.finish();
  }
}

/** What --update did. */
export interface UpdatedBaseline {
  readonly path: string;
  readonly values: number;
  readonly draws: number;
  readonly changed: boolean;
}

/** Measures, measures the noise on draws of the calibration windows, and writes the baseline; budgets are kept. */
export async function updateBaseline(options: CheckOptions): Promise<UpdatedBaseline> {
  const { progress } = options.compile;
  const budgets = keptBudgets(options.baseline);
  const opened = await openAny(options);
  try {
    progress.stage('measure');
    const { measurement } = (await opened.measure(0)).subject;
    requireNumbers(measurement, 2);
    progress.stage('measure noise');
    const draws = [];
    for (let draw = 1; draw <= options.draws; draw++) {
      draws.push((await opened.measure(draw)).subject.measurement);
      progress.update(draw, options.draws);
    }
    const text = writeBaseline(measurement, measureNoise(measurement, draws), budgets);
    const changed = !existsSync(options.baseline) || readFileSync(options.baseline, 'utf8') !== text;
    if (changed) writeWhole(options.baseline, text);
    return { path: options.baseline, values: measurement.values.length, draws: draws.length, changed };
  } finally {
    opened.close();
    progress.finish();
  }
}

/** Budgets are the reviewer's: they outlive an update, whatever else is wrong with the file. */
function keptBudgets(path: string): Budgets {
  if (!existsSync(path)) return {};
  try {
    return readBaseline(path).budgets;
  } catch (error) {
    if (!(error instanceof NpucError) || error.code === 'CK001') throw error;
    const document = parseDocument(readFileSync(path, 'utf8'));
    const budgets: unknown = document.errors.length > 0 ? undefined : document.toJS()?.budgets;
    return typeof budgets === 'object' && budgets !== null ? (budgets as Budgets) : {};
  }
}

/** A path as the repository knows it: forward slashes, relative where it lies below the working folder. */
function fromHere(path: string): string {
  const below = relative(process.cwd(), resolve(path));
  return (below.startsWith('..') || below === '' ? path : below).split(sep).join('/');
}

function readLines(path: string): { path: string; lines: Map<string, number> } {
  const lines = new Map<string, number>();
  if (/\.(ya?ml|json)$/.test(path)) {
    const counter = new LineCounter();
    const { contents } = parseDocument(readFileSync(path, 'utf8'), { lineCounter: counter });
    const { items } = (contents ?? {}) as { items?: { key?: { value: unknown; range?: [number] } }[] };
    for (const { key } of items ?? []) if (key?.range) lines.set(String(key.value), counter.linePos(key.range[0]).line);
  }
  return { path: fromHere(path), lines };
}

/** Writes a file whole or not at all. @throws IO002 */
export function writeWhole(path: string, text: string): void {
  const partial = `${path}.partial-${process.pid}`;
  try {
    mkdirSync(dirname(resolve(path)), { recursive: true });
    writeFileSync(partial, text);
    renameSync(partial, path);
  } catch (cause) {
    throw new NpucError('IO002', { message: `cannot write ${path}: ${(cause as Error).message}`, where: path, cause });
  }
}

/** Appends to a file that others write to as well, such as a step's summary. @throws IO002 */
export function appendTo(path: string, text: string): void {
  try {
    appendFileSync(path, text);
  } catch (cause) {
    throw new NpucError('IO002', { message: `cannot write ${path}: ${(cause as Error).message}`, where: path, cause });
  }
}

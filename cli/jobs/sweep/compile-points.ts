import { createHash } from 'node:crypto';
import { existsSync, readFileSync, rmSync, statSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join, resolve } from 'node:path';
import { defaultText, readTokens } from '../../../calibration/texts.ts';
import { NpucError } from '../../../compiler/errors.ts';
import type { DecoderModel } from '../../../compiler/import/decoder-model.ts';
import { isHubReference } from '../../../compiler/import/hub.ts';
import { formatBytes, formatSeconds } from '../../../evaluation/format-figures.ts';
import type { StageCost, SweepPoint } from '../../../evaluation/sweep/sweep-report.ts';
import type { ManifestFile } from '../../../targets/manifest.ts';
import { findToolchain } from '../../../targets/qnn/toolchain.ts';
import { compileOptions, recipeOf } from '../../compile.ts';
import type { CompileConfig } from '../../config.ts';
import { adaptRecipe, NO_EVALUATION, readCalibration } from '../compile-decoder.ts';
import { type ArtifactStore, openStore } from './artifact-store.ts';
import { createJobPool, type JobRunner } from './job-pool.ts';
import {
  type CompileJob,
  describeJob,
  type EvaluateJob,
  type JobInputs,
  type JobResult,
  keyOf,
  type QuantizeJob,
  type SweepJob,
} from './sweep-job.ts';
import type { SweepOptions } from './sweep-options.ts';

export type PlannedPoint = Omit<SweepPoint, 'front'>;

/** Weights up to which `--simulate auto` runs a chunk of every point: larger ones take minutes each. */
const SIMULATED_WEIGHTS = 20e6;

/** What jobs read, by content, checked before any work. @throws IO001 and QT110 for texts */
export async function readInputs({ configs, progress }: SweepOptions, model: DecoderModel): Promise<JobInputs> {
  const [config] = configs as [CompileConfig];
  const options = compileOptions({ ...config, target: ['onnx'], embedding: 'in-graph' }, { force: true, quiet: true });
  const calibration = readCalibration(options, model);
  const evaluated = config.evaluate !== NO_EVALUATION;
  const evaluation = config.evaluate ?? defaultText('evaluation');
  return {
    checkpoint: await model.checkpoint.digest({ progress: (done, total) => progress.update(done, total) }),
    calibration: calibration.text.digest,
    ...(evaluated
      ? { evaluation: readTokens(evaluation, model.checkpoint.tokenizer!, config.evalTokens, 2).digest }
      : {}),
    toolchain: findToolchain('qnn')?.versions ?? {},
  };
}

/** A point on its way: what was planned, and the jobs that it waits for. */
interface Entry {
  point: PlannedPoint;
  readonly compile: CompileJob;
  /** Absent where nothing is evaluated. */
  readonly evaluate: EvaluateJob | undefined;
  readonly quantize: QuantizeJob;
}

/**
 * Compiles and evaluates planned points. Work that several of them need is done once; results that the store has already are
 * taken from it. Artifacts appear in `points/`, whole.
 * @param onResult hears of every result, so that a report can be written
 * @throws SW005 when the queue is lost; errors of single points stay with them
 */
export async function compilePoints(
  options: SweepOptions,
  planned: readonly PlannedPoint[],
  parameters: number,
  inputs: JobInputs,
  out: string,
  onResult: (points: readonly PlannedPoint[], stages: readonly StageCost[]) => void,
): Promise<{ readonly points: readonly PlannedPoint[]; readonly stages: readonly StageCost[] }> {
  const { progress } = options;
  const root = options.store ?? join(out, 'store');
  const store = openStore(root);
  const work = join(out, 'work');
  // What a killed sweep has left: this one holds the folder.
  rmSync(work, { recursive: true, force: true });
  const runner = await openRunner(options, root, work, (job) => inputsOf(job, inputs));
  const costs = new Map<string, StageCost>();
  const entries = planned.map((point) => makeEntry(options, point, parameters));
  const runnable = entries.filter(({ point }) => point.plan.limits.length === 0);
  const total = new Set(runnable.flatMap((entry) => jobsOf(entry).map((job) => keyOf(job, inputsOf(job, inputs)))))
    .size;
  let done = 0;
  progress.stage('compile');
  progress.update(0, total);
  const known = new Map<string, Promise<JobResult>>();
  const once = (job: SweepJob): Promise<JobResult> => {
    const key = keyOf(job, inputsOf(job, inputs));
    const running = known.get(key) ?? runOnce(key, job);
    known.set(key, running);
    return running;
  };
  const runOnce = async (key: string, job: SweepJob): Promise<JobResult> => {
    const found = store.findResult(key);
    const result =
      found ?? (await runner.run(key, job, (stage) => progress.update(done, total, `${describeJob(job)}: ${stage}`)));
    done++;
    if (!found && options.executor.kind === 'local') store.saveResult(key, result);
    addCost(costs, job, result);
    progress.update(done, total);
    progress.note(`  ${describeJob(job)}: ${found ? 'known already' : describeResult(result)}`);
    return result;
  };
  const report = (): void => onResult(relateQuality(entries.map(({ point }) => point)), [...costs.values()]);
  try {
    await Promise.all(
      runnable.map(async (entry) => {
        try {
          await once(entry.quantize);
          await Promise.all([
            once(entry.compile).then((result) => {
              if (result.kind !== 'compile') return;
              const { kind: _, ...figures } = result;
              placePoint(
                store,
                figures.files,
                join(out, 'points', folderOf(entry.point)),
                options.executor.kind !== 'local',
              );
              entry.point = { ...entry.point, result: figures };
              report();
            }),
            entry.evaluate &&
              once(entry.evaluate).then((result) => {
                if (result.kind !== 'evaluate') return;
                const { kind: _, ...figures } = result;
                entry.point = { ...entry.point, quality: { ...figures, ratio: Number.NaN } };
                report();
              }),
          ]);
        } catch (error) {
          if (!(error instanceof NpucError) || error.code === 'SW005') throw error;
          const { code, message } = error;
          progress.note(`  ${entry.point.id}: ${code} ${message}`);
          entry.point = { ...entry.point, failure: { code, message } };
          report();
        }
      }),
    );
  } finally {
    await runner.close();
    rmSync(work, { recursive: true, force: true });
  }
  return { points: relateQuality(entries.map(({ point }) => point)), stages: [...costs.values()] };
}

async function openRunner(
  options: SweepOptions,
  store: string,
  work: string,
  inputs: (job: SweepJob) => JobInputs,
): Promise<JobRunner> {
  const { executor, progress } = options;
  const note = progress.note;
  if (executor.kind === 'bullmq') {
    const { createQueueRunner } = await import('./queue-runner.ts');
    return await createQueueRunner({ ...executor, store, inputs, note });
  }
  const size = options.jobs ?? Math.max(1, Math.floor(availableParallelism() / 2));
  return createJobPool({ size, store, work, note });
}

/** What a job reads of the sweep's inputs: the toolchain has no part in other artifacts than the HTP's. */
function inputsOf({ config }: SweepJob, inputs: JobInputs): JobInputs {
  return config.target!.includes('qnn') ? inputs : { ...inputs, toolchain: {} };
}

const jobsOf = ({ quantize, compile, evaluate }: Entry): SweepJob[] => [
  quantize,
  compile,
  ...(evaluate ? [evaluate] : []),
];

function makeEntry(options: SweepOptions, point: PlannedPoint, parameters: number): Entry {
  const { simulate, sinks, positions } = options;
  const { target, soc, tokens, cache } = point;
  const own = options.configs.find(({ scheme }) => scheme === point.scheme)!;
  const path = (text: string | undefined): string | undefined => (text === undefined ? undefined : resolve(text));
  const base: CompileConfig = {
    ...own,
    source: isHubReference(own.source!) ? own.source! : resolve(own.source!),
    calibrate: path(own.calibrate),
    evaluate: own.evaluate === NO_EVALUATION ? undefined : path(own.evaluate),
    embedding: target === 'qnn' ? own.embedding : 'in-graph',
    target: [target],
    out: '',
  };
  // SoCs of one architecture class quantize alike: the first stands for all.
  const asked = recipeOf(own);
  const adapted = (name: string): string =>
    JSON.stringify(adaptRecipe(asked, options.socs.find((each) => each.name === name)!, target).recipe);
  const first = options.socs.find(({ name }) => adapted(name) === adapted(soc))!.name;
  const evaluated = own.evaluate !== NO_EVALUATION;
  return {
    point,
    quantize: { kind: 'quantize', config: { ...base, soc: first, tokens: [1], cache: [2] } },
    compile: {
      kind: 'compile',
      config: { ...base, soc, tokens: [tokens], cache: [cache] },
      simulate: target === 'qnn' && (simulate === 'all' || (simulate === 'auto' && parameters <= SIMULATED_WEIGHTS)),
    },
    evaluate: evaluated
      ? { kind: 'evaluate', config: { ...base, soc: first, tokens: [1], cache: [cache] }, sinks, positions }
      : undefined,
  };
}

/** Perplexities over the float model's with the largest cache that was evaluated. */
function relateQuality(points: readonly PlannedPoint[]): PlannedPoint[] {
  const evaluated = points.filter(({ quality }) => quality !== undefined);
  const largest = Math.max(...evaluated.map(({ cache }) => cache));
  const best = evaluated.find(({ cache }) => cache === largest)?.quality?.floatPerplexity ?? Number.NaN;
  return points.map((point) =>
    point.quality ? { ...point, quality: { ...point.quality, ratio: point.quality.perplexity / best } } : point,
  );
}

/** The name of a point's folder. */
export function folderOf({ id }: Pick<SweepPoint, 'id'>): string {
  return id.replaceAll(' ', '-');
}

/** Makes a point's folder of the store's files, unless it is there. */
function placePoint(store: ArtifactStore, files: readonly ManifestFile[], folder: string, verify: boolean): void {
  const isThere = ({ path, bytes }: ManifestFile): boolean =>
    statSync(join(folder, path), { throwIfNoEntry: false })?.size === bytes;
  if (existsSync(folder) && files.every(isThere) && isSameManifest(folder, files)) return;
  rmSync(folder, { recursive: true, force: true });
  store.take(files, folder, verify);
}

/** The manifest has the digests of all other files. */
function isSameManifest(folder: string, files: readonly ManifestFile[]): boolean {
  const manifest = files.find(({ path }) => path === 'manifest.json');
  const bytes = readFileSync(join(folder, 'manifest.json'));
  return manifest?.sha256 === createHash('sha256').update(bytes).digest('hex');
}

function addCost(costs: Map<string, StageCost>, job: SweepJob, result: JobResult): void {
  const { target, scheme } = job.config;
  const name = `${job.kind} ${target!.join(',')} ${scheme}`;
  const before = costs.get(name) ?? { name, jobs: 0, seconds: 0, cpuSeconds: 0, vendorCpuSeconds: 0 };
  costs.set(name, {
    name,
    jobs: before.jobs + 1,
    seconds: before.seconds + result.seconds,
    cpuSeconds: before.cpuSeconds + (result.kind === 'evaluate' ? 0 : result.cpuSeconds),
    vendorCpuSeconds: before.vendorCpuSeconds + (result.kind === 'compile' ? result.vendorCpuSeconds : 0),
  });
}

function describeResult(result: JobResult): string {
  const time = formatSeconds(result.seconds);
  if (result.kind === 'compile') return `${formatBytes(result.artifactBytes)} in ${time}`;
  return result.kind === 'evaluate' ? `perplexity ${result.perplexity.toFixed(3)} in ${time}` : time;
}

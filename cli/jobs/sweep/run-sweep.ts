import { openCheckpoint } from '../../../compiler/import/checkpoint.ts';
import {
  buildDecoder,
  type DecoderModel,
  readDecoderModel,
  requireTokenizer,
} from '../../../compiler/import/decoder-model.ts';
import { answerBudget, parseBudget } from '../../../evaluation/sweep/budget.ts';
import { markFront } from '../../../evaluation/sweep/choose-points.ts';
import type { StageCost, SweepReport } from '../../../evaluation/sweep/sweep-report.ts';
import { judgeEstimates } from '../../../targets/estimate-speed.ts';
import { checkShapes, largestCache } from '../../../targets/graph-requests.ts';
import { recipeOf } from '../../compile.ts';
import { NO_EVALUATION } from '../compile-decoder.ts';
import { version } from '../version.ts';
import { compilePoints, type PlannedPoint, readInputs } from './compile-points.ts';
import { makePlanner, type PointRequest, planPoint } from './plan-points.ts';
import { checkSweepFolder, openSweepFolder } from './sweep-folder.ts';
import type { SweepOptions } from './sweep-options.ts';

/** Every point's bytes, limits and estimated speed: nothing is calibrated or compiled. @throws IM, CL and SW errors */
export async function runPlan(options: SweepOptions): Promise<SweepReport> {
  const { out, force, progress } = options;
  progress.stage('plan');
  const model = await openSource(options);
  try {
    const report = makeReport(options, model, planAll(options, model));
    if (out !== undefined) {
      const folder = openSweepFolder(out, force);
      try {
        folder.write(report);
      } finally {
        folder.close();
      }
    }
    progress.finish();
    return report;
  } finally {
    model.checkpoint.close();
  }
}

/**
 * Plans every point, then compiles them, each piece of work once: scales and integers per scheme, target and architecture class,
 * artifacts per point, a long text per scheme, target and cache. Whatever is done stays done: a sweep that was interrupted goes on
 * where it was. A point that fails keeps its error, and the others go on.
 * @throws IM, CL, QT and SW errors before anything is written; SW005 when the queue is lost
 */
export async function runSweep(options: SweepOptions): Promise<SweepReport> {
  const { out = 'sweep', force, progress } = options;
  progress.stage('plan');
  checkSweepFolder(out, force);
  const model = await openSource(options);
  try {
    const planned = planAll(options, model);
    checkBudget(options, planned);
    const inputs = await readInputs(options, model);
    const folder = openSweepFolder(out, force);
    try {
      const unfinished = { ...options, budget: undefined };
      folder.write(makeReport(unfinished, model, planned));
      const compiled = await compilePoints(options, planned, countWeights(model), inputs, out, (points, stages) =>
        folder.write(makeReport(unfinished, model, points, stages)),
      );
      const finished = makeReport(options, model, compiled.points, compiled.stages);
      folder.write(finished);
      progress.finish();
      return finished;
    } finally {
      folder.close();
    }
  } finally {
    model.checkpoint.close();
  }
}

/** Opens the checkpoint and checks that it has every point. @throws IM errors */
async function openSource({ configs, progress }: SweepOptions): Promise<DecoderModel> {
  const [config] = configs;
  const checkpoint = await openCheckpoint(config!.source!, {
    progress: (done, total, file) => progress.update(done, total, file),
  });
  const model = readDecoderModel(checkpoint);
  const shapes = { tokens: config!.tokens, caches: config!.cache };
  checkShapes(shapes);
  buildDecoder(model.config, model.weights, largestCache(shapes), config!.allowExtrapolation);
  requireTokenizer(checkpoint);
  return model;
}

/** Every point in the order of targets, SoCs, schemes, tokens and caches. */
function planAll(options: SweepOptions, model: DecoderModel): PlannedPoint[] {
  const planner = makePlanner(model);
  return listRequests(options).map((request) => planPoint(planner, request));
}

function listRequests({ configs, socs, targets }: SweepOptions): PointRequest[] {
  const sorted = (numbers: readonly number[]): number[] => [...new Set(numbers)].sort((a, b) => a - b);
  return targets.flatMap((target) =>
    // Other artifacts than the HTP's do not depend on the SoC.
    (target === 'qnn' ? socs : socs.slice(0, 1)).flatMap((soc) =>
      configs.flatMap((config) => {
        const { split, splitEmbedding, splitHead, maxMemory, embedding, io } = config;
        const limits = maxMemory === undefined ? {} : { maxMemory };
        const recipe = recipeOf(config);
        return sorted(config.tokens).flatMap((tokens) =>
          sorted(config.cache).map((cache) => ({
            target,
            soc,
            recipe,
            tokens,
            cache,
            embedding: target === 'qnn' ? embedding : 'in-graph',
            io,
            split: { split, embedding: splitEmbedding, head: splitHead, ...limits },
          })),
        );
      }),
    ),
  );
}

/** Weights of the float model, a tied head counted once. */
function countWeights({ weights, config }: DecoderModel): number {
  return [...weights]
    .filter(([name]) => !(config.tiedEmbeddings && name === 'lm_head.weight'))
    .reduce((sum, [, tensor]) => sum + tensor.size, 0);
}

/** Bounds on figures that no point will have are refused now, not after hours. @throws SW002 */
function checkBudget({ budget, configs }: SweepOptions, points: readonly PlannedPoint[]): void {
  if (budget === undefined) return;
  const bounds = parseBudget(budget);
  const evaluated = configs[0]!.evaluate !== NO_EVALUATION;
  const known = bounds.filter(({ name }) => name !== 'ppl' || !evaluated).map(({ text }) => text);
  if (known.length > 0) answerBudget(known.join(','), markFront(points));
}

function makeReport(
  options: SweepOptions,
  model: DecoderModel,
  points: readonly PlannedPoint[],
  stages?: readonly StageCost[],
): SweepReport {
  const { budget, sinks, positions, configs } = options;
  const marked = markFront(points);
  const evaluated = points.some(({ quality }) => quality !== undefined);
  return {
    format: 1,
    kind: 'sweep',
    npuc: version(),
    source: model.checkpoint.name,
    parameters: countWeights(model),
    points: marked,
    ...(evaluated ? { stream: { tokens: configs[0]!.evalTokens, sinks, positions } } : {}),
    published: judgeEstimates(),
    ...(budget === undefined ? {} : { budget: answerBudget(budget, marked) }),
    command: options.command,
    ...(stages ? { stages } : {}),
  };
}

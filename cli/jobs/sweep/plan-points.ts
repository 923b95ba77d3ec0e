import { isDynamic, type Recipe } from '../../../calibration/recipe.ts';
import { NpucError } from '../../../compiler/errors.ts';
import type { DecoderModel } from '../../../compiler/import/decoder-model.ts';
import { type PointPlan, REQUEST, type SweepPoint, type SweepTarget } from '../../../evaluation/sweep/sweep-report.ts';
import { countProducts, estimateSpeed, type SpeedEstimate } from '../../../targets/estimate-speed.ts';
import { formatOf } from '../../../targets/index.ts';
import {
  cacheBytes,
  type GraphMemory,
  type MemoryRequest,
  planFileBytes,
  planGraphMemory,
  planWeightMemory,
  type WeightMemory,
} from '../../../targets/plan-memory.ts';
import { countGraphs, planCompile, type SplitRequest } from '../../../targets/qnn/plan-compile.ts';
import { planContextBytes } from '../../../targets/qnn/plan-context.ts';
import type { SpeedModel } from '../../../targets/soc-speed.ts';
import {
  HTP_CONTEXT_LIMIT_BYTES,
  HTP_FEATURES,
  type HtpFeature,
  type Soc,
  socSupports,
} from '../../../targets/socs.ts';
import type { EmbeddingChoice } from '../../../targets/target.ts';
import { adaptRecipe } from '../compile-decoder.ts';

/** A point to plan. */
export interface PointRequest {
  readonly target: SweepTarget;
  readonly soc: Soc;
  /** As asked for; what the SoC cannot do is changed in it as a compile changes it. */
  readonly recipe: Recipe;
  readonly tokens: number;
  readonly cache: number;
  readonly embedding: EmbeddingChoice;
  readonly io: 'float' | 'quantized';
  readonly split: SplitRequest;
}

/** What every point of a sweep has in common while it is planned. */
export interface Planner {
  plan(request: PointRequest): PointPlan;
}

/** Most numbers of a timeline that a report draws. */
const TIMELINE = 80;

export function idOf({ target, soc, recipe, tokens, cache }: PointRequest): string {
  return `${target} ${soc.name} ${recipe.scheme} ${tokens}x${cache}`;
}

/** The point of a request, planned. */
export function planPoint(planner: Planner, request: PointRequest): Omit<SweepPoint, 'front'> {
  const { target, soc, recipe, tokens, cache } = request;
  const { name, arch } = soc;
  const plan = planner.plan(request);
  return { id: idOf(request), target, soc: name, arch: `v${arch}`, scheme: recipe.scheme, tokens, cache, plan };
}

/** Plans points of one checkpoint; weights and graphs that several points have are planned once. */
export function makePlanner(model: DecoderModel): Planner {
  const weights = new Map<string, WeightMemory>();
  const graphs = new Map<string, GraphMemory>();
  return {
    plan: (request) => {
      const memory = describeMemory(model, request);
      const shared = JSON.stringify([request.target, request.embedding, request.io, memory.recipe]);
      const weight = recall(weights, shared, () => planWeightMemory(memory, tableBytes(model, request)));
      const graphOf = (tokens: number): GraphMemory =>
        recall(graphs, `${shared} ${tokens} ${request.cache}`, () => planGraphMemory(memory, tokens, request.cache));
      return describePlan(model, request, memory, weight, graphOf(request.tokens), graphOf(1));
    },
  };
}

function recall<T>(known: Map<string, T>, key: string, make: () => T): T {
  const value = known.get(key) ?? make();
  known.set(key, value);
  return value;
}

function describeMemory({ config, weights }: DecoderModel, request: PointRequest): MemoryRequest {
  const { target, soc, embedding, io } = request;
  return {
    config,
    weights,
    recipe: adaptRecipe(request.recipe, soc, target).recipe,
    ...formatOf(target, embedding),
    integerPorts: target === 'qnn' || (target === 'tflite' && io === 'quantized'),
  };
}

/** A table beside the graphs (targets/embedding-file.ts). */
function tableBytes({ config }: DecoderModel, { target, embedding, recipe }: PointRequest): number {
  const { vocabSize, hiddenSize } = config;
  const halves = target === 'tflite' ? recipe.scheme === 'fp16' : embedding === 'lut-f16';
  return 8 + vocabSize * (halves ? 2 * hiddenSize : hiddenSize + 4);
}

function describePlan(
  model: DecoderModel,
  request: PointRequest,
  memory: MemoryRequest,
  weight: WeightMemory,
  prefill: GraphMemory,
  decode: GraphMemory,
): PointPlan {
  const { target, soc, tokens, cache } = request;
  const { config } = model;
  const share = target !== 'qnn' || socSupports(soc, 'weight-sharing');
  const copies = share ? 1 : 2;
  const { parts, limits } = target === 'qnn' ? fitContext(request, memory, weight) : { parts: 1, limits: [] };
  const artifactBytes =
    target === 'qnn'
      ? planContextBytes(weight, { ...config, graphs: [prefill, decode], share }) +
        (weight.embeddingInGraph ? 0 : weight.embeddingBytes)
      : planFileBytes(target, memory, weight, [prefill, decode]);
  const arenaBytes = Math.max(prefill.arenaBytes, decode.arenaBytes);
  const ioBytes = Math.max(prefill.ioBytes + prefill.newBytes, decode.ioBytes + decode.newBytes);
  const keyValues = cacheBytes(memory, cache);
  const speed = target === 'qnn' ? estimatePoint(model, request, weight, prefill, decode) : {};
  const vtcm = soc.vtcmMegabytes;
  const most = Math.max(...prefill.alive, ...decode.alive);
  return {
    weightBytes: weight.weightBytes,
    embeddingBytes: weight.embeddingBytes,
    copies,
    artifactBytes: Math.ceil(artifactBytes),
    cacheBytes: keyValues,
    arenaBytes,
    ioBytes,
    ...(target === 'qnn' && vtcm !== undefined ? { spillFillBytes: Math.max(0, most - vtcm * 2 ** 20) } : {}),
    memoryBytes: Math.ceil(artifactBytes) + keyValues + arenaBytes + ioBytes,
    parts,
    limits,
    ...speed,
    ...(speed.prefill && speed.decode ? { seconds: requestSeconds(speed.prefill, speed.decode, tokens) } : {}),
    timeline: { prefill: thin(prefill.alive), decode: thin(decode.alive) },
  };
}

/** What the SoC's HTP cannot take, and the parts that its context limit makes of the rest. */
function fitContext(
  { soc, tokens, cache, split }: PointRequest,
  { recipe }: MemoryRequest,
  { stages }: WeightMemory,
): { readonly parts: number; readonly limits: readonly string[] } {
  const needs: HtpFeature[] = [
    ...(recipe.scheme === 'fp16' ? (['fp16'] as const) : []),
    ...(recipe.weight.block > 0 && !isDynamic(recipe) ? (['lpbq'] as const) : []),
  ];
  const limits = [
    ...(isDynamic(recipe) ? ['the HTP has no dynamic quantization'] : []),
    ...needs
      .filter((feature) => !socSupports(soc, feature))
      .map((feature) => `v${soc.arch} does not have ${feature}: ${HTP_FEATURES[feature].about}`),
  ];
  // Most models need no cut: then the search for one, which takes longer than all else, is not made.
  const bytes = stages.reduce((sum, stage) => sum + stage.bytes, 0);
  const free = split.split === 'auto' && split.maxMemory === undefined && !split.embedding && !split.head;
  if (free && bytes <= HTP_CONTEXT_LIMIT_BYTES / 2) return { parts: 1, limits };
  const counts = countGraphs({ tokens: [tokens], caches: [cache] }, socSupports(soc, 'weight-sharing'));
  try {
    return { parts: planCompile(stages, counts, split).parts.length, limits };
  } catch (error) {
    if (!(error instanceof NpucError) || error.code !== 'QN017') throw error;
    return { parts: stages.length, limits: [...limits, error.message] };
  }
}

function estimatePoint(
  { config }: DecoderModel,
  { soc, tokens, cache }: PointRequest,
  { weightBytes }: WeightMemory,
  prefill: GraphMemory,
  decode: GraphMemory,
): { prefill?: SpeedEstimate; decode?: SpeedEstimate } {
  const model: SpeedModel = { name: '', ...config };
  // Of the embedding a run reads its tokens' rows only.
  const estimate = (count: number, graph: GraphMemory): SpeedEstimate | undefined =>
    estimateSpeed(soc.name, count, {
      products: countProducts(model, count, cache),
      bytes: weightBytes + graph.pastBytes + graph.newBytes + graph.ioBytes,
    });
  const [many, one] = [estimate(tokens, prefill), estimate(1, decode)];
  return { ...(many ? { prefill: many } : {}), ...(one ? { decode: one } : {}) };
}

/** Whole prefill runs for the prompt, then a run for every token of the answer. */
function requestSeconds(prefill: SpeedEstimate, decode: SpeedEstimate, tokens: number): number {
  const runs = Math.ceil(REQUEST.prompt / tokens);
  return (runs * tokens) / prefill.tokensPerSecond + REQUEST.answer / decode.tokensPerSecond;
}

/** The peaks of equal stretches. */
function thin(alive: readonly number[]): number[] {
  const step = Math.ceil(alive.length / TIMELINE);
  return Array.from({ length: Math.ceil(alive.length / step) }, (_, i) =>
    Math.max(...alive.slice(i * step, (i + 1) * step)),
  );
}

import type { WeightPlan } from '../../calibration/plan-weights.ts';
import type { Recipe } from '../../calibration/recipe.ts';
import { NpucError } from '../../compiler/errors.ts';
import type { Graph, Value } from '../../compiler/ir/graph.ts';
import { decoderStages } from '../../passes/split-decoder.ts';
import type { ShapeRequest } from '../graph-requests.ts';
import { HTP_CONTEXT_LIMIT_BYTES } from '../socs.ts';

/** One stage of a decoder as the vendor's compiler sees it. */
export interface StageLoad {
  /** `embedding`, `layers.<i>` or `head`. */
  readonly name: string;
  /** The value to cut at behind it; absent for the last stage. */
  readonly end?: string;
  readonly weights: number;
  /** As written into the binary, scales included. */
  readonly bytes: number;
  /** Weights of 4 bits, and those of them that are in blocks (LPBQ); all others go by their bytes. */
  readonly narrowWeights: number;
  readonly blockWeights: number;
  readonly otherBytes: number;
  /** Rows of attention scores for each new token, one of the cache's length: query heads of all layers. */
  readonly scoreRows: number;
}

export interface SplitRequest {
  /** Parts, or as few as the limits allow. */
  readonly split: 'auto' | number;
  /** Predicted peak bytes that no compile process may exceed. */
  readonly maxMemory?: number;
  /** The embedding, or the head, as a part of its own. */
  readonly embedding: boolean;
  readonly head: boolean;
}

/** Graphs of the bundle: every size of tokens with every size of cache. */
export interface GraphCounts {
  readonly tokens: number;
  readonly caches: number;
  /** Sum over all graphs of new tokens times cache. */
  readonly slots: number;
  /** All graphs of a part are compiled in one process, into one binary. */
  readonly share: boolean;
}

/** As few parts as the limits of the SoC allow. */
export const AUTO_SPLIT: SplitRequest = { split: 'auto', embedding: false, head: false };

/** The numbers of graphs of a request. */
export function countGraphs({ tokens, caches }: ShapeRequest, share: boolean): GraphCounts {
  const [sizes, contexts] = [new Set([...tokens, 1]), new Set(caches)];
  const sum = (numbers: Iterable<number>): number => [...numbers].reduce((total, number) => total + number, 0);
  return { tokens: sizes.size, caches: contexts.size, slots: sum(sizes) * sum(contexts), share };
}

export interface Prediction {
  /** Peak resident bytes of the compile process. */
  readonly peakBytes: number;
  /** Its processor time, in seconds of the machine that was measured (docs/bundles.md). */
  readonly cpuSeconds: number;
}

/** A part: its stages are compiled together, all shapes of them. */
export interface CompilePart extends Prediction {
  /** First and last stage. */
  readonly stages: readonly [string, string];
  readonly weights: number;
  readonly bytes: number;
  readonly graphs: number;
}

export interface CompilePlan {
  /** Values to cut at, one fewer than parts (passes/split-decoder.ts). */
  readonly cuts: readonly string[];
  readonly parts: readonly CompilePart[];
}

/** Room in a context for what is not weights: activations and the code of every graph. */
const WEIGHT_SHARE = 7 / 8;

// Measured on QAIRT 2.51, x86 (docs/bundles.md says how, and how well they predict).
const BASE_BYTES = 0.2e9;
/** Bytes per 4-bit weight, of the first graph and of each further one that shares; blocks make no difference. */
const NARROW_BYTES = { first: 3.1, further: 2.6 } as const;
/** Bytes per byte of any other weight, for every graph. */
const OTHER_BYTES = 4.1;
/** Per weight and graph, and for every attention score of all graphs. */
const SECONDS = { block: 0.09e-6, other: 0.022e-6, score: 0.4e-6 } as const;

/**
 * What a compile process of the vendor needs for stages in so many graphs.
 * @param slots sum over the graphs of new tokens times cache
 */
export function predictCompile(
  stages: readonly StageLoad[],
  graphs: number,
  share: boolean,
  slots: number,
): Prediction {
  const sum = (key: 'weights' | 'narrowWeights' | 'blockWeights' | 'otherBytes' | 'scoreRows'): number =>
    stages.reduce((total, stage) => total + stage[key], 0);
  const [narrow, blocks, other] = [sum('narrowWeights'), sum('blockWeights'), sum('otherBytes')];
  const together = share ? graphs : 1;
  return {
    peakBytes:
      BASE_BYTES +
      narrow * (NARROW_BYTES.first + NARROW_BYTES.further * (together - 1)) +
      other * OTHER_BYTES * together,
    cpuSeconds:
      graphs * (blocks * SECONDS.block + (sum('weights') - blocks) * SECONDS.other) +
      sum('scoreRows') * slots * SECONDS.score,
  };
}

/**
 * The stages of a lowered decoder with their sizes, from the forms of its weights: no statistics are needed.
 * @param graph one that has every stage (the decode graph)
 */
export function measureStages(
  graph: Graph,
  weights: ReadonlyMap<string, Pick<WeightPlan, 'form'>>,
  recipe: Recipe,
): StageLoad[] {
  const rows = graph.nodes.flatMap((node) => (node.op === 'Softmax' ? [node.output()] : []));
  return decoderStages(graph).map(({ name, end, constants }) => {
    const scoreRows = rows.reduce((sum, row) => sum + (row.name.startsWith(`${name}.`) ? row.dims[1]! : 0), 0);
    const load = { weights: 0, bytes: 0, narrowWeights: 0, blockWeights: 0, otherBytes: 0, scoreRows };
    for (const value of constants) {
      if (value.data!.dtype !== 'f32') continue;
      const { size } = value.data!;
      const form = recipe.scheme === 'fp16' ? undefined : weights.get(value.name)?.form;
      const bytes = writtenBytes(value, form, recipe);
      load.weights += size;
      load.bytes += bytes;
      if (form?.bits !== 4) load.otherBytes += bytes;
      else {
        load.narrowWeights += size;
        if (form.block > 0) load.blockWeights += size;
      }
    }
    return { name, ...(end === undefined ? {} : { end }), ...load };
  });
}

/** A weight with its scales, or a constant in the format of the activations. */
function writtenBytes(value: Value, form: WeightPlan['form'] | undefined, recipe: Recipe): number {
  const { size } = value.data!;
  if (recipe.scheme === 'fp16') return size * 2;
  if (!form) return (size * recipe.activation) / 8;
  return (size * form.bits) / 8 + 4 * value.dims.at(-1)! + (form.block > 0 ? size / form.block : 0);
}

/**
 * Chooses where to cut: with `auto` as few parts as keep every one within the context limit and the budget, else the number
 * asked for; the largest predicted peak is as small as the number allows. Deterministic.
 * @throws QN017 when nothing fits, naming what would
 */
export function planCompile(stages: readonly StageLoad[], counts: GraphCounts, request: SplitRequest): CompilePlan {
  const forced = forcedCuts(stages, request);
  const least = forced.size + 1;
  const { split, maxMemory = Number.POSITIVE_INFINITY } = request;
  if (split !== 'auto' && (split < least || split > stages.length)) throw refuseCount(split, least, stages);
  const numbers = split === 'auto' ? Array.from({ length: stages.length - least + 1 }, (_, i) => least + i) : [split];
  const plans = numbers.map((parts) => cutInto(parts, stages, forced, counts));
  const fits = plans.find(({ parts }) => parts.every((part) => fitsContext(part) && part.peakBytes <= maxMemory));
  if (fits) return fits;
  throw refusePlan(plans.at(-1)!, stages, counts, request);
}

const fitsContext = ({ bytes }: { readonly bytes: number }): boolean => bytes <= HTP_CONTEXT_LIMIT_BYTES * WEIGHT_SHARE;

/** Indexes of stages behind which the request demands a cut. */
function forcedCuts(stages: readonly StageLoad[], { embedding, head }: SplitRequest): Set<number> {
  const cuts = new Set<number>();
  if (embedding && stages[0]!.name === 'embedding' && stages.length > 1) cuts.add(0);
  if (head && stages.at(-1)!.name === 'head' && stages.length > 1) cuts.add(stages.length - 2);
  return cuts;
}

/** Consecutive parts with the smallest largest peak; among equal ones those with the earliest cuts. */
function cutInto(
  count: number,
  stages: readonly StageLoad[],
  forced: ReadonlySet<number>,
  counts: GraphCounts,
): CompilePlan {
  const total = stages.length;
  const partOf = (from: number, to: number): CompilePart => describePart(stages.slice(from, to), counts);
  const allowed = (from: number, to: number): boolean => {
    for (const cut of forced) if (from <= cut && cut < to - 1) return false;
    return true;
  };
  // best[n][to]: the smallest largest peak of the first `to` stages in n parts, and where the last of them begins.
  const best: { peak: number; squares: number; from: number }[][] = [[{ peak: 0, squares: 0, from: 0 }]];
  for (let n = 1; n <= count; n++) {
    best[n] = [];
    for (let to = n; to <= total - (count - n); to++) {
      for (let from = n - 1; from < to; from++) {
        const before = best[n - 1]![from];
        if (!before || !allowed(from, to)) continue;
        const { peakBytes } = partOf(from, to);
        const peak = Math.max(before.peak, peakBytes);
        const squares = before.squares + peakBytes ** 2;
        const known = best[n]![to];
        if (!known || peak < known.peak || (peak === known.peak && squares < known.squares))
          best[n]![to] = { peak, squares, from };
      }
    }
  }
  const ends: number[] = [];
  for (let n = count, to = total; n > 0; n--) {
    ends.unshift(to);
    to = best[n]![to]!.from;
  }
  return {
    cuts: ends.slice(0, -1).map((to) => stages[to - 1]!.end!),
    parts: ends.map((to, i) => partOf(i === 0 ? 0 : ends[i - 1]!, to)),
  };
}

function describePart(stages: readonly StageLoad[], { tokens, caches, slots, share }: GraphCounts): CompilePart {
  // Embedding and head see no cache: one graph serves every size of it.
  const graphs = stages.every(({ name }) => name === 'embedding' || name === 'head') ? tokens : tokens * caches;
  return {
    stages: [stages[0]!.name, stages.at(-1)!.name],
    weights: stages.reduce((sum, { weights }) => sum + weights, 0),
    bytes: stages.reduce((sum, { bytes }) => sum + bytes, 0),
    graphs,
    ...predictCompile(stages, graphs, share && graphs > 1, slots),
  };
}

function refuseCount(split: number, least: number, stages: readonly StageLoad[]): NpucError {
  return new NpucError('QN017', {
    message: `--split ${split} is not possible: this decoder can be cut into ${least} to ${stages.length} parts`,
    hint: 'it is cut between embedding, layers and head; --split auto chooses',
  });
}

function refusePlan(
  plan: CompilePlan,
  stages: readonly StageLoad[],
  counts: GraphCounts,
  request: SplitRequest,
): NpucError {
  const { split, maxMemory = Number.POSITIVE_INFINITY } = request;
  const tooLarge = plan.parts.find((part) => !fitsContext(part));
  if (tooLarge) {
    const whole = stages.length === plan.parts.length;
    return new NpucError('QN017', {
      message: `${nameStages(tooLarge.stages)} has ${gibibytes(tooLarge.bytes)} of weights, a context of the HTP addresses ${gibibytes(HTP_CONTEXT_LIMIT_BYTES)} with all that belongs to it`,
      hint: whole ? 'use fewer bits' : 'use a larger --split, or --split auto',
    });
  }
  const largest = plan.parts.reduce((a, b) => (b.peakBytes > a.peakBytes ? b : a));
  const finest = cutInto(stages.length, stages, forcedCuts(stages, request), counts);
  const least = Math.max(...finest.parts.map((part) => part.peakBytes));
  const enough =
    split === 'auto' || least > maxMemory
      ? `--max-memory ${Math.ceil(least / 2 ** 20)}MiB is the least that works${largest.graphs > 1 ? '; fewer --tokens and --cache sizes need less' : ''}`
      : `--split ${planCompile(stages, counts, { ...request, split: 'auto' }).parts.length} is enough`;
  return new NpucError('QN017', {
    message: `compiling ${nameStages(largest.stages)} in ${largest.graphs} graph${largest.graphs === 1 ? '' : 's'} needs about ${gibibytes(largest.peakBytes)}, --max-memory allows ${gibibytes(maxMemory)}`,
    hint: enough,
  });
}

/** `layers.0 to layers.7`, or one name. */
export function nameStages([first, last]: readonly [string, string]): string {
  return first === last ? first : `${first} to ${last}`;
}

function gibibytes(bytes: number): string {
  return `${(bytes / 2 ** 30).toFixed(2)} GiB`;
}

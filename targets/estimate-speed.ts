import {
  DIMENSITY_9300,
  PUBLISHED_RUNS,
  type PublishedRun,
  SOC_SPEEDS,
  type SocSpeed,
  type SpeedModel,
} from './soc-speed.ts';

/** What one run of a graph costs. */
export interface RunCost {
  /** Multiply-adds. */
  readonly products: number;
  /** Bytes that come from memory or go there: weights, caches, other inputs and outputs. */
  readonly bytes: number;
}

/** Tokens a second, estimated: nothing was run. */
export interface SpeedEstimate {
  readonly tokensPerSecond: number;
  /** The same with the worst and the best share of the peaks that any published run reached. */
  readonly low: number;
  readonly high: number;
  readonly bound: 'compute' | 'memory';
}

/** Shares of the peaks that published runs reach: median, least and most. */
interface Shares {
  readonly compute: Spread;
  readonly memory: Spread;
}

interface Spread {
  readonly median: number;
  readonly low: number;
  readonly high: number;
}

/** An estimate beside what was published, fitted without that run. */
export interface EstimateError {
  readonly run: PublishedRun;
  readonly prefill?: { readonly estimate: number; readonly published: number; readonly error: number };
  readonly decode: { readonly estimate: number; readonly published: number; readonly error: number };
}

/** Multiply-adds of a run: every weight of a matrix for every token, and attention over the whole cache. */
export function countProducts(model: SpeedModel, tokens: number, cache: number, logitRows = tokens): number {
  const { layers, hiddenSize: d, intermediateSize: f, heads, keyValueHeads, headDim } = model;
  const layer = d * headDim * (2 * heads + 2 * keyValueHeads) + 3 * d * f;
  const attention = 2 * heads * headDim * cache;
  return tokens * layers * (layer + attention) + logitRows * d * model.vocabSize;
}

/** Seconds of a run at shares of a SoC's peaks: the slower of computing and moving (a roofline). */
function rooflineSeconds(
  speed: SocSpeed,
  cost: RunCost,
  compute: number,
  memory: number,
): [number, SpeedEstimate['bound']] {
  const moving = cost.bytes / (speed.gigabytesPerSecond * 1e9 * memory);
  const computing = speed.tops === undefined ? 0 : (2 * cost.products) / (speed.tops * 1e12 * compute);
  return computing > moving ? [computing, 'compute'] : [moving, 'memory'];
}

/**
 * Tokens a second of a run, from the peaks of the SoC and the share of them that published runs reach.
 * @returns undefined where no public number bounds it: a SoC that is not in the table, or a prefill run without TOPS
 */
export function estimateSpeed(soc: string, tokens: number, cost: RunCost): SpeedEstimate | undefined {
  const speed = SOC_SPEEDS[soc];
  if (!speed || (tokens > 1 && speed.tops === undefined)) return undefined;
  const { compute, memory } = fitShares(PUBLISHED_RUNS);
  const [seconds, bound] = rooflineSeconds(speed, cost, compute.median, memory.median);
  const [slow] = rooflineSeconds(speed, cost, compute.low, memory.low);
  const [fast] = rooflineSeconds(speed, cost, compute.high, memory.high);
  return { tokensPerSecond: tokens / seconds, low: tokens / slow, high: tokens / fast, bound };
}

/** How far the estimate is from every published run, each left out of the shares that it is estimated with. */
export function judgeEstimates(): EstimateError[] {
  return PUBLISHED_RUNS.map((run) => {
    const { compute, memory } = fitShares(PUBLISHED_RUNS.filter((other) => other !== run));
    const speed = speedOf(run);
    const compare = (tokens: number, published: number): EstimateError['decode'] => {
      const [seconds] = rooflineSeconds(speed, costOf(run, tokens), compute.median, memory.median);
      const estimate = tokens / seconds;
      return { estimate, published, error: estimate / published - 1 };
    };
    const { prefillTokensPerSecond: prefill } = run;
    return {
      run,
      ...(prefill === undefined ? {} : { prefill: compare(run.tokens, prefill) }),
      decode: compare(1, run.decodeTokensPerSecond),
    };
  });
}

/** Prefill runs are bound by computing and decode runs by memory: each gives one of the shares. */
function fitShares(runs: readonly PublishedRun[]): Shares {
  const compute: number[] = [];
  const memory: number[] = [];
  for (const run of runs) {
    const { tops, gigabytesPerSecond } = speedOf(run);
    memory.push((costOf(run, 1).bytes * run.decodeTokensPerSecond) / (gigabytesPerSecond * 1e9));
    if (tops === undefined || run.prefillTokensPerSecond === undefined) continue;
    const products = costOf(run, run.tokens).products / run.tokens;
    compute.push((2 * products * run.prefillTokensPerSecond) / (tops * 1e12));
  }
  return { compute: spreadOf(compute), memory: spreadOf(memory) };
}

function speedOf({ soc }: PublishedRun): SocSpeed {
  return SOC_SPEEDS[soc] ?? DIMENSITY_9300;
}

/** Weights of 4 bits with a byte for every block of 64, an 8-bit head, an 8-bit cache. */
function costOf({ model, cache }: PublishedRun, tokens: number): RunCost {
  const { layers, hiddenSize: d, intermediateSize: f, heads, keyValueHeads, headDim, vocabSize } = model;
  const layer = d * headDim * (2 * heads + 2 * keyValueHeads) + 3 * d * f;
  const weights = layers * layer * (0.5 + 1 / 64) + d * vocabSize;
  return {
    products: countProducts(model, tokens, cache),
    bytes: weights + 2 * layers * keyValueHeads * headDim * cache,
  };
}

function spreadOf(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = (sorted.length - 1) / 2;
  return {
    median: (sorted[Math.floor(middle)]! + sorted[Math.ceil(middle)]!) / 2,
    low: sorted[0]!,
    high: sorted.at(-1)!,
  };
}

import { NpucError } from '../../compiler/errors.ts';
import { nearestWord } from '../../compiler/nearest.ts';
import { formatBytes, formatRatio } from '../format-figures.ts';
import { comparePoints, isUsable } from './choose-points.ts';
import { type BudgetAnswer, memoryOf, type SweepPoint } from './sweep-report.ts';

/** What can be bounded. */
interface Metric {
  readonly about: string;
  readonly kind: 'bytes' | 'perplexity' | 'rate' | 'seconds' | 'count';
  /** Undefined where the point does not have it. */
  readonly of: (point: SweepPoint) => number | undefined;
}

const METRICS: Readonly<Record<string, Metric>> = {
  memory: { about: 'artifact, cache, values and ports', kind: 'bytes', of: memoryOf },
  artifact: {
    about: 'files that go to the phone',
    kind: 'bytes',
    of: ({ plan, result }) => result?.artifactBytes ?? plan.artifactBytes,
  },
  kv: { about: 'keys and values', kind: 'bytes', of: ({ plan }) => plan.cacheBytes },
  ppl: {
    about: 'perplexity; with x, over the float model with the largest cache',
    kind: 'perplexity',
    of: () => undefined,
  },
  prefill: { about: 'tokens a second, estimated', kind: 'rate', of: ({ plan }) => plan.prefill?.tokensPerSecond },
  decode: { about: 'tokens a second, estimated', kind: 'rate', of: ({ plan }) => plan.decode?.tokensPerSecond },
  time: { about: 'seconds of a request, estimated', kind: 'seconds', of: ({ plan }) => plan.seconds },
  cache: { about: 'tokens of context', kind: 'count', of: ({ cache }) => cache },
  tokens: { about: 'new tokens of a prefill run', kind: 'count', of: ({ tokens }) => tokens },
};

const UNITS: Readonly<Record<string, number>> = {
  b: 1,
  kb: 1e3,
  mb: 1e6,
  gb: 1e9,
  kib: 2 ** 10,
  mib: 2 ** 20,
  gib: 2 ** 30,
};

/** One bound of a budget. */
export interface Bound {
  /** As it was written. */
  readonly text: string;
  readonly name: string;
  readonly atMost: boolean;
  readonly strict: boolean;
  readonly limit: number;
  readonly of: (point: SweepPoint) => number | undefined;
  readonly show: (value: number) => string;
}

/**
 * Reads a budget: bounds joined by commas, such as `memory<=1.5GiB,ppl<=1.05x,decode>=20`.
 * @throws SW001 saying which bound does not parse, and what is possible
 */
export function parseBudget(text: string): Bound[] {
  const bounds = text.split(',').map((part) => parseBound(part.trim(), text));
  if (bounds.length === 0) throw refuse(text, 'it is empty');
  return bounds;
}

function parseBound(part: string, whole: string): Bound {
  const match = /^([a-z]+)\s*(<=|>=|<|>)\s*(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*([a-z]*)$/i.exec(part);
  if (!match) throw refuse(whole, part === '' ? 'a bound is empty' : `${part} is no bound`);
  const [, spelt, sign, digits, unit] = match as unknown as [string, string, string, string, string];
  const name = spelt.toLowerCase();
  const metric = METRICS[name];
  if (!metric) {
    const near = nearestWord(name, Object.keys(METRICS));
    throw refuse(whole, `there is no figure ${spelt}${near ? `, did you mean ${near}?` : ''}`);
  }
  const base = { text: part, name, atMost: sign.startsWith('<'), strict: sign.length === 1 };
  const number = Number(digits);
  const small = unit.toLowerCase();
  switch (metric.kind) {
    case 'bytes': {
      const scale = UNITS[small];
      if (scale === undefined) throw refuse(whole, `${part} needs a unit of bytes, such as GiB or MB`);
      return { ...base, limit: number * scale, of: metric.of, show: formatBytes };
    }
    case 'perplexity': {
      if (small !== 'x' && small !== '') throw refuse(whole, `${part} has the unit ${unit}, ppl takes x or none`);
      const ratio = small === 'x';
      return {
        ...base,
        limit: number,
        of: ({ quality }) => (ratio ? quality?.ratio : quality?.perplexity),
        show: (value) => `${formatRatio(value)}${ratio ? 'x' : ''}`,
      };
    }
    default: {
      const allowed = metric.kind === 'seconds' ? ['', 's'] : [''];
      if (!allowed.includes(small)) throw refuse(whole, `${part} has the unit ${unit}, ${name} takes none`);
      return { ...base, limit: number, of: metric.of, show: (value) => String(Number(value.toPrecision(4))) };
    }
  }
}

function refuse(text: string, why: string): NpucError {
  return new NpucError('SW001', {
    message: `the budget ${JSON.stringify(text)} cannot be read: ${why}`,
    hint: `figures: ${Object.keys(METRICS).join(', ')}; such as "memory<=1.5GiB,ppl<=1.05x,decode>=20"`,
  });
}

/** What each figure of a budget means, for help and docs. */
export function describeMetrics(): string[] {
  return Object.entries(METRICS).map(([name, { about }]) => `${name}: ${about}`);
}

const holds = ({ atMost, strict, limit }: Bound, value: number): boolean =>
  strict ? (atMost ? value < limit : value > limit) : atMost ? value <= limit : value >= limit;

const allows = (bound: Bound, point: SweepPoint): boolean => {
  const value = bound.of(point);
  return value !== undefined && holds(bound, value);
};

/**
 * The best point within a budget (comparePoints says what is best), or which of its bounds nothing satisfies and by how much.
 * Only points that their SoC takes and that did not fail are chosen from.
 * @throws SW002 when no point has a figure that is bounded, or there is nothing to choose from
 */
export function answerBudget(text: string, points: readonly SweepPoint[]): BudgetAnswer {
  const bounds = parseBudget(text);
  const usable = points.filter(isUsable).sort(comparePoints);
  if (usable.length === 0) {
    throw new NpucError('SW002', {
      message: 'no point can be chosen: each failed, or its SoC does not take it',
      hint: 'the table says why',
    });
  }
  for (const bound of bounds) {
    if (usable.some((point) => bound.of(point) !== undefined)) continue;
    throw new NpucError('SW002', {
      message: `no point has the figure ${bound.name}`,
      hint:
        bound.name === 'ppl'
          ? 'perplexity is measured when the points are compiled: leave out --plan and --evaluate none'
          : 'speed is estimated for SoCs with public peaks only (docs/sweep.md)',
    });
  }
  const fitting = usable.filter((point) => bounds.every((bound) => allows(bound, point)));
  const [best] = fitting;
  if (best) return { budget: text, best: best.id, fitting: fitting.length };
  return { budget: text, fitting: 0, impossible: explainImpossible(bounds, usable) };
}

/** Bounds that nothing satisfies; where each alone can be had, what the others leave of it. */
function explainImpossible(bounds: readonly Bound[], points: readonly SweepPoint[]): string[] {
  const alone = bounds.filter((bound) => !points.some((point) => allows(bound, point)));
  if (alone.length > 0) return alone.map((bound) => describeMiss(bound, points, ''));
  const misses = bounds.flatMap((bound) => {
    const others = bounds.filter((other) => other !== bound);
    const left = points.filter((point) => others.every((other) => allows(other, point)));
    if (left.length === 0) return [];
    return [describeMiss(bound, left, ` where ${others.map((other) => other.text).join(' and ')} holds`)];
  });
  if (misses.length > 0) return misses;
  // Every pair of bounds may be too much: then the point that misses the fewest says how far it is from each.
  const missed = (point: SweepPoint): Bound[] => bounds.filter((bound) => !allows(bound, point));
  const nearest = points.reduce((best, point) => (missed(point).length < missed(best).length ? point : best));
  return missed(nearest).map((bound) => describeMiss(bound, [nearest], ' with the others'));
}

function describeMiss(bound: Bound, points: readonly SweepPoint[], where: string): string {
  const [best] = points
    .flatMap((point) => {
      const value = bound.of(point);
      return value === undefined || Number.isNaN(value) ? [] : [{ point, value }];
    })
    .sort((a, b) => (bound.atMost ? a.value - b.value : b.value - a.value));
  if (!best) return `${bound.text}: no point has a number for it${where}`;
  const off = Math.abs(best.value / bound.limit - 1) * 100;
  const far = Number.isFinite(off) ? `, ${off.toFixed(off < 10 ? 1 : 0)} % ${bound.atMost ? 'above' : 'below'} it` : '';
  return `${bound.text} is impossible${where}: the nearest is ${bound.show(best.value)} (${best.point.id})${far}`;
}

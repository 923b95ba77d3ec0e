import { memoryOf, type SweepPoint } from './sweep-report.ts';

/** What a choice is between, each to be as small as can be. */
interface Merits {
  /** Points of different groups are not compared. */
  readonly group: string;
  readonly memory: number;
  readonly seconds: number;
  readonly loss: number;
}

type Unranked = Omit<SweepPoint, 'front'>;

/**
 * Marks the points that no other of the same SoC and target beats in memory, time and quality at once. Where no quality was
 * measured a larger cache counts for it, and points of different schemes are not compared. A point that failed or that its SoC
 * does not take is never on the front.
 */
export function markFront(points: readonly Unranked[]): SweepPoint[] {
  const measured = points.some(({ quality }) => quality !== undefined);
  const merits = points.map((point) => (isUsable(point) ? meritsOf(point, measured) : undefined));
  return points.map((point, i) => {
    const own = merits[i];
    const front = own !== undefined && !merits.some((other, j) => i !== j && other && beats(other, own, j < i));
    return { ...point, front };
  });
}

/** Whether a point was not refused: its SoC takes it, and nothing failed. */
export function isUsable({ plan, failure }: Pick<SweepPoint, 'plan' | 'failure'>): boolean {
  return plan.limits.length === 0 && failure === undefined;
}

function meritsOf(point: Unranked, measured: boolean): Merits {
  const ratio = point.quality?.ratio ?? Number.POSITIVE_INFINITY;
  return {
    group: measured ? `${point.soc} ${point.target}` : `${point.soc} ${point.target} ${point.scheme}`,
    memory: memoryOf(point),
    seconds: point.plan.seconds ?? 0,
    loss: measured ? (Number.isNaN(ratio) ? Number.POSITIVE_INFINITY : ratio) : -point.cache,
  };
}

/** Better in one and worse in none; of two that are equal in all, the first. */
function beats(a: Merits, b: Merits, first: boolean): boolean {
  if (a.group !== b.group || a.memory > b.memory || a.seconds > b.seconds || a.loss > b.loss) return false;
  return a.memory < b.memory || a.seconds < b.seconds || a.loss < b.loss || first;
}

/**
 * Orders points from the best: the smallest loss of quality where it was measured, then the largest cache, the shortest time of
 * a request, the least memory.
 */
export function comparePoints(a: SweepPoint, b: SweepPoint): number {
  const loss = (point: SweepPoint): number => {
    const ratio = point.quality?.ratio;
    return ratio === undefined || Number.isNaN(ratio) ? Number.MAX_VALUE : ratio;
  };
  const seconds = (point: SweepPoint): number => point.plan.seconds ?? Number.MAX_VALUE;
  return (
    loss(a) - loss(b) ||
    b.cache - a.cache ||
    seconds(a) - seconds(b) ||
    memoryOf(a) - memoryOf(b) ||
    (a.id < b.id ? -1 : a.id > b.id ? 1 : 0)
  );
}

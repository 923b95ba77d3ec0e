import type { Recipe } from './recipe.ts';
import { reachOf, type ValueStatistics } from './statistics.ts';

/** A range may be this often a value's typical size, which then has 256 steps of 16 bits on either side of zero. */
const TYPICAL_SHARE = 128;

/** Largest value, as a multiple of a typical one, from which a product of two values has long tails. */
const LONG_TAIL = 24;

/**
 * The range that an activation's encoding covers. `min-max` covers all; the other two cut tails where the histogram is
 * known: `percentile` a fixed share, `histogram-mse` what makes the expected squared error least. At 16 bits steps are
 * plenty: the recipe's headroom is added on either side for inputs that calibration has not seen, but no more than leaves
 * typical values their steps.
 * @param product whether the value is a product of two computed ones, whose tails are longer than theirs
 */
export function chooseRange(
  seen: ValueStatistics,
  recipe: Recipe,
  bits: 8 | 16,
  product = false,
): { min: number; max: number } {
  // Always zero: no headroom, and no typical value.
  if (seen.min === 0 && seen.max === 0) return { min: 0, max: 0 };
  if (bits === 16) {
    const ratio = reachOf(seen) / seen.typical;
    const wanted = product && ratio > LONG_TAIL ? recipe.productHeadroom : undefined;
    const wider = 1 + Math.max(0, Math.min(wanted ?? recipe.headroom ?? 0, TYPICAL_SHARE / ratio - 1));
    return { min: seen.min * wider, max: seen.max * wider };
  }
  if (recipe.range === 'min-max' || !seen.histogram) return { min: seen.min, max: seen.max };
  return recipe.range === 'percentile' ? cutTails(seen, recipe.percentile) : minimizeError(seen, 255);
}

function cutTails(seen: ValueStatistics, share: number): { min: number; max: number } {
  const bins = seen.histogram!;
  const total = bins.reduce((sum, count) => sum + count, 0);
  const width = (seen.max - seen.min) / bins.length;
  let low = 0;
  for (let sum = 0; low < bins.length - 1 && sum + bins[low]! <= total * share; low++) sum += bins[low]!;
  let high = bins.length;
  for (let sum = 0; high > low + 1 && sum + bins[high - 1]! <= total * share; high--) sum += bins[high - 1]!;
  return { min: seen.min + low * width, max: seen.min + high * width };
}

/**
 * Shrinks the range in 64 steps from either side and keeps the one with the least expected squared error: uniform noise
 * step^2 / 12 inside, squared distance to the edge outside.
 */
function minimizeError(seen: ValueStatistics, steps: number): { min: number; max: number } {
  const bins = seen.histogram!;
  const width = (seen.max - seen.min) / bins.length;
  const error = (min: number, max: number): number => {
    const noise = ((Math.max(max, 0) - Math.min(min, 0)) / steps) ** 2 / 12;
    let sum = 0;
    for (let i = 0; i < bins.length; i++) {
      const count = bins[i]!;
      if (count === 0) continue;
      const at = seen.min + (i + 0.5) * width;
      const outside = at < min ? min - at : at > max ? at - max : 0;
      sum += count * (outside > 0 ? outside * outside : noise);
    }
    return sum;
  };
  let best = { min: seen.min, max: seen.max };
  let least = error(best.min, best.max);
  for (const side of ['both', 'min', 'max'] as const) {
    const from = best;
    for (let step = 1; step < 64; step++) {
      const factor = 1 - step / 64;
      const candidate = {
        min: side === 'max' ? from.min : from.min * factor,
        max: side === 'min' ? from.max : from.max * factor,
      };
      const now = error(candidate.min, candidate.max);
      if (now < least) {
        least = now;
        best = candidate;
      }
    }
  }
  return best;
}

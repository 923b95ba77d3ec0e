// Scale search: minimise the importance-weighted squared error of symmetric quantization.
import { absmaxBits, sumLanes, tailMask } from './lanes';

/** Values summed in f32 before the sum goes to f64. */
const SPAN: i32 = 64;

/** Below this a scale would leave the normal f32 range once it is shrunk; such values all become 0 under a scale of 1. */
export const SMALLEST_SCALE: f32 = 7.52316384526264e-37; // 2^-120

/** Candidate scales are 128ths of absmax / qmax: coarse from 128 down to 48, then three halvings around the best. */
const COARSE_FROM: i32 = 128;
const COARSE_TO: i32 = 48;
const COARSE_STEP: i32 = 8;

/**
 * sum h (w - q s)^2 = s^2 sum h (x - q)^2 with x = w / s: in units of the scale nothing overflows. Eight f32 lanes by index
 * inside a span of 64, the fixed tree, then f64 from span to span. Stops early once the sum cannot stay below `bound`.
 */
export function weightedError(
  weights: usize, importance: usize, count: i32, scale: f32, min: f32, max: f32, bound: f64,
): f64 {
  const scales = f32x4.splat(scale);
  const low = f32x4.splat(min);
  const high = f32x4.splat(max);
  const square = <f64>scale * <f64>scale;
  let total: f64 = 0;
  for (let left = count; left > 0; left -= SPAN) {
    const span = left < SPAN ? left : SPAN;
    let a = f32x4.splat(0);
    let b = f32x4.splat(0);
    const end = weights + (<usize>(span & ~7) << 2);
    for (; weights < end; weights += 32, importance += 32) {
      a = f32x4.add(a, residual(v128.load(weights), v128.load(importance), scales, low, high));
      b = f32x4.add(b, residual(v128.load(weights, 16), v128.load(importance, 16), scales, low, high));
    }
    if (span & 7) {
      const mask = tailMask(span & 7);
      const m = v128.load(mask);
      const n = v128.load(mask, 16);
      a = f32x4.add(
        a, residual(v128.and(v128.load(weights), m), v128.and(v128.load(importance), m), scales, low, high),
      );
      b = f32x4.add(
        b, residual(v128.and(v128.load(weights, 16), n), v128.and(v128.load(importance, 16), n), scales, low, high),
      );
    }
    total += <f64>sumLanes(f32x4.add(a, b));
    if (total * square >= bound) break;
  }
  return total * square;
}

// @ts-ignore: decorator
@inline
function residual(w: v128, h: v128, scale: v128, low: v128, high: v128): v128 {
  const x = f32x4.div(w, scale);
  const r = f32x4.sub(x, f32x4.pmin(f32x4.pmax(f32x4.nearest(x), low), high));
  return f32x4.mul(f32x4.mul(r, r), h);
}

/** Error of each group of `group` values under the given scales (f64 each). Importance has one entry per column. */
export function weightedErrors(
  weights: usize, importance: usize, columns: i32, group: i32, groups: i32,
  scales: usize, errors: usize, min: f32, max: f32,
): void {
  const bytes = <usize>group << 2;
  const rowEnd = importance + (<usize>columns << 2);
  let h = importance;
  for (let g = 0; g < groups; g++, weights += bytes, scales += 4, errors += 8) {
    store<f64>(errors, weightedError(weights, h, group, load<f32>(scales), min, max, Infinity));
    h += bytes;
    if (h == rowEnd) h = importance;
  }
}

/** Error of the last scale that searchScale chose. */
export let foundError: f64 = 0;

/** absmax / qmax, or 0 where that is too small to be a scale. */
export function fullScale(weights: usize, count: i32, max: f32): f32 {
  const scale = reinterpret<f32>(absmaxBits(weights, count)) / max;
  return scale < SMALLEST_SCALE ? 0 : scale;
}

/** The best candidate scale of one group; `full` is fullScale() of the group and not 0. */
export function searchScale(weights: usize, importance: usize, count: i32, full: f32, min: f32, max: f32): f32 {
  let best: f64 = Infinity;
  let bestStep = COARSE_FROM;
  for (let k = COARSE_FROM; k >= COARSE_TO; k -= COARSE_STEP) {
    const error = weightedError(weights, importance, count, full * (<f32>k / 128), min, max, best);
    if (error < best) {
      best = error;
      bestStep = k;
    }
  }
  for (let step = COARSE_STEP >> 1; step > 0; step >>= 1) {
    const center = bestStep;
    for (let k = center + step; k >= center - step; k -= 2 * step) {
      const error = weightedError(weights, importance, count, full * (<f32>k / 128), min, max, best);
      if (error < best) {
        best = error;
        bestStep = k;
      }
    }
  }
  foundError = best;
  return full * (<f32>bestStep / 128);
}

/** One f32 scale and one f64 error for each group of `group` values. */
export function searchScales(
  weights: usize, importance: usize, columns: i32, group: i32, groups: i32,
  scales: usize, errors: usize, min: f32, max: f32,
): void {
  const bytes = <usize>group << 2;
  const rowEnd = importance + (<usize>columns << 2);
  let h = importance;
  for (let g = 0; g < groups; g++, weights += bytes, scales += 4, errors += 8) {
    const full = fullScale(weights, group, max);
    if (full > 0) {
      store<f32>(scales, searchScale(weights, h, group, full, min, max));
      store<f64>(errors, foundError);
    } else {
      store<f32>(scales, 1);
      store<f64>(errors, weightedError(weights, h, group, 1, min, max, Infinity));
    }
    h += bytes;
    if (h == rowEnd) h = importance;
  }
}

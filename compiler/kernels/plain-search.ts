import { roundEven } from '../ir/encoding.ts';
import { SMALLEST_SCALE } from './engine.ts';
import type { QuantRange } from './kernels.ts';
import { absmaxBits, bitsOf } from './plain-range.ts';

/** Twins of assembly/search.ts: see there for why. Math.fround stands wherever WebAssembly works in f32. */

const { fround } = Math;
const SPAN = 64;
const COARSE_FROM = 128;
const COARSE_TO = 48;
const COARSE_STEP = 8;

/** What one search works on: the window's weights, the importance of each column, the integer limits. */
export interface SearchInput {
  readonly weights: Float32Array;
  readonly bits: Int32Array;
  readonly importance: Float32Array;
  readonly range: QuantRange;
}

export function searchInput(weights: Float32Array, importance: Float32Array, range: QuantRange): SearchInput {
  return { weights, bits: bitsOf(weights), importance, range };
}

const lanes = new Float32Array(8);
const oneFloat = new Float32Array(1);
const oneFloatBits = new Uint32Array(oneFloat.buffer);

/** sum h (w - q s)^2 over `count` values at `at`, importance at `column`; may stop once it reaches `bound`. */
export function weightedError(
  { weights, importance, range }: SearchInput,
  at: number,
  column: number,
  count: number,
  scale: number,
  bound: number,
): number {
  const square = scale * scale;
  let total = 0;
  for (let from = 0; from < count; from += SPAN) {
    lanes.fill(0);
    const end = Math.min(count, from + SPAN);
    for (let i = from; i < end; i++) {
      const x = fround(weights[at + i] / scale);
      const q = roundEven(x);
      const r = fround(x - (q < range.min ? range.min : q > range.max ? range.max : q));
      lanes[i & 7] += fround(fround(r * r) * importance[column + i]);
    }
    // Both vectors added, then (0 + 2) + (1 + 3).
    const a = fround(lanes[0] + lanes[4]);
    const b = fround(lanes[1] + lanes[5]);
    const c = fround(lanes[2] + lanes[6]);
    const d = fround(lanes[3] + lanes[7]);
    total += fround(fround(a + c) + fround(b + d));
    if (total * square >= bound) break;
  }
  return total * square;
}

/** absmax / qmax, or 0 where that is too small to be a scale. */
export function fullScale({ bits, range }: SearchInput, at: number, count: number): number {
  oneFloatBits[0] = absmaxBits(bits, at, at + count);
  const scale = fround(oneFloat[0] / range.max);
  return scale < SMALLEST_SCALE ? 0 : scale;
}

export function searchScale(
  input: SearchInput,
  at: number,
  column: number,
  count: number,
  full: number,
): { scale: number; error: number } {
  const scaleOf = (k: number): number => fround(full * (k / 128));
  let error = Infinity;
  let bestStep = COARSE_FROM;
  const consider = (k: number): void => {
    const candidate = weightedError(input, at, column, count, scaleOf(k), error);
    if (candidate < error) {
      error = candidate;
      bestStep = k;
    }
  };
  for (let k = COARSE_FROM; k >= COARSE_TO; k -= COARSE_STEP) consider(k);
  for (let step = COARSE_STEP >> 1; step > 0; step >>= 1) {
    const center = bestStep;
    consider(center + step);
    consider(center - step);
  }
  return { scale: scaleOf(bestStep), error };
}

export function weightedErrors(
  weights: Float32Array,
  importance: Float32Array,
  group: number,
  scales: Float32Array,
  range: QuantRange,
  errors: Float64Array,
): void {
  const input = searchInput(weights, importance, range);
  for (let g = 0; g < scales.length; g++) {
    const at = g * group;
    errors[g] = weightedError(input, at, at % importance.length, group, scales[g], Infinity);
  }
}

export function searchScales(
  weights: Float32Array,
  importance: Float32Array,
  group: number,
  range: QuantRange,
  scales: Float32Array,
  errors: Float64Array,
): void {
  const input = searchInput(weights, importance, range);
  for (let g = 0; g < scales.length; g++) {
    const at = g * group;
    const column = at % importance.length;
    const full = fullScale(input, at, group);
    const found =
      full > 0
        ? searchScale(input, at, column, group, full)
        : { scale: 1, error: weightedError(input, at, column, group, 1, Infinity) };
    scales[g] = found.scale;
    errors[g] = found.error;
  }
}

import { seededUniform } from '../../compiler/ir/text-data.ts';
import { weightedMean } from './measurement.ts';

export interface Interval {
  readonly mean: number;
  /** Bounds that the mean is outside of in `share` of the resamples, on either side. */
  readonly low: number;
  readonly high: number;
}

const RESAMPLES = 2000;

/**
 * Paired bootstrap: the mean difference over windows and the interval that resampled windows give it (Efron 1979). Same seed,
 * same interval.
 * @param share of the resamples that may lie under the interval, and above it
 */
export function bootstrapMean(
  differences: readonly number[],
  weights: readonly number[],
  seed: number,
  share = 0.005,
): Interval {
  const next = seededUniform(seed);
  const count = differences.length;
  const means = Float64Array.from({ length: RESAMPLES }, () => {
    let sum = 0;
    let total = 0;
    for (let draw = 0; draw < count; draw++) {
      const i = Math.floor(next() * count);
      sum += differences[i]! * weights[i]!;
      total += weights[i]!;
    }
    return sum / total;
  }).sort();
  const at = (quantile: number): number => means[Math.min(RESAMPLES - 1, Math.floor(quantile * RESAMPLES))]!;
  return { mean: weightedMean(differences, weights), low: at(share), high: at(1 - share) };
}

/**
 * The deviation that a Student variable of `freedom` degrees exceeds with a chance of `tail`, one-sided. By bisection on the
 * distribution's tail, integrated by Simpson's rule over the substitution t = sqrt(n) tan(a), which makes it finite.
 */
export function studentQuantile(tail: number, freedom: number): number {
  // P(T > t) = c * integral of cos(a)^(n-1) from atan(t / sqrt(n)) to pi / 2
  const integral = (from: number, to: number): number => {
    const steps = 512;
    const width = (to - from) / steps;
    let sum = 0;
    for (let i = 0; i <= steps; i++) {
      const weight = i === 0 || i === steps ? 1 : i % 2 === 1 ? 4 : 2;
      sum += weight * Math.max(0, Math.cos(from + i * width)) ** (freedom - 1);
    }
    return (sum * width) / 3;
  };
  const whole = 2 * integral(0, Math.PI / 2);
  let low = 0;
  let high = Math.PI / 2;
  for (let i = 0; i < 60; i++) {
    const middle = (low + high) / 2;
    if (integral(middle, Math.PI / 2) / whole > tail) low = middle;
    else high = middle;
  }
  return Math.sqrt(freedom) * Math.tan(high);
}

/** Root mean square. */
export function rootMeanSquare(values: readonly number[]): number {
  return values.length === 0 ? 0 : Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);
}

/** Draws three of four windows, in order: another seed, another choice; seed 0 is all of them. */
export function drawWindows<T>(windows: readonly T[], seed: number): readonly T[] {
  if (seed === 0 || windows.length < 2) return windows;
  const next = seededUniform(seed);
  const order = windows.map((_, i) => ({ i, key: next() })).sort((a, b) => a.key - b.key || a.i - b.i);
  const kept = new Set(order.slice(0, Math.max(1, Math.ceil((3 * windows.length) / 4))).map(({ i }) => i));
  return windows.filter((_, i) => kept.has(i));
}

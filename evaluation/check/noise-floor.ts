import { rootMeanSquare } from './bootstrap.ts';
import { METRICS, type Measurement, type MetricKey, roleOf, weightedMean } from './measurement.ts';

/** How far figures move between draws of the calibration windows, with nothing else changed. */
export interface NoiseFloor {
  readonly draws: number;
  /** Root mean square of the movement of each metric's mean. */
  readonly metrics: Readonly<Partial<Record<MetricKey, number>>>;
  /** dB, by value; moderated by what the same value of other layers does. */
  readonly values: ReadonlyMap<string, number>;
  /** Movement of encodings' scales, as a natural logarithm: 0.1 is about 10 %. */
  readonly scale: number;
}

/** Smallest noises: figures are written with so many digits, and another engine adds in another order. */
export const LEAST_NOISE: Readonly<Record<MetricKey, number>> & { readonly value: number } = {
  divergence: 2e-5,
  agreement: 5e-4,
  loss: 2e-5,
  floatLoss: 2e-6,
  noise: 1e-9,
  value: 0.02,
};

/** The noise floor from a measurement on all calibration windows and others on draws of them. */
export function measureNoise(base: Measurement, draws: readonly Measurement[]): NoiseFloor {
  const metrics: Partial<Record<MetricKey, number>> = {};
  for (const { key } of METRICS) {
    const series = base.series[key];
    if (!series) continue;
    const mean = weightedMean(series, base.predictions);
    const moved = draws.map((draw) => weightedMean(draw.series[key]!, draw.predictions) - mean);
    metrics[key] = Math.max(LEAST_NOISE[key], rootMeanSquare(moved));
  }
  const moved = new Map(base.values.map(({ name }) => [name, [] as number[]]));
  const scales: number[] = [];
  for (const draw of draws) {
    const others = new Map(draw.values.map((value) => [value.name, value]));
    for (const { name, sqnr, encoding } of base.values) {
      const other = others.get(name);
      if (!other) continue;
      if (Number.isFinite(other.sqnr - sqnr)) moved.get(name)!.push(other.sqnr - sqnr);
      if (encoding && other.encoding) scales.push(Math.log(other.encoding.scale / encoding.scale));
    }
  }
  const roles = new Map<string, number[]>();
  for (const [name, steps] of moved) roles.set(roleOf(name), [...(roles.get(roleOf(name)) ?? []), ...steps]);
  const values = new Map(
    [...moved].map(([name, steps]) => {
      const [own, pooled] = [rootMeanSquare(steps), rootMeanSquare(roles.get(roleOf(name))!)];
      return [name, Math.max(LEAST_NOISE.value, Math.sqrt((own ** 2 + pooled ** 2) / 2))];
    }),
  );
  return { draws: draws.length, metrics, values, scale: rootMeanSquare(scales) };
}

import type { BuildView } from '../diff/build-view.ts';
import { METRICS, type Measurement, weightedMean } from './measurement.ts';

/** A measurement, or what a baseline keeps of one, as a side of a comparison. */
export function viewMeasurement(measurement: Measurement, title: string, kind: BuildView['kind']): BuildView {
  const { recipe, bytes, predictions, series } = measurement;
  return {
    title,
    kind,
    facts: [
      ['model', measurement.model.name],
      ['target', measurement.target],
      ...Object.entries(recipe).map(([key, value]): [string, string] => [
        key,
        typeof value === 'object' ? JSON.stringify(value) : String(value),
      ]),
      ['held-out text', `${measurement.text.tokens} tokens`],
      ['calibration windows', String(measurement.calibration.windows)],
      ['engine', measurement.engine],
      ['npuc', measurement.npuc],
    ],
    ops: new Map(),
    values: measurement.values.map(({ name, from, sqnr, noiseAdded, encoding }) => ({
      name,
      from,
      sqnr,
      ...(noiseAdded === undefined ? {} : { noiseAdded }),
      ...(encoding ? { encoding } : {}),
    })),
    weights: measurement.weights.map(({ name, form, scale }) => ({ name, form, scale })),
    files: Object.entries(bytes)
      .filter(([key]) => key !== 'cache_per_token')
      .map(([path, count]) => ({ path, bytes: count })),
    quality: METRICS.flatMap(({ key, title: name, better, show }) =>
      series[key]
        ? [
            {
              name,
              value: show(weightedMean(series[key], predictions)),
              // dB are shown of a noise: less noise is more of them.
              better: key === 'noise' ? ('higher' as const) : better,
            },
          ]
        : [],
    ),
  };
}

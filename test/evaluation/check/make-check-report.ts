import { makeRecipe } from '../../../calibration/recipe.ts';
import { type Baseline, parseBaseline, writeBaseline } from '../../../evaluation/check/baseline.ts';
import type { Budgets } from '../../../evaluation/check/budgets.ts';
import type { CheckReport } from '../../../evaluation/check/check-report.ts';
import { judge } from '../../../evaluation/check/judge.ts';
import type { MeasuredValue, Measurement } from '../../../evaluation/check/measurement.ts';
import { measureNoise } from '../../../evaluation/check/noise-floor.ts';

/** A name as hostile models have them. */
export const HOSTILE = 'layers.1.<b>x</b>|"\'&%,:\u0007';

function value(name: string, sqnr: number): MeasuredValue {
  return {
    name,
    from: [`model.${name}`],
    sqnr,
    cosine: 0.999,
    rms: 1,
    range: [-2, 3],
    noiseAdded: 10 ** (-sqnr / 10),
    encoding: { dtype: 'u16', scale: 0.0001, zero: 32768 },
  };
}

/** A measurement of a made-up decoder; `shift` moves its figures a little, as draws of the calibration do. */
export function makeMeasurement(
  shift = 0,
  change: (value: MeasuredValue) => MeasuredValue = (same) => same,
): Measurement {
  const windows = Array.from({ length: 8 }, (_, i) => i);
  const names = ['embedding', 'layers.0.q_proj', HOSTILE, 'layers.1.down_proj', 'logits'];
  return {
    kind: 'decoder',
    model: { name: 'made-up', digest: 'a'.repeat(64) },
    npuc: '0.1.0',
    engine: 'engine 1',
    target: 'onnx',
    recipe: makeRecipe('w8a16'),
    text: { digest: 'b'.repeat(64), windows: windows.length, tokens: 800 },
    calibration: { digest: 'c'.repeat(64), windows: 4 },
    bytes: { weights: 1000, embedding: 200, cache_per_token: 64 },
    predictions: windows.map(() => 100),
    series: {
      divergence: windows.map((i) => 0.01 + i * 1e-4 + shift * 1e-5),
      agreement: windows.map((i) => 0.95 - i * 1e-3 - shift * 1e-4),
      loss: windows.map((i) => 3 + i * 0.01 + shift * 1e-5),
      floatLoss: windows.map((i) => 2.99 + i * 0.01),
    },
    stages: [
      { name: 'apply-io-contract', sqnr: 128 },
      { name: 'lower for onnx', sqnr: Number.POSITIVE_INFINITY },
    ],
    values: names.map((name, i) => change(value(name, 40 - i + shift * 0.05))),
    weights: [{ name: 'model.layers.1.mlp.down_proj.weight', form: 'i8 per channel', scale: 0.01, digest: '01234567' }],
  };
}

/** Its baseline, as a file that was written and read. */
export function makeBaseline(budgets: Budgets = {}): Baseline {
  const base = makeMeasurement();
  const noise = measureNoise(
    base,
    [1, -1, 2, -2].map((shift) => makeMeasurement(shift)),
  );
  return parseBaseline(writeBaseline(base, noise, budgets), 'ci/quality one.yaml');
}

/** A report of a regression with a culprit and everything else that a report can have. */
export function makeCheckReport(): CheckReport {
  const measurement: Measurement = {
    ...makeMeasurement(0, (each) =>
      each.name === HOSTILE || each.name === 'layers.1.down_proj' ? { ...each, sqnr: each.sqnr - 12 } : each,
    ),
    series: { ...makeMeasurement().series, divergence: makeMeasurement().series.divergence!.map((each) => each * 3) },
  };
  const baseline = makeBaseline({ max_kl: 0.02 });
  return {
    measurement,
    baseline,
    judgement: judge(baseline, measurement, 0),
    culprit: {
      kind: 'recipe',
      what: 'range: "percentile"',
      why: 'the recipe says range: "percentile" where the baseline has "min-max"',
      names: ['range'],
      layers: [],
      from: [],
      recovered: 0.98,
      at: 'recipe.range',
    },
    trials: [
      { kind: 'pass', what: 'apply-io-contract', recovered: 0 },
      { kind: 'recipe', what: 'range: "percentile"', recovered: 0.98 },
    ],
    attribution: {
      total: 0.03,
      shares: [{ source: 'weights', alone: 0.01, without: 0.012 }],
      fixes: [{ recipe: 'kv: 16', gain: 0.004, bytes: 64, what: 'a key/value cache of 16 bits' }],
    },
    config: { path: 'npuc.config.yaml', lines: new Map([['range', 7]]) },
  };
}

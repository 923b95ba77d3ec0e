import { beforeAll, describe, expect, test } from 'vitest';
import { attributeError } from '../../../evaluation/check/attribute-error.ts';
import { type Baseline, parseBaseline, writeBaseline } from '../../../evaluation/check/baseline.ts';
import { decoderSubject } from '../../../evaluation/check/decoder-subject.ts';
import { findCulprit } from '../../../evaluation/check/find-culprit.ts';
import { type Judgement, judge } from '../../../evaluation/check/judge.ts';
import { DECODER_STEPS, type DecoderUnderCheck, measureDecoder } from '../../../evaluation/check/measure-decoder.ts';
import { measureNoise } from '../../../evaluation/check/noise-floor.ts';
import { demo } from '../../cli/run-npuc.ts';
import { type CheckedModel, FAULTS, openCheckedModel } from './seeded-faults.ts';

/** Another checkpoint by hand: NPUC_CHECK_MODEL=<path> npx vitest run test/evaluation/check/check-decoder.test.ts */
const { NPUC_CHECK_MODEL: other } = process.env;
/** Less than what `npuc check` takes by default, so that 20 reruns stay affordable. */
const CALIBRATION_WINDOWS = other ? 4 : 8;
const HELD_OUT_WINDOWS = other ? 3 : 6;
const DRAWS = [1, 2, 3, 4];
const HOUR = 3_600_000;
const SCHEME = 'w8a16';

let checked: CheckedModel;
let base: DecoderUnderCheck;
let baseline: Baseline;

beforeAll(
  async () => {
    checked = await openCheckedModel(other ?? demo, CALIBRATION_WINDOWS, HELD_OUT_WINDOWS);
    base = await measureDecoder(await checked.inputs({ scheme: SCHEME }));
    const draws = [];
    for (const seed of DRAWS)
      draws.push((await measureDecoder(await checked.inputs({ scheme: SCHEME, seed }))).measurement);
    const text = writeBaseline(base.measurement, measureNoise(base.measurement, draws), {});
    baseline = parseBaseline(text, 'quality.yaml');
  },
  other ? HOUR : 300_000,
);

/** How strong a regression is, in multiples of the noise floor of the figure that shows it most. */
function effectOf({ findings }: Judgement): number {
  const times = findings
    .filter(({ level }) => level === 'regression')
    .map(({ kind, now, before, timesNoise }) =>
      // Noise of a step that is exact up to the order of sums: its power over that of the baseline.
      kind === 'stage' ? 10 ** ((Math.min(before ?? 144, 144) - now) / 20) : timesNoise,
    );
  return Math.max(0, ...times.map((each) => each ?? 0));
}

describe('seeded regressions', () => {
  test.each(FAULTS)(
    '$name is caught, and the right part is named',
    async (fault) => {
      const { scheme, steps, tamper } = fault;
      let inputs = await checked.inputs({ scheme, steps });
      if (tamper) {
        const { config, weights } = tamper(checked.model);
        const statistics = await DECODER_STEPS.collect(config, weights, checked.windows);
        inputs = { ...inputs, weights, statistics };
      }
      const broken = await measureDecoder(inputs, steps);
      const judgement = judge(baseline, broken.measurement, 0);
      expect(judgement.failed).toBe(true);
      const effect = effectOf(judgement);
      console.log(`${fault.name}: ${effect.toFixed(1)} times the noise floor`);
      expect(effect).toBeGreaterThan(3);
      const { culprit } = await findCulprit(decoderSubject(broken), baseline, judgement);
      expect(culprit?.kind).toBe(fault.kind);
      expect(culprit!.names.some((name) => fault.names.test(name))).toBe(true);
      const all = Array.from({ length: checked.model.config.layers }, (_, layer) => layer);
      expect(culprit!.layers).toEqual(fault.layers === 'all' ? all : fault.layers);
      expect(culprit!.recovered).toBeGreaterThan(0.7);
    },
    180_000,
  );
});

test(
  '20 reruns with other draws of the calibration text, other seeds and other thread counts do not fire',
  async () => {
    const fired: string[] = [];
    for (let run = 0; run < 20; run++) {
      const inputs = await checked.inputs({
        scheme: SCHEME,
        seed: 100 + (run % 4),
        threads: 1 + (Math.floor(run / 4) % 4),
      });
      const { measurement } = await measureDecoder(inputs);
      const { failed, findings } = judge(baseline, measurement, run);
      if (failed) fired.push(`${run}: ${findings.map(({ message }) => message).join('; ')}`);
    }
    expect(fired).toEqual([]);
  },
  other ? 4 * HOUR : 1_200_000,
);

test.each([
  ['tflite', 'w8a16'],
  ['qnn', 'w8a8'],
  ['onnx', 'fp16'],
] as const)(
  'the graph of %s at %s is measured in its own contract',
  async (target, scheme) => {
    const inputs = await checked.inputs({ scheme, target });
    const { measurement } = await measureDecoder(inputs);
    const noise = measureNoise(measurement, [measurement, measurement]);
    const own = parseBaseline(writeBaseline(measurement, noise, {}), 'own.yaml');
    expect(judge(own, measurement, 0).failed).toBe(false);
    for (const { sqnr } of measurement.stages) expect(sqnr).toBeGreaterThan(100);
    expect(measurement.series.divergence!.every((each) => each < 0.1)).toBe(true);
    // Two bytes a weight, or about one.
    expect(measurement.bytes.weights! / 2_361_600).toBeCloseTo(scheme === 'fp16' ? 2 : 1, 0);
    if (scheme === 'fp16') expect(measurement.values).toEqual([]);
    else expect(measurement.values.length).toBeGreaterThan(100);
  },
  180_000,
);

test('the same inputs give the same file', async () => {
  const again = await measureDecoder(await checked.inputs({ scheme: SCHEME }));
  const { noise } = baseline;
  expect(writeBaseline(again.measurement, noise, {})).toBe(writeBaseline(base.measurement, noise, {}));
});

test('the error of 4-bit weights is that of their rounding, and a fix is no guess', async () => {
  const { total, shares, fixes } = await attributeError(
    await measureDecoder(await checked.inputs({ scheme: 'w4a16' })),
  );
  const of = (source: string): number => shares.find((share) => share.source === source)!.alone;
  expect(of('weights')).toBeGreaterThan(0.8 * total);
  expect(of('cache')).toBeLessThan(0.2 * total);
  expect(of('lowering')).toBeLessThan(1e-6);
  for (const { gain, bytes } of fixes) {
    expect(gain).toBeGreaterThanOrEqual(0.1 * total);
    expect(bytes).toBeGreaterThan(0);
  }
  expect(fixes.map(({ bytes }) => bytes)).toEqual(fixes.map(({ bytes }) => bytes).sort((a, b) => a - b));
  expect(fixes.some(({ recipe }) => recipe === 'scheme: w8a16')).toBe(true);
}, 180_000);

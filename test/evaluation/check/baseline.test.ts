import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { parseBaseline, readBaseline, writeBaseline } from '../../../evaluation/check/baseline.ts';
import { bootstrapMean, drawWindows, studentQuantile } from '../../../evaluation/check/bootstrap.ts';
import { judge, requireNumbers } from '../../../evaluation/check/judge.ts';
import type { Measurement } from '../../../evaluation/check/measurement.ts';
import { measureNoise } from '../../../evaluation/check/noise-floor.ts';
import { makeBaseline, makeMeasurement } from './make-check-report.ts';

const draws = [1, -1, 2, -2].map((shift) => makeMeasurement(shift));
const text = writeBaseline(makeMeasurement(), measureNoise(makeMeasurement(), draws), { max_kl: 0.02 });

test('a baseline is written in a stable order and read back as it is', () => {
  const read = parseBaseline(text, 'q.yaml');
  expect(writeBaseline(read.measurement, read.noise, read.budgets)).toBe(text);
  expect(read.budgets).toEqual({ max_kl: 0.02 });
  expect(text.split('\n')[read.lines.get('values.layers.0.q_proj')! - 1]).toMatch(/^ {2}layers\.0\.q_proj: /);
  expect(text.split('\n')[read.lines.get('metrics.kl')! - 1]).toMatch(/^ {2}kl: /);
});

test.each([
  ['text that is no YAML', '{', /CK002|q\.yaml/, 'CK002'],
  ['a list', '- 1', /holds no baseline/, 'CK002'],
  ['another format', text.replace('format: 1', 'format: 2'), /has format 2, this npuc reads 1/, 'CK003'],
  ['no format', text.replace('format: 1\n', ''), /has format undefined/, 'CK003'],
  ['NaN in a metric', text.replace(/(kl: \{ value: )[\d.e-]+/, '$1.nan'), /metrics\.kl\.value is NaN/, 'CK002'],
  ['NaN in a value', text.replace(/sqnr: 40\.00/, 'sqnr: .nan'), /values\.embedding\.sqnr is NaN/, 'CK002'],
  ['NaN in a window', text.replace(/ {2}kl: \[[^,]+/, '  kl: [.nan'), /windows\.kl\.0 is NaN/, 'CK002'],
  ['a metric that is missing', text.replace(/ {2}kl: \{.*\n/, ''), /the metric kl is missing/, 'CK002'],
  ['windows that are missing', text.replace(/ {2}top1: \[.*\n/, ''), /the metric top1 is missing/, 'CK002'],
  ['no values', text.slice(0, text.indexOf('values:')), /values is missing/, 'CK002'],
  ['series of two lengths', text.replace(/( {2}kl: \[)[^,]+, /, '$1'), /do not have one length/, 'CK002'],
  ['a budget that there is not', text.replace('"max_kl"', '"max_kI"'), /budgets has no max_kI/, 'CK002'],
])('%s is refused', (_, bad, message, code) => {
  expect(bad).not.toBe(text);
  let error: unknown;
  try {
    parseBaseline(bad, 'q.yaml');
  } catch (caught) {
    error = caught;
  }
  expect(error).toMatchObject({ code, where: 'q.yaml', exitCode: 2, message: expect.stringMatching(message) });
});

test('a baseline that is not there says how to make one', () => {
  expect(() => readBaseline('/nowhere/q.yaml')).toThrow(
    expect.objectContaining({ code: 'CK001', hint: expect.stringContaining('--update') }),
  );
  const folder = mkdtempSync(join(tmpdir(), 'npuc-baseline-'));
  try {
    writeFileSync(join(folder, 'q.yaml'), text);
    expect(readBaseline(join(folder, 'q.yaml')).measurement.model.name).toBe('made-up');
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test.each([
  ['model', { model: { name: 'another', digest: 'e'.repeat(64) } }],
  ['target', { target: 'tflite' as const }],
  ['held-out text', { text: { digest: 'f'.repeat(64), windows: 8, tokens: 800 } }],
  ['length of held-out text', { predictions: [100, 100] }],
])('the baseline of another %s is refused', (what, change: Partial<Measurement>) => {
  expect(() => judge(makeBaseline(), { ...makeMeasurement(), ...change }, 0)).toThrow(
    expect.objectContaining({ code: 'CK003', message: expect.stringContaining(`is of another ${what}`) }),
  );
});

test('a figure that is no number is an error, never a pass', () => {
  const bad = makeMeasurement(0, (value) => (value.name === 'logits' ? { ...value, sqnr: Number.NaN } : value));
  expect(() => judge(makeBaseline(), bad, 0)).toThrow(
    expect.objectContaining({ code: 'CK004', exitCode: 1, where: 'model.logits' }),
  );
  expect(() => requireNumbers(bad, 2)).toThrow(expect.objectContaining({ code: 'CK004', exitCode: 2 }));
});

test('a difference inside the noise is no failure, and is counted', () => {
  const judgement = judge(makeBaseline(), makeMeasurement(1.5), 0);
  expect(judgement.failed).toBe(false);
  expect(judgement.insideNoise).toBe(5);
  expect(judgement.metrics.map(({ verdict }) => verdict)).toEqual(judgement.metrics.map(() => 'inside the noise'));
});

test('a better figure is an improvement, not a failure', () => {
  const now = makeMeasurement(0, (value) => ({ ...value, sqnr: value.sqnr + 20 }));
  const { failed, findings } = judge(makeBaseline(), now, 0);
  expect(failed).toBe(false);
  expect(findings.filter(({ level }) => level === 'improvement')).toHaveLength(5);
});

test('a value that looks as good only because it grew is said to', () => {
  const now = makeMeasurement(0, (value) => (value.name === 'layers.1.down_proj' ? { ...value, rms: 10 } : value));
  const { failed, findings } = judge(makeBaseline(), now, 0);
  expect(failed).toBe(false);
  expect(findings).toEqual([
    expect.objectContaining({
      kind: 'scale',
      level: 'note',
      subject: 'layers.1.down_proj',
      message: expect.stringContaining('it grew 10.00 times: its noise is 20.0 dB larger'),
    }),
  ]);
});

test('a step that changes the float model fails, whatever the noise', () => {
  const stages = [{ name: 'apply-io-contract', sqnr: 78 }];
  const { failed, findings } = judge(makeBaseline(), { ...makeMeasurement(), stages }, 0);
  expect(failed).toBe(true);
  expect(findings[0]!.message).toContain('"apply-io-contract" changes what the float model computes: 78.0 dB');
});

test('budgets come on top, by regular expression of values too', () => {
  const budgets = { max_kl: 0.005, max_bytes: 1000, values: [{ match: 'down_proj$', min_sqnr: 38 }] };
  const { failed, findings } = judge(makeBaseline(budgets), makeMeasurement(), 0);
  expect(failed).toBe(true);
  expect(findings.map(({ subject }) => subject)).toEqual(['max_kl', 'max_bytes', 'layers.1.down_proj']);
  expect(() => judge(makeBaseline({ values: [{ match: '(', min_sqnr: 1 }] }), makeMeasurement(), 0)).toThrow(
    expect.objectContaining({ code: 'QT102' }),
  );
});

test('the bootstrap is the same for the same seed, and as wide as the windows differ', () => {
  const weights = [1, 1, 1, 1, 1, 1];
  const same = bootstrapMean([1, 2, 3, 4, 5, 6], weights, 3);
  expect(bootstrapMean([1, 2, 3, 4, 5, 6], weights, 3)).toEqual(same);
  expect(bootstrapMean([1, 2, 3, 4, 5, 6], weights, 4)).not.toEqual(same);
  expect(same.mean).toBe(3.5);
  expect(same.low).toBeLessThan(2.5);
  expect(same.high).toBeGreaterThan(4.5);
  expect(bootstrapMean([2, 2, 2], [1, 2, 3], 0)).toEqual({ mean: 2, low: 2, high: 2 });
});

test("quantiles of Student's distribution are those of the tables", () => {
  expect(studentQuantile(0.05, 4)).toBeCloseTo(2.132, 3);
  expect(studentQuantile(0.005, 4)).toBeCloseTo(4.604, 3);
  expect(studentQuantile(0.025, 1)).toBeCloseTo(12.706, 2);
  expect(studentQuantile(0.01, 30)).toBeCloseTo(2.457, 3);
});

test('a draw takes three of four windows in order, another seed others, seed 0 all', () => {
  const windows = Array.from({ length: 12 }, (_, i) => i);
  expect(drawWindows(windows, 0)).toEqual(windows);
  const drawn = drawWindows(windows, 1);
  expect(drawn).toHaveLength(9);
  expect([...drawn].sort((a, b) => a - b)).toEqual(drawn);
  expect(drawWindows(windows, 1)).toEqual(drawn);
  expect(drawWindows(windows, 2)).not.toEqual(drawn);
});

import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { BudgetReport } from '../../cli/jobs/meet-budget.ts';
import type { Report } from '../../evaluation/report.ts';
import { describeFile, type Manifest } from '../../targets/manifest.ts';
import { packCompressed, packModel } from '../compiler/import/quantized/pack-checkpoint.ts';
import { demo, runNpuc } from './run-npuc.ts';

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-budget-'));
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

const compile = (out: string, source: string, ...flags: string[]) => {
  const shape = ['--tokens', '16', '--cache', '64', '--eval-tokens', '512', '--calibration-windows', '4', '--quiet'];
  return runNpuc(['compile', source, '--out', join(work, out), '--target', 'onnx', ...shape, ...flags]);
};
const read = <T>(out: string, file: string): T => JSON.parse(readFileSync(join(work, out, file), 'utf8')) as T;
const divergence = (out: string): number => read<Report>(out, 'report.json').targets.onnx!.logits!.divergence;

test('bytes within the budget, spent where they buy the most, and the curve of it', async () => {
  for (const [out, ...flags] of [
    ['plain'],
    ['some', '--budget', 'weights<=2.7MB'],
    ['all', '--budget', 'weights<=1GB'],
  ]) {
    const { code, stderr } = await compile(out!, demo, ...flags);
    expect([code, stderr]).toEqual([0, '']);
  }
  const report = read<{ targets: { onnx: BudgetReport } }>('some', 'budget.json').targets.onnx;
  expect(report.chosen).toBeLessThanOrEqual(2.7e6);
  expect(report.chosen).toBeGreaterThan(2.6e6);
  const curve = report.curve;
  expect(curve.length).toBe(16);
  const promoted = curve.filter((each) => each.promoted);
  expect(report.chosen).toBe(promoted.reduce((sum, { cost }) => sum + cost, report.smallest));
  // The file grew by what was said: scales and zero points of the emitted graphs beside it.
  const grown =
    statSync(join(work, 'some/onnx/weights.data')).size - statSync(join(work, 'plain/onnx/weights.data')).size;
  expect(Math.abs(grown - (report.chosen - report.smallest))).toBeLessThan(0.03e6);
  expect(divergence('some')).toBeLessThan(divergence('plain'));
  expect(divergence('all')).toBeLessThan(0.5 * divergence('some'));
  const manifest = read<Manifest>('some', 'manifest.json');
  expect(manifest.files).toContainEqual(describeFile(join(work, 'some'), 'budget.json'));
  const { remarks, command } = read<Report>('some', 'report.json');
  expect(remarks.join('\n')).toMatch(
    /budget 2\.70 MB: \d+ of 16 groups of weights have 8 bits, 2\.\d\d MB instead of 2\.\d\d MB;/,
  );
  expect(command).toContain("--budget 'weights<=2700000'");
  const [first] = promoted;
  const explained = await runNpuc(['explain', join(work, 'some'), first!.weights[0]!]);
  expect(explained.stdout).toMatch(
    /why {8}budget: 8 bits for layers\.\d \S+ cost 0\.\d{3} MB; at 4 bits alone it has KL 0\.\d+\n/,
  );
}, 300_000);

test.each<[string, string[], RegExp]>([
  [
    'an impossible one',
    ['--budget', 'weights<=1MB'],
    /^QT140 the weights take at least \d{7} bytes .*\n {2}hint: --budget "weights<=2\.\d\dMB" is the smallest/,
  ],
  ['one that is none', ['--budget', 'speed>=3'], /^CL002 --weight-budget takes a limit such as "weights<=90MB"/],
  [
    'a scheme without 4 bits',
    ['--budget', 'weights<=9MB', '--scheme', 'w8a8'],
    /^CL001 --budget gives 4-bit weights more bits/,
  ],
])('%s is refused before any work', async (_, flags, message) => {
  const { code, stderr } = await compile('refused', demo, ...flags);
  expect([code, stderr]).toEqual([2, expect.stringMatching(message)]);
  expect(existsSync(join(work, 'refused'))).toBe(false);
});

test("a checkpoint's own integers are not changed for a budget", async () => {
  const folder = join(work, 'packed');
  const quantization = { quant_method: 'compressed-tensors', format: 'pack-quantized' };
  await packModel(folder, demo, { quantization, pack: packCompressed, options: { bits: 4 } });
  const { code, stderr } = await compile('refused', folder, '--budget', 'weights<=9MB');
  expect([code, stderr]).toEqual([
    2,
    expect.stringMatching(/^CL001 --budget would change the checkpoint's own integers/),
  ]);
});

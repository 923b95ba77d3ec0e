import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Report } from '../../evaluation/report.ts';
import type { Manifest } from '../../targets/manifest.ts';
import { findToolchain } from '../../targets/qnn/toolchain.ts';
import { runNpuc } from '../cli/run-npuc.ts';
import { hasSmolLM2, smolLM2Path } from '../smollm2.ts';

const toolchain = findToolchain('qnn');
if (!toolchain) {
  if (process.env.CI) throw new Error('the QNN toolchain is absent: in CI that is a failure');
  console.warn('SKIPPED: the QNN toolchain is absent, HTP binaries of SmolLM2 are not compiled');
}
const qnn = toolchain ? ',qnn' : '';
const MINUTE = 60_000;

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-smollm2-'));
});
afterAll(() => {
  rmSync(work, { recursive: true, force: true });
});

const read = <T>(name: string, file: string): T => JSON.parse(readFileSync(join(work, name, file), 'utf8')) as T;

/** Compiles as the issue asks, 128 tokens and a cache of 1,024 for SM8750, and prints what each stage took. */
async function compile(scheme: string, targets: string): Promise<Report> {
  const outcome = await runNpuc([
    'compile',
    smolLM2Path(),
    '--soc',
    'SM8750',
    '--scheme',
    scheme,
    '--tokens',
    '128',
    '--cache',
    '1024',
    '--kv',
    '16',
    '--target',
    targets,
    '--calibration-windows',
    '16',
    '--eval-tokens',
    '256',
    '--prompt',
    'The capital of France is',
    '--out',
    join(work, scheme),
    '--quiet',
  ]);
  expect(outcome.code, outcome.stderr).toBe(0);
  const stages = read<{ name: string; seconds: number; peakRssBytes: number }[]>(scheme, 'timings.json');
  const peak = Math.max(...stages.map((stage) => stage.peakRssBytes));
  console.log(
    `${scheme}: ${stages.map(({ name, seconds }) => `${name} ${seconds.toFixed(0)} s`).join(', ')}; peak ${(peak / 1e9).toFixed(1)} GB`,
  );
  const report = read<Report>(scheme, 'report.json');
  for (const [name, target] of Object.entries(report.targets)) {
    console.log(
      `${scheme} ${name}: ${JSON.stringify(target.logits ?? target.chunk)} twin ${target.twinSqnr?.toFixed(1)} dB`,
    );
  }
  return report;
}

/** The greedy continuation of the raw prompt, 8 tokens. */
async function continuation(scheme: string, target: string): Promise<string> {
  const args = [
    'generate',
    join(work, scheme),
    '--target',
    target,
    '--prompt',
    'The capital of France is',
    '-n',
    '8',
    '--json',
  ];
  const outcome = await runNpuc(args);
  expect(outcome.code, outcome.stderr).toBe(0);
  return (JSON.parse(outcome.stdout) as { text: string }).text;
}

/** The simulator and ONNX Runtime choose the same tokens, and their logits are nearer to each other than either's to float. */
function expectAgreement(report: Report): void {
  const { twinSqnr, twinAgreement } = report.targets.qnn!;
  expect(twinSqnr).toBeGreaterThan(45);
  expect(twinAgreement).toBeGreaterThan(0.97);
}

describe.skipIf(!hasSmolLM2)('SmolLM2-135M for SM8750', () => {
  test('w8a16: every target, the HTP binary whole, " Paris" from LiteRT', { timeout: 20 * MINUTE }, async () => {
    const report = await compile('w8a16', `onnx,tflite${qnn}`);
    expect(report.targets.onnx!.logits!.ratio).toBeLessThan(1.02);
    expect(report.targets.onnx!.logits!.divergence).toBeLessThan(0.006);
    expect(report.targets.tflite!.logits!.ratio).toBeLessThan(1.05);
    expect(await continuation('w8a16', 'tflite')).toContain(' Paris');
    if (!toolchain) return;
    const manifest = read<Manifest>('w8a16', 'manifest.json');
    expect(manifest.recipe).toMatchObject({ rotation: 'hadamard', outliers: 'apart' });
    expect(manifest.targets.qnn).toMatchObject({
      execution: 'executed-as-twin',
      facts: { soc: 69, shared: true, graphs: 2 },
    });
    expectAgreement(report);
  });

  test('w4a16 LPBQ 64: " Paris" from the QDQ models, the simulator agrees', { timeout: 20 * MINUTE }, async () => {
    const report = await compile('w4a16', `onnx${qnn}`);
    expect(report.targets.onnx!.logits!.ratio).toBeLessThan(1.2);
    expect(report.targets.onnx!.logits!.divergence).toBeLessThan(0.13);
    expect(await continuation('w4a16', 'onnx')).toContain(' Paris');
    if (!toolchain) return;
    expectAgreement(report);
  });

  test('w8a8 compiles and runs; its figures are reported as they are', { timeout: 15 * MINUTE }, async () => {
    const report = await compile('w8a8', 'onnx,tflite');
    expect(report.targets.onnx!.logits!.predictions).toBeGreaterThan(200);
    expect(Number.isFinite(report.targets.tflite!.logits!.ratio)).toBe(true);
  });
});

import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Report } from '../../evaluation/report.ts';
import type { Manifest } from '../../targets/manifest.ts';
import { noise, writeModel } from '../targets/qnn/tiny-onnx.ts';
import { demo, runNpuc } from './run-npuc.ts';

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-effort-'));
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

const compile = (out: string, ...flags: string[]) => {
  const shape = ['--tokens', '16', '--cache', '64', '--eval-tokens', '512', '--quiet'];
  return runNpuc(['compile', demo, '--target', 'onnx', '--out', join(work, out), ...shape, ...flags]);
};
const read = <T>(out: string, file: string): T => JSON.parse(readFileSync(join(work, out, file), 'utf8')) as T;

test('more effort is closer to the float model; best says what it chose from', async () => {
  const divergence: Record<string, number> = {};
  for (const effort of ['fast', 'default', 'best']) {
    const { code, stderr } = await compile(effort, '--effort', effort, '--calibration-windows', '8');
    expect([code, stderr]).toEqual([0, '']);
    divergence[effort] = read<Report>(effort, 'report.json').targets.onnx!.logits!.divergence;
  }
  expect(divergence.default).toBeLessThan(0.8 * divergence.fast!);
  // It measured on other text than this: it may be unlucky, but not by much.
  expect(divergence.best).toBeLessThan(1.1 * divergence.default!);
  expect(read<Manifest>('fast', 'manifest.json').recipe).toMatchObject({ rounding: 'nearest', rotation: 'none' });
  const { remarks, command } = read<Report>('best', 'report.json');
  const [choice] = remarks;
  const tried = [...choice!.matchAll(/(\d\.\d{4}) with rotation (\w+), migration (\w+)/g)].map(([, kl]) => Number(kl));
  expect(choice).toMatch(/^effort best: KL .* on 4 held-out windows of calibration text; against /);
  expect(tried.length).toBeGreaterThan(2);
  expect(tried).toEqual([...tried].sort((a, b) => a - b));
  expect(command).toContain('--effort best');
}, 300_000);

test('best needs text to hold out, and a language model', async () => {
  const short = join(work, 'short.txt');
  writeFileSync(short, `${'Once upon a time there was a girl. '.repeat(40)}`);
  const { code, stderr } = await compile('short', '--effort', 'best', '--calibrate', short);
  expect(code).toBe(2);
  expect(stderr).toMatch(/^QT110 the calibration text is one window of 256 tokens: --effort best holds some of it out/);
  expect(existsSync(join(work, 'short'))).toBe(false);
  const model = writeModel(join(work, 'm.onnx'), {
    inputs: [{ name: 'x', dtype: 'f32', shape: [1, 4] }],
    outputs: [{ name: 'y', dtype: 'f32', shape: [1, 4] }],
    nodes: [{ op: 'MatMul', name: 'only', inputs: ['x', 'w'], outputs: ['y'] }],
    weights: [{ name: 'w', dtype: 'f32', shape: [4, 4], data: noise(16, 1) }],
  });
  const refused = await runNpuc(['compile', model, '--effort', 'fast', '--out', join(work, 'onnx'), '--quiet']);
  expect([refused.code, refused.stderr]).toEqual([2, expect.stringMatching(/^CL001 --effort fast is for checkpoints/)]);
});

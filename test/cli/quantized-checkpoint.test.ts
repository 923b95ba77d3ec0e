import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Manifest } from '../../targets/manifest.ts';
import { packCompressed, packGptq, packModel } from '../compiler/import/quantized/pack-checkpoint.ts';
import { demo, quick, runNpuc } from './run-npuc.ts';

let work: string;
beforeAll(async () => {
  work = mkdtempSync(join(tmpdir(), 'npuc-quantized-'));
  const group = { quant_method: 'gptq', bits: 4, group_size: 64, sym: true, desc_act: false };
  await packModel(join(work, 'groups'), demo, {
    quantization: group,
    pack: packGptq,
    options: { bits: 4, group: 64 },
  });
  await packModel(join(work, 'channels'), demo, {
    quantization: { quant_method: 'compressed-tensors', format: 'pack-quantized' },
    pack: packCompressed,
    options: { bits: 8 },
  });
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

const compile = (source: string, target: string, out: string, ...more: string[]) =>
  runNpuc(['compile', join(work, source), '--target', target, '--out', join(work, out), ...quick, ...more]);

test('a quantized checkpoint is compiled as it is, and as a checkpoint is what it was', async () => {
  const outcome = await compile('groups', 'onnx,hf', 'a', '--json');
  expect([outcome.code, outcome.stderr]).toEqual([0, '']);
  const { manifest, report } = JSON.parse(outcome.stdout) as {
    manifest: Manifest;
    report: { targets: Record<string, { logits: { ratio: number; divergence: number } }>; remarks: string[] };
  };
  expect(manifest.recipe.rotation).toBe('none');
  expect(report.remarks.join('\n')).toMatch(
    /28 of 29 weights are the checkpoint's own integers \(gptq, 4 bits, groups of 64/,
  );
  // Head and embedding alone were rounded here: to 8 bits.
  expect(report.targets.hf!.logits.divergence).toBeLessThan(0.002);
}, 60_000);

test('groups go to LiteRT as they are where activations stay floats', async () => {
  const outcome = await compile('groups', 'tflite', 'd', '--scheme', 'dynamic-int4', '--json');
  expect([outcome.code, outcome.stderr]).toEqual([0, '']);
  const { report } = JSON.parse(outcome.stdout) as {
    report: { targets: Record<string, { logits: { divergence: number } }>; remarks: string[] };
  };
  expect(report.remarks.join('\n')).toMatch(/28 of 29 weights are the checkpoint's own integers/);
  // The kernels quantize each row of the activations to 8 bits while they run: that alone is lost.
  expect(report.targets.tflite!.logits.divergence).toBeLessThan(0.01);
}, 60_000);

test('bytes per channel go to LiteRT as they are', async () => {
  const outcome = await compile('channels', 'tflite', 'b', '--scheme', 'w8a16');
  expect([outcome.code, outcome.stderr]).toEqual([0, '']);
  expect(outcome.stdout).toMatch(/28 of 29 weights are the checkpoint's own integers/);
}, 60_000);

test.each<[string, string[], RegExp]>([
  [
    'groups',
    ['tflite'],
    /^QT133 the target \(litert\) cannot hold 28 of 28 .*\n {2}at model\.layers.*\n {2}hint: .*--requantize/,
  ],
  ['groups', ['onnx', '--rotation', 'hadamard'], /^CL001 --rotation hadamard would change the quantized weights/],
  ['other', ['onnx'], /^IM405 the quantized weights cannot be taken over: it is quantized by bitsandbytes/],
])(
  '%s %o is refused, and nothing is written',
  async (source, [target, ...more], message) => {
    if (source === 'other') {
      const config = JSON.parse(readFileSync(join(demo, 'config.json'), 'utf8')) as object;
      rmSync(join(work, 'other'), { recursive: true, force: true });
      await packModel(join(work, 'other'), demo, { quantization: {}, pack: packGptq, options: { bits: 4 } });
      const quantization_config = { quant_method: 'bitsandbytes' };
      writeFileSync(join(work, 'other/config.json'), JSON.stringify({ ...config, quantization_config }));
    }
    const outcome = await compile(source, target!, 'refused', ...more);
    expect(outcome.code).toBe(2);
    expect(outcome.stderr).toMatch(message);
    expect(existsSync(join(work, 'refused'))).toBe(false);
  },
  60_000,
);

test('what does not fit is rounded again where that is asked for, and the loss is said', async () => {
  const outcome = await compile('groups', 'tflite', 'c', '--requantize', '--scheme', 'w8a16');
  expect([outcome.code, outcome.stderr]).toEqual([0, '']);
  expect(outcome.stdout.replaceAll(/\s+/g, ' ')).toMatch(
    /28 quantized weights of the checkpoint were rounded again .*: \d\d\.\d dB/,
  );
  expect(JSON.parse(readFileSync(join(work, 'c/report.json'), 'utf8')).command).toContain('--requantize');
}, 60_000);

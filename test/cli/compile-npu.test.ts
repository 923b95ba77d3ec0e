import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Report } from '../../evaluation/report.ts';
import type { Manifest } from '../../targets/manifest.ts';
import { hasPlugins } from '../targets/tflite/npu/litert-or-skip.ts';
import { demo, quick, runNpuc } from './run-npuc.ts';

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-cli-npu-'));
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

const compile = (out: string, ...flags: string[]) =>
  runNpuc(['compile', demo, '--target', 'tflite', ...quick, '--out', out, ...flags]);

test.each([
  ['a vendor without a plugin', ['--npu', 'qualcom'], 'CL001', /did you mean qualcomm\?/],
  ['a SoC that the plugin does not know', ['--npu', 'openvino:XYZ'], 'TG001', /LNL, PTL/],
  ['flags about nothing', ['--npu-claims'], 'CL001', /which is not given/],
  ['graphs that no plugin takes', ['--npu', 'openvino', '--profile', 'litert-lm'], 'CL001', /--profile npu/],
  ['a scheme without 16-bit activations', ['--profile', 'mediatek', '--scheme', 'w8a8'], 'CL001', /w8a16/],
])('%s', async (_, flags, code, hint) => {
  const out = join(work, 'bad');
  const { code: exit, stderr } = await compile(out, ...flags);
  expect(exit).toBe(2);
  expect(stderr).toMatch(new RegExp(`^${code} `));
  expect(stderr).toMatch(hint);
  expect(existsSync(out)).toBe(false);
});

test('without the toolchain nothing is begun', async () => {
  const { code, stderr } = await runNpuc(
    ['compile', demo, '--target', 'tflite', '--npu', 'openvino', '--out', join(work, 'none')],
    { env: { NPUC_CACHE: join(work, 'cache') } },
  );
  expect(code).toBe(2);
  expect(stderr).toMatch(/^QN00[12] /);
  if (process.platform === 'linux') expect(stderr).toMatch(/npuc toolchain install litert/);
});

describe.skipIf(!hasPlugins)('with the plugins', () => {
  test("a vendor's compiler that nobody may download is named before any work", async () => {
    for (const [vendor, library] of [
      ['mediatek', 'libneuron_adapter.so'],
      ['samsung', 'libgraph_wrapper.so'],
    ] as const) {
      const { code, stderr } = await compile(join(work, 'bad'), '--npu', vendor);
      expect(code).toBe(2);
      expect(stderr).toMatch(new RegExp(`^TF303 .*${library}`));
      expect(stderr).toMatch(/--npu-claims/);
    }
  });

  test('doctor compiles one operator with each plugin', async () => {
    const { stdout } = await runNpuc(['doctor']);
    const [, openvino, qualcomm] = /litert .*openvino ([\d.]+) dB, qualcomm ([\d.]+) dB from LiteRT/.exec(stdout) ?? [];
    expect(Number(openvino)).toBeGreaterThan(40);
    expect(Number(qualcomm)).toBeGreaterThan(60);
  }, 30_000);

  test('compiles, runs, reports, inspects; the command in the report asks for the same', async () => {
    const out = join(work, 'good');
    const { code, stdout } = await compile(out, '--scheme', 'w8a16', '--npu', 'qualcomm:SM8650');
    expect(code).toBe(0);
    expect(stdout).toMatch(/qualcomm SM8650: prefill_16 \d+ of \d+ operators in 1 partition; decode/);
    const manifest = JSON.parse(readFileSync(join(out, 'manifest.json'), 'utf8')) as Manifest;
    expect(manifest.targets.tflite!.npu).toMatchObject([
      { vendor: 'qualcomm', soc: 'SM8650', execution: 'executed', file: 'tflite/model.qualcomm-sm8650.tflite' },
    ]);
    expect(manifest.toolchain).toMatchObject({ litert: '2.3.0', qairt: expect.any(String) });
    expect(manifest.files.map(({ path }) => path)).toContain('tflite/model.qualcomm-sm8650.tflite');
    const report = JSON.parse(readFileSync(join(out, 'report.json'), 'utf8')) as Report;
    expect(report.command).toContain('--npu qualcomm:SM8650');
    expect(readFileSync(join(out, 'report.html'), 'utf8')).toMatch(/qualcomm SM8650 in qnn .* htp simulator/);
    // What goes to the phone is the plain file or the compiled one, never both.
    const plain = manifest.files.find(({ path }) => path === 'tflite/model.tflite')!;
    const table = manifest.files.find(({ path }) => path === 'tflite/embedding.bin')!;
    expect(report.targets.tflite!.bytes).toBe(plain.bytes + table.bytes);
    const folder = await runNpuc(['inspect', out]);
    expect(folder.stdout).toMatch(/qualcomm SM8650: prefill_16/);
    const file = await runNpuc(['inspect', join(out, 'tflite/model.qualcomm-sm8650.tflite')]);
    expect(file.stdout).toMatch(/compiled decode\n {4}qnn_partition_1 .* of byte code at \d+/);
  }, 60_000);
});

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { readReport } from '../../evaluation/write-report.ts';
import { readManifest } from '../../targets/manifest.ts';
import { demo, runNpuc } from './run-npuc.ts';

let work: string;
let folder: string;
beforeAll(async () => {
  work = mkdtempSync(join(tmpdir(), 'npuc-cli-caches-'));
  folder = join(work, 'build');
  const sizes = ['--tokens', '16', '--cache', '96,32', '--calibration-windows', '2', '--eval-tokens', '96'];
  const args = ['--target', 'onnx,tflite', '--scheme', 'w8a16', ...sizes, '--prompt', 'It was', '--out', folder];
  const { code, stderr, stdout } = await runNpuc(['compile', demo, ...args, '--quiet']);
  expect(stderr).toBe('');
  expect(code).toBe(0);
  expect(stdout).toMatch(/16 tokens, cache 32, 96\n/);
  expect(stdout.replaceAll(/\s+/g, ' ')).toMatch(
    /onnx: the graphs of smaller caches agree with .* largest: 32 exactly/,
  );
}, 120_000);
afterAll(() => rmSync(work, { recursive: true, force: true }));

interface Generated {
  readonly cache: number;
  readonly ids: readonly number[];
}

const prompt = 'It was a fine day, and the';

async function generate(...args: string[]): Promise<Generated> {
  const { code, stdout, stderr } = await runNpuc(['generate', folder, '-p', prompt, '--json', ...args]);
  expect(code, stderr).toBe(0);
  return JSON.parse(stdout) as Generated;
}

test('the manifest lists every graph with its cache, the report a check of the smaller one', async () => {
  const { shapes, targets } = readManifest(folder);
  expect(shapes).toEqual({ tokens: [16], cache: [32, 96] });
  expect(targets.onnx!.graphs.map(({ name, tokens, cache }) => [name, tokens, cache])).toEqual([
    ['prefill_16_c32', 16, 32],
    ['decode_c32', 1, 32],
    ['prefill_16_c96', 16, 96],
    ['decode_c96', 1, 96],
  ]);
  expect(targets.onnx!.protocol.cache).toBe(96);
  const report = readReport(folder);
  expect(report.caches).toEqual([32, 96]);
  expect(report.targets.onnx!.caches).toEqual([{ cache: 32, sqnr: Number.POSITIVE_INFINITY, topAgreement: 1 }]);
  const [check] = report.targets.tflite!.caches!;
  expect(check).toMatchObject({ cache: 32, topAgreement: 1 });
  expect(check!.sqnr).toBeGreaterThan(50);
});

test.each(['onnx', 'tflite'])('%s writes the same with all caches and with the largest only', async (target) => {
  const moving = await generate('--target', target, '-n', '80');
  const pinned = await generate('--target', target, '-n', '80', '--cache', '96');
  expect(moving.ids).toEqual(pinned.ids);
  expect([moving.cache, pinned.cache]).toEqual([96, 96]);
  const short = await generate('--target', target, '-n', '80', '--cache', '32');
  expect(short.cache).toBe(32);
  expect(short.ids.length).toBeLessThan(32);
  expect(moving.ids.slice(0, short.ids.length)).toEqual(short.ids);
});

test('a cache that was not compiled, and a prompt that a pinned cache does not hold', async () => {
  const wrong = await runNpuc(['generate', folder, '-p', prompt, '--cache', '64']);
  expect(wrong.code).toBe(2);
  expect(wrong.stderr).toMatch(/^RT104 there is no graph with a cache of 64\n.*hint: there are 32, 96/s);
  const long = await runNpuc(['generate', folder, '-p', prompt.repeat(8), '--cache', '32']);
  expect(long.code).toBe(2);
  expect(long.stderr).toMatch(/^RT102 .*the cache of 32/);
});

import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { planMemory, requireMemory } from '../../cli/jobs/plan-sizes.ts';
import { parseDecoderConfig } from '../../compiler/import/huggingface/config.ts';
import { root, runNpuc } from './run-npuc.ts';

let work: string;
let checkpoint: string;
// 24 million weights: whole, and in every form that they take, more than the limits below.
const shape = { layers: 8, hidden: 512, ffn: 1536, heads: 8, 'kv-heads': 4, vocab: 4096, positions: 256 };
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-memory-'));
  checkpoint = join(work, 'checkpoint');
  const flags = Object.entries(shape).flatMap(([name, value]) => [`--${name}`, String(value)]);
  execFileSync(process.execPath, [join(root, 'bench', 'make-checkpoint.mjs'), checkpoint, ...flags]);
}, 60_000);
afterAll(() => rmSync(work, { recursive: true, force: true }));

const compile = (out: string, ...flags: string[]) =>
  runNpuc(
    ['compile', checkpoint, '--target', 'onnx', '--tokens', '8', '--cache', '32', '--calibration-windows', '1']
      .concat(['--effort', 'fast', '--evaluate', 'none', '--out', join(work, out)])
      .concat(flags),
    // Statistics of a run before this one would spare it the work.
    { env: { NPUC_CACHE: join(work, `cache-${out}`) } },
  );

test('the least limit is enough, and one byte less is refused before any work', async () => {
  const refused = await compile('refused', '--max-memory', '200MB');
  expect(refused.code).toBe(2);
  expect(refused.stderr).toMatch(/QT150 compiling needs about \d+MiB of memory, --max-memory allows 191MiB/);
  expect(existsSync(join(work, 'refused'))).toBe(false);
  const least = /--max-memory (\d+)MiB is the smallest that works/.exec(refused.stderr)![1]!;
  const { code, stdout, stderr } = await compile('least', '--max-memory', `${least}MiB`, '--json');
  expect([code, stderr]).toEqual([0, expect.not.stringContaining('QT150')]);
  const { peakRssBytes } = JSON.parse(stdout) as { peakRssBytes: number };
  expect(peakRssBytes).toBeLessThanOrEqual(Number(least) * 2 ** 20);
  const stages = JSON.parse(readFileSync(join(work, 'least', 'timings.json'), 'utf8')) as { peakRssBytes: number }[];
  expect(peakRssBytes).toBe(Math.max(...stages.map((stage) => stage.peakRssBytes)));
  const free = await compile('free', '--max-memory', '4GiB');
  expect(free.stderr).toMatch(/\npeak memory [\d.]+ MiB of 4\.00 GiB allowed\n/);
  // The limit changed how it was done, not what was made.
  for (const file of ['weights.data', 'decode.onnx', 'encodings.json'])
    expect(readFileSync(join(work, 'free/onnx', file)).equals(readFileSync(join(work, 'least/onnx', file))), file).toBe(
      true,
    );
}, 300_000);

test('a limit below what the whole model needs says what would work', () => {
  const config = parseDecoderConfig(JSON.parse(readFileSync(join(checkpoint, 'config.json'), 'utf8')), 'config.json');
  const needs = { whole: true, rounding: 'gptq' } as const;
  const all = planMemory(config, needs);
  expect(all.least).toBe(all.process);
  expect(() => requireMemory(config, needs, all.least)).not.toThrow();
  expect(() => requireMemory(config, needs, all.least - 1)).toThrowError(
    expect.objectContaining({
      code: 'QT150',
      hint: expect.stringMatching(
        /^--max-memory \d+MiB is the smallest that works; without an evaluation .* \d+MiB; with --rounding nearest as well \d+MiB$/,
      ) as string,
    }),
  );
  const streamed = { whole: false, rounding: 'nearest' } as const;
  const [tight, wide] = [0.45e9, 0.6e9].map((limit) => planMemory(config, streamed, limit));
  expect(tight!.weightBytes).toBeLessThan(wide!.weightBytes);
  expect(tight!.process).toBeLessThanOrEqual(0.45e9);
  expect(wide!.process).toBeLessThanOrEqual(0.6e9);
});

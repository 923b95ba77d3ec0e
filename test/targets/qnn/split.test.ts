import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { StageTiming } from '../../../compiler/progress.ts';
import type { DecoderSession } from '../../../compiler/runtime/decoder-session.ts';
import { checkFiles, type Manifest, readManifest } from '../../../targets/manifest.ts';
import { partsOf } from '../../../targets/qnn/bundle-parts.ts';
import { qnnTarget } from '../../../targets/qnn/qnn-target.ts';
import { demo, runNpuc } from '../../cli/run-npuc.ts';
import { toolchain } from './toolchain-or-skip.ts';

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-split-'));
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

const TEXT = [0, 77, 312, 45, 9, 801, 402, 33, 250, 61, 17, 1200, 5, 90, 640, 81, 12, 44, 7, 300];
const SHAPES = ['--tokens', '16', '--cache', '32,64', '--scheme', 'w8a16', '--kv', '16'];

async function compile(name: string, ...flags: string[]): Promise<{ folder: string; manifest: Manifest }> {
  const folder = join(work, name);
  const common = ['compile', demo, '--target', 'qnn', ...SHAPES, '--calibration-windows', '4', '--evaluate', 'none'];
  const outcome = await runNpuc([...common, '--out', folder, '--quiet', ...flags]);
  expect(outcome.stderr).toBe('');
  expect(outcome).toMatchObject({ code: 0, stdout: expect.stringContaining('nothing was run') });
  const manifest = readManifest(folder);
  checkFiles(folder, manifest);
  return { folder, manifest };
}

async function logitsOf(session: DecoderSession): Promise<Float32Array[]> {
  try {
    const rows = await session.feed(TEXT, 'all');
    return [...rows, ...(await session.feed([5]))];
  } finally {
    await session.close();
  }
}

describe.skipIf(!toolchain)('the demo model in parts', { timeout: 300_000 }, () => {
  let whole: { folder: string; manifest: Manifest };
  let parts: { folder: string; manifest: Manifest };
  beforeAll(async () => {
    whole = await compile('whole');
    parts = await compile('parts', '--split', '4', '--split-embedding', '--split-head');
  }, 300_000);

  test('each part has its binary with all shapes; what sees no cache is made once', () => {
    expect(whole.manifest.targets.qnn!.graphs.every((graph) => graph.parts === undefined)).toBe(true);
    const { graphs, facts, files, ports, execution } = parts.manifest.targets.qnn!;
    expect(execution).toBe('read-back-only');
    expect(facts).toMatchObject({ parts: 4, graphs: 4 });
    expect(files.filter((path) => path.endsWith('.bin'))).toHaveLength(4);
    const chain = partsOf(graphs.find(({ tokens, cache }) => tokens === 16 && cache === 64)!);
    expect(chain.map(({ source }) => source)).toEqual([1, 2, 3, 4].map((part) => `qnn/qdq/p${part}of4_ar16_cl64.onnx`));
    const small = partsOf(graphs.find(({ tokens, cache }) => tokens === 16 && cache === 32)!);
    expect(small.map(({ source }) => source)).toEqual([
      'qnn/qdq/p1of4_ar16_cl64.onnx',
      'qnn/qdq/p2of4_ar16_cl32.onnx',
      'qnn/qdq/p3of4_ar16_cl32.onnx',
      'qnn/qdq/p4of4_ar16_cl64.onnx',
    ]);
    // Genie orders the parts by these names.
    expect(chain.map(({ graph }) => graph)).toEqual([...chain.map(({ graph }) => graph)].sort());
    expect(ports['layers.1.mlp_residual']).toMatchObject({ dtype: 'u16' });
    const timings = JSON.parse(readFileSync(join(parts.folder, 'timings.json'), 'utf8')) as StageTiming[];
    const timed = timings.flatMap((stage) => stage.parts ?? []);
    expect(timed.map(({ name, graphs }) => [name, graphs])).toEqual([
      ['embedding', 2],
      ['layers.0 to layers.1', 4],
      ['layers.2 to layers.3', 4],
      ['head', 2],
    ]);
    for (const part of timed) {
      expect(part.peakRssBytes).toBeGreaterThan(50e6);
      expect(part.predictedPeakRssBytes / part.peakRssBytes).toBeGreaterThan(0.7);
      expect(part.predictedPeakRssBytes / part.peakRssBytes).toBeLessThan(1.5);
      expect(part.cpuSeconds).toBeGreaterThan(0);
    }
  });

  test('the QDQ parts give the logits of the whole, bit for bit, on ONNX Runtime', async () => {
    const open = ({ folder, manifest }: typeof whole) => qnnTarget.openReference!(folder, manifest.targets.qnn!);
    expect(await logitsOf(await open(parts))).toEqual(await logitsOf(await open(whole)));
  });

  test('the parts give the logits of the whole on the simulator', async () => {
    const open = ({ folder, manifest }: typeof whole) =>
      qnnTarget.open(folder, manifest.targets.qnn!, { toolchain: toolchain! });
    const [expected, found] = [await logitsOf(await open(whole)), await logitsOf(await open(parts))];
    expect(found).toHaveLength(TEXT.length + 1);
    let [signal, noise] = [0, 0];
    expected.forEach((row, i) => {
      row.forEach((value, j) => {
        signal += value ** 2;
        noise += (found[i]![j]! - value) ** 2;
      });
    });
    const sqnr = 10 * Math.log10(signal / noise);
    console.log(`parts against the whole on the simulator: ${sqnr.toFixed(1)} dB`);
    expect(sqnr).toBeGreaterThan(45);
  });

  test('a dry run foretells the parts that are then made', async () => {
    const cut = ['--split', '4', '--split-embedding', '--split-head'];
    const out = join(work, 'dry');
    const { stdout } = await runNpuc([
      'compile',
      demo,
      '--target',
      'qnn',
      ...SHAPES,
      ...cut,
      '--dry-run',
      '--out',
      out,
    ]);
    const lines = stdout.split('\n').filter((line) => line.startsWith('HTP part'));
    expect(lines).toHaveLength(4);
    expect(lines[0]).toMatch(/^HTP part 1 of 4 +embedding: .* in 2 graphs, about .* and \d+ CPU seconds to compile$/);
    const json = await runNpuc(['compile', demo, '--target', 'qnn', ...SHAPES, ...cut, '--dry-run', '--json']);
    const dry = JSON.parse(json.stdout) as { parts: readonly { peakBytes: number; cpuSeconds: number }[] };
    const timings = JSON.parse(readFileSync(join(parts.folder, 'timings.json'), 'utf8')) as StageTiming[];
    const made = timings.flatMap((stage) => stage.parts ?? []);
    expect(made).toHaveLength(dry.parts.length);
    // Only calibration knows whether channels with outliers get a matrix beside down_proj: a dry run leaves it out.
    made.forEach((part, i) => {
      expect(part.predictedPeakRssBytes / dry.parts[i]!.peakBytes).toBeCloseTo(1, 2);
      expect(part.predictedCpuSeconds / dry.parts[i]!.cpuSeconds).toBeCloseTo(1, 1);
    });
    expect(existsSync(out)).toBe(false);
  });

  test('the same bytes again', async () => {
    const again = await compile('again', '--split', '4', '--split-embedding', '--split-head');
    expect(again.manifest.files).toEqual(parts.manifest.files);
  });
});

describe.skipIf(!toolchain)('a cut that cannot be', () => {
  test.each<[string[], RegExp]>([
    [['--split', '7'], /QN017 --split 7 is not possible: this decoder can be cut into 1 to 6 parts/],
    [
      ['--max-memory', '100MB'],
      /QN017 compiling .* --max-memory allows 0.09 GiB[\s\S]*--max-memory \d+MiB is the least/,
    ],
    [['--max-memory', 'lots'], /CL002 --max-memory takes a size such as 12GiB, 8GB or 500MB/],
    [['--split', 'some'], /CL002 --split takes auto, or a whole number above 0/],
  ])('%j', async (flags, message) => {
    const out = join(work, 'none');
    const outcome = await runNpuc(['compile', demo, '--target', 'qnn', ...SHAPES, '--out', out, '--quiet', ...flags]);
    expect(outcome.code).toBe(2);
    expect(outcome.stderr).toMatch(message);
    expect(existsSync(out)).toBe(false);
  });
});

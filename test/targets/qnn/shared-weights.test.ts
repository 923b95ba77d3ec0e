import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { describeSharedWeights } from '../../../cli/jobs/describe-sharing.ts';
import { writeOnnxBundle } from '../../../compiler/export/onnx.ts';
import { parseModule } from '../../../compiler/ir/text.ts';
import type { Manifest } from '../../../targets/manifest.ts';
import { qnnTarget, sourceOf } from '../../../targets/qnn/qnn-target.ts';
import { readWeightIndex, WEIGHT_INDEX, writeWeightIndex } from '../../../targets/qnn/shared-weights.ts';
import { provideTwins } from '../../../targets/qnn/twins.ts';
import type { ManifestTarget } from '../../../targets/target.ts';
import { demo } from '../../cli/run-npuc.ts';
import { emitContext, openSmallDecoder } from '../small-decoder.ts';
import { toolchain } from './toolchain-or-skip.ts';

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-shared-'));
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

/** Two weights of 1 KiB; the second graph has another second one. */
const model = (seed: number) =>
  parseModule(`npuir 1
graph @g {opset 21}
  in    %x : f32[1,16]
  %a    : f32[16,16] = const rand(1, normal 1)
  %b    : f32[16,16] = const rand(${seed}, normal 1)
  %h    : f32[1,16] = MatMul(%x, %a)
  %y    : f32[1,16] = MatMul(%h, %b)
  out   %y
`);

test('the index has the digest of every tensor as it lies in the data file, and who has it', () => {
  const folder = join(work, 'index', 'qnn', 'qdq');
  mkdirSync(folder, { recursive: true });
  const entries = [2, 2, 3].map((seed, i) => ({ module: model(seed), path: join(folder, `${i}.onnx`) }));
  const { tensors } = writeOnnxBundle(entries, 'weights.data');
  const index = writeWeightIndex(join(work, 'index'), 'qnn/qdq/weights.data', tensors);
  expect(index.tensors.map(({ name, bytes, graphs }) => [name, bytes, graphs])).toEqual([
    ['a', 1024, 3],
    ['b', 1024, 2],
    ['b', 1024, 1],
  ]);
  const data = readFileSync(join(folder, 'weights.data'));
  for (const { offset, bytes, sha256 } of index.tensors) {
    const own = createHash('sha256').update(data.subarray(offset, offset + bytes));
    expect(sha256).toBe(own.digest('hex'));
  }
  expect(readWeightIndex(join(work, 'index'))).toEqual(index);
  expect(readWeightIndex(work)).toBeUndefined();
  writeFileSync(join(work, 'index', WEIGHT_INDEX), '{"format": 7}');
  expect(() => readWeightIndex(join(work, 'index'))).toThrow(expect.objectContaining({ code: 'IO003' }));
});

describe.skipIf(!toolchain)('the demo model with two caches', () => {
  let target: ManifestTarget;
  beforeAll(async () => {
    vi.stubEnv('NPUC_CACHE', join(work, 'cache'));
    const small = await openSmallDecoder(demo);
    const decoder = await small.quantize('w8a16', 'qnn');
    const context = { ...emitContext(work, 16, 64), shapes: { tokens: [16], caches: [32, 64] }, toolchain: toolchain! };
    target = await qnnTarget.emit(decoder, context);
  }, 120_000);
  afterAll(() => vi.unstubAllEnvs());

  test('all graphs lie in one binary, and every weight in it once', async () => {
    const binaries = target.files.filter((path) => path.endsWith('.bin'));
    expect(binaries).toHaveLength(1);
    const estimated = qnnTarget.readSharing!(work, target, toolchain)!;
    expect(estimated).toMatchObject({
      graphs: 4,
      measured: false,
      binaryBytes: statSync(join(work, binaries[0]!)).size,
    });
    expect(estimated.sharedWeights).toBe(readWeightIndex(work)!.tensors.length);
    expect(estimated.sharedWeightBytes).toBe(estimated.weightBytes);

    const sources = target.graphs.map(({ name, file, source }) =>
      sourceOf(work, { graph: name, file, source: source! }),
    );
    await provideTwins(toolchain!, sources, Number(target.facts.soc));
    const measured = qnnTarget.readSharing!(work, target, toolchain)!;
    expect(measured.measured).toBe(true);
    expect(Math.abs(estimated.aloneBytes - measured.aloneBytes) / measured.aloneBytes).toBeLessThan(0.1);
    // The bound of the issue: shared <= 1.10 W + sum of (alone - W).
    const { weightBytes, binaryBytes, aloneBytes, graphs } = measured;
    expect(binaryBytes).toBeLessThanOrEqual(1.1 * weightBytes + aloneBytes - graphs * weightBytes);
    expect(binaryBytes).toBeLessThan(0.35 * aloneBytes);
  }, 120_000);

  test('npuc inspect names the largest, its data has all', () => {
    const manifest = { targets: { qnn: target } } as unknown as Manifest;
    const { lines, sharing } = describeSharedWeights(work, manifest, toolchain)!;
    expect(lines[0]).toMatch(/4 graphs share \d+ weights: [\d.]+ MiB together, [\d.]+ MiB alone$/);
    expect(lines[1]).toMatch(/^ +model\.embed_tokens\.weight\S* {2}1\.00 MiB {2}in 4 graphs {2}sha256 [0-9a-f]{16}$/);
    expect(lines.at(-1)).toMatch(/and \d+ more/);
    expect(sharing.tensors).toHaveLength(sharing.sharedWeights);
    // A target without several graphs shares nothing.
    const alone = { ...target, facts: { ...target.facts, shared: false } };
    expect(describeSharedWeights(work, { targets: { qnn: alone } } as unknown as Manifest)).toBeUndefined();
  });
});

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { argmax } from '../../compiler/runtime/generate.ts';
import { decoderTargets } from '../../targets/index.ts';
import type { TargetName } from '../../targets/target.ts';
import { demo } from '../cli/run-npuc.ts';
import { toolchain } from './qnn/toolchain-or-skip.ts';
import { emitContext, openSmallDecoder, type SmallDecoder } from './small-decoder.ts';

/** Caches small enough that a short text goes through all of them. */
const SHAPES = { tokens: [16], caches: [24, 40, 64] };
const PROMPT = 26;

let work: string;
let small: SmallDecoder;
beforeAll(async () => {
  work = mkdtempSync(join(tmpdir(), 'npuc-caches-'));
  small = await openSmallDecoder(demo);
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

async function open(target: TargetName, scheme: string): Promise<DecoderSession> {
  const out = join(work, `${target}-${scheme}`);
  const decoder = await small.quantize(scheme, target);
  const context = { ...emitContext(out, 16, 64), shapes: SHAPES, ...(toolchain ? { toolchain } : {}) };
  const manifest = await decoderTargets[target].emit(decoder, context);
  expect(manifest.graphs.map(({ name }) => name)).toEqual(
    SHAPES.caches.flatMap((cache) => [`prefill_16_c${cache}`, `decode_c${cache}`]),
  );
  return decoderTargets[target].open(out, manifest, toolchain ? { toolchain } : {});
}

/** Greedy tokens until the largest cache is full, the logits before each of them, and every cache on the way. */
async function run(session: DecoderSession): Promise<{ ids: number[]; rows: Float32Array[]; caches: number[] }> {
  const prompt = [...small.prefix, ...small.text].slice(0, PROMPT);
  const ids: number[] = [];
  const rows: Float32Array[] = [];
  const caches = new Set<number>();
  let fed: readonly number[] = prompt.slice(0, 8);
  for (const chunk of [prompt.slice(8, 20), prompt.slice(20)]) {
    await session.feed(fed);
    caches.add(session.cache);
    fed = chunk;
  }
  while (session.room >= fed.length) {
    const [row] = await session.feed(fed);
    caches.add(session.cache);
    rows.push(row!);
    ids.push(argmax(row!));
    fed = ids.slice(-1);
  }
  return { ids, rows, caches: [...caches] };
}

/** The largest difference of two runs' logits, and how far the logits themselves reach. */
function differ(ours: readonly Float32Array[], theirs: readonly Float32Array[]): { error: number; reach: number } {
  let error = 0;
  let reach = 0;
  ours.forEach((row, i) => {
    row.forEach((value, j) => {
      error = Math.max(error, Math.abs(value - theirs[i]![j]!));
      reach = Math.max(reach, Math.abs(value));
    });
  });
  return { error, reach };
}

describe('a session that moves through its caches gives what the largest alone gives', () => {
  test.each<[string, TargetName]>([
    ['fp16', 'onnx'],
    ['w8a16', 'onnx'],
    ['w8a16', 'tflite'],
    ...(toolchain ? [['w8a16', 'qnn'] as [string, TargetName]] : []),
  ])('%s on %s', { timeout: 120_000 }, async (scheme, target) => {
    const session = await open(target, scheme);
    try {
      const moving = await run(session);
      session.pinCache(64);
      const alone = await run(session);
      expect(moving.caches).toEqual(SHAPES.caches);
      expect(alone.caches).toEqual([64]);
      expect(moving.ids).toHaveLength(64 - PROMPT + 1);
      expect(moving.ids).toEqual(alone.ids);
      const { error, reach } = differ(moving.rows, alone.rows);
      // LiteRT's kernels sum more zeros in another order; the others give the same numbers.
      expect(error).toBeLessThan(target === 'tflite' ? 2e-3 * reach : 1e-6 * reach);
    } finally {
      await session.close();
    }
  });
});

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { cachedRounding, type RoundingKey } from '../../calibration/rounding-cache.ts';
import type { Encoding } from '../../compiler/ir/encoding.ts';
import { Tensor } from '../../compiler/ir/tensor.ts';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'npuc-rounding-'));
  vi.stubEnv('NPUC_CACHE', folder);
});
afterAll(() => {
  vi.unstubAllEnvs();
  rmSync(folder, { recursive: true, force: true });
});

test('an entry that is opened again does not take it from who has it open already', async () => {
  const encoding: Encoding = { dtype: 'i4', scale: Float32Array.of(1), axis: 1 };
  const key: RoundingKey = {
    checkpoint: 'c',
    windows: [[1]],
    engine: 'e',
    encodings: new Map([['w', encoding]]),
    exponents: new Map(),
  };
  const integers = new Map([['w', Tensor.of('i4', [2, 1], [3, -4])]]);
  const first = await cachedRounding(key, async () => integers);
  // As when many files are open: it is opened again when it is read.
  const { storage } = first.get('w')!;
  if (storage.kind === 'file') storage.file.close();
  await new Promise((resolve) => setTimeout(resolve, 20));
  const second = await cachedRounding(key, () => Promise.reject(new Error('it is known already')));
  for (const each of [first, second]) expect([...each.get('w')!.toData().data]).toEqual([3, -4]);
});

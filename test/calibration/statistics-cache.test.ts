import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { ValueStatistics } from '../../calibration/statistics.ts';
import { cachedStatistics, decodeStatistics, encodeStatistics } from '../../calibration/statistics-cache.ts';

let folder: string;
const before = process.env.NPUC_CACHE;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'npuc-statistics-'));
  process.env.NPUC_CACHE = folder;
});
afterAll(() => {
  if (before === undefined) delete process.env.NPUC_CACHE;
  else process.env.NPUC_CACHE = before;
  rmSync(folder, { recursive: true, force: true });
});

const finite = fc.double({ noNaN: true, noDefaultInfinity: true }).filter((value) => !Object.is(value, -0));
const statistics = fc
  .array(
    fc.tuple(
      fc.string(),
      fc.record({ min: finite, max: finite, typical: finite }),
      fc.option(fc.tuple(fc.float32Array(), fc.float32Array(), fc.float64Array())),
    ),
  )
  .map(
    (entries) =>
      new Map<string, ValueStatistics>(
        entries.map(([name, base, channels]) => [
          name,
          channels ? { ...base, channels: { min: channels[0], max: channels[1], meanSquare: channels[2] } } : base,
        ]),
      ),
  );

test('what is written is read back, bit for bit', () => {
  fc.assert(
    fc.property(statistics, (original) => {
      expect(decodeStatistics(encodeStatistics(original))).toEqual(original);
    }),
  );
});

test('computes once per key, and again when an entry is damaged', async () => {
  let computed = 0;
  const compute = async (): Promise<Map<string, ValueStatistics>> => {
    computed++;
    return new Map([['x', { min: -1, max: 2, typical: 0.5 }]]);
  };
  const key = { checkpoint: 'abc', windows: [[1, 2, 3]], engine: 'reference' };
  expect((await cachedStatistics(key, compute)).cached).toBe(false);
  const second = await cachedStatistics(key, compute);
  expect(second).toEqual({ cached: true, statistics: new Map([['x', { min: -1, max: 2, typical: 0.5 }]]) });
  expect(computed).toBe(1);
  await cachedStatistics({ ...key, windows: [[1, 2, 4]] }, compute);
  await cachedStatistics({ ...key, checkpoint: 'abd' }, compute);
  expect(computed).toBe(3);
  for (const damaged of ['[[', '', '[["x",{"min":null,"max":2,"typical":0.5}]]', '[["x",{"min":-1,"max":2}]]']) {
    const before = computed;
    for (const name of readdirSync(join(folder, 'statistics')))
      writeFileSync(join(folder, 'statistics', name), damaged);
    expect((await cachedStatistics(key, compute)).cached, damaged).toBe(false);
    expect(computed).toBe(before + 1);
  }
});

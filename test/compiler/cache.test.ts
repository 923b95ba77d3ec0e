import { mkdtempSync, readdirSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterEach, expect, test, vi } from 'vitest';
import { cacheFolder, pruneCache } from '../../compiler/cache.ts';

afterEach(() => vi.unstubAllEnvs());

test.each([
  ['NPUC_CACHE first', '/own', '/xdg', '/own/a/b'],
  ['NPUC_CACHE may be relative', 'own', '', join(resolve('own'), 'a/b')],
  ['then XDG_CACHE_HOME', '', '/xdg', '/xdg/npuc/a/b'],
  ['a relative XDG_CACHE_HOME does not count', '', 'xdg', join(homedir(), '.cache/npuc/a/b')],
  ['then ~/.cache', '', '', join(homedir(), '.cache/npuc/a/b')],
])('%s', (_, own, xdg, expected) => {
  vi.stubEnv('NPUC_CACHE', own);
  vi.stubEnv('XDG_CACHE_HOME', xdg);
  expect(cacheFolder('a', 'b')).toBe(expected);
});

test('what was read last stays, though it was written first', () => {
  const folder = mkdtempSync(join(tmpdir(), 'npuc-cache-'));
  try {
    for (const name of ['first', 'second', 'third']) writeFileSync(join(folder, name), '0123456789');
    const old = new Date(1e12);
    for (const name of ['second', 'third']) utimesSync(join(folder, name), old, old);
    utimesSync(join(folder, 'first'), new Date(), new Date(5e11));
    pruneCache(folder, 20, join(folder, 'third'));
    expect(readdirSync(folder).sort()).toEqual(['first', 'third']);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

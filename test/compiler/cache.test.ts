import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterEach, expect, test, vi } from 'vitest';
import { cacheFolder } from '../../compiler/cache.ts';

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

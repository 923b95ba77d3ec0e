import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { keepLog } from '../../../targets/qnn/keep-log.ts';

let cache: string;
beforeEach(() => {
  cache = mkdtempSync(join(tmpdir(), 'npuc-logs-'));
  vi.stubEnv('NPUC_CACHE', cache);
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(cache, { recursive: true, force: true });
});

test('a log is kept under its name, the oldest of more than twenty go', () => {
  vi.useFakeTimers();
  try {
    const paths = Array.from({ length: 23 }, (_, i) => {
      vi.setSystemTime(new Date(2026, 0, 1, 0, 0, i));
      return keepLog('some/model SM8750', `log ${i}`)!;
    });
    expect(basename(paths[22]!)).toMatch(/^2026-.*-some_model_SM8750\.log$/);
    expect(readdirSync(join(cache, 'logs')).sort()).toEqual(paths.slice(3).map((path) => basename(path)));
    expect(readFileSync(paths[22]!, 'utf8')).toBe('log 22');
  } finally {
    vi.useRealTimers();
  }
});

test('of a huge log the end is kept', () => {
  const path = keepLog('huge', `${'x'.repeat(17 << 20)} the end`)!;
  const text = readFileSync(path, 'utf8');
  expect(text).toHaveLength(16 << 20);
  expect(text.endsWith(' the end')).toBe(true);
});

test('nothing to keep, and nowhere to keep it, are no errors', () => {
  expect(keepLog('empty', ' \n')).toBeUndefined();
  writeFileSync(join(cache, 'logs'), 'in the way');
  expect(keepLog('model', 'log')).toBeUndefined();
});

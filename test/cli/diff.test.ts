import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { demo, runNpuc } from './run-npuc.ts';

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-diff-'));
});
afterAll(() => {
  rmSync(work, { recursive: true, force: true });
});

test('a model is itself, and a ratio above the limit exits with 1 and says so', async () => {
  const { code, stdout, stderr } = await runNpuc(['diff', demo, demo, '--tokens', '32', '--max-ratio', '0.5']);
  expect(stdout).toContain('ratio       1.0000 ± 0.0000');
  expect(stderr).toContain('the ratio 1.0000 is above --max-ratio 0.5');
  expect(code).toBe(1);
});

test('models that cut text into other tokens are not compared', async () => {
  const other = join(work, 'other');
  cpSync(demo, other, { recursive: true });
  const path = join(other, 'tokenizer.json');
  const tokenizer = JSON.parse(readFileSync(path, 'utf8')) as { model: { merges: unknown[] } };
  tokenizer.model.merges.splice(100);
  writeFileSync(path, JSON.stringify(tokenizer));
  const { code, stdout, stderr } = await runNpuc(['diff', demo, other, '--tokens', '32', '--quiet']);
  expect(stderr).toMatch(/^CL001 .* do not have the same tokens/);
  expect(stdout).toBe('');
  expect(code).toBe(2);
});

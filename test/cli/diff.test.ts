import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { demo, quick, runNpuc } from './run-npuc.ts';

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

test('two recipes are measured and compared side by side', async () => {
  const [a, b] = ['w8a16', 'w4a16'].map((scheme) => {
    const path = join(work, `${scheme}.yaml`);
    const rounding = scheme === 'w4a16' ? 'rounding: nearest\n' : '';
    writeFileSync(path, `source: ${demo}\nscheme: ${scheme}\n${rounding}calibrationWindows: 2\nevalTokens: 300\n`);
    return path;
  });
  const html = join(work, 'recipes.html');
  const { code, stdout, stderr } = await runNpuc(['diff', a!, b!, '--html', html, '--json', '--quiet']);
  expect(stderr).toBe('');
  const { changes } = JSON.parse(stdout) as {
    changes: {
      settings: { name: string; b: string }[];
      bytes: { a: number; b: number };
      weights: { a: string; b: string }[];
    };
  };
  expect(changes.settings.find(({ name }) => name === 'scheme')?.b).toBe('w4a16');
  expect(changes.bytes.b).toBeLessThan(0.7 * changes.bytes.a);
  expect(changes.weights.every((weight) => weight.a === 'i8 per channel' && weight.b === 'i4 block 64')).toBe(true);
  expect(readFileSync(html, 'utf8')).toContain('npuc comparison of two recipes');
  expect(code).toBe(0);
});

test('two targets of one build have the same weights, turned, and are matched by the names that passes carry on', async () => {
  const out = join(work, 'build');
  const made = await runNpuc(['compile', demo, ...quick, '--scheme', 'w8a16', '--target', 'onnx,tflite', '--out', out]);
  expect(made.stderr).toBe('');
  const { code, stdout } = await runNpuc([
    'diff',
    `${out}:onnx`,
    join(out, 'tflite/model.tflite'),
    '--evaluate',
    'none',
    '--json',
    '--quiet',
  ]);
  const { changes } = JSON.parse(stdout) as {
    changes: { weights: { name: string; b?: string }[]; values: { name: string }[]; operators: unknown[] };
  };
  // The embedding is a file beside the TFLite model; every linear weight is the same numbers.
  expect(changes.weights.filter(({ name }) => name.includes('_proj'))).toEqual([]);
  expect(changes.values.map(({ name }) => name)).toContain('layers.0.q_proj');
  expect(changes.operators.length).toBeGreaterThan(0);
  expect(code).toBe(0);
  const same = await runNpuc(['diff', out, out, '--evaluate', 'none', '--quiet']);
  expect(same.stdout).toContain('Nothing changed: the same quality');
}, 180_000);

test('what cannot be compared is refused', async () => {
  const html = join(work, 'never.html');
  const { code, stderr } = await runNpuc(['diff', demo, demo, '--html', html, '--quiet']);
  expect(stderr).toMatch(/^CK005 --html shows two builds/);
  expect(code).toBe(2);
  expect(existsSync(html)).toBe(false);
  const none = await runNpuc(['diff', demo, demo, '--evaluate', 'none', '--quiet']);
  expect(none.stderr).toMatch(/^CK005 a checkpoint is compared by running it/);
});

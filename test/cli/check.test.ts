import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { demo, root, runNpuc } from './run-npuc.ts';

let work: string;
beforeAll(async () => {
  work = mkdtempSync(join(tmpdir(), 'npuc-check-'));
  writeFileSync(
    join(work, 'npuc.config.yaml'),
    `source: ${demo}\nscheme: w8a16\ncalibrationWindows: 4\nevalTokens: 600\n`,
  );
  const { code, stdout } = await npuc(['--update', '--draws', '3']);
  expect(stdout).toMatch(/^quality\.yaml: written, \d+ values, noise over 3 draws\n$/);
  expect(code).toBe(0);
});
afterAll(() => {
  rmSync(work, { recursive: true, force: true });
});

const npuc = (args: readonly string[], env: Record<string, string> = {}): ReturnType<typeof runNpuc> =>
  runNpuc(['check', '--quiet', ...args], { cwd: work, env: { GITHUB_ACTIONS: '', GITHUB_STEP_SUMMARY: '', ...env } });

test('an unchanged model passes, whatever seed and threads', async () => {
  const { code, stdout, stderr } = await npuc(['--seed', '3', '--threads', '2', '--json']);
  expect(stderr).toBe('');
  expect(JSON.parse(stdout)).toMatchObject({ passed: true, baseline: 'quality.yaml', target: 'onnx', trials: [] });
  expect(code).toBe(0);
});

test('the baseline in the repository, which the worked example checks, is of what is compiled today', async () => {
  const baseline = join(root, 'fixtures/quality/demo-w8a16.yaml');
  const { code, stdout } = await runNpuc(['check', demo, '--scheme', 'w8a16', '--baseline', baseline, '--quiet']);
  expect(stdout).not.toContain('the recipe is not that of the baseline');
  expect(stdout).not.toContain('- note:');
  expect(code).toBe(0);
});

test('--update twice writes the same file and keeps the budgets, which a check then holds to', async () => {
  const path = join(work, 'quality.yaml');
  const before = readFileSync(path, 'utf8');
  const budgeted = before.replace('budgets: {}', 'budgets: {"max_kl":1e-9}');
  writeFileSync(path, budgeted);
  expect((await npuc(['--update', '--draws', '3'])).stdout).toContain('unchanged');
  expect(readFileSync(path, 'utf8')).toBe(budgeted);
  const { code, stdout } = await npuc([]);
  expect(stdout).toContain('the budget max_kl allows at most 1e-9');
  expect(code).toBe(1);
  writeFileSync(path, before);
});

test('a worse recipe exits with 1, names its line, and writes what CI systems read', async () => {
  const files = ['junit.xml', 'check.sarif', 'check.md', 'check.html'];
  const flags = files.flatMap((name, i) => [`--${['junit', 'sarif', 'markdown', 'html'][i]}`, `out/${name}`]);
  const { code, stdout, stderr } = await npuc(['--scheme', 'w4a16', '--rounding', 'nearest', ...flags], {
    GITHUB_ACTIONS: 'true',
    GITHUB_STEP_SUMMARY: join(work, 'summary.md'),
  });
  expect(code).toBe(1);
  expect(stdout).toContain('FAILED');
  expect(stdout).toMatch(/culprit: weight: /);
  expect(stderr).toMatch(/^::error file=npuc\.config\.yaml,line=2,title=npuc check%3A culprit::weight: /m);
  expect(readdirSync(join(work, 'out')).sort()).toEqual([...files].sort());
  expect(readFileSync(join(work, 'summary.md'), 'utf8')).toBe(readFileSync(join(work, 'out/check.md'), 'utf8'));
  const sarif = JSON.parse(readFileSync(join(work, 'out/check.sarif'), 'utf8'));
  expect(sarif.runs[0].results[0].locations[0].physicalLocation).toEqual({
    artifactLocation: { uri: 'npuc.config.yaml' },
    region: { startLine: 2 },
  });
});

test.each([
  ['no baseline', ['--baseline', 'none.yaml'], /^CK001 cannot read none\.yaml/],
  ['another held-out text', ['--evaluate', 'other.txt'], /^CK003 quality\.yaml is of another held-out text/],
  ['an empty text', ['--evaluate', 'empty.txt'], /^QT110 empty\.txt gives 0 tokens/],
  ['another target', ['--target', 'tflite'], /^CK003 quality\.yaml is of another target: onnx, and this is tflite/],
  ['two targets', ['--target', 'onnx,tflite'], /^CL001 a check measures one target/],
  ['a seed that is none', ['--seed', '-1'], /^CL001 --seed takes a whole number of at least 0/],
])('%s is one coded error, and nothing is written', async (_, args, message) => {
  writeFileSync(join(work, 'empty.txt'), '');
  writeFileSync(join(work, 'other.txt'), 'Once upon a time there was another text. '.repeat(200));
  const before = readdirSync(work);
  const { code, stdout, stderr } = await npuc([...args, '--junit', 'never.xml']);
  expect(stderr).toMatch(message);
  expect(stdout).toBe('');
  expect(code).toBe(2);
  expect(readdirSync(work)).toEqual(before);
});

test('an update that fails leaves the old baseline and writes no new one', async () => {
  const { code, stderr } = await npuc(['--update', '--evaluate', 'empty.txt', '--baseline', 'new.yaml']);
  expect(stderr).toMatch(/^QT110/);
  expect(code).toBe(2);
  expect(existsSync(join(work, 'new.yaml'))).toBe(false);
});

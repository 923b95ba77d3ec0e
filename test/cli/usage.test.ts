import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { demo, root, runNpuc } from './run-npuc.ts';

const main = join(root, 'dist', 'cli', 'main.js');

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-usage-'));
});
afterAll(() => {
  rmSync(work, { recursive: true, force: true });
});

test.each<[string[], string, string]>([
  [[], 'give a command', 'hint: compile, '],
  [['complie', 'x'], 'there is no command complie', 'did you mean npuc compile?'],
  [['compile', 'x', '--chache=7'], 'npuc compile has no option --chache', 'did you mean --cache?'],
  [['compile', 'x', '--frobnicate'], 'npuc compile has no option --frobnicate', 'npuc compile --help'],
  [['compile', 'x', '--soc'], '--soc needs a value', 'npuc compile --help'],
  [['compile', 'x', '--threads', 'many'], '--threads takes a whole number of at least 1', 'npuc compile --help'],
  [['inspect'], 'an argument is missing', 'npuc inspect <path>'],
  [['inspect', 'a', 'b'], 'b is one argument too many', 'npuc inspect <path>'],
  [['generate', 'x'], '--prompt is missing', 'npuc generate --help'],
  [['generate', 'x', '-p'], '-p needs a value', 'npuc generate --help'],
  [['generate', 'x', '-p', 'a', '--top-p', '3'], '--top-p takes a number above 0 and of at most 1', '--help'],
  [['generate', 'x', '-p', 'a', '--temperature', 'warm'], '--temperature takes a number of at least 0', '--help'],
  [['diff', 'a', 'b', '--window', '1'], '--window takes a whole number of at least 2', 'npuc diff --help'],
  [['diff', 'a', 'b', '--max-ratio', 'low'], '--max-ratio takes a number above 0', 'npuc diff --help'],
  [['toolchain', 'instal'], 'there is no action instal', 'did you mean install?'],
])('npuc %j', async (args, message, hint) => {
  // The parser speaks the language of the environment unless it is told otherwise.
  const { code, stdout, stderr } = await runNpuc(args, { env: { LC_ALL: 'de_DE.UTF-8' } });
  expect(stderr).toContain(`CL001 ${message}\n`);
  expect(stderr).toContain(hint);
  expect(stdout).toBe('');
  expect(code).toBe(2);
});

test.each<[string, string, string]>([
  ['a key that is misspelt', 'sco: SM8750', 'there is no key sco\n  at CONFIG\n  hint: did you mean soc?'],
  ['a list', '[1, 2]', 'CONFIG does not hold keys and values'],
  ['a text', 'hello', 'CONFIG does not hold keys and values'],
  ['no YAML', 'a: [', 'cannot read CONFIG: Flow sequence'],
  ['a value of another type', 'evalTokens: true', 'evalTokens takes a whole number above 0\n  at CONFIG'],
  ['a value inside a list', 'overrides: [{match: a, activation: 9}]', 'overrides.0.activation takes'],
])('a configuration file with %s', async (_, text, message) => {
  const config = join(work, 'npuc.config.yaml');
  writeFileSync(config, text);
  const { code, stderr } = await runNpuc(['compile', demo, '--config', config, '--dry-run']);
  expect(stderr.replaceAll(config, 'CONFIG')).toContain(`CL002 ${message}`);
  expect(code).toBe(2);
});

test('a flag that is wrong is named as it is spelt', async () => {
  const { stderr } = await runNpuc(['compile', demo, '--target', 'coreml']);
  expect(stderr).toContain('CL002 --target takes one or several of onnx, qnn, tflite, hf\n');
});

test('lists add up, of other flags the last one counts', async () => {
  const args = ['--tokens', '5', '--tokens', '6,7', '--cache', '100', '--cache', '200', '--scheme', 'w8a8'];
  const { stdout, stderr } = await runNpuc(['compile', demo, ...args, '--dry-run', '--json']);
  expect(stderr).toBe('');
  expect(JSON.parse(stdout)).toMatchObject({
    sizes: { graphs: [100, 200].flatMap((cache) => [7, 6, 5, 1].map((tokens) => ({ tokens, cache }))) },
  });
});

test.each([
  ['cache: 200', [200]],
  ['cache: [200, 100]', [100, 100, 200, 200]],
])('a configuration file takes one cache or several: %s', async (text, caches) => {
  const config = join(work, 'caches.yaml');
  writeFileSync(config, `${text}\ntokens: ${caches.length > 1 ? 16 : 1}\n`);
  const { stdout, stderr } = await runNpuc(['compile', demo, '--config', config, '--dry-run', '--json']);
  expect(stderr).toBe('');
  const { sizes } = JSON.parse(stdout) as { sizes: { graphs: { cache: number }[] } };
  expect(sizes.graphs.map(({ cache }) => cache)).toEqual(caches);
});

test('a number repeated with the value 1 is 1, not one more than before', async () => {
  const saved = join(work, 'repeated.yaml');
  const args = ['--threads', '4', '--threads', '1', '--calibration-windows', '7', '--calibration-windows', '1'];
  const { stderr } = await runNpuc(['compile', demo, ...args, '--dry-run', '--save-config', saved]);
  expect(stderr).toBe('');
  expect(readFileSync(saved, 'utf8')).toMatch(/^calibrationWindows: 1$[\s\S]*^threads: 1$/m);
});

test('a configuration that cannot be saved', async () => {
  const { code, stderr } = await runNpuc(['compile', demo, '--dry-run', '--save-config', join(work, 'no', 'x.yaml')]);
  expect(stderr).toMatch(/^IO002 cannot write .*x\.yaml/);
  expect(code).toBe(2);
});

test('completion offers flags after a dash, else commands and choices, and leaves files to the shell', async () => {
  const complete = async (...words: string[]) =>
    (await runNpuc(['--get-yargs-completions', 'npuc', ...words], { env: { SHELL: '/bin/bash' } })).stdout
      .trim()
      .split('\n');
  expect(await complete('co')).toEqual(expect.arrayContaining(['completion', 'compile', 'inspect']));
  expect(await complete('compile', '--sc')).toContain('--scheme');
  expect(await complete('compile', '')).toEqual(['']);
  expect(await complete('toolchain', '')).toEqual(['install', 'list', 'use', 'licence', 'remove']);
});

test.skipIf(process.platform !== 'linux')('a reader that has seen enough is no failure, a full disk is one', () => {
  const shell = (command: string) =>
    spawnSync('bash', ['-c', `set -o pipefail; ${command.replace('npuc', `'${process.execPath}' '${main}'`)}`], {
      encoding: 'utf8',
    });
  const { status, stderr } = shell(`npuc inspect '${demo}' > /dev/full`);
  expect(stderr).toMatch(/^IO002 cannot write to stdout: ENOSPC/);
  expect(status).toBe(2);
  expect(shell(`npuc inspect '${demo}' | true`)).toMatchObject({ status: 0, stderr: '' });
});

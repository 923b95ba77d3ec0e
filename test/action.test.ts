import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { parse } from 'yaml';
import { demo, root, runNpuc } from './cli/run-npuc.ts';

interface Step {
  readonly id?: string;
  readonly run?: string;
  readonly env?: Readonly<Record<string, string>>;
}

const action = parse(readFileSync(join(root, 'action.yml'), 'utf8')) as {
  inputs: Record<string, { default?: string }>;
  runs: { steps: Step[] };
};
const [check] = action.runs.steps;

let work: string;
beforeAll(async () => {
  work = mkdtempSync(join(tmpdir(), 'npuc-action-'));
  const made = await runNpuc(['check', demo, ...settings, '--baseline', 'q.yaml', '--update', '--quiet'], {
    cwd: work,
  });
  expect(made.stderr).toBe('');
});
afterAll(() => {
  rmSync(work, { recursive: true, force: true });
});

const settings = ['--scheme', 'w8a16', '--calibration-windows', '2', '--eval-tokens', '300', '--draws', '2'];

/** Runs the action's first step as GitHub does, and gives what it set as outputs. */
function runStep(inputs: Record<string, string>): {
  code: number | null;
  outputs: Record<string, string>;
  stderr: string;
} {
  const output = join(work, 'output');
  rmSync(output, { force: true });
  const env = Object.fromEntries(
    Object.entries(check!.env!).map(([name, value]) => {
      const input = /^\$\{\{ inputs\.(\w+) \}\}$/.exec(value)![1]!;
      return [name, inputs[input] ?? action.inputs[input]!.default ?? ''];
    }),
  );
  const { status, stderr } = spawnSync('bash', ['--noprofile', '--norc', '-eo', 'pipefail', '-c', check!.run!], {
    cwd: work,
    encoding: 'utf8',
    env: {
      ...process.env,
      ...env,
      RUNNER_TEMP: work,
      GITHUB_OUTPUT: output,
      GITHUB_STEP_SUMMARY: join(work, 'summary'),
      GITHUB_ACTIONS: 'true',
    },
  });
  const lines = readFileSync(output, 'utf8').trim().split('\n');
  return {
    code: status,
    stderr,
    outputs: Object.fromEntries(lines.map((line) => line.split('=') as [string, string])),
  };
}

test('the action passes and fails as the check does, and leaves its files and summary', () => {
  const inputs = {
    source: demo,
    baseline: 'q.yaml',
    command: `${process.execPath} ${join(root, 'dist/cli/main.js')}`,
    arguments: settings.slice(0, 6).join(' '),
  };
  const good = runStep(inputs);
  expect(good.outputs).toMatchObject({ passed: 'true', code: '0', folder: join(work, 'npuc-check') });
  for (const name of ['junit.xml', 'check.sarif', 'check.html'])
    expect(existsSync(join(work, 'npuc-check', name))).toBe(true);
  expect(readFileSync(join(work, 'summary'), 'utf8')).toContain('## ✅ npuc check: demo for onnx');
  const bad = runStep({ ...inputs, arguments: inputs.arguments.replace('w8a16', 'w4a16 --rounding nearest') });
  // The step goes on so that files are uploaded; the last step fails with the code.
  expect(bad.code).toBe(0);
  expect(bad.outputs).toMatchObject({ passed: 'false', code: '1' });
  expect(bad.stderr).toMatch(/^::error file=q\.yaml,line=\d+,title=npuc check%3A culprit::/m);
  expect(readFileSync(join(work, 'summary'), 'utf8')).toContain('## ❌ npuc check: demo for onnx');
}, 180_000);

test('every step of the action names outputs that the first one sets', () => {
  const text = readFileSync(join(root, 'action.yml'), 'utf8');
  const named = new Set([...text.matchAll(/steps\.check\.outputs\.(\w+)/g)].map(([, name]) => name));
  const set = new Set([...check!.run!.matchAll(/echo "(\w+)=/g)].map(([, name]) => name));
  expect([...named].filter((name) => !set.has(name))).toEqual([]);
  execFileSync('bash', ['-n', '-c', check!.run!]);
});

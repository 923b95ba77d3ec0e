import { execFileSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { DryRun } from '../../cli/jobs/compile-decoder.ts';
import type { Report } from '../../evaluation/report.ts';
import { describeFile, type Manifest } from '../../targets/manifest.ts';
import { findToolchain } from '../../targets/qnn/toolchain.ts';
import { demo, quick, root, runNpuc } from './run-npuc.ts';

const toolchain = findToolchain('qnn');
if (!toolchain) {
  if (process.env.CI) throw new Error('the QNN toolchain is absent: in CI that is a failure');
  console.warn('SKIPPED: the QNN toolchain is absent, HTP binaries are not compiled');
}
const targets = toolchain ? ['onnx', 'tflite', 'qnn'] : ['onnx', 'tflite'];

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-compile-'));
});
afterAll(() => {
  rmSync(work, { recursive: true, force: true });
});

const readManifest = (folder: string): Manifest =>
  JSON.parse(readFileSync(join(folder, 'manifest.json'), 'utf8')) as Manifest;
const readReport = (folder: string): Report => JSON.parse(readFileSync(join(folder, 'report.json'), 'utf8')) as Report;
const compileArguments = (out: string, ...more: string[]): string[] => [
  'compile',
  demo,
  '--soc',
  'SM8750',
  '--target',
  targets.join(','),
  '--out',
  out,
  ...quick,
  ...more,
];

describe('compile of the demo checkpoint', { timeout: 300_000 }, () => {
  test('writes what the manifest lists, runs it, and stays close to the float model', async () => {
    const out = join(work, 'w8a16');
    const outcome = await runNpuc(compileArguments(out, '--scheme', 'w8a16', '--kv', '16'));
    expect(outcome.stderr).toBe('');
    expect(outcome.code).toBe(0);
    const manifest = readManifest(out);
    expect(Object.keys(manifest.targets).sort()).toEqual([...targets].sort());
    for (const file of manifest.files) expect(describeFile(out, file.path)).toEqual(file);
    const listed = new Set([
      ...manifest.files.map((file) => file.path),
      'manifest.json',
      'report.json',
      'report.html',
      'timings.json',
    ]);
    const found = readdirSync(out, { recursive: true, encoding: 'utf8' }).filter((path) =>
      statSync(join(out, path)).isFile(),
    );
    expect(new Set(found)).toEqual(listed);
    const report = readReport(out);
    for (const name of targets) {
      const target = report.targets[name as keyof Report['targets']]!;
      expect(target.logits!.ratio, name).toBeLessThan(1.02);
      expect(target.logits!.topAgreement, name).toBeGreaterThan(0.95);
      expect(target.values.length, name).toBeGreaterThan(50);
    }
    // What is shipped, its prefill and decode graphs one after the other, is what the figures are of.
    const agreement = /artifact's own graphs agree with it (?:exactly|to ([\d.]+) dB)/.exec(
      report.targets.tflite!.notes.join('\n'),
    );
    expect(agreement, report.targets.tflite!.notes.join('\n')).not.toBeNull();
    expect(Number(agreement![1] ?? 999)).toBeGreaterThan(50);
    if (toolchain) {
      expect(report.targets.qnn!.twinSqnr).toBeGreaterThan(45);
      expect(manifest.targets.qnn).toMatchObject({
        execution: 'executed-as-twin',
        facts: { soc: 69, arch: 'v79', shared: true },
      });
    }
    // The manifest has no clock and no path of this machine.
    expect(readFileSync(join(out, 'manifest.json'), 'utf8')).not.toContain(work);
    expect(outcome.stdout).toContain('report.html');
  });

  test('the compiled folder writes the text of its report from every target, without the checkpoint', async () => {
    const { prompt, samples } = readReport(join(work, 'w8a16'));
    for (const target of targets) {
      const args = ['generate', join(work, 'w8a16'), '--target', target, '--prompt', prompt, '-n', '12', '--json'];
      const outcome = await runNpuc(args);
      expect(outcome.code, outcome.stderr).toBe(0);
      const { text, ids } = JSON.parse(outcome.stdout) as { text: string; ids: number[] };
      expect(ids.length, target).toBe(12);
      expect(samples[target]!.startsWith(text), `${target}: ${text}`).toBe(true);
    }
  });

  test('sampling is repeatable with a seed', async () => {
    const run = (seed: string) =>
      runNpuc([
        'generate',
        join(work, 'w8a16'),
        '-p',
        'It was',
        '-n',
        '12',
        '--temperature',
        '1',
        '--top-k',
        '40',
        '--seed',
        seed,
      ]);
    const [first, again, other] = [await run('1'), await run('1'), await run('2')];
    expect(first.stdout).toBe(again.stdout);
    expect(first.stdout).not.toBe(other.stdout);
  });

  test('diff compares the checkpoint with an artifact and gates on the ratio', async () => {
    const args = ['diff', demo, `${join(work, 'w8a16')}:onnx`, '--tokens', '96', '--window', '64', '--quiet', '--json'];
    const outcome = await runNpuc([...args, '--max-ratio', '1.05']);
    expect(outcome.code, outcome.stderr).toBe(0);
    const result = JSON.parse(outcome.stdout) as { ratio: number; predictions: number };
    expect(result.ratio).toBeLessThan(1.05);
    expect(result.predictions).toBeGreaterThan(80);
    expect((await runNpuc([...args, '--max-ratio', '0.5'])).code).toBe(1);
  });

  test('inspect says what each artifact holds', async () => {
    const out = join(work, 'w8a16');
    const paths = [
      '.',
      'onnx/decode.onnx',
      'tflite/model.tflite',
      ...(toolchain ? ['qnn/prefill_16_ctx_qnn.bin'] : []),
    ];
    for (const path of paths) {
      const outcome = await runNpuc(['inspect', join(out, path)]);
      expect(outcome.code, outcome.stderr).toBe(0);
      expect(outcome.stdout.length).toBeGreaterThan(100);
    }
    const tflite = await runNpuc(['inspect', join(out, 'tflite', 'model.tflite'), '--json']);
    expect(JSON.parse(tflite.stdout)).toMatchObject({ signatures: [{ key: 'prefill_16' }, { key: 'decode' }] });
  });

  test.each(['w4a16', 'w8a8', 'fp16'])('%s runs on every target', async (scheme) => {
    const out = join(work, scheme);
    const outcome = await runNpuc(compileArguments(out, '--scheme', scheme));
    expect(outcome.code, outcome.stderr).toBe(0);
    const report = readReport(out);
    for (const name of targets) {
      const { logits } = report.targets[name as keyof Report['targets']]!;
      expect(logits!.ratio, `${scheme} ${name}`).toBeLessThan(scheme === 'fp16' ? 1.01 : 1.25);
    }
  });

  test('the same input gives the same bytes in two folders, with one and with two threads', async () => {
    const folders = [join(work, 'same'), join(work, 'a', 'folder', 'of-another-name')];
    for (const [i, folder] of folders.entries()) {
      const outcome = await runNpuc(compileArguments(folder, '--scheme', 'w4a16', '--threads', String(i + 1)));
      expect(outcome.code, outcome.stderr).toBe(0);
    }
    const [first, second] = folders.map(readManifest);
    expect(second!.files).toEqual(first!.files);
    expect(readFileSync(join(folders[1]!, 'manifest.json'), 'utf8')).toBe(
      readFileSync(join(folders[0]!, 'manifest.json'), 'utf8'),
    );
    expect(first!.files.some((file) => file.path.endsWith('.bin'))).toBe(true);
  });

  test('a reader that stops early is no error, one that is slow gets everything', () => {
    const npuc = `${process.execPath} ${join(root, 'dist', 'cli', 'main.js')}`;
    const shell = (line: string): string =>
      execFileSync('bash', ['-o', 'pipefail', '-c', line], { encoding: 'utf8', cwd: root });
    const model = join(work, 'w8a16', 'onnx', 'decode.onnx');
    expect(shell(`${npuc} inspect ${model} --text 2>&1 | head -1`)).toMatch(/^npuir/);
    const whole = shell(`${npuc} inspect ${model} --text | (sleep 1; wc -l)`);
    expect(Number(whole)).toBeGreaterThan(500);
  });

  test('a dry run prints sizes and writes nothing', async () => {
    const out = join(work, 'dry');
    const outcome = await runNpuc(compileArguments(out, '--dry-run', '--json'));
    expect(outcome.code, outcome.stderr).toBe(0);
    const { sizes } = JSON.parse(outcome.stdout) as DryRun;
    // Two tensors of 4 layers, 2 heads of 64: a byte each for ONNX, two for LiteRT.
    const slot = 2 * 4 * 2 * 64;
    expect(sizes.graphs).toMatchObject([
      {
        name: 'prefill_16',
        tokens: 16,
        cache: 64,
        pastBytes: { onnx: 48 * slot, tflite: 96 * slot },
        newBytes: { onnx: 16 * slot, tflite: 32 * slot },
      },
      { name: 'decode', tokens: 1, cache: 64, pastBytes: { onnx: 63 * slot }, newBytes: { onnx: slot } },
    ]);
    expect(sizes.parameters).toBe(2_885_888);
    expect(sizes.memory.process).toBeGreaterThan(0.3e9);
    expect(existsSync(out)).toBe(false);
  });

  test('the sizes of a dry run are those of the artifacts', async () => {
    const { stdout } = await runNpuc(compileArguments(join(work, 'dry'), '--scheme', 'w4a16', '--dry-run', '--json'));
    const { sizes } = JSON.parse(stdout) as DryRun;
    const files = new Map(readManifest(join(work, 'w4a16')).files.map((file) => [file.path, file.bytes]));
    const { onnx, tflite } = sizes.targets;
    // The files also hold activations' scales, constants and padding.
    const written = files.get('onnx/weights.data')!;
    expect(Math.abs(written - (onnx!.weightBytes + onnx!.embeddingBytes)) / written).toBeLessThan(0.08);
    expect(Math.abs(files.get('tflite/embedding.bin')! - tflite!.embeddingBytes)).toBeLessThan(64);
    expect(files.get('tflite/model.tflite')! / tflite!.weightBytes).toBeLessThan(1.35);
    expect(files.get('tflite/model.tflite')!).toBeGreaterThan(tflite!.weightBytes);
  });

  test('a configuration file does what flags do, and is saved as it was used', async () => {
    const config = join(work, 'npuc.config.yaml');
    writeFileSync(
      config,
      `source: ${demo}\nsoc: "8 Elite"\nscheme: w8a16\ntokens: [16]\ncache: 64\noverrides:\n  - match: down_proj\n    activation: 8\n`,
    );
    const saved = join(work, 'saved.yaml');
    const outcome = await runNpuc(['compile', '--config', config, '--save-config', saved, '--dry-run', '--json']);
    expect(outcome.code, outcome.stderr).toBe(0);
    const { recipe } = JSON.parse(outcome.stdout) as { recipe: { scheme: string; overrides: unknown[] } };
    expect(recipe).toMatchObject({ scheme: 'w8a16', overrides: [{ match: 'down_proj', activation: 8 }] });
    const again = await runNpuc(['compile', '--config', saved, '--dry-run', '--json']);
    expect(again.stdout).toBe(outcome.stdout);
  });

  test('an older output folder is replaced whole', async () => {
    const out = join(work, 'w8a16');
    writeFileSync(join(out, 'stale.txt'), 'from before');
    const outcome = await runNpuc(['compile', demo, '--target', 'onnx', '--out', out, ...quick, '--scheme', 'w8a16']);
    expect(outcome.code, outcome.stderr).toBe(0);
    expect(existsSync(join(out, 'stale.txt'))).toBe(false);
    expect(existsSync(join(out, 'tflite'))).toBe(false);
  });
});

describe('the packed tarball', { timeout: 300_000 }, () => {
  test('installed in an empty folder outside the repository, it compiles the demo model', () => {
    const empty = join(work, 'elsewhere');
    mkdirSync(empty);
    const run = (command: string, args: readonly string[], cwd: string): string =>
      execFileSync(command, args, {
        cwd,
        encoding: 'utf8',
        env: { ...process.env, NO_COLOR: '1' },
        stdio: ['ignore', 'pipe', 'pipe'],
      });
    const [tarball] = run('npm', ['pack', '--silent', '--ignore-scripts', '--pack-destination', empty], root)
      .trim()
      .split('\n')
      .slice(-1);
    writeFileSync(join(empty, 'package.json'), '{"private": true}');
    run('npm', ['install', '--silent', '--no-audit', '--no-fund', `./${tarball}`], empty);
    expect(existsSync(join(empty, 'node_modules', 'onnxruntime-node'))).toBe(false);
    const npuc = join(empty, 'node_modules', '.bin', 'npuc');
    const model = join(empty, 'node_modules', 'npuc', 'fixtures', 'demo');
    run(npuc, ['compile', model, '--target', 'onnx,tflite', '--out', 'out', ...quick], empty);
    const report = readReport(join(empty, 'out'));
    expect(report.targets.onnx!.engine).toContain('onnxruntime-web');
    expect(report.targets.onnx!.logits!.ratio).toBeLessThan(1.25);
    expect(report.targets.tflite!.logits!.ratio).toBeLessThan(1.25);
  });
});

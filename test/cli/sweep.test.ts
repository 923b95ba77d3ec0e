import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { cacheFolder } from '../../compiler/cache.ts';
import type { SweepReport } from '../../evaluation/sweep/sweep-report.ts';
import { toolchain } from '../targets/qnn/toolchain-or-skip.ts';
import { demo, type Outcome, runNpuc } from './run-npuc.ts';

// A sweep is several compiles, and the machine may do other work too.
vi.setConfig({ testTimeout: 240_000 });

let work: string;
let cache: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-sweep-'));
  // A cache folder of its own, so that what is quantized once is quantized here.
  cache = join(work, 'cache');
  mkdirSync(cache);
  if (toolchain) symlinkSync(cacheFolder('toolchains'), join(cache, 'toolchains'));
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

const points: readonly string[] = ['--target', 'tflite', '--tokens', '8,16', '--cache', '32,64', '--scheme', 'w8a16'];
const few: readonly string[] = ['--calibration-windows', '2', '--eval-tokens', '80', '--sinks', '2'];

function sweep(
  out: string,
  args: readonly string[] = [],
  options: Parameters<typeof runNpuc>[1] = {},
): Promise<Outcome> {
  const env = { NPUC_CACHE: cache, ...options.env };
  return runNpuc(['sweep', demo, ...points, ...few, '--out', join(work, out), '--json', ...args], { ...options, env });
}

const reportOf = ({ stdout }: Outcome): SweepReport => JSON.parse(stdout) as SweepReport;
const errorOf = ({ stdout }: Outcome): { code: string; message: string; hint: string } =>
  (JSON.parse(stdout) as { error: { code: string; message: string; hint: string } }).error;

/** Child processes of a process. */
function childrenOf(pid: number): number[] {
  try {
    return readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').filter(Boolean).map(Number);
  } catch {
    return [];
  }
}

describe('npuc sweep --plan', () => {
  test('plans 100 points in a moment, from shapes alone', async () => {
    const caches = Array.from({ length: 10 }, (_, i) => 32 * (i + 1)).join(',');
    const args = [
      '--soc',
      'SM8750,SM8650,SM8450,SM8350,SM8850',
      '--tokens',
      '8,16',
      '--cache',
      caches,
      '--plan',
      '--json',
    ];
    const started = performance.now();
    const outcome = await runNpuc(['sweep', demo, ...args, '--budget', 'memory<=4MB,cache>=128']);
    const seconds = (performance.now() - started) / 1000;
    expect(outcome.code).toBe(0);
    const report = reportOf(outcome);
    expect(report.points).toHaveLength(100);
    // Three are promised; a machine that does other work too gets more.
    expect(seconds).toBeLessThan(10);
    for (const { plan, target, soc } of report.points) {
      expect(target).toBe('qnn');
      expect(plan.memoryBytes).toBe(plan.artifactBytes + plan.cacheBytes + plan.arenaBytes + plan.ioBytes);
      // No public page says what the NPU of that one computes.
      expect(plan.prefill === undefined).toBe(soc === 'SM8450');
    }
    // An older HTP has no block scales and shares no weights.
    const old = report.points.find(({ soc }) => soc === 'SM8350')!;
    expect(old.plan.limits[0]).toContain('lpbq');
    expect(old.plan.copies).toBe(2);
    expect(old.front).toBe(false);
    expect(report.budget!.best).toMatch(/^qnn SM\d+ w4a16 \d+x\d+$/);
    expect(report.published).toHaveLength(6);
  });

  test('writes its table where it is told to, and nothing otherwise', async () => {
    const out = join(work, 'plan');
    const outcome = await runNpuc(['sweep', demo, '--plan', '--tokens', '8', '--cache', '32,64', '--out', out]);
    expect(outcome.code).toBe(0);
    expect(outcome.stdout).toContain('~ figures are estimates');
    expect(readdirSync(out).sort()).toEqual(['sweep.csv', 'sweep.html', 'sweep.json']);
    expect(readFileSync(join(out, 'sweep.csv'), 'utf8').trim().split('\r\n')).toHaveLength(3);
  });

  test.each([
    [['--budget', 'memory<=1.5'], 2, 'SW001'],
    [['--budget', 'memory less than 1GiB'], 2, 'SW001'],
    [['--budget', 'ppl<=1.05x'], 2, 'SW002'],
    [['--budget', 'memory<=1kB'], 1, undefined],
    [['--tokens', '64', '--cache', '32'], 2, 'IM410'],
    [['--cache', '99999999'], 2, 'IM411'],
    [['--soc', 'SM9999'], 2, 'TG001'],
    [['--scheme', 'w3a3'], 2, 'QT101'],
    [['--target', 'hf'], 2, 'CL001'],
    [['--executor', 'bullmq'], 2, 'CL001'],
    [['--redis', 'redis://localhost'], 2, 'CL001'],
    [['--executor', 'bullmq', '--redis', 'redis://localhost'], 2, 'CL001'],
    [['--executor', 'bullmq', '--redis', 'localhost', '--store', 'x'], 2, 'CL001'],
    [['--positions', 'nowhere'], 2, 'CL001'],
  ])('%j: exit code %i, %s', async (args, code, error) => {
    const outcome = await runNpuc(['sweep', demo, '--plan', '--json', ...args]);
    expect(outcome.code).toBe(code);
    if (error) expect(errorOf(outcome).code).toBe(error);
    else expect(reportOf(outcome).budget!.impossible![0]).toContain('memory<=1kB is impossible');
  });
});

describe('npuc sweep', () => {
  test('compiles every point over the same weights, as npuc compile does, and streams a text through each cache', async () => {
    const outcome = await sweep('all', ['--jobs', '2', '--budget', 'ppl<=1.5x']);
    expect(outcome.stderr).toContain('evaluate tflite w8a16, cache 32: perplexity');
    expect(outcome.code).toBe(0);
    const report = reportOf(outcome);
    expect(report.points).toHaveLength(4);
    expect(new Set(report.points.map(({ result }) => result!.weightsDigest)).size).toBe(1);
    for (const { plan, result, quality, cache: size } of report.points) {
      expect(result!.ops.taken).toBe(result!.ops.all);
      expect(Math.abs(plan.artifactBytes / result!.artifactBytes - 1)).toBeLessThan(0.1);
      expect(quality!.slides > 0).toBe(size < 80);
      expect(quality!.predictions).toBe(79);
      expect(quality!.ratio).toBeCloseTo(quality!.perplexity / report.points.at(-1)!.quality!.floatPerplexity, 6);
    }
    // Once a scheme, once a cache, once a point.
    expect(report.stages!.map(({ name, jobs }) => `${name} ${jobs}`).sort()).toEqual([
      'compile tflite w8a16 4',
      'evaluate tflite w8a16 2',
      'quantize tflite w8a16 1',
    ]);
    expect(report.budget!.best).toBeDefined();

    const single = join(work, 'single');
    const compiled = await runNpuc(
      [
        'compile',
        demo,
        '--target',
        'tflite',
        '--scheme',
        'w8a16',
        '--tokens',
        '16',
        '--cache',
        '64',
        '--evaluate',
        'none',
        '--calibration-windows',
        '2',
        '--out',
        single,
        '--quiet',
      ],
      { env: { NPUC_CACHE: join(work, 'other-cache') } },
    );
    expect(compiled.code).toBe(0);
    const manifest = (folder: string): string => readFileSync(join(folder, 'manifest.json'), 'utf8');
    expect(manifest(join(work, 'all', 'points', 'tflite-SM8750-w8a16-16x64'))).toBe(manifest(single));
  });

  test('goes on where it was: what is done is not done again, whatever asks for it', async () => {
    const again = await sweep('all', ['--cache', '32,64,96']);
    expect(again.code).toBe(0);
    expect(reportOf(again).points).toHaveLength(6);
    expect(again.stderr.match(/known already/g)).toHaveLength(7);
    // What is evaluated is no part of what was compiled.
    const unevaluated = await sweep('all', ['--evaluate', 'none']);
    expect(unevaluated.stderr.match(/known already/g)).toHaveLength(5);
    // A damaged artifact is not taken for one.
    const { result } = reportOf(again).points[0]!;
    const { sha256 } = result!.files.find(({ path }) => path.endsWith('.tflite'))!;
    writeFileSync(join(work, 'all', 'store', 'blobs', sha256.slice(0, 2), sha256), 'cut off');
    rmSync(join(work, 'all', 'points'), { recursive: true });
    const mended = await sweep('all', ['--cache', '32,64,96']);
    expect(mended.code).toBe(0);
    expect(reportOf(mended).points.every((point) => point.result !== undefined)).toBe(true);
    expect(reportOf(mended).points[0]!.result!.files).toEqual(result!.files);
  });

  test('a worker that is killed is replaced, and its point is taken over', async () => {
    let killed = 0;
    const outcome = await sweep('killed', ['--evaluate', 'none'], {
      onStart: async (child) => {
        while (child.exitCode === null && killed === 0) {
          for (const pid of childrenOf(child.pid!)) {
            process.kill(pid, 'SIGKILL');
            killed++;
          }
          await sleep(50);
        }
      },
    });
    expect(killed).toBe(1);
    expect(outcome.stderr).toContain('a worker died (SIGKILL)');
    expect(outcome.code).toBe(0);
    const done = reportOf(outcome).points;
    expect(done.every(({ result, failure }) => result !== undefined && failure === undefined)).toBe(true);
    expect(existsSync(join(work, 'killed', 'work'))).toBe(false);
  });

  test('Ctrl-C loses nothing: the next run goes on', async () => {
    const outcome = await sweep('stopped', ['--evaluate', 'none'], {
      onStart: async (child) => {
        const points = join(work, 'stopped', 'points');
        while (child.exitCode === null && !(existsSync(points) && readdirSync(points).length > 0)) await sleep(30);
        child.kill('SIGINT');
      },
    });
    expect(outcome.code).toBe(130);
    expect(readdirSync(join(work, 'stopped'))).not.toContain('sweep.lock');
    const again = await sweep('stopped', ['--evaluate', 'none']);
    expect(again.code).toBe(0);
    expect(again.stderr.match(/known already/g)!.length).toBeGreaterThanOrEqual(2);
    expect(reportOf(again).points.every(({ result }) => result !== undefined)).toBe(true);
    // The interrupted run may have left a worker's folder behind; this one has cleared it.
    expect(existsSync(join(work, 'stopped', 'work'))).toBe(false);
  });

  test('two sweeps in one folder: the second is refused, unless the first is no more', async () => {
    const folder = join(work, 'two');
    mkdirSync(folder);
    writeFileSync(join(folder, 'sweep.lock'), JSON.stringify({ pid: process.pid, host: hostname() }));
    const refused = await sweep('two', ['--plan']);
    expect(refused.code).toBe(2);
    expect(errorOf(refused)).toMatchObject({
      code: 'SW003',
      message: expect.stringContaining(String(process.pid)) as string,
    });
    // No process has that number.
    writeFileSync(join(folder, 'sweep.lock'), JSON.stringify({ pid: 2 ** 22 + 1, host: hostname() }));
    expect((await sweep('two', ['--plan'])).code).toBe(0);
    expect(readdirSync(folder)).not.toContain('sweep.lock');
  });

  test('a folder or a report that is not a sweep of this version is left alone', async () => {
    const foreign = join(work, 'foreign');
    mkdirSync(foreign);
    writeFileSync(join(foreign, 'thesis.txt'), 'years of work');
    expect(errorOf(await sweep('foreign', ['--plan'])).code).toBe('CL003');
    expect(readdirSync(foreign)).toEqual(['thesis.txt']);
    const other = join(work, 'other');
    mkdirSync(other);
    writeFileSync(join(other, 'sweep.json'), '{"kind":"sweep","format":99}');
    expect(errorOf(await sweep('other', ['--plan'])).code).toBe('SW004');
    expect(readFileSync(join(other, 'sweep.json'), 'utf8')).toBe('{"kind":"sweep","format":99}');
  });

  test.skipIf(!toolchain)(
    'HTP: two SoCs of one class share every weight; binary, spill-fill and simulator join the plan',
    async () => {
      const args = ['--target', 'qnn', '--soc', 'SM8750,SM8650', '--scheme', 'w4a16', '--tokens', '8', '--cache', '32'];
      const out = join(work, 'htp');
      const rest = ['--calibration-windows', '2', '--evaluate', 'none', '--jobs', '2', '--out', out, '--json'];
      const outcome = await runNpuc(['sweep', demo, ...args, ...rest], { env: { NPUC_CACHE: cache } });
      expect(outcome.code).toBe(0);
      const [first, second] = reportOf(outcome).points;
      expect([first!.soc, second!.soc]).toEqual(['SM8750', 'SM8650']);
      expect(first!.result!.weightsDigest).toBe(second!.result!.weightsDigest);
      const quantized = reportOf(outcome).stages!.filter(({ name }) => name.startsWith('quantize'));
      expect(quantized.map(({ jobs }) => jobs)).toEqual([1]);
      for (const { plan, result } of [first!, second!]) {
        expect(Math.abs(plan.artifactBytes / result!.artifactBytes - 1)).toBeLessThan(0.1);
        expect(result!.spillFill!.prefill).toBeGreaterThanOrEqual(plan.spillFillBytes!);
        expect(result!.simulator!.sqnr).toBeGreaterThan(25);
        expect(result!.vendorCpuSeconds).toBeGreaterThan(0);
        expect(result!.cpuSeconds).toBeGreaterThan(result!.vendorCpuSeconds);
      }
    },
  );

  test('a text that says nothing is refused before any work', async () => {
    const empty = join(work, 'empty.txt');
    writeFileSync(empty, '');
    expect(errorOf(await sweep('empty', ['--evaluate', empty])).code).toBe('QT110');
    expect(errorOf(await sweep('empty', ['--calibrate', empty])).code).toBe('QT110');
    expect(existsSync(join(work, 'empty'))).toBe(false);
  });

  test('a point that fails keeps its error, and the others go on', async () => {
    // A slide needs room behind the sinks: a cache of 32 has none for 30 of them.
    const outcome = await sweep('failing', ['--sinks', '30', '--tokens', '8']);
    const [small, large] = reportOf(outcome).points;
    expect(small!.failure!.code).toBe('RT105');
    expect(large!.failure).toBeUndefined();
    expect(large!.quality).toBeDefined();
    expect(outcome.code).toBe(1);
  });
});

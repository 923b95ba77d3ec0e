// The cost of a sweep: 12 points of SmolLM2-135M-Instruct on one SoC against one compile, without evaluation and simulator, each
// from an empty cache folder; written to bench/results/sweep.md. About half an hour on two cores.
// npm run -s build && node bench/sweep.mjs [--checkpoint folder-or-gguf] [--tokens 32,64,128] [--cache 512,1024,2048,4096]
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { cacheFolder } from '../dist/compiler/cache.js';

const text = (value) => ({ type: 'string', default: value });
const { values } = parseArgs({
  options: {
    checkpoint: text(cacheFolder('models', 'smollm2-135m-instruct', 'SmolLM2-135M-Instruct.Q4_1.gguf')),
    tokens: text('32,64,128'),
    cache: text('512,1024,2048,4096'),
    scheme: text('w4a16'),
    soc: text('SM8750'),
    out: text(fileURLToPath(new URL('results/sweep.md', import.meta.url))),
  },
});
if (!existsSync(values.checkpoint)) throw new Error('run node test/tools/fetch-smollm2.mjs first');
const main = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url));
const work = mkdtempSync(join(tmpdir(), 'npuc-bench-sweep-'));

/** Runs npuc from an empty cache folder that has the toolchains only. */
function run(name, args) {
  const cache = join(work, `cache-${name}`);
  mkdirSync(cache);
  symlinkSync(cacheFolder('toolchains'), join(cache, 'toolchains'));
  const command = [main, ...args, '--quiet', '--out', join(work, name)];
  // Bash knows the processor time of a child and of all that it waited for.
  const script = 'TIMEFORMAT="%R %U %S"; time "$@" >/dev/null';
  const times = execFileSync('bash', ['-c', `{ ${script}; } 2>&1`, 'bash', process.execPath, ...command], {
    env: { ...process.env, NPUC_CACHE: cache },
    encoding: 'utf8',
  });
  rmSync(cache, { recursive: true });
  const [seconds, user, system] = times.trim().split('\n').at(-1).split(' ').map(Number);
  return { seconds, cpu: user + system };
}

try {
  const plan = [];
  for (let i = 0; i < 3; i++) {
    const socs = 'SM8750,SM8650,SM8550,SM8450,SM8850';
    const args = ['sweep', values.checkpoint, '--plan', '--soc', socs, '--scheme', 'w4a16,w8a8', '--tokens', '64,128'];
    const started = performance.now();
    execFileSync(
      process.execPath,
      [main, ...args, '--cache', '256,512,768,1024,1280,1536,2048,3072,4096,8192', '--quiet'],
      {
        stdio: 'ignore',
      },
    );
    plan.push((performance.now() - started) / 1000);
  }
  const [tokens, cache] = [values.tokens.split(',').at(-1), values.cache.split(',')[1] ?? values.cache];
  const shared = ['--target', 'qnn', '--soc', values.soc, '--scheme', values.scheme, '--evaluate', 'none'];
  const one = run('one', ['compile', values.checkpoint, ...shared, '--tokens', tokens, '--cache', cache]);
  const stages = JSON.parse(readFileSync(join(work, 'one', 'timings.json'), 'utf8'));
  const vendorOne = stages.flatMap(({ parts = [] }) => parts).reduce((sum, part) => sum + part.cpuSeconds, 0);
  rmSync(join(work, 'one'), { recursive: true });
  const all = run('all', [
    'sweep',
    values.checkpoint,
    ...shared,
    '--simulate',
    'none',
    '--tokens',
    values.tokens,
    '--cache',
    values.cache,
  ]);
  const report = JSON.parse(readFileSync(join(work, 'all', 'sweep.json'), 'utf8'));
  const failed = report.points.filter(({ result }) => !result);
  if (failed.length > 0)
    throw new Error(`${failed.length} points were not compiled: ${JSON.stringify(failed[0].failure)}`);
  const sum = (key) => report.stages.reduce((total, stage) => total + stage[key], 0);
  const vendor = sum('vendorCpuSeconds');
  const digests = new Set(report.points.map(({ result }) => result.weightsDigest));
  const own = all.cpu - vendor;
  const ratio = own / one.cpu;
  const errors = report.points.map(({ plan: { artifactBytes }, result }) => artifactBytes / result.artifactBytes - 1);
  const worst = errors.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a));
  const seconds = (value) => value.toFixed(0);
  writeFileSync(
    values.out,
    `# What a sweep costs

Written by \`node bench/sweep.mjs\`: ${basename(values.checkpoint)}, ${values.scheme}, ${values.soc}, tokens ${values.tokens} by caches ${values.cache}:
${report.points.length} points, from an empty cache folder, without evaluation and simulator. Processor seconds, user and system.

| | CPU s | of it the vendor's compiler |
|---|---|---|
| one compile, ${tokens}x${cache} | ${seconds(one.cpu)} | ${seconds(vendorOne)} |
| the sweep, ${report.points.length} points | ${seconds(all.cpu)} | ${seconds(vendor)} |

Without the vendor's compiler the sweep takes ${ratio.toFixed(2)} times one compile (at most 1.5 is wanted). Its points have ${
      digests.size === 1 ? 'the same weights, byte for byte' : `${digests.size} different weights`
    }${digests.size === 1 ? `: SHA-256 ${[...digests][0]}` : ''}. The plan of 100 points takes ${plan
      .sort((a, b) => a - b)[1]
      .toFixed(1)} s (median of three; at most 3 is wanted).

| point | planned MB | binary MB | off | spill-fill MB | at least | vendor CPU s | peak GB |
|---|---|---|---|---|---|---|---|
${report.points
  .map(({ id, plan: planned, result }, i) =>
    [
      id,
      (planned.artifactBytes / 1e6).toFixed(1),
      (result.artifactBytes / 1e6).toFixed(1),
      `${(100 * errors[i]).toFixed(1)} %`,
      (result.spillFill.prefill / 1e6).toFixed(2),
      (planned.spillFillBytes / 1e6).toFixed(2),
      seconds(result.vendorCpuSeconds),
      (result.peakRssBytes / 1e9).toFixed(2),
    ].join(' | '),
  )
  .map((line) => `| ${line} |`)
  .join('\n')}

The plan of a binary is off by ${(100 * worst).toFixed(1)} % at most (10 is wanted).
`,
  );
  process.stdout.write(readFileSync(values.out, 'utf8'));
} finally {
  rmSync(work, { recursive: true, force: true });
}

import type { Argv } from 'yargs';
import { NpucError } from '../compiler/errors.ts';
import { createProgress, progressMode } from '../compiler/progress.ts';
import type { SweepTarget } from '../evaluation/sweep/sweep-report.ts';
import type { Command } from './commands.ts';
import { recipeOf } from './compile.ts';
import { type CompileConfig, mergeConfig, readConfig } from './config.ts';
import { countFlag, listFlag, numberFlag, textFlag } from './flags.ts';
import { quote } from './jobs/reproduce-command.ts';
import { checkAddress } from './jobs/sweep/queue.ts';
import type { Executor, SweepOptions } from './jobs/sweep/sweep-options.ts';

interface SweepArguments extends Partial<Omit<CompileConfig, 'soc' | 'scheme'>> {
  readonly config?: string;
  readonly soc?: string | string[];
  readonly scheme?: string | string[];
  readonly plan: boolean;
  readonly budget?: string;
  readonly jobs?: number;
  readonly simulate: string;
  readonly sinks: number;
  readonly positions: string;
  readonly executor: string;
  readonly redis?: string;
  readonly queue?: string;
  readonly store?: string;
  readonly json: boolean;
  readonly quiet: boolean;
  readonly force: boolean;
}

/** `npuc sweep`: token and cache sizes, schemes and SoCs side by side; planned in seconds, then compiled. */
export const sweepCommand: Command = {
  command: 'sweep [source]',
  describe: 'compare token and cache sizes, schemes and SoCs: plan in seconds, compile once, choose',
  builder: (args: Argv) =>
    args
      .positional('source', { type: 'string', describe: 'Hugging Face folder, .gguf, or hf:org/name[@revision]' })
      .option('soc', listFlag('SoCs by part or marketing name, comma-separated (default SM8750)'))
      .option('scheme', listFlag('w4a16, w8a16, w8a8, fp16, comma-separated (default w4a16)'))
      .option('tokens', listFlag('new tokens per prefill run, comma-separated (default 128)'))
      .option('cache', listFlag('whole contexts, comma-separated (default 1024)'))
      .option('target', listFlag('qnn, tflite, onnx, comma-separated (default: qnn, or tflite without its toolchain)'))
      .option('out', textFlag('folder of the sweep (default sweep)', { alias: 'o' }))
      .option('plan', {
        type: 'boolean',
        default: false,
        describe: 'bytes, limits and estimated speed only, in seconds; written to --out where that is given',
      })
      .option('budget', textFlag('choose the best point within bounds, such as "memory<=1.5GiB,ppl<=1.05x,decode>=20"'))
      .option('jobs', countFlag('jobs', 'points that are compiled at a time (default: half of the cores)'))
      .option('kv', countFlag('kv', 'bits of the key/value cache, 8 or 16 (default 8)'))
      .option('block', numberFlag('block', 'LPBQ block of 4-bit weights: 16, 32, 64; 0 is per channel', {}))
      .option('rounding', textFlag('4-bit weights: nearest or gptq (default gptq)'))
      .option('rotation', textFlag('rotate the residual stream: auto, none, hadamard'))
      .option('range', textFlag('activation ranges: min-max, percentile, histogram-mse'))
      .option('embedding', textFlag('HTP embedding: in-graph (default), lut-f16, lut-u8'))
      .option('io', textFlag('TFLite ports: float or quantized (default float)'))
      .option('calibrate', textFlag('calibration text (default: one that comes with npuc)'))
      .option('calibration-windows', countFlag('calibration-windows', 'windows of calibration text (default 32)'))
      .option(
        'evaluate',
        textFlag('long text to stream through each cache (default: one that comes with npuc), or none'),
      )
      .option('eval-tokens', countFlag('eval-tokens', 'tokens of it (default 2048)'))
      .option(
        'sinks',
        numberFlag('sinks', 'first tokens that a sliding cache keeps', { whole: true, least: 0 }, { default: 0 }),
      )
      .option('positions', {
        ...textFlag('positions in a cache that slid: cache (keys are rotated again) or global'),
        default: 'cache',
      })
      .option('simulate', {
        ...textFlag('run a chunk of every point on the HTP simulator: auto (models up to 20 M weights), all, none'),
        default: 'auto',
      })
      .option('max-memory', textFlag('most memory that the HTP compiler may take, such as 12GiB or 8GB'))
      .option('threads', countFlag('threads', 'threads of one point; the bytes do not depend on it'))
      .option('allow-extrapolation', { type: 'boolean', describe: 'let the cache exceed max_position_embeddings' })
      .option('executor', { ...textFlag('local, or bullmq: points go to npuc workers'), default: 'local' })
      .option('redis', textFlag('Redis or Valkey of the bullmq executor, such as redis://host:6379'))
      .option('queue', textFlag('name of the queue (default npuc-sweep)'))
      .option('store', textFlag('shared folder for artifacts by digest; bullmq needs one'))
      .option('config', textFlag('configuration file, as of compile'))
      .option('force', { type: 'boolean', default: false, describe: 'use a folder that npuc did not make' })
      .example('$0 sweep ./SmolLM2 --soc SM8750,SM8650 --tokens 32,128 --cache 512,1024,2048 --plan', '')
      .example('$0 sweep ./SmolLM2 --cache 512,2048 --scheme w4a16,w8a8 --budget "memory<=300MB,ppl<=1.1x"', '')
      .example('$0 sweep ./SmolLM2 --cache 512,2048 --executor bullmq --redis redis://host --store /mnt/store', ''),
  run: async (args: SweepArguments) => {
    const options = await sweepOptions(args);
    const { runPlan, runSweep } = await import('./jobs/sweep/run-sweep.ts');
    const { renderSweepText } = await import('../evaluation/sweep/render-sweep-text.ts');
    const { spellFigures } = await import('../evaluation/write-report.ts');
    const report = await (args.plan ? runPlan(options) : runSweep(options));
    process.stdout.write(args.json ? `${JSON.stringify(report, spellFigures)}\n` : renderSweepText(report));
    return report.budget?.impossible || report.points.some(({ failure }) => failure) ? 1 : 0;
  },
};

/** Checks what was asked for before any work. @throws CL001, CL002, TG001, SW001 */
async function sweepOptions(args: SweepArguments): Promise<SweepOptions> {
  const file = await readConfig(args.config);
  const { soc: _soc, scheme: _scheme, ...flags } = args;
  const socs = listOf(args.soc ?? file.config.soc ?? 'SM8750');
  const schemes = listOf(args.scheme ?? file.config.scheme ?? 'w4a16');
  const configs = schemes.map((scheme) => mergeConfig({ ...file.config, scheme }, flags, file.path));
  const [config] = configs;
  if (!config?.source) {
    throw new NpucError('CL001', { message: 'no checkpoint given', hint: 'npuc sweep <checkpoint>' });
  }
  if (config.source.endsWith('.onnx')) {
    throw new NpucError('CL001', {
      message: 'a sweep is over token and cache sizes of a checkpoint, an ONNX model has none',
      where: config.source,
      hint: 'npuc compile takes ONNX models',
    });
  }
  if (config.encodingsIn !== undefined || config.dlc) {
    throw new NpucError('CL001', { message: 'encodingsIn and dlc are for single compiles', hint: 'npuc compile' });
  }
  const { findSoc } = await import('../targets/socs.ts');
  const { parseBudget } = await import('../evaluation/sweep/budget.ts');
  if (args.budget !== undefined) parseBudget(args.budget);
  for (const each of configs) recipeOf(each);
  return {
    configs,
    socs: [...new Map(socs.map((name) => [findSoc(name).name, findSoc(name)])).values()],
    targets: await targetsOf(config.target, args.plan),
    out: args.out,
    budget: args.budget,
    jobs: args.jobs,
    simulate: oneOf('simulate', args.simulate, ['auto', 'all', 'none']),
    sinks: args.sinks,
    positions: oneOf('positions', args.positions, ['cache', 'global']),
    executor: executorOf(args),
    store: args.store,
    force: args.force,
    command: ['npuc', ...process.argv.slice(2)].map(quote).join(' '),
    progress: createProgress(progressMode(args.quiet)),
  };
}

function listOf(given: string | string[]): string[] {
  const list = [given].flat().flatMap((each) => each.split(',').map((part) => part.trim()));
  const words = [...new Set(list.filter((part) => part !== ''))];
  if (words.length === 0) throw new NpucError('CL001', { message: 'an empty list', hint: 'npuc sweep --help' });
  return words;
}

function oneOf<T extends string>(name: string, given: string, choices: readonly T[]): T {
  if (choices.includes(given as T)) return given as T;
  throw new NpucError('CL001', { message: `--${name} takes ${choices.join(', ')}, not ${given}` });
}

/** A plan needs no toolchain, so it is for the HTP unless something else is asked for. */
async function targetsOf(asked: CompileConfig['target'], plan: boolean): Promise<SweepTarget[]> {
  const { findToolchain, requireToolchain } = await import('../targets/qnn/toolchain.ts');
  const { SWEEP_TARGETS } = await import('../evaluation/sweep/sweep-report.ts');
  if (!asked) return [plan || findToolchain('qnn') ? 'qnn' : 'tflite'];
  const targets = [...new Set(asked)].map((name) => oneOf('target', name, SWEEP_TARGETS));
  if (targets.includes('qnn') && !plan) requireToolchain('qnn');
  return targets;
}

/** @throws CL001 for a queue without its Redis or its store, or either without the queue */
function executorOf({ executor, redis, queue, store }: SweepArguments): Executor {
  const refuse = (message: string, hint: string): never => {
    throw new NpucError('CL001', { message, hint });
  };
  if (oneOf('executor', executor, ['local', 'bullmq']) === 'local') {
    if (redis !== undefined) refuse('--redis is for --executor bullmq', 'add --executor bullmq');
    return { kind: 'local' };
  }
  if (redis === undefined) return refuse('--executor bullmq needs --redis', '--redis redis://host:6379');
  if (store === undefined) return refuse('--executor bullmq needs --store', 'a folder that all workers see');
  return { kind: 'bullmq', redis: checkAddress(redis), queue: queue ?? 'npuc-sweep' };
}

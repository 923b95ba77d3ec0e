import type { Argv } from 'yargs';
import { NpucError } from '../compiler/errors.ts';
import { describeOutcome } from '../evaluation/check/check-report.ts';
import type { Command } from './commands.ts';
import { compileOptions } from './compile.ts';
import { type CompileConfig, mergeConfig, readConfig } from './config.ts';
import { countFlag, listFlag, numberFlag, textFlag } from './flags.ts';
import type { CheckOptions } from './jobs/check.ts';

interface CheckArguments extends Partial<CompileConfig> {
  readonly config?: string;
  readonly baseline: string;
  readonly update: boolean;
  readonly seed: number;
  readonly draws: number;
  readonly junit?: string;
  readonly sarif?: string;
  readonly markdown?: string;
  readonly html?: string;
  readonly annotations?: boolean;
  readonly json: boolean;
  readonly quiet: boolean;
}

/** `npuc check`: quantization error against a committed baseline; exit 1 on a regression. */
export const checkCommand: Command = {
  command: 'check [source]',
  describe: 'compare quantization error with a committed baseline, and find what broke it',
  builder: (args: Argv) =>
    args
      .positional('source', {
        type: 'string',
        describe: 'Hugging Face folder, .gguf, .onnx, or hf:org/name[@revision]',
      })
      .option('baseline', textFlag('the baseline file', { default: 'quality.yaml', alias: 'b' }))
      .option('update', {
        type: 'boolean',
        default: false,
        describe: 'measure, and write the baseline; budgets are kept',
      })
      .option('target', textFlag('whose graph is measured: onnx, qnn or tflite (default onnx)'))
      .option('scheme', textFlag('w4a16, w8a16, w8a8 or fp16 (default w4a16)'))
      .option('soc', textFlag('SoC by part or marketing name (default SM8750)'))
      .option('kv', countFlag('kv', 'bits of the key/value cache, 8 or 16 (default 8)'))
      .option('block', numberFlag('block', 'block of 4-bit weights; 0 is per channel (default 64)', {}))
      .option('rounding', textFlag('4-bit weights: nearest or gptq (default gptq)'))
      .option('rotation', textFlag('rotate the residual stream: auto, none, hadamard'))
      .option('range', textFlag('activation ranges: min-max, percentile, histogram-mse'))
      .option('calibrate', textFlag('calibration text, or samples of an ONNX model'))
      .option('calibration-windows', countFlag('calibration-windows', 'windows of calibration text (default 32)'))
      .option('evaluate', textFlag('held-out text, or samples of an ONNX model'))
      .option('eval-tokens', countFlag('eval-tokens', 'tokens of held-out text (default 2048)'))
      .option('bind', listFlag('ONNX: name=number, input=1x3x224x224', { array: true }))
      .option('threads', countFlag('threads', 'threads'))
      .option(
        'seed',
        numberFlag(
          'seed',
          'of the bootstrap, and of a draw of three quarters of the calibration windows; 0 takes all',
          { whole: true, least: 0 },
          { default: 0 },
        ),
      )
      .option(
        'draws',
        numberFlag('draws', 'draws that --update measures the noise on', { whole: true, least: 2 }, { default: 4 }),
      )
      .option('junit', textFlag('write JUnit XML'))
      .option('sarif', textFlag('write SARIF 2.1.0'))
      .option('markdown', textFlag('write markdown; in GitHub Actions the step summary has it anyway'))
      .option('html', textFlag('write the comparison as one HTML file'))
      .option('annotations', {
        type: 'boolean',
        describe: "GitHub's annotations on stderr (default: in GitHub Actions)",
      })
      .option('config', textFlag('configuration file (default: npuc.config.yaml, .json or .mjs here)'))
      .example('$0 check ./SmolLM2 --scheme w4a16 --baseline quality.yaml --update', '')
      .example('$0 check ./SmolLM2 --scheme w4a16 --baseline quality.yaml --junit check.xml --sarif check.sarif', ''),
  run: async (args: CheckArguments) => {
    const file = await readConfig(args.config);
    const config = mergeConfig(file.config, args, file.path);
    const { target, ...rest } = config;
    if (target && target.length > 1) {
      throw new NpucError('CL001', {
        message: `a check measures one target, not ${target.join(', ')}`,
        hint: 'one baseline a target: npuc check ... --target onnx --baseline onnx.yaml',
      });
    }
    const { checkQuality, updateBaseline } = await import('./jobs/check.ts');
    const options: CheckOptions = {
      // The graph is measured on this machine: no vendor's toolchain is asked for.
      compile: compileOptions({ ...rest, target: ['onnx'] }, { force: false, quiet: args.quiet }),
      bind: config.bind,
      target: target?.[0] ?? 'onnx',
      baseline: args.baseline,
      seed: args.seed,
      draws: args.draws,
      ...(file.path === undefined ? {} : { config: file.path }),
    };
    if (args.update) {
      const { path, values, draws, changed } = await updateBaseline(options);
      process.stdout.write(
        args.json
          ? `${JSON.stringify({ baseline: path, values, draws, changed })}\n`
          : `${path}: ${changed ? 'written' : 'unchanged'}, ${values} values, noise over ${draws} draws\n`,
      );
      return 0;
    }
    const report = await checkQuality(options);
    const { writeCheckOutputs } = await import('./jobs/check-outputs.ts');
    const { text, json } = writeCheckOutputs(report, {
      ...args,
      annotations: args.annotations ?? process.env.GITHUB_ACTIONS === 'true',
      ...(process.env.GITHUB_STEP_SUMMARY ? { summary: process.env.GITHUB_STEP_SUMMARY } : {}),
    });
    process.stdout.write(args.json ? `${json}\n` : text);
    if (report.judgement.failed) options.compile.progress.note(describeOutcome(report));
    return report.judgement.failed ? 1 : 0;
  },
};

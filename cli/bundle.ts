import { existsSync, statSync } from 'node:fs';
import type { Argv } from 'yargs';
import { NpucError } from '../compiler/errors.ts';
import { createProgress, progressMode } from '../compiler/progress.ts';
import type { Command } from './commands.ts';
import { numberFlag, textFlag } from './flags.ts';
import type { LitertLmAgreement, TokenAgreement } from './jobs/bundle-litertlm.ts';
import { formatBytes } from './render-plan.ts';

interface BundleArguments {
  readonly action: 'genie' | 'litertlm' | 'check';
  readonly folder: string;
  readonly out?: string;
  readonly tokenizer?: string;
  readonly unshared: boolean;
  readonly verify: boolean;
  readonly prompt: string;
  readonly maxTokens: number;
  readonly force: boolean;
  readonly json: boolean;
  readonly quiet: boolean;
}

/** `npuc bundle`: what a vendor's own runtime loads, and the check that its parts fit each other. */
export const bundleCommand: Command = {
  command: 'bundle <action> <folder>',
  describe: "make a folder that the vendor's runtime loads, or check one",
  builder: (args: Argv) =>
    args
      .positional('action', {
        type: 'string',
        choices: ['genie', 'litertlm', 'check'],
        demandOption: true,
        describe:
          'genie: from an output folder with a qnn target; litertlm: from one with --profile litert-lm; check: an existing bundle',
      })
      .positional('folder', {
        type: 'string',
        demandOption: true,
        describe: 'output folder of npuc compile, or a bundle',
      })
      .option('out', textFlag('folder of a Genie bundle, or the .litertlm file', { alias: 'o' }))
      .option(
        'tokenizer',
        textFlag("litertlm: a tokenizer.json or a SentencePiece model in the place of the checkpoint's"),
      )
      .option('unshared', {
        type: 'boolean',
        default: false,
        describe: 'one binary per graph, as the x86 simulator needs it',
      })
      .option('verify', {
        type: 'boolean',
        default: false,
        describe: 'run the bundle in libGenie or LiteRT-LM and compare every token with npuc generate',
      })
      .option('prompt', textFlag('prompt of --verify', { alias: 'p', default: 'Once upon a time' }))
      .option(
        'max-tokens',
        numberFlag('max-tokens', 'tokens of --verify', { whole: true, least: 1 }, { alias: 'n', default: 16 }),
      )
      .option('force', { type: 'boolean', default: false, describe: 'replace a folder that npuc did not make' })
      .example('$0 bundle genie build/ --out genie/', '')
      .example('$0 bundle genie build/ --out genie-x86/ --unshared --verify', '')
      .example('$0 bundle litertlm build/ --out model.litertlm --verify --max-tokens 64', '')
      .example('$0 bundle check model.litertlm', ''),
  run: async (args: BundleArguments) => {
    const print = (lines: readonly string[], data: unknown): number => {
      process.stdout.write(args.json ? `${JSON.stringify(data)}\n` : `${lines.join('\n')}\n`);
      return 0;
    };
    if (args.action === 'check' && (args.folder.endsWith('.litertlm') || isFile(args.folder))) {
      const { requireWholeLitertLm } = await import('../targets/tflite/check-litertlm.ts');
      const warnings = requireWholeLitertLm(args.folder);
      return print([...warnings, `${args.folder} is whole`], { warnings });
    }
    if (args.action === 'check') {
      const { checkGenieBundle } = await import('../targets/qnn/check-genie.ts');
      const { requireToolchain } = await import('../targets/qnn/toolchain.ts');
      const warnings = await checkGenieBundle(args.folder, requireToolchain('qnn'));
      return print([...warnings, `${args.folder} is whole`], { warnings });
    }
    if (args.out === undefined)
      throw new NpucError('CL001', { message: '--out is missing', hint: 'npuc bundle --help' });
    const progress = createProgress(progressMode(args.quiet));
    if (args.action === 'litertlm') {
      const { bundleLitertLm } = await import('./jobs/bundle-litertlm.ts');
      const { bundle, warnings, verified } = await bundleLitertLm({
        folder: args.folder,
        out: args.out,
        force: args.force,
        ...(args.tokenizer === undefined ? {} : { tokenizer: args.tokenizer }),
        ...(args.verify ? { verify: { prompt: args.prompt, tokens: args.maxTokens } } : {}),
        note: (line) => progress.stage(line),
      });
      progress.finish();
      const lines = [
        `${args.out}  ${formatBytes(bundle.byteLength)}  sha256 ${bundle.sha256}`,
        ...warnings,
        ...(verified ? describeVerified(verified) : []),
        `litert-lm run ${args.out} --backend cpu`,
      ];
      return print(lines, { bundle, warnings, ...(verified ? { verified } : {}) });
    }
    const { bundleGenie } = await import('./jobs/bundle-genie.ts');
    const result = await bundleGenie({
      folder: args.folder,
      out: args.out,
      unshared: args.unshared,
      force: args.force,
      ...(args.verify ? { verify: { prompt: args.prompt, tokens: args.maxTokens } } : {}),
      note: (line) => progress.stage(line),
    });
    progress.finish();
    const { manifest, warnings, verified } = result;
    const lines = [
      ...manifest.files.map(({ path, bytes }) => `${path}  ${formatBytes(bytes)}`),
      ...warnings,
      ...(verified ? [`Genie and npuc generate agree on ${verified.ids.length} tokens: ${verified.text}`] : []),
      `${args.out}/README.md says how to run it`,
    ];
    return print(lines, result);
  },
};

function isFile(path: string): boolean {
  return existsSync(path) && statSync(path).isFile();
}

function describeVerified({ ids, text, native, js }: LitertLmAgreement): string[] {
  const lines = [native, js].map(({ engine, differing, gap }: TokenAgreement) => {
    const agree = `${ids.length - differing.length} of ${ids.length} tokens are npuc generate's own on ${engine}`;
    return differing.length === 0 ? agree : `${agree}, the others within ${gap.toPrecision(3)} of its best logit`;
  });
  return [`LiteRT-LM writes: ${text}`, ...lines];
}

import type { Argv } from 'yargs';
import { NpucError } from '../compiler/errors.ts';
import { createProgress, progressMode } from '../compiler/progress.ts';
import type { Command } from './commands.ts';
import { numberFlag, textFlag } from './flags.ts';
import { formatBytes } from './render-plan.ts';

interface BundleArguments {
  readonly action: 'genie' | 'check';
  readonly folder: string;
  readonly out?: string;
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
        choices: ['genie', 'check'],
        demandOption: true,
        describe: 'genie: from an output folder with a qnn target; check: an existing bundle',
      })
      .positional('folder', {
        type: 'string',
        demandOption: true,
        describe: 'output folder of npuc compile, or a bundle',
      })
      .option('out', textFlag('folder of the bundle', { alias: 'o' }))
      .option('unshared', {
        type: 'boolean',
        default: false,
        describe: 'one binary per graph, as the x86 simulator needs it',
      })
      .option('verify', {
        type: 'boolean',
        default: false,
        describe: 'run the bundle in libGenie and compare every token with npuc generate',
      })
      .option('prompt', textFlag('prompt of --verify', { alias: 'p', default: 'Once upon a time' }))
      .option(
        'max-tokens',
        numberFlag('max-tokens', 'tokens of --verify', { whole: true, least: 1 }, { alias: 'n', default: 16 }),
      )
      .option('force', { type: 'boolean', default: false, describe: 'replace a folder that npuc did not make' })
      .example('$0 bundle genie build/ --out genie/', '')
      .example('$0 bundle genie build/ --out genie-x86/ --unshared --verify', ''),
  run: async (args: BundleArguments) => {
    const print = (lines: readonly string[], data: unknown): number => {
      process.stdout.write(args.json ? `${JSON.stringify(data)}\n` : `${lines.join('\n')}\n`);
      return 0;
    };
    if (args.action === 'check') {
      const { checkGenieBundle } = await import('../targets/qnn/check-genie.ts');
      const { requireToolchain } = await import('../targets/qnn/toolchain.ts');
      const warnings = await checkGenieBundle(args.folder, requireToolchain('qnn'));
      return print([...warnings, `${args.folder} is whole`], { warnings });
    }
    if (args.out === undefined)
      throw new NpucError('CL001', { message: '--out is missing', hint: 'npuc bundle --help' });
    const progress = createProgress(progressMode(args.quiet));
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

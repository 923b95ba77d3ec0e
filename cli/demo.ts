import { join } from 'node:path';
import { createInterface } from 'node:readline/promises';
import type { Argv } from 'yargs';
import { packageRoot } from '../calibration/texts.ts';
import { createProgress, progressMode } from '../compiler/progress.ts';
import { findToolchain, hostObstacle, installToolchain } from '../targets/qnn/toolchain.ts';
import type { Command } from './commands.ts';
import { compileOptions } from './compile.ts';
import { mergeConfig } from './config.ts';
import { textFlag } from './flags.ts';

interface DemoArguments {
  readonly out: string;
  readonly acceptLicence: boolean;
  readonly json: boolean;
  readonly quiet: boolean;
}

/** `npuc demo` (`npm start`): the trained model that comes with npuc, compiled, run and reported. */
export const demoCommand: Command = {
  command: 'demo',
  describe: 'compile the trained model that comes with npuc and show its report',
  builder: (args: Argv) =>
    args
      .option('out', textFlag('output folder', { alias: 'o', default: 'build-demo' }))
      .option('accept-licence', {
        type: 'boolean',
        default: false,
        describe: "install the QNN toolchain; you accept the vendor's licence",
      })
      .example('$0 demo --accept-licence', ''),
  run: async (args: DemoArguments) => {
    await offerToolchain(args);
    const config = mergeConfig(
      {},
      {
        source: join(packageRoot(), 'fixtures', 'demo'),
        soc: 'SM8750',
        scheme: 'w4a16',
        tokens: [64],
        cache: 256,
        kv: 16,
        out: args.out,
        calibrationWindows: 16,
        evalTokens: 1024,
        prompt: 'It was',
      },
    );
    const { compileDecoder } = await import('./jobs/compile-decoder.ts');
    const { spellFigures } = await import('../evaluation/write-report.ts');
    const { renderTerminal } = await import('../evaluation/render-terminal.ts');
    const options = compileOptions(config, { force: false, quiet: args.quiet });
    const { report, manifest } = await compileDecoder(options);
    process.stdout.write(
      args.json
        ? `${JSON.stringify({ manifest, report }, spellFigures)}\n`
        : `${renderTerminal(report!)}\n${options.out}/report.html\n`,
    );
    return 0;
  },
};

/** With a terminal the toolchain is offered, with --accept-licence installed unasked, else one line says how. */
async function offerToolchain(args: DemoArguments): Promise<void> {
  if (findToolchain('qnn')) return;
  const progress = createProgress(progressMode(args.quiet));
  const obstacle = hostObstacle('qnn');
  if (obstacle !== undefined) {
    progress.note(`no HTP binary: the QNN toolchain cannot run here (${obstacle})`);
    return;
  }
  if (!args.acceptLicence && !(await confirm())) {
    progress.note('no HTP binary: npm start -- --accept-licence installs the QNN toolchain');
    return;
  }
  progress.stage('install the QNN toolchain');
  await installToolchain('qnn', { acceptLicence: true });
  progress.finish();
}

/** Asks on a terminal; elsewhere, and for an answer that never comes, the answer is no. */
async function confirm(): Promise<boolean> {
  if (!process.stdin.isTTY || !process.stderr.isTTY || process.env.CI) return false;
  const prompt = createInterface({ input: process.stdin, output: process.stderr });
  // Nobody else sees Ctrl-C while a question is open.
  prompt.on('SIGINT', () => {
    process.stderr.write('\n');
    process.kill(process.pid, 'SIGINT');
  });
  const closed = new Promise<string>((resolve) => prompt.once('close', () => resolve('\n')));
  process.stderr.write("An HTP binary needs Qualcomm's QNN toolchain: a download of 126 MB under the\n");
  const question = "vendor's licence (npuc toolchain licence qnn). Accept it and install? [y/N] ";
  const answer = await Promise.race([prompt.question(question), closed]);
  // The line that Enter ends elsewhere.
  if (answer === '\n') process.stderr.write(answer);
  prompt.close();
  return /^y(es)?$/i.test(answer.trim());
}

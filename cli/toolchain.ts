import { rmSync } from 'node:fs';
import type { Argv } from 'yargs';
import { NpucError } from '../compiler/errors.ts';
import { createProgress, progressMode } from '../compiler/progress.ts';
import {
  fetchLicence,
  installToolchain,
  type ToolchainName,
  toolchainRoot,
  toolchainStatus,
} from '../targets/qnn/toolchain.ts';
import type { Command } from './commands.ts';
import { textFlag } from './flags.ts';
import { formatBytes } from './render-plan.ts';

interface ToolchainArguments {
  readonly action: 'install' | 'list' | 'licence' | 'remove';
  readonly name: string;
  readonly acceptLicence: boolean;
  readonly wheels?: string;
  readonly json: boolean;
  readonly quiet: boolean;
}

/** `npuc toolchain`: the vendor's libraries, downloaded by the user and never bundled. */
export const toolchainCommand: Command = {
  command: 'toolchain <action> [name]',
  describe: "install, list or remove a vendor's toolchain",
  builder: (args: Argv) =>
    args
      .positional('action', { type: 'string', choices: ['install', 'list', 'licence', 'remove'], demandOption: true })
      .positional('name', {
        type: 'string',
        default: 'qnn',
        describe: 'qnn: Qualcomm HTP compiler and simulator (Linux x64)',
      })
      .option('accept-licence', { type: 'boolean', default: false, describe: "you accept the vendor's licence" })
      .option('wheels', textFlag('folder with the wheels already downloaded'))
      .example('$0 toolchain install qnn --accept-licence', ''),
  run: async (args: ToolchainArguments) => {
    if (args.name !== 'qnn')
      throw new NpucError('CL001', { message: `there is no toolchain ${args.name}`, hint: 'qnn' });
    const name: ToolchainName = args.name;
    const print = (text: string, data: unknown): number => {
      process.stdout.write(args.json ? `${JSON.stringify(data)}\n` : `${text}\n`);
      return 0;
    };
    const progress = createProgress(progressMode(args.quiet));
    const wheels = args.wheels === undefined ? {} : { wheels: args.wheels };
    switch (args.action) {
      case 'install': {
        progress.stage('install');
        let last = '';
        const toolchain = await installToolchain(name, {
          acceptLicence: args.acceptLicence,
          ...wheels,
          progress: ({ stage, file }) => {
            if (stage !== last) progress.note(`  ${stage} ${file}`);
            last = stage;
          },
        });
        progress.finish();
        return print(`${name} is installed in ${toolchain.root}`, toolchain);
      }
      case 'licence': {
        const path = await fetchLicence(name, wheels);
        return print(path, { licence: path });
      }
      case 'remove':
        rmSync(toolchainRoot(name), { recursive: true, force: true });
        return print(`${name} is removed`, { removed: toolchainRoot(name) });
      case 'list': {
        const list = toolchainStatus();
        const lines = list.map(({ name: each, version, state, root, bytes, reason }) =>
          [each, version, state, bytes ? formatBytes(bytes) : '', reason ?? root].join('  '),
        );
        return print(lines.join('\n'), list);
      }
    }
  },
};

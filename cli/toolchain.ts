import type { Argv } from 'yargs';
import { createProgress, progressMode } from '../compiler/progress.ts';
import {
  chosenVersion,
  fetchLicence,
  installToolchain,
  removeToolchain,
  selectToolchain,
  toolchainRoot,
  toolchainStatus,
  useToolchain,
} from '../targets/qnn/toolchain.ts';
import type { Command } from './commands.ts';
import { textFlag } from './flags.ts';
import { formatBytes } from './render-plan.ts';

interface ToolchainArguments {
  readonly action: 'install' | 'list' | 'use' | 'licence' | 'remove';
  readonly name: string;
  readonly version?: string;
  readonly acceptLicence: boolean;
  readonly wheels?: string;
  readonly json: boolean;
  readonly quiet: boolean;
}

/** `npuc toolchain`: the vendor's libraries, downloaded by the user and never bundled. */
export const toolchainCommand: Command = {
  command: 'toolchain <action> [name]',
  describe: "install, list, choose or remove a vendor's toolchain",
  builder: (args: Argv) =>
    args
      .positional('action', {
        type: 'string',
        choices: ['install', 'list', 'use', 'licence', 'remove'],
        demandOption: true,
      })
      .positional('name', {
        type: 'string',
        default: 'qnn',
        describe:
          "qnn: Qualcomm HTP compiler and simulator; litert: LiteRT's NPU plugins; litert-lm: runs .litertlm files (all Linux x64); qnn@2.6.0 is a version",
      })
      // Of this command the version is that of the toolchain.
      .version(false)
      .option('version', textFlag('version of the toolchain (default: the chosen one, or the newest)'))
      .option('accept-licence', { type: 'boolean', default: false, describe: "you accept the vendor's licence" })
      .option('wheels', textFlag('folder with the wheels already downloaded'))
      .example('$0 toolchain install qnn --accept-licence', '')
      .example('$0 toolchain install qnn --version 2.6.0 --accept-licence', 'a second one, beside it')
      .example('$0 toolchain install litert', 'for compile --npu')
      .example('$0 toolchain use qnn --version 2.6.0', '')
      .example('$0 toolchain install litert-lm', ''),
  run: async (args: ToolchainArguments) => {
    const [wanted, pinned] = args.name.split('@');
    const name = selectToolchain(`${wanted}${(args.version ?? pinned) ? `@${args.version ?? pinned}` : ''}`);
    const version = chosenVersion(name);
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
        return print(`${name} ${version} is installed in ${toolchain.root}`, toolchain);
      }
      case 'licence': {
        const path = await fetchLicence(name, wheels);
        return print(path, { licence: path });
      }
      case 'remove':
        removeToolchain(name, version);
        return print(`${name} ${version} is removed`, { removed: toolchainRoot(name, version) });
      case 'use':
        useToolchain(name, version);
        return print(`${name} ${version} is used from now on`, { chosen: version });
      case 'list': {
        const list = toolchainStatus();
        const lines = list.map(({ name: each, version: of, chosen, state, root, bytes, reason }) =>
          [chosen ? '*' : ' ', each, of, state, bytes ? formatBytes(bytes) : '', reason ?? root].join('  '),
        );
        return print(lines.join('\n'), list);
      }
    }
  },
};

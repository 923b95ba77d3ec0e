import type { Argv } from 'yargs';
import { bundleCommand } from './bundle.ts';
import { checkCommand } from './check.ts';
import { compileCommand } from './compile.ts';
import { demoCommand } from './demo.ts';
import { diffCommand } from './diff.ts';
import { doctorCommand } from './doctor.ts';
import { explainCommand } from './explain.ts';
import { generateCommand } from './generate.ts';
import { inspectCommand } from './inspect.ts';
import { toolchainCommand } from './toolchain.ts';

/** One verb of the command line. `run` gives the exit code. */
export interface Command {
  readonly command: string;
  readonly describe: string;
  readonly builder: (args: Argv) => Argv;
  readonly run: (args: never) => Promise<number>;
}

/** Every verb, in the order that help shows. */
export const COMMANDS: readonly Command[] = [
  compileCommand,
  checkCommand,
  inspectCommand,
  diffCommand,
  explainCommand,
  generateCommand,
  bundleCommand,
  toolchainCommand,
  doctorCommand,
  demoCommand,
];

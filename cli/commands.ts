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
import { sweepCommand } from './sweep.ts';
import { toolchainCommand } from './toolchain.ts';
import { workerCommand } from './worker.ts';

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
  sweepCommand,
  workerCommand,
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

#!/usr/bin/env node
import yargs, { type FallbackCompletionFunction } from 'yargs';
import { hideBin } from 'yargs/helpers';
import { formatError, NpucError } from '../compiler/errors.ts';
import { COMMANDS } from './commands.ts';
import { version } from './jobs/version.ts';
import { describeUsage, UsageError } from './usage.ts';

/** Runs the command line and gives its exit code. */
export async function runCommandLine(args: readonly string[]): Promise<number> {
  const json = args.includes('--json');
  try {
    let code = 0;
    const parser = yargs([...args])
      .scriptName('npuc')
      .usage(
        '$0 <command>\n\nCompiles LLM checkpoints and ONNX models to phone NPUs, and shows how far each artifact is from the float model.',
      )
      .option('json', { type: 'boolean', default: false, describe: 'one JSON document on stdout', global: true })
      .option('quiet', { alias: 'q', type: 'boolean', default: false, describe: 'no progress on stderr', global: true })
      .strict()
      .demandCommand(1, 'give a command')
      .version(version())
      .alias('h', 'help')
      .completion('completion', 'prints a completion script for bash or zsh', completeWord)
      // Help and errors are in one language, whatever the environment says.
      .locale('en')
      .wrap(Math.min(100, process.stdout.columns ?? 100))
      .exitProcess(false)
      .fail((message, error) => {
        // The parser's own errors, and those of a flag that refuses its value, come as YError.
        throw error && error.name !== 'YError' ? error : new UsageError(message);
      });
    for (const command of COMMANDS) {
      parser.command({
        ...command,
        handler: async (parsed) => {
          code = await command.run(parsed as never);
        },
      });
    }
    await parser.parseAsync();
    return code;
  } catch (error) {
    return reportError(error instanceof UsageError ? await describeUsage(error, args, COMMANDS) : error, json);
  }
}

/**
 * Completes a word. Where it does not begin with a dash, a file is wanted at least as often as a flag, and the shell
 * completes files when nothing else is offered.
 */
const completeWord: FallbackCompletionFunction = (current, _, complete, done) =>
  complete((_error, words = []) => done(words.filter((word) => current.startsWith('-') || !word.startsWith('-'))));

/** What the machine refuses is no fault of ours, in whichever of many small files it happens. */
function systemFailure({ code, path, message }: NodeJS.ErrnoException): NpucError | undefined {
  const where = path === undefined ? {} : { where: path };
  switch (code) {
    case 'ENOSPC':
    case 'EDQUOT':
      return new NpucError('IO002', { message: `cannot write: ${message}`, ...where, hint: 'the disk is full' });
    case 'EROFS':
      return new NpucError('IO002', { message: `cannot write: ${message}`, ...where });
    case 'EACCES':
    case 'EPERM':
    case 'EMFILE':
    case 'ENFILE':
      return new NpucError('IO001', { message: `cannot open: ${message}`, ...where });
    default:
      return undefined;
  }
}

/** Prints an error for people, or as JSON, and gives the exit code that fits. */
function reportError(error: unknown, json: boolean): number {
  const coded =
    error instanceof NpucError
      ? error
      : ((error instanceof Error ? systemFailure(error) : undefined) ??
        new NpucError('XX001', {
          message: `internal error: ${(error as Error)?.message ?? String(error)}`,
          hint: 'please report it, with the command and NPUC_DEBUG=1 set',
          exitCode: 70,
        }));
  if (json) {
    const { code, message, where, hint } = coded;
    process.stdout.write(`${JSON.stringify({ error: { code, message, where, hint } })}\n`);
  }
  process.stderr.write(`${formatError(coded)}\n`);
  if (process.env.NPUC_DEBUG) process.stderr.write(`${(error as Error)?.stack ?? ''}\n`);
  return coded.exitCode;
}

for (const [signal, code] of [
  // A terminal that is closed, or a connection that drops.
  ['SIGHUP', 129],
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  // Exit handlers remove what is half-written and end child processes.
  process.once(signal, () => process.exit(code));
}

/** A reader that has seen enough, such as head, is no failure of ours; a full disk is one. */
function endUnwritten(error: NodeJS.ErrnoException): void {
  if (error.code === 'EPIPE') process.exit(0);
  const failure = new NpucError('IO002', { message: `cannot write to stdout: ${error.message}` });
  process.stderr.write(`${formatError(failure)}\n`);
  process.exit(failure.exitCode);
}
process.stdout.on('error', endUnwritten);

const code = await runCommandLine(hideBin(process.argv));
// Runtimes keep threads alive that nobody waits for any more; what is written must be through first.
process.stdout.write('', (error) => (error ? endUnwritten(error) : process.exit(code)));

import yargs from 'yargs';
import { NpucError } from '../compiler/errors.ts';
import { nearestWord } from '../compiler/nearest.ts';
import type { Command } from './commands.ts';

/** A command line that the parser refuses, in the parser's own words. */
export class UsageError extends Error {}

/** What is wrong with a command line, with the nearest command or flag that there is. */
export async function describeUsage(
  { message }: UsageError,
  args: readonly string[],
  commands: readonly Command[],
): Promise<NpucError> {
  const names = commands.map((command) => command.command.split(' ')[0]!);
  const asked = args.find((arg) => !arg.startsWith('-'));
  const command = commands.find((_, i) => args.includes(names[i]!));
  if (!command && asked === 'completion') {
    return new NpucError('CL001', { message: 'completion takes no arguments', hint: 'npuc completion' });
  }
  if (!command) {
    const near = asked && nearestWord(asked, names);
    return new NpucError('CL001', {
      message: asked ? `there is no command ${asked}` : 'give a command',
      hint: near ? `did you mean npuc ${near}?` : `${names.join(', ')}; npuc --help says more`,
    });
  }
  const name = command.command.split(' ')[0]!;
  const usual = `npuc ${name} --help`;
  const unknown = /^Unknown arguments?: (.*)$/.exec(message)?.[1]?.split(', ')[0];
  if (unknown !== undefined) {
    const flag = args.find((arg) => arg.startsWith('-') && arg.replace(/^-+/, '').replace(/=.*/s, '') === unknown);
    if (!flag) {
      return new NpucError('CL001', {
        message: `${unknown} is one argument too many`,
        hint: `npuc ${command.command}`,
      });
    }
    const spelt = flag.replace(/=.*/s, '');
    const near = nearestWord(unknown, await flagsOf(command));
    return new NpucError('CL001', {
      message: `npuc ${name} has no option ${spelt}`,
      hint: near ? `did you mean --${near}?` : usual,
    });
  }
  const missing = /^Missing required arguments?: (.*)$/.exec(message)?.[1];
  if (missing !== undefined) return new NpucError('CL001', { message: `--${missing} is missing`, hint: usual });
  const bare = /^Not enough arguments following: (.*)$/.exec(message)?.[1];
  if (bare !== undefined) {
    return new NpucError('CL001', { message: `${bare.length > 1 ? '--' : '-'}${bare} needs a value`, hint: usual });
  }
  if (message.startsWith('Not enough non-option arguments')) {
    return new NpucError('CL001', { message: 'an argument is missing', hint: `npuc ${command.command}` });
  }
  const choice = /^Invalid values:\s+Argument: (.*?), Given: (.*), Choices: (.*)$/s.exec(message);
  if (choice) {
    const [, of, given, choices] = choice.map((part) => part.replaceAll('"', ''));
    const near = nearestWord(given!, choices!.split(', '));
    return new NpucError('CL001', {
      message: `there is no ${of} ${given}`,
      hint: near ? `did you mean ${near}?` : `one of ${choices}`,
    });
  }
  return new NpucError('CL001', { message, hint: usual });
}

/** Names of a command's flags, read from its help: the parser has no other way to list them. */
async function flagsOf(command: Command): Promise<string[]> {
  const help = await command.builder(yargs([]).option('json', {}).option('quiet', {})).getHelp();
  return [...new Set([...help.matchAll(/(?<=\s--)[\w-]+/g)].map(([flag]) => flag))];
}

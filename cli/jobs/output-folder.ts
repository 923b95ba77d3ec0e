import { existsSync, lstatSync, mkdirSync, readdirSync, realpathSync, renameSync, rmSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join, relative, resolve, sep } from 'node:path';
import { NpucError } from '../../compiler/errors.ts';
import { isOutputFolder } from '../../targets/manifest.ts';

/** An output folder being filled under another name: it appears whole or not at all. */
export interface OutputFolder {
  /** Where to write. */
  readonly partial: string;
  /** Puts the finished folder in place of an older one of ours. */
  commit(): void;
  /** Removes what was written. */
  discard(): void;
}

/**
 * Opens an output folder.
 * @param inputs what the compile reads: names that are no paths are left alone
 * @throws CL003 when the folder holds something that npuc did not make, or, forced or not, an input, the working folder
 *   or the user's home; IO002 when it cannot be written
 */
export function openOutputFolder(path: string, force: boolean, inputs: readonly string[]): OutputFolder {
  if (existsSync(path)) checkReplaceable(path, force, inputs);
  else if (isLink(path)) {
    throw new NpucError('CL003', {
      message: `${path} is a link that leads nowhere`,
      where: path,
      hint: 'choose another --out',
    });
  }
  // A link stays, and what it leads to is replaced: the disk that it was made for has the room.
  const target = existsSync(path) ? realpathSync(path) : resolve(path);
  const partial = `${target}.partial-${process.pid}`;
  const discard = (): void => {
    process.removeListener('exit', discard);
    rmSync(partial, { recursive: true, force: true });
  };
  try {
    mkdirSync(dirname(target), { recursive: true });
    rmSync(partial, { recursive: true, force: true });
    mkdirSync(partial);
  } catch (cause) {
    throw new NpucError('IO002', { message: `cannot write ${path}: ${(cause as Error).message}`, where: path, cause });
  }
  process.once('exit', discard);
  return {
    partial,
    commit: () => {
      replaceFolder(partial, target, path);
      process.removeListener('exit', discard);
    },
    discard,
  };
}

/** @throws CL003 when replacing a folder would destroy something that is not an older output */
function checkReplaceable(path: string, force: boolean, inputs: readonly string[]): void {
  const refuse = (message: string, hint: string): never => {
    throw new NpucError('CL003', { message, where: path, hint });
  };
  if (!statSync(path).isDirectory()) refuse(`${path} is a file`, 'choose another --out');
  const target = realpathSync(path);
  for (const input of [process.cwd(), homedir(), ...inputs]) {
    if (!existsSync(input) || !isInside(realpathSync(input), target)) continue;
    refuse(`${path} is or holds ${input}: the output folder is replaced whole`, 'choose another --out');
  }
  // What is mounted cannot be renamed: better said now than when the work is done.
  if (statSync(target).dev !== statSync(dirname(target)).dev) {
    refuse(`${path} is a mount point, and the output folder is replaced whole`, `--out ${join(path, 'build')}`);
  }
  if (readdirSync(path).length > 0 && !isOutputFolder(path) && !force) {
    refuse(`${path} exists and was not made by npuc`, 'choose another --out, or --force to replace it');
  }
}

function isLink(path: string): boolean {
  try {
    return lstatSync(path).isSymbolicLink();
  } catch {
    return false;
  }
}

function isInside(path: string, folder: string): boolean {
  return !relative(folder, path).split(sep).includes('..');
}

/** Puts `partial` in the place of `target`; what lay there comes back when that fails. @throws IO002 */
function replaceFolder(partial: string, target: string, path: string): void {
  const old = `${target}.old-${process.pid}`;
  const replaced = existsSync(target);
  try {
    if (replaced) renameSync(target, old);
    renameSync(partial, target);
  } catch (cause) {
    if (!existsSync(target) && existsSync(old)) renameSync(old, target);
    throw new NpucError('IO002', { message: `cannot write ${path}: ${(cause as Error).message}`, where: path, cause });
  }
  rmSync(old, { recursive: true, force: true });
}

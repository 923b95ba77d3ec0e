import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
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
 * @throws CL003 when the folder holds something that npuc did not make, IO002 when it cannot be written
 */
export function openOutputFolder(path: string, force: boolean): OutputFolder {
  const target = resolve(path);
  if (existsSync(target) && readdirSync(target).length > 0 && !isOutputFolder(target) && !force) {
    throw new NpucError('CL003', {
      message: `${path} exists and was not made by npuc`,
      where: path,
      hint: 'choose another --out, or --force to replace it',
    });
  }
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
      const old = `${target}.old-${process.pid}`;
      if (existsSync(target)) renameSync(target, old);
      renameSync(partial, target);
      rmSync(old, { recursive: true, force: true });
      process.removeListener('exit', discard);
    },
    discard,
  };
}

import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { NpucError } from '../../../compiler/errors.ts';
import { renderSweepCsv } from '../../../evaluation/sweep/render-sweep-csv.ts';
import { renderSweepHtml } from '../../../evaluation/sweep/render-sweep-html.ts';
import type { SweepReport } from '../../../evaluation/sweep/sweep-report.ts';
import { spellFigures } from '../../../evaluation/write-report.ts';

/** The folder of a sweep, held by one process at a time. */
export interface SweepFolder {
  readonly path: string;
  /** Writes `sweep.json`, `sweep.csv` and `sweep.html`, each whole or not at all. */
  write(report: SweepReport): void;
  /** Lets another sweep have the folder. */
  close(): void;
}

const REPORT = 'sweep.json';
const LOCK = 'sweep.lock';

/**
 * Opens the folder of a sweep, and makes it where there is none. What an earlier sweep has left in it stays.
 * @throws SW003 while another process sweeps in it, SW004 when its report is not one of this version, CL003 when it holds
 *   something else, IO002 when it cannot be written
 */
export function openSweepFolder(path: string, force: boolean): SweepFolder {
  checkSweepFolder(path, force);
  try {
    mkdirSync(path, { recursive: true });
  } catch (cause) {
    throw new NpucError('IO002', { message: `cannot write ${path}: ${(cause as Error).message}`, where: path, cause });
  }
  const lock = join(path, LOCK);
  takeLock(lock);
  const release = (): void => {
    process.removeListener('exit', release);
    if (ownerOf(lock)?.pid === process.pid) rmSync(lock, { force: true });
  };
  process.once('exit', release);
  const put = (name: string, text: string): void => {
    const partial = join(path, `.${name}.partial`);
    try {
      writeFileSync(partial, text);
      renameSync(partial, join(path, name));
    } catch (cause) {
      const message = `cannot write ${name}: ${(cause as Error).message}`;
      throw new NpucError('IO002', { message, where: path, cause });
    }
  };
  return {
    path,
    write: (report) => {
      put(REPORT, `${JSON.stringify(report, spellFigures, 1)}\n`);
      put('sweep.csv', renderSweepCsv(report));
      put('sweep.html', renderSweepHtml(report));
    },
    close: release,
  };
}

/** Whether a sweep may have the folder, apart from one that works in it now. @throws CL003, SW004 */
export function checkSweepFolder(path: string, force: boolean): void {
  if (!existsSync(path)) return;
  let names: string[];
  try {
    names = readdirSync(path);
  } catch {
    throw new NpucError('CL003', { message: `${path} is a file`, where: path, hint: 'choose another --out' });
  }
  const report = join(path, REPORT);
  if (existsSync(report)) {
    let kind: unknown;
    let format: unknown;
    try {
      ({ kind, format } = JSON.parse(readFileSync(report, 'utf8')) as { kind?: unknown; format?: unknown });
    } catch {
      // Not ours, or cut off: both are refused below.
    }
    if ((kind === 'sweep' && format === 1) || force) return;
    throw new NpucError('SW004', {
      message: `${report} was not written by this version of npuc sweep`,
      where: report,
      hint: 'choose another --out, or --force to write over it',
    });
  }
  if (names.every((name) => name === LOCK) || force) return;
  throw new NpucError('CL003', {
    message: `${path} exists and was not made by npuc sweep`,
    where: path,
    hint: 'choose another --out, or --force to use it',
  });
}

interface Owner {
  readonly pid: number;
  readonly host: string;
}

function ownerOf(lock: string): Owner | undefined {
  try {
    return JSON.parse(readFileSync(lock, 'utf8')) as Owner;
  } catch {
    return undefined;
  }
}

/** Takes the lock, also from a process of this machine that is no more. @throws SW003 */
function takeLock(lock: string): void {
  for (let attempt = 0; ; attempt++) {
    try {
      const descriptor = openSync(lock, 'wx');
      writeFileSync(descriptor, JSON.stringify({ pid: process.pid, host: hostname() } satisfies Owner));
      closeSync(descriptor);
      return;
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') {
        throw new NpucError('IO002', { message: `cannot write ${lock}`, where: lock, cause });
      }
      const owner = ownerOf(lock);
      if (attempt < 3 && owner && owner.host === hostname() && !isAlive(owner.pid)) {
        rmSync(lock, { force: true });
        continue;
      }
      throw new NpucError('SW003', {
        message: owner
          ? `process ${owner.pid} on ${owner.host} sweeps in this folder`
          : 'another process is about to sweep in this folder',
        where: lock,
        hint: 'wait for it, or choose another --out; if it is no more, remove the lock',
      });
    }
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

import { createHash } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { NpucError } from '../../../compiler/errors.ts';
import { spellFigures } from '../../../evaluation/write-report.ts';
import { describeFile, type ManifestFile } from '../../../targets/manifest.ts';
import type { JobResult } from './sweep-job.ts';

/**
 * Files by the SHA-256 of their bytes, and results of jobs by their keys, in a folder that several machines may share. Whatever
 * is in it is whole: files are written under another name first. Equal files are there once, whoever wrote them.
 */
export interface ArtifactStore {
  /** Puts every file of a folder, `ignored` ones apart; paths are relative, with forward slashes. */
  put(folder: string, ignored: ReadonlySet<string>): ManifestFile[];
  /** Makes a folder of stored files, as links where the disk is the same. @throws SW008 */
  take(files: readonly ManifestFile[], folder: string, verify: boolean): void;
  /** Whether every file is there, by size. */
  has(files: readonly ManifestFile[]): boolean;
  saveResult(key: string, result: JobResult): void;
  /** The result of a job, when it and its files are there. */
  findResult(key: string): JobResult | undefined;
}

/** Opens the store of a folder, which is made when something is put. */
export function openStore(root: string): ArtifactStore {
  const blobOf = (sha256: string): string => join(root, 'blobs', sha256.slice(0, 2), sha256);
  const resultOf = (key: string): string => join(root, 'results', `${key}.json`);
  const has = (files: readonly ManifestFile[]): boolean =>
    files.every(({ sha256, bytes }) => statSync(blobOf(sha256), { throwIfNoEntry: false })?.size === bytes);
  return {
    put(folder, ignored) {
      return listFiles(folder)
        .filter((path) => !ignored.has(path))
        .map((path) => {
          const file = describeFile(folder, path);
          const blob = blobOf(file.sha256);
          if (!has([file])) place(join(folder, path), blob);
          return file;
        });
    },
    take(files, folder, verify) {
      for (const file of files) {
        const blob = blobOf(file.sha256);
        const sound = has([file]) && (!verify || describeFile(dirname(blob), file.sha256).sha256 === file.sha256);
        if (!sound) {
          rmSync(blob, { force: true });
          throw new NpucError('SW008', {
            message: `${file.path} is missing in the store, or its bytes are not those of its digest`,
            where: blob,
            hint: 'run the sweep again: what is missing is compiled again',
          });
        }
        const path = join(folder, file.path);
        mkdirSync(dirname(path), { recursive: true });
        linkOrCopy(blob, path);
      }
    },
    has,
    saveResult(key, result) {
      const path = resultOf(key);
      mkdirSync(dirname(path), { recursive: true });
      const partial = `${path}.${process.pid}`;
      writeFileSync(partial, `${JSON.stringify(result, spellFigures)}\n`);
      renameSync(partial, path);
    },
    findResult(key) {
      const path = resultOf(key);
      if (!existsSync(path)) return undefined;
      try {
        const result = JSON.parse(readFileSync(path, 'utf8'), reviveFigures) as JobResult;
        return result.kind === 'compile' && !has(result.files) ? undefined : result;
      } catch {
        // Cut off by a full disk, or of another version: the job is done again.
        return undefined;
      }
    },
  };
}

/** Figures that JSON cannot hold are their names. */
function reviveFigures(_key: string, value: unknown): unknown {
  return value === 'Infinity' || value === '-Infinity' || value === 'NaN' ? Number(value) : value;
}

/** Files below a folder, in a stable order. */
function listFiles(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) =>
      join(entry.parentPath, entry.name)
        .slice(folder.length + 1)
        .replaceAll('\\', '/'),
    )
    .sort();
}

/** A copy under another name first: a reader never sees half a file, and two writers do not meet. */
function place(source: string, blob: string): void {
  mkdirSync(dirname(blob), { recursive: true });
  const partial = `${blob}.${process.pid}-${createHash('sha256').update(source).digest('hex').slice(0, 8)}`;
  try {
    linkOrCopy(source, partial);
    renameSync(partial, blob);
  } catch (cause) {
    rmSync(partial, { force: true });
    throw new NpucError('IO002', {
      message: `cannot write to the store: ${(cause as Error).message}`,
      where: blob,
      cause,
    });
  }
}

function linkOrCopy(from: string, to: string): void {
  try {
    linkSync(from, to);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return;
    // Another disk, or one without links.
    copyFileSync(from, to);
  }
}

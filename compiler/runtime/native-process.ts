import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, readSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type { Duplex } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { NpucError } from '../errors.ts';

const LOG = 'native.log';
const LOG_TAIL_BYTES = 64 << 10;

/** Children and temporary folders that must not outlive this process. */
const children = new Set<ChildProcess>();
const folders = new Set<string>();
let exitHook = false;

/** Removes a folder when the process exits before the returned function was called; that one removes it at once. */
export function removeAtExit(folder: string): () => void {
  hookExit();
  folders.add(folder);
  return () => {
    folders.delete(folder);
    rmSync(folder, { recursive: true, force: true });
  };
}

function hookExit(): void {
  if (exitHook) return;
  exitHook = true;
  process.once('exit', () => {
    for (const child of children) child.kill('SIGKILL');
    for (const folder of folders) rmSync(folder, { recursive: true, force: true });
  });
}

/** A child that was just spawned. */
export interface StartedChild {
  readonly child: ChildProcess;
  readonly socket: Duplex;
  readonly folder: string;
  readonly exited: Promise<void>;
}

/**
 * Spawns the native child with its own working folder; `libraries` is searched for what the vendor's code loads by name,
 * which must be said before the process starts. The folder is removed when the child ends.
 */
export function spawnChild(
  parameters: readonly string[],
  libraries: string,
  workFolder: string = tmpdir(),
  entry: 'native-host' | 'genie-host' | 'litert-host' | 'litert-lm-host' | 'litert-native-host' = 'native-host',
): StartedChild {
  const folder = mkdtempSync(join(workFolder, '.npuc-native-'));
  // A file, not a pipe: it is complete when an answer arrives, survives a crash, and no verbose log can block the child.
  const log = openSync(join(folder, LOG), 'w');
  const { NODE_OPTIONS: _, ...environment } = process.env;
  const search = [libraries, process.env.LD_LIBRARY_PATH].filter(Boolean).join(':');
  const child = spawn(process.execPath, [hostEntry(entry), ...parameters, String(process.pid)], {
    cwd: folder,
    env: { ...environment, LD_LIBRARY_PATH: search },
    stdio: ['ignore', log, log, 'pipe'],
  });
  closeSync(log);
  const remove = removeAtExit(folder);
  children.add(child);
  const exited = new Promise<void>((done) => {
    const finish = () => {
      children.delete(child);
      // After the listeners that read the log.
      setImmediate(() => {
        remove();
        done();
      });
    };
    // `close` comes after the last bytes of the socket, `error` alone when the process could not be started.
    child.once('close', finish);
    child.once('error', finish);
  });
  return { child, socket: child.stdio[3] as Duplex, folder, exited };
}

/** What a program left behind: its exit code, or the signal that ended it, and what it wrote. */
export interface ProgramResult {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

/**
 * Runs a program of a toolchain to its end. It works in the given folder, where it also leaves its output: files, because a
 * verbose log must not block it. It dies with this process.
 * @param environment added to this process's own
 * @throws RT201 when it cannot be started
 */
export async function runProgram(
  path: string,
  parameters: readonly string[],
  folder: string,
  environment: Readonly<Record<string, string>>,
): Promise<ProgramResult> {
  hookExit();
  const names = ['stdout.log', 'stderr.log'].map((name) => join(folder, name));
  const logs = names.map((name) => openSync(name, 'w'));
  const child = spawn(path, parameters, {
    cwd: folder,
    env: { ...process.env, ...environment },
    stdio: ['ignore', logs[0]!, logs[1]!],
  });
  for (const log of logs) closeSync(log);
  children.add(child);
  try {
    const ended = await new Promise<Pick<ProgramResult, 'code' | 'signal'>>((done, fail) => {
      child.once('error', fail);
      child.once('close', (code, signal) => done({ code, signal }));
    });
    const [stdout = '', stderr = ''] = names.map((name) => plainText(readFileSync(name, 'utf8')));
    return { ...ended, stdout, stderr };
  } catch (cause) {
    throw new NpucError('RT201', {
      message: `${path} cannot be started: ${(cause as Error).message}`,
      where: path,
      cause,
    });
  } finally {
    children.delete(child);
  }
}

/** The child's entry, always the built one: Node does not run TypeScript. */
function hostEntry(entry: string): string {
  const here = dirname(fileURLToPath(import.meta.url));
  const beside = join(here, `${entry}.js`);
  if (existsSync(beside)) return beside;
  let root = here;
  while (!existsSync(join(root, 'package.json')) && dirname(root) !== root) root = dirname(root);
  const built = join(root, 'dist', 'compiler', 'runtime', `${entry}.js`);
  if (existsSync(built)) return built;
  throw new NpucError('XX001', { message: `${built} is missing`, hint: 'npm run build' });
}

/** Peak resident memory of a process in bytes (VmHWM of proc(5)). */
export function readPeakRss(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1] ?? 0) * 1024;
}

/** The last lines of a child's log. */
export function readLogTail(folder: string, lines: number): string {
  const path = join(folder, LOG);
  if (!existsSync(path)) return '';
  const size = statSync(path).size;
  const bytes = Buffer.alloc(Math.min(size, LOG_TAIL_BYTES));
  const descriptor = openSync(path, 'r');
  try {
    readSync(descriptor, bytes, 0, bytes.length, size - bytes.length);
  } finally {
    closeSync(descriptor);
  }
  return plainText(bytes.toString('utf8')).trimEnd().split('\n').slice(-lines).join('\n');
}

/** The whole log of a child, without colour codes. */
export function readLog(folder: string): string {
  const path = join(folder, LOG);
  return existsSync(path) ? plainText(readFileSync(path, 'utf8')) : '';
}

const COLOUR = new RegExp(`${String.fromCharCode(27)}\\[[0-9;]*m`, 'g');

/** ONNX Runtime colours its log lines. */
function plainText(text: string): string {
  return text.replaceAll(COLOUR, '');
}

import { resolve } from 'node:path';
import { NpucError } from '../errors.ts';
import { type Answer, FrameReader, sendFrame } from './native-frames.ts';
import { readLog, spawnChild } from './native-process.ts';
import type { NativeToolchain } from './ort-native.ts';

/** One question to a dialog that is fresh or reset: a text, which Genie encodes itself, or token ids. */
export type GenieQuery = { readonly maxTokens: number } & (
  | { readonly prompt: string }
  | { readonly ids: readonly number[] }
);

/** What Genie said: text for a text, ids for ids. */
export interface GenieAnswer {
  readonly text?: string;
  readonly ids?: readonly number[];
}

/** What the child is asked. */
export interface GenieRequest {
  /** The dialog's configuration as JSON. */
  readonly config: string;
  readonly queries: readonly GenieQuery[];
}

export interface GenieOptions {
  /** Kills the child when aborted. */
  readonly signal?: AbortSignal;
}

/**
 * Runs the vendor's Genie on its x86 simulator in a child process: one dialog, asked once per query.
 * @param bundle the folder that the configuration's paths are relative to
 * @throws QN022 when Genie refuses the configuration, the files or a query, with its own error lines; RT202 when it
 *   crashes (it does for a missing cache output and for binaries that share weights)
 */
export async function runGenie(
  toolchain: NativeToolchain,
  bundle: string,
  request: GenieRequest,
  options: GenieOptions = {},
): Promise<GenieAnswer[]> {
  const { signal } = options;
  signal?.throwIfAborted();
  const libraries = toolchain.qnnLibraryFolder;
  const { child, socket, folder, exited } = spawnChild(
    [libraries, resolve(bundle)],
    libraries,
    undefined,
    'genie-host',
  );
  const abort = (): boolean => child.kill('SIGKILL');
  signal?.addEventListener('abort', abort, { once: true });
  try {
    return await new Promise<GenieAnswer[]>((done, fail) => {
      const reader = new FrameReader<Answer>((answer) => {
        if (answer.error === undefined) return done(answer.result as GenieAnswer[]);
        fail(
          new NpucError('QN022', {
            message: [`Genie ${answer.error}`, ...errorLines(folder)].join('\n'),
            where: bundle,
          }),
        );
      });
      socket.on('data', (chunk: Uint8Array) => reader.push(chunk));
      // A broken pipe is seen as the child's exit as well, which says more.
      socket.on('error', () => {});
      child.once('error', (cause) => {
        fail(new NpucError('RT201', { message: `Genie's process cannot be started: ${cause.message}`, cause }));
      });
      // `close` comes after the last bytes of the socket; after an answer the rejection has no effect.
      child.once('close', (code, ended) => {
        const how = ended ? `was ended by ${ended}` : `ended with exit code ${code}`;
        fail(
          new NpucError('RT202', {
            message: [`Genie's process ${how}`, ...errorLines(folder)].join('\n'),
            where: bundle,
            hint: 'npuc bundle check says what is wrong with a bundle; binaries that share weights do not run on x86',
          }),
        );
      });
      sendFrame(socket, request);
    });
  } finally {
    signal?.removeEventListener('abort', abort);
    socket.destroy();
    await exited;
  }
}

/** Genie writes its errors to standard output as `[ERROR] "..."`. */
function errorLines(folder: string): string[] {
  const lines = readLog(folder).split('\n');
  return [...new Set(lines.filter((line) => line.includes('[ERROR]')))].slice(-5).map((line) => `  ${line.trim()}`);
}

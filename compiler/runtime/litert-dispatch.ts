import { resolve } from 'node:path';
import { NpucError } from '../errors.ts';
import { DTYPES } from '../ir/dtype.ts';
import { elementCount } from '../ir/tensor.ts';
import { type Answer, type Frame, FrameReader, sendFrame, type WireTensor } from './native-frames.ts';
import { readLog, spawnChild } from './native-process.ts';
import type { PortInfo, Tensors } from './runner.ts';

/** What the child is asked; the bytes of all runs' inputs follow. */
export interface LitertRequest extends Frame {
  readonly library: string;
  /** The folder of the vendor's dispatch library. */
  readonly dispatch: string;
  readonly model: string;
  /** Index of the signature. */
  readonly signature: number;
  readonly inputs: readonly WireTensor[];
  readonly outputs: readonly WireTensor[];
  readonly runs: number;
}

/** One signature of a file that a vendor compiled, and the libraries that run it. */
export interface DispatchedModel extends Omit<LitertRequest, 'blobs' | 'runs'> {
  /** Folders that the dispatch library finds the vendor's own in. */
  readonly search: string;
}

/**
 * Runs a vendor-compiled TFLite file as a device would, through LiteRT's native library and the vendor's dispatch library, in
 * a child process.
 * @returns the outputs of every run
 * @throws RT111 when LiteRT fails, with its last lines, RT202 when it crashes
 */
export async function runDispatched(model: DispatchedModel, feeds: readonly Tensors[]): Promise<Tensors[]> {
  const { search, ...asked } = model;
  const { child, socket, folder, exited } = spawnChild([], search, undefined, 'litert-host');
  const where = resolve(model.model);
  try {
    return await new Promise<Tensors[]>((done, fail) => {
      const reader = new FrameReader<Answer>((answer, blobs) => {
        if (answer.error === undefined) return done(feeds.map((_, n) => read(model.outputs, blobs, n)));
        const message = [`LiteRT cannot run the compiled model: ${answer.error}`, ...errorLines(folder)].join('\n');
        fail(new NpucError('RT111', { message, where }));
      });
      socket.on('data', (chunk: Uint8Array) => reader.push(chunk));
      // A broken pipe is seen as the child's exit as well, which says more.
      socket.on('error', () => {});
      child.once('error', (cause) => {
        fail(new NpucError('RT201', { message: `LiteRT's process cannot be started: ${cause.message}`, cause }));
      });
      // `close` comes after the last bytes of the socket; after an answer the rejection has no effect.
      child.once('close', (code, ended) => {
        const how = ended ? `was ended by ${ended}` : `ended with exit code ${code}`;
        const message = [`LiteRT's process ${how}`, ...errorLines(folder)].join('\n');
        fail(new NpucError('RT202', { message, where, exitCode: 70 }));
      });
      const blobs = feeds.flatMap((feed) => model.inputs.map(({ name }) => bytesOf(feed, name)));
      sendFrame(socket, { ...asked, model: where, runs: feeds.length }, blobs);
    });
  } finally {
    socket.destroy();
    await exited;
  }
}

function bytesOf(feed: Tensors, name: string): Uint8Array {
  const { buffer, byteOffset, byteLength } = feed[name]!.data;
  return new Uint8Array(buffer, byteOffset, byteLength);
}

function read(outputs: readonly PortInfo[], blobs: readonly Uint8Array[], run: number): Tensors {
  return Object.fromEntries(
    outputs.map(({ name, dtype, shape }, i) => {
      const bytes = blobs[run * outputs.length + i]!;
      const data = new DTYPES[dtype].array(bytes.buffer as ArrayBuffer, bytes.byteOffset, elementCount(shape));
      return [name, { dtype, shape, data }];
    }),
  );
}

/** What LiteRT logged as errors. */
function errorLines(folder: string): string[] {
  const lines = readLog(folder).split('\n');
  return [...new Set(lines.filter((line) => line.startsWith('ERROR')))].slice(-5).map((line) => `  ${line.trim()}`);
}

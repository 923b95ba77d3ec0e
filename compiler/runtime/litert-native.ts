import { resolve } from 'node:path';
import { NpucError } from '../errors.ts';
import { DTYPES } from '../ir/dtype.ts';
import { elementCount, type TensorData } from '../ir/tensor.ts';
import type { LitertModel, LitertSignature } from './litert.ts';
import { type Answer, type Frame, FrameReader, sendFrame, type WireTensor } from './native-frames.ts';
import { readLogTail, spawnChild } from './native-process.ts';
import type { PortInfo, Tensors } from './runner.ts';

/** One run of one signature; the bytes of the inputs follow. */
export interface NativeRunRequest extends Frame {
  /** Index in the file. */
  readonly signature: number;
  readonly inputs: readonly WireTensor[];
  readonly outputs: readonly WireTensor[];
  /** Only prepares the signature. */
  readonly load?: true;
}

/** A signature of a file, as its reader describes it. */
export interface NativePorts {
  readonly key: string;
  readonly inputs: readonly PortInfo[];
  readonly outputs: readonly PortInfo[];
}

/**
 * Runs a TFLite file with a native LiteRT in a child process: libLiteRt, or the one that is inside liblitert-lm, whose kernels
 * are those that LiteRT-LM runs.
 * @param signatures all of the file's, in its order
 * @throws RT110 when the file cannot be loaded, RT202 when the process dies
 */
export async function openNativeLitert(
  library: string,
  file: string,
  signatures: readonly NativePorts[],
  engine: string,
): Promise<LitertModel> {
  const { child, socket, folder, exited } = spawnChild([library, resolve(file)], '', undefined, 'litert-native-host');
  const waiting: { done: (blobs: Uint8Array[]) => void; fail: (cause: NpucError) => void; code: 'RT110' | 'RT111' }[] =
    [];
  const died = (how: string): NpucError =>
    new NpucError('RT202', { message: [`LiteRT's process ${how}`, readLogTail(folder, 5)].join('\n'), where: file });
  let dead: NpucError | undefined;
  const reader = new FrameReader<Answer>((answer, blobs) => {
    const next = waiting.shift()!;
    if (answer.error === undefined) next.done(blobs);
    else next.fail(new NpucError(next.code, { message: `LiteRT cannot run the model: ${answer.error}`, where: file }));
  });
  socket.on('data', (chunk: Uint8Array) => reader.push(chunk));
  // A broken pipe is seen as the child's exit as well, which says more.
  socket.on('error', () => {});
  const end = (how: string): void => {
    dead ??= died(how);
    for (const { fail } of waiting.splice(0)) fail(dead);
  };
  child.once('error', (cause) => end(`cannot be started: ${cause.message}`));
  child.once('close', (code, signal) => end(signal ? `was ended by ${signal}` : `ended with exit code ${code}`));
  const ask = (request: NativeRunRequest, blobs: readonly Uint8Array[]): Promise<Uint8Array[]> =>
    new Promise((done, fail) => {
      if (dead) {
        fail(dead);
        return;
      }
      waiting.push({ done, fail, code: request.load ? 'RT110' : 'RT111' });
      sendFrame(socket, request, blobs);
    });
  const dispose = (): void => {
    socket.destroy();
    child.kill('SIGKILL');
  };
  try {
    for (const [index, { inputs, outputs }] of signatures.entries())
      await ask({ signature: index, inputs, outputs, load: true }, []);
  } catch (cause) {
    dispose();
    await exited;
    throw cause;
  }
  const entries = signatures.map(({ key, inputs, outputs }, index): [string, LitertSignature] => [
    key,
    {
      key,
      inputs,
      outputs,
      run: async (feeds) => {
        const results = await ask({ signature: index, inputs, outputs }, bytesOf(inputs, feeds));
        return readOutputs(outputs, results);
      },
    },
  ]);
  return { engine, signatures: Object.fromEntries(entries), dispose };
}

function bytesOf(inputs: readonly PortInfo[], feeds: Tensors): Uint8Array[] {
  return inputs.map(({ name, shape }) => {
    const feed = feeds[name];
    if (!feed || feed.data.length !== elementCount(shape))
      throw new NpucError('RT011', { message: `it takes ${elementCount(shape)} elements`, where: `input ${name}` });
    return new Uint8Array(feed.data.buffer, feed.data.byteOffset, feed.data.byteLength);
  });
}

function readOutputs(outputs: readonly PortInfo[], blobs: readonly Uint8Array[]): Record<string, TensorData> {
  return Object.fromEntries(
    outputs.map(({ name, dtype, shape }, i) => {
      const { buffer, byteOffset } = blobs[i]!;
      return [
        name,
        { dtype, shape, data: new DTYPES[dtype].array(buffer as ArrayBuffer, byteOffset, elementCount(shape)) },
      ];
    }),
  );
}

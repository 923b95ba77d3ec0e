import { readSync, writeSync } from 'node:fs';
import type { Duplex } from 'node:stream';
import type { DType } from '../ir/dtype.ts';

/**
 * The wire between the tool and its native child: one socket, frames in both directions, answers in the order of the
 * requests. A frame is u32 length of the JSON text, u32 zero, the JSON text, then the blobs whose byte lengths the
 * text's `blobs` gives.
 * Not Node's own IPC, although that is as fast (25 MB of logits: 30 to 50 ms either way): the child reads inputs straight
 * into native memory, writes outputs from where the engine left them, and needs no event loop.
 */
export interface Frame {
  /** Byte lengths of the blobs that follow. */
  readonly blobs?: readonly number[];
}

export interface WireTensor {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
}

export interface OpenOptions {
  readonly provider: 'cpu' | 'qnn';
  /** QNN provider options as the vendor spells them; `backend_path` is filled in. */
  readonly providerOptions: Readonly<Record<string, string>>;
  readonly sessionConfig: Readonly<Record<string, string>>;
  /** ONNX Runtime's GraphOptimizationLevel: 0 none, 1 basic, 2 extended, 99 all. */
  readonly optimizationLevel: number;
  readonly threads: number;
}

export type Request =
  | (Frame & { readonly op: 'open'; readonly session: number; readonly model: string; readonly options: OpenOptions })
  | (Frame & {
      readonly op: 'run';
      readonly session: number;
      readonly feeds: readonly WireTensor[];
      readonly outputs: readonly string[];
    })
  | (Frame & { readonly op: 'release'; readonly session: number })
  | (Frame & { readonly op: 'context-info'; readonly path: string })
  | (Frame & { readonly op: 'memory' });

export interface OpenedSession {
  readonly inputs: readonly WireTensor[];
  readonly outputs: readonly WireTensor[];
}

export type Answer = Frame & { readonly result?: unknown; readonly error?: string };

const HEADER = 8;

function encodeHeader(message: object): Buffer {
  const text = Buffer.from(JSON.stringify(message), 'utf8');
  const head = Buffer.alloc(HEADER + text.length);
  head.writeUInt32LE(text.length, 0);
  text.copy(head, HEADER);
  return head;
}

/** Queues a frame on the parent's end. */
export function sendFrame(socket: Duplex, message: object, blobs: readonly Uint8Array[] = []): void {
  socket.cork();
  socket.write(encodeHeader({ ...message, blobs: blobs.map((blob) => blob.byteLength) }));
  for (const blob of blobs) if (blob.byteLength > 0) socket.write(blob);
  socket.uncork();
}

/** Assembles frames from the parent's end; each blob arrives in a buffer of its own, aligned for any element type. */
export class FrameReader<T extends Frame> {
  readonly #emit: (message: T, blobs: Uint8Array[]) => void;
  #target = new Uint8Array(HEADER);
  #filled = 0;
  #stage: 'header' | 'text' | 'blob' = 'header';
  #message: T | undefined;
  #blobs: Uint8Array[] = [];

  constructor(emit: (message: T, blobs: Uint8Array[]) => void) {
    this.#emit = emit;
  }

  push(chunk: Uint8Array): void {
    let at = 0;
    while (at < chunk.length) {
      const count = Math.min(chunk.length - at, this.#target.length - this.#filled);
      this.#target.set(chunk.subarray(at, at + count), this.#filled);
      at += count;
      this.#filled += count;
      if (this.#filled === this.#target.length) this.#advance();
    }
  }

  #advance(): void {
    const bytes = this.#target;
    if (this.#stage === 'header') {
      this.#expect('text', new DataView(bytes.buffer).getUint32(0, true));
      return;
    }
    if (this.#stage === 'text') {
      this.#message = JSON.parse(new TextDecoder().decode(bytes)) as T;
      this.#blobs = [];
    } else {
      this.#blobs.push(bytes);
    }
    const message = this.#message!;
    const lengths = message.blobs ?? [];
    while (this.#blobs.length < lengths.length && lengths[this.#blobs.length] === 0)
      this.#blobs.push(new Uint8Array(0));
    if (this.#blobs.length < lengths.length) {
      this.#expect('blob', lengths[this.#blobs.length]!);
      return;
    }
    this.#expect('header', HEADER);
    this.#emit(message, this.#blobs);
  }

  #expect(stage: 'header' | 'text' | 'blob', length: number): void {
    this.#stage = stage;
    this.#target = new Uint8Array(length);
    this.#filled = 0;
  }
}

/** Fills `target` from the child's end, blocking. @returns false at the end of the stream. */
export function readExactly(descriptor: number, target: Uint8Array): boolean {
  for (let done = 0; done < target.length; ) {
    const count = readSync(descriptor, target, done, target.length - done, null);
    if (count === 0) return false;
    done += count;
  }
  return true;
}

/** The next request on the child's end, without its blobs; undefined when the parent has gone. */
export function receiveRequest(descriptor: number): Request | undefined {
  const header = Buffer.alloc(HEADER);
  if (!readExactly(descriptor, header)) return undefined;
  const text = Buffer.alloc(header.readUInt32LE(0));
  if (!readExactly(descriptor, text)) return undefined;
  return JSON.parse(text.toString('utf8')) as Request;
}

/** Writes an answer on the child's end, blocking. */
export function sendAnswer(descriptor: number, answer: Answer, blobs: readonly Uint8Array[] = []): void {
  writeExactly(descriptor, encodeHeader({ ...answer, blobs: blobs.map((blob) => blob.byteLength) }));
  for (const blob of blobs) writeExactly(descriptor, blob);
}

function writeExactly(descriptor: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(descriptor, bytes, done, bytes.length - done);
}

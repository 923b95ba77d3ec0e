import { randomBytes } from 'node:crypto';
import { closeSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { NpucError } from '../errors.ts';

const BUFFER_BYTES = 1 << 20;

/** Buffered output into one temporary file. */
export class AtomicSink {
  readonly path: string;
  readonly temporary: string;
  #descriptor: number | undefined;
  readonly #buffer: Uint8Array = new Uint8Array(BUFFER_BYTES);
  #used = 0;
  #flushed = 0;

  constructor(path: string) {
    this.path = path;
    // In the same folder, so that the rename is one step; hidden, so that nobody takes it for a result.
    this.temporary = join(dirname(path), `.${basename(path)}.${randomBytes(6).toString('hex')}.tmp`);
    this.#descriptor = this.#guard(() => openSync(this.temporary, 'wx'));
  }

  /** Bytes written so far. */
  get position(): number {
    return this.#flushed + this.#used;
  }

  #guard<T>(action: () => T): T {
    try {
      return action();
    } catch (cause) {
      const full = (cause as NodeJS.ErrnoException).code === 'ENOSPC';
      throw new NpucError('IO002', {
        message: `cannot write ${this.path}: ${(cause as Error).message}`,
        where: this.path,
        ...(full ? { hint: 'the disk is full; nothing was left behind' } : {}),
        cause,
      });
    }
  }

  /** @throws IO002 */
  write(bytes: Uint8Array): void {
    if (this.#used + bytes.length > BUFFER_BYTES) this.#flush();
    if (bytes.length > BUFFER_BYTES) {
      this.#writeOut(bytes);
      this.#flushed += bytes.length;
    } else {
      this.#buffer.set(bytes, this.#used);
      this.#used += bytes.length;
    }
  }

  /** Zeros up to a multiple of `alignment` bytes (at most 4096). */
  align(alignment: number): void {
    const rest = this.position % alignment;
    if (rest !== 0) this.write(new Uint8Array(alignment - rest));
  }

  #flush(): void {
    const used = this.#used;
    this.#used = 0;
    this.#writeOut(this.#buffer.subarray(0, used));
    this.#flushed += used;
  }

  #writeOut(bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) {
      // One writeSync call moves at most 2 GiB.
      const length = Math.min(bytes.length - done, 1 << 30);
      done += this.#guard(() => writeSync(this.#descriptor!, bytes, done, length));
    }
  }

  /** Writes what is left and closes the temporary file. @throws IO002 */
  close(): void {
    this.#flush();
    this.#guard(() => this.#release());
  }

  /** Puts the temporary file in its place. @throws IO002 */
  publish(): void {
    this.#guard(() => renameSync(this.temporary, this.path));
  }

  /** Removes the temporary file. */
  discard(): void {
    try {
      this.#release();
    } finally {
      rmSync(this.temporary, { force: true });
    }
  }

  #release(): void {
    const descriptor = this.#descriptor;
    this.#descriptor = undefined;
    if (descriptor !== undefined) closeSync(descriptor);
  }
}

/**
 * Writes several files all or none: temporary names while `write` runs, renamed in the order given once every byte is on
 * disk. A failure removes the temporary files and leaves what lay under the names before.
 * @throws IO002; whatever `write` throws
 */
export function writeAtomically(paths: readonly string[], write: (sinks: readonly AtomicSink[]) => void): void {
  const sinks: AtomicSink[] = [];
  try {
    for (const path of paths) sinks.push(new AtomicSink(path));
    write(sinks);
    for (const sink of sinks) sink.close();
    for (const sink of sinks) sink.publish();
  } catch (error) {
    for (const sink of sinks) sink.discard();
    throw error;
  }
}

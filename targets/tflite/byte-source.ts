import { NpucError } from '../../compiler/errors.ts';
import type { StreamedBytes } from './schema.ts';

/** Something that is read in ranges: a `FileSource`, or bytes in memory. */
export interface ByteSource {
  readonly size: number;
  /** Exactly `length` bytes; may be a view of memory that must not be written to. @throws IO003 outside the source */
  read(offset: number, length: number): Uint8Array;
}

/** Bytes in memory as a source; reads are views, nothing is copied. */
export class MemorySource implements ByteSource {
  readonly size: number;
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.size = bytes.byteLength;
  }

  read(offset: number, length: number): Uint8Array {
    if (offset < 0 || length < 0 || offset + length > this.size) {
      throw new NpucError('IO003', {
        message: `bytes ${offset}..${offset + length} lie outside the ${this.size} bytes`,
      });
    }
    return this.#bytes.subarray(offset, offset + length);
  }
}

/** Most bytes that are in flight while a source is streamed. */
const CHUNK = 1 << 22;

/** A range of a source that is fetched when asked for and not kept. */
export class SourceBytes implements StreamedBytes {
  readonly byteLength: number;
  readonly #source: ByteSource;
  readonly #offset: number;

  constructor(source: ByteSource, offset: number, byteLength: number) {
    this.#source = source;
    this.#offset = offset;
    this.byteLength = byteLength;
  }

  /** All bytes, or a range of them; may be a view of memory that must not be written to. */
  read(offset = 0, length: number = this.byteLength - offset): Uint8Array {
    if (offset < 0 || length < 0 || offset + length > this.byteLength) {
      throw new NpucError('IO003', { message: `bytes ${offset}..${offset + length} lie outside the buffer` });
    }
    return this.#source.read(this.#offset + offset, length);
  }

  write(sink: (chunk: Uint8Array) => void): void {
    for (let done = 0; done < this.byteLength; done += CHUNK) {
      sink(this.read(done, Math.min(CHUNK, this.byteLength - done)));
    }
  }
}

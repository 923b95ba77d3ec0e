import { NpucError } from '../errors.ts';
import type { Blob } from '../import/onnx-schema.ts';
import type { Field, Message, Schema } from '../import/protobuf.ts';

/** A stretch of an encoded message: bytes at hand, or a blob that is fetched when its turn comes. */
export type Piece = Uint8Array | Blob;

/**
 * Encodes protobuf without holding large fields: small fields lie in byte buffers, blobs stay promises, and every enclosing
 * length is known because a blob says its length beforehand.
 */
export class ProtoWriter {
  readonly #pieces: Piece[] = [];
  #flushed = 0;
  #buffer: Uint8Array = new Uint8Array(64);
  #used = 0;

  get byteLength(): number {
    return this.#flushed + this.#used;
  }

  /** The encoded stretches, in order. */
  get pieces(): readonly Piece[] {
    this.#flush();
    return this.#pieces;
  }

  #flush(): void {
    if (this.#used === 0) return;
    this.#pieces.push(this.#buffer.subarray(0, this.#used));
    this.#flushed += this.#used;
    this.#buffer = new Uint8Array(64);
    this.#used = 0;
  }

  #grow(count: number): void {
    const needed = this.#used + count;
    if (needed <= this.#buffer.length) return;
    const larger = new Uint8Array(Math.max(needed, this.#buffer.length * 2));
    larger.set(this.#buffer.subarray(0, this.#used));
    this.#buffer = larger;
  }

  /** An int64 as a varint: ten bytes when negative. */
  int(value: number | bigint): void {
    this.#grow(10);
    if (typeof value === 'number' && value >= 0) {
      let rest = value;
      while (rest >= 128) {
        this.#buffer[this.#used++] = (rest % 128) | 128;
        rest = Math.floor(rest / 128);
      }
      this.#buffer[this.#used++] = rest;
      return;
    }
    let rest = BigInt.asUintN(64, BigInt(value));
    while (rest >= 128n) {
      this.#buffer[this.#used++] = Number(rest & 127n) | 128;
      rest >>= 7n;
    }
    this.#buffer[this.#used++] = Number(rest);
  }

  float(value: number): void {
    this.#grow(4);
    new DataView(this.#buffer.buffer, this.#used).setFloat32(0, value, true);
    this.#used += 4;
  }

  bytes(bytes: Uint8Array): void {
    this.#grow(bytes.length);
    this.#buffer.set(bytes, this.#used);
    this.#used += bytes.length;
  }

  blob(blob: Blob): void {
    this.#flush();
    this.#pieces.push(blob);
    this.#flushed += blob.byteLength;
  }

  append(other: ProtoWriter): void {
    for (const piece of other.pieces) {
      if (piece instanceof Uint8Array) this.bytes(piece);
      else this.blob(piece);
    }
  }

  /** Everything in one array. */
  toBytes(): Uint8Array {
    const out = new Uint8Array(this.byteLength);
    let at = 0;
    for (const piece of this.pieces) {
      out.set(readPiece(piece), at);
      at += piece.byteLength;
    }
    return out;
  }
}

/** The bytes of a piece. @throws XX001 when a blob gives another length than it said: enclosing lengths would then lie. */
export function readPiece(piece: Piece): Uint8Array {
  if (piece instanceof Uint8Array) return piece;
  const bytes = piece.read();
  if (bytes.length !== piece.byteLength) {
    throw new NpucError('XX001', { message: `a tensor of ${piece.byteLength} bytes gave ${bytes.length}` });
  }
  return bytes;
}

/** Encodes a message by its table: fields in number order, unknown fields last. */
export function encodeMessage(schema: Schema, message: object): ProtoWriter {
  const writer = new ProtoWriter();
  const values = message as Message;
  for (const field of schema.fields) {
    const value = values[field.name];
    if (value === undefined) continue;
    for (const entry of Array.isArray(value) ? value : [value]) encodeField(writer, field, entry);
  }
  if (values.unknown) writer.bytes(values.unknown);
  return writer;
}

function encodeField(writer: ProtoWriter, field: Field, value: unknown): void {
  const tag = (wire: number): void => writer.int(field.number * 8 + wire);
  const delimited = (bytes: Uint8Array): void => {
    tag(2);
    writer.int(bytes.length);
    writer.bytes(bytes);
  };
  switch (field.kind) {
    case 'int':
    case 'ints':
      tag(0);
      writer.int(value as number | bigint);
      break;
    case 'float':
    case 'floats':
      tag(5);
      writer.float(value as number);
      break;
    case 'string':
    case 'strings':
      delimited(Buffer.from(value as string, 'utf8'));
      break;
    case 'bytes':
    case 'byteStrings':
      delimited(value as Uint8Array);
      break;
    case 'span':
    case 'numbers':
      tag(2);
      writer.int((value as Blob).byteLength);
      writer.blob(value as Blob);
      break;
    default: {
      // A message may come as ready bytes: attributes that the IR carries unread.
      if (value instanceof Uint8Array) {
        delimited(value);
        break;
      }
      const inner = encodeMessage(field.schema, value as object);
      tag(2);
      writer.int(inner.byteLength);
      writer.append(inner);
    }
  }
}

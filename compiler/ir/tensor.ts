import { createHash } from 'node:crypto';
import { closeSync, fstatSync, openSync, readSync, type Stats } from 'node:fs';
import { NpucError } from '../errors.ts';
import { bfloatToNumber, byteLengthOf, DTYPES, type DType, halfToNumber, type TypedArray } from './dtype.ts';

/** A tensor's elements in memory, row-major: what runners take and give. Strings are JavaScript strings. */
export interface TensorData {
  dtype: DType;
  shape: readonly number[];
  /** One element an entry, also for 4-bit types; f16 and bf16 as raw bits; bool as 0 / 1. */
  data: TypedArray;
  /** The elements of a string tensor (`data` is then empty). */
  strings?: readonly string[];
}

export function elementCount(shape: readonly number[]): number {
  let count = 1;
  for (const dim of shape) count *= dim;
  return count;
}

/** A file opened once and read in ranges; nothing of it is kept in memory. */
export class FileSource {
  readonly path: string;
  readonly size: number;
  #descriptor: number | undefined;
  readonly #stamp: string;

  /** @throws IO001 when the file cannot be opened. */
  constructor(path: string) {
    this.path = path;
    try {
      this.#descriptor = openSync(path, 'r');
      const stat = fstatSync(this.#descriptor);
      if (!stat.isFile()) throw new Error('not a regular file');
      this.size = stat.size;
      this.#stamp = stampOf(stat);
    } catch (cause) {
      this.close();
      throw new NpucError('IO001', { message: `cannot read ${path}: ${(cause as Error).message}`, where: path, cause });
    }
  }

  /** @throws IO003 when the range lies outside the file. */
  read(offset: number, length: number): Uint8Array {
    if (offset < 0 || length < 0 || offset + length > this.size) {
      throw new NpucError('IO003', {
        message: `bytes ${offset}..${offset + length} lie outside the file (${this.size} bytes)`,
        where: this.path,
        hint: 'the file is truncated or its header lies; download it again',
      });
    }
    if (this.#descriptor === undefined) this.#reopen();
    const bytes = new Uint8Array(length);
    let done = 0;
    // One readSync call moves at most 2 GiB.
    while (done < length) {
      const count = readSync(this.#descriptor!, bytes, done, Math.min(length - done, 1 << 30), offset + done);
      if (count === 0)
        throw new NpucError('IO003', { message: 'the file became shorter while it was read', where: this.path });
      done += count;
    }
    return bytes;
  }

  /** Offsets known from the first opening mean nothing in a file that was replaced since. */
  #reopen(): void {
    try {
      this.#descriptor = openSync(this.path, 'r');
    } catch (cause) {
      throw new NpucError('IO001', { message: `cannot read ${this.path}: ${(cause as Error).message}`, cause });
    }
    if (stampOf(fstatSync(this.#descriptor)) === this.#stamp) return;
    this.close();
    throw new NpucError('IO001', { message: 'the file changed since it was opened', where: this.path });
  }

  /** Gives the descriptor back; a later read opens the file again. @throws IO001 then, when the file has changed */
  close(): void {
    if (this.#descriptor !== undefined) closeSync(this.#descriptor);
    this.#descriptor = undefined;
  }
}

function stampOf(stat: Stats): string {
  return `${stat.dev} ${stat.ino} ${stat.size} ${stat.mtimeMs}`;
}

export type Storage =
  | { kind: 'memory'; bytes: Uint8Array }
  | { kind: 'file'; file: FileSource; offset: number }
  /** Bytes computed when asked for; `transposeOf` says that they are the transpose of a 2-D tensor of the same type. */
  | { kind: 'derived'; compute: () => Uint8Array; transposeOf?: Tensor };

/**
 * A tensor as a promise: type, shape and length are known, bytes are fetched when asked for and not kept.
 * Bytes are row-major little endian in ONNX raw_data layout.
 */
export class Tensor {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly storage: Storage;
  #digest: string | undefined;

  constructor(dtype: DType, shape: readonly number[], storage: Storage) {
    this.dtype = dtype;
    this.shape = shape;
    this.storage = storage;
  }

  /** A tensor in memory from a typed array of its elements (4-bit elements are packed). */
  static of(dtype: DType, shape: readonly number[], data: TypedArray | readonly number[]): Tensor {
    const count = elementCount(shape);
    if (data.length !== count)
      throw new NpucError('XX001', { message: `${data.length} elements for shape [${shape}]` });
    let array = data as TypedArray;
    if (ArrayBuffer.isView(data) && !(data instanceof DTYPES[dtype].array)) {
      throw new NpucError('XX001', { message: `${data.constructor.name} for elements of type ${dtype}` });
    }
    if (!ArrayBuffer.isView(data)) {
      array = new DTYPES[dtype].array(
        new ArrayBuffer(count * DTYPES[dtype].array.prototype.BYTES_PER_ELEMENT),
        0,
        count,
      );
      for (let i = 0; i < count; i++) {
        array[i] = array instanceof BigInt64Array || array instanceof BigUint64Array ? BigInt(data[i]!) : data[i]!;
      }
    }
    const bytes =
      DTYPES[dtype].bits < 8
        ? packSubByte(array as Int8Array | Uint8Array, DTYPES[dtype].bits)
        : new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    return new Tensor(dtype, [...shape], { kind: 'memory', bytes });
  }

  static scalar(dtype: DType, value: number): Tensor {
    return Tensor.of(dtype, [], [value]);
  }

  get size(): number {
    return elementCount(this.shape);
  }

  get byteLength(): number {
    if (this.storage.kind === 'memory') return this.storage.bytes.byteLength;
    return byteLengthOf(this.dtype, this.size);
  }

  /** All bytes. For a tensor in memory it is the live array: do not write to it. */
  read(): Uint8Array {
    if (this.storage.kind === 'memory') return this.storage.bytes;
    if (this.storage.kind === 'file') return this.storage.file.read(this.storage.offset, this.byteLength);
    return this.storage.compute();
  }

  /** A range of the bytes; only these are read from a file. */
  readRange(offset: number, length: number): Uint8Array {
    if (this.storage.kind === 'file' && offset >= 0 && offset + length <= this.byteLength) {
      return this.storage.file.read(this.storage.offset + offset, length);
    }
    return this.read().subarray(offset, offset + length);
  }

  /** The elements as a typed array (see TensorData). */
  toData(): TensorData {
    if (this.dtype === 'string')
      return { dtype: 'string', shape: this.shape, data: new Uint8Array(0), strings: decodeStrings(this.read()) };
    const { bits, array } = DTYPES[this.dtype];
    let bytes = this.read();
    if (bits < 8)
      return {
        dtype: this.dtype,
        shape: this.shape,
        data: unpackSubByte(bytes, bits, this.size, this.dtype.startsWith('i')),
      };
    const width = bits === 128 ? 8 : this.dtype === 'c64' ? 4 : bits / 8;
    // Not bytes.slice(): a Buffer's shares its memory.
    if (bytes.byteOffset % width !== 0) bytes = new Uint8Array(bytes);
    return {
      dtype: this.dtype,
      shape: this.shape,
      data: new array(bytes.buffer, bytes.byteOffset, bytes.byteLength / width),
    };
  }

  /** The elements as f32, whatever number type they are. */
  toFloats(): Float32Array {
    return toFloats(this.toData());
  }

  /** The elements as JavaScript numbers: for shapes, axes and other small integer tensors. */
  toNumbers(): number[] {
    return toNumbers(this.toData());
  }

  /** SHA-256 (hex) of type, shape and bytes; computed once, streamed. */
  get digest(): string {
    if (this.#digest === undefined) {
      const hash = createHash('sha256').update(`${this.dtype}[${this.shape}]`);
      const length = this.byteLength;
      const window = this.storage.kind === 'file' ? 8 << 20 : length;
      for (let offset = 0; offset < length; offset += window)
        hash.update(this.readRange(offset, Math.min(window, length - offset)));
      this.#digest = hash.digest('hex');
    }
    return this.#digest;
  }
}

/** A lazily computed transpose of a 2-D tensor of a whole-byte type. */
export function transposeTensor(source: Tensor): Tensor {
  const [rows, columns] = source.shape as [number, number];
  if (source.storage.kind === 'derived' && source.storage.transposeOf) return source.storage.transposeOf;
  const compute = (): Uint8Array => {
    const { data } = source.toData();
    const out = new (data.constructor as new (length: number) => TypedArray)(data.length) as Float32Array;
    const from = data as Float32Array;
    const block = 32;
    for (let r0 = 0; r0 < rows; r0 += block) {
      for (let c0 = 0; c0 < columns; c0 += block) {
        const r1 = Math.min(rows, r0 + block);
        const c1 = Math.min(columns, c0 + block);
        for (let r = r0; r < r1; r++) for (let c = c0; c < c1; c++) out[c * rows + r] = from[r * columns + c]!;
      }
    }
    return new Uint8Array(out.buffer, out.byteOffset, out.byteLength);
  };
  return new Tensor(source.dtype, [columns, rows], { kind: 'derived', compute, transposeOf: source });
}

let halves: Float32Array | undefined;

/** The value of every half: looking up is ten times as fast as computing. */
function halfTable(): Float32Array {
  halves ??= Float32Array.from({ length: 1 << 16 }, (_, bits) => halfToNumber(bits));
  return halves;
}

/** Any number type to f32. */
export function toFloats(tensor: TensorData): Float32Array {
  const { dtype, data } = tensor;
  if (data instanceof Float32Array) return data;
  const out = new Float32Array(data.length);
  if (dtype === 'f16') {
    const table = halfTable();
    const bits = data as Uint16Array;
    for (let i = 0; i < out.length; i++) out[i] = table[bits[i]!]!;
  } else if (dtype === 'bf16') for (let i = 0; i < out.length; i++) out[i] = bfloatToNumber(data[i] as number);
  else for (let i = 0; i < out.length; i++) out[i] = Number(data[i]);
  return out;
}

/** Any number type to JavaScript numbers. */
export function toNumbers(tensor: TensorData): number[] {
  if (tensor.dtype === 'f16' || tensor.dtype === 'bf16') return Array.from(toFloats(tensor));
  return Array.from(tensor.data as Float32Array, Number);
}

/** Packs elements of 4 or 2 bits, the first element in the low bits. */
export function packSubByte(elements: Int8Array | Uint8Array, bits: number): Uint8Array {
  const perByte = 8 / bits;
  const mask = (1 << bits) - 1;
  const bytes = new Uint8Array(Math.ceil(elements.length / perByte));
  for (let i = 0; i < elements.length; i++) {
    const at = Math.floor(i / perByte);
    bytes[at] = bytes[at]! | ((elements[i]! & mask) << ((i % perByte) * bits));
  }
  return bytes;
}

/** The inverse of packSubByte. */
export function unpackSubByte(bytes: Uint8Array, bits: number, count: number, signed: boolean): Int8Array | Uint8Array {
  const perByte = 8 / bits;
  const mask = (1 << bits) - 1;
  const out = signed ? new Int8Array(count) : new Uint8Array(count);
  const top = 1 << (bits - 1);
  for (let i = 0; i < count; i++) {
    const raw = (bytes[Math.floor(i / perByte)]! >> ((i % perByte) * bits)) & mask;
    out[i] = signed && raw & top ? raw - (1 << bits) : raw;
  }
  return out;
}

/** String tensors keep their elements as u32 length + UTF-8 bytes each. */
export function encodeStrings(strings: readonly string[]): Uint8Array {
  const parts = strings.map((text) => Buffer.from(text, 'utf8'));
  const out = Buffer.alloc(parts.reduce((sum, part) => sum + 4 + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.writeUInt32LE(part.length, at);
    part.copy(out, at + 4);
    at += 4 + part.length;
  }
  return out;
}

function decodeStrings(bytes: Uint8Array): string[] {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const out: string[] = [];
  for (let at = 0; at < buffer.length; ) {
    const length = buffer.readUInt32LE(at);
    out.push(buffer.toString('utf8', at + 4, at + 4 + length));
    at += 4 + length;
  }
  return out;
}

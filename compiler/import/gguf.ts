import { NpucError } from '../errors.ts';
import { FileSource, Tensor } from '../ir/tensor.ts';
import { GGML_TYPES, type GgmlType, nameOfGgmlType } from './ggml-blocks.ts';

/** A metadata value; 64-bit integers are numbers where that is exact. */
export type GgufValue = string | number | bigint | boolean | readonly GgufValue[];

/** A GGUF file opened for reading. */
export interface GgufFile {
  readonly metadata: ReadonlyMap<string, GgufValue>;
  /** By ggml's names, shapes outermost dimension first. Quantized tensors read as f32. */
  readonly tensors: ReadonlyMap<string, Tensor>;
  /** Element type of each tensor as the file names it, such as `Q4_1`. */
  readonly typeNames: ReadonlyMap<string, string>;
  close(): void;
}

// ggml/docs/gguf.md gives the layout; ggml's own reader has these limits.
const MAGIC = 0x46554747;
const MAX_DIMENSIONS = 4;
const MAX_NAME_BYTES = 65_535;
const DEFAULT_ALIGNMENT = 32;
/** Arrays of arrays are allowed; nobody writes them. */
const MAX_NESTING = 4;
// Far above any real file; a lie cannot make the reader fill the memory.
const MAX_ENTRIES = 1 << 20;
const MAX_ELEMENTS = 1 << 24;
const MAX_STRING_BYTES = 256 << 20;

/** Bytes that the smallest value of each metadata type takes; index is the type's number. */
const MINIMUM_BYTES = [1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8];
const TYPE_STRING = 8;
const TYPE_ARRAY = 9;

/**
 * Opens a GGUF file of version 2 or 3. Metadata is read, tensors are lazy: plain ones are ranges of the file, quantized ones
 * are decoded to f32 when they are read, some rows at a time.
 * @throws IO001 unreadable, IO003 truncated, IM120 not GGUF or the header lies, IM121 a tensor type that cannot be decoded
 */
export function openGguf(path: string): GgufFile {
  const file = new FileSource(path);
  try {
    return readGguf(file);
  } catch (error) {
    file.close();
    throw error;
  }
}

function readGguf(file: FileSource): GgufFile {
  const cursor = new Cursor(file);
  const { tensorCount, metadataCount } = readPreamble(cursor);
  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < metadataCount; i++) {
    const key = cursor.name();
    if (metadata.has(key)) cursor.refuse(`the key ${JSON.stringify(key)} is there twice`);
    metadata.set(key, readValue(cursor, cursor.u32(), key, 0));
  }
  const alignment = metadata.get('general.alignment') ?? DEFAULT_ALIGNMENT;
  if (typeof alignment !== 'number' || alignment < 1 || alignment > 1 << 20 || (alignment & (alignment - 1)) !== 0) {
    return cursor.refuse(`general.alignment is ${alignment}, not a power of two`);
  }
  const entries = Array.from({ length: tensorCount }, () => readTensorEntry(cursor));
  const dataStart = Math.ceil(cursor.offset / alignment) * alignment;
  const tensors = new Map<string, Tensor>();
  const typeNames = new Map<string, string>();
  for (const entry of entries) {
    if (tensors.has(entry.name)) cursor.refuse(`the tensor ${JSON.stringify(entry.name)} is there twice`);
    if (entry.offset % alignment !== 0) {
      cursor.refuse(
        `the tensor ${JSON.stringify(entry.name)} begins at ${entry.offset}, not a multiple of ${alignment}`,
      );
    }
    tensors.set(entry.name, makeTensor(file, entry, dataStart + entry.offset));
    typeNames.set(entry.name, entry.type.name);
  }
  checkOverlaps(entries, cursor);
  return { metadata, tensors, typeNames, close: () => file.close() };
}

function readPreamble(cursor: Cursor): { tensorCount: number; metadataCount: number } {
  if (cursor.remaining < 24) {
    throw new NpucError('IO003', {
      message: `${cursor.remaining} bytes are too few for a GGUF file`,
      where: cursor.where,
    });
  }
  if (cursor.u32() !== MAGIC) cursor.refuse('it does not begin with GGUF');
  const version = cursor.u32();
  if (version !== 2 && version !== 3) {
    // A big-endian file shows its version in the upper bytes.
    cursor.refuse(
      (version & 0xffff) === 0 ? 'the file is big-endian' : `version ${version} is not supported (2 and 3 are)`,
    );
  }
  const tensorCount = cursor.size();
  const metadataCount = cursor.size();
  // A key takes at least 8 bytes of length, 4 of type and 1 of value; a tensor 8 + 4 + 4 + 8.
  if (metadataCount > Math.min(MAX_ENTRIES, cursor.remaining / 13))
    cursor.refuse(`${metadataCount} metadata keys are more than the file has room for`);
  if (tensorCount > Math.min(MAX_ENTRIES, cursor.remaining / 24))
    cursor.refuse(`${tensorCount} tensors are more than the file has room for`);
  return { tensorCount, metadataCount };
}

function readValue(cursor: Cursor, type: number, key: string, depth: number): GgufValue {
  switch (type) {
    case 0:
      return cursor.view(1).getUint8(0);
    case 1:
      return cursor.view(1).getInt8(0);
    case 2:
      return cursor.view(2).getUint16(0, true);
    case 3:
      return cursor.view(2).getInt16(0, true);
    case 4:
      return cursor.u32();
    case 5:
      return cursor.view(4).getInt32(0, true);
    case 6:
      return cursor.view(4).getFloat32(0, true);
    case 7:
      return cursor.view(1).getUint8(0) !== 0;
    case TYPE_STRING:
      return cursor.string(MAX_STRING_BYTES);
    case TYPE_ARRAY: {
      const element = cursor.u32();
      const count = cursor.size();
      const least = MINIMUM_BYTES[element];
      if (least === undefined) return cursor.refuse(`the array ${key} has elements of the unknown type ${element}`);
      if (depth >= MAX_NESTING) return cursor.refuse(`the array ${key} is nested more than ${MAX_NESTING} times`);
      if (count > Math.min(MAX_ELEMENTS, cursor.remaining / least)) {
        return cursor.refuse(`the array ${key} is said to have ${count} elements, more than the file has room for`);
      }
      return Array.from({ length: count }, () => readValue(cursor, element, key, depth + 1));
    }
    case 10:
      return exact(cursor.view(8).getBigUint64(0, true));
    case 11:
      return exact(cursor.view(8).getBigInt64(0, true));
    case 12:
      return cursor.view(8).getFloat64(0, true);
    default:
      return cursor.refuse(`the key ${key} has the unknown type ${type}`);
  }
}

function exact(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

interface TensorEntry {
  readonly name: string;
  readonly type: GgmlType;
  /** Outermost dimension first. */
  readonly shape: readonly number[];
  /** From the start of the data. */
  readonly offset: number;
  readonly bytes: number;
}

function readTensorEntry(cursor: Cursor): TensorEntry {
  const name = cursor.name();
  const rank = cursor.u32();
  if (rank > MAX_DIMENSIONS) cursor.refuse(`the tensor ${JSON.stringify(name)} is said to have ${rank} dimensions`);
  const shape = Array.from({ length: rank }, () => cursor.size()).reverse();
  const code = cursor.u32();
  const offset = cursor.size();
  const type = GGML_TYPES.get(code);
  if (!type) {
    const known = [...GGML_TYPES.values()].map((each) => each.name).join(', ');
    throw new NpucError('IM121', {
      message: `the tensor ${name} has the type ${nameOfGgmlType(code)}`,
      where: cursor.where,
      hint: `take a file with only these types: ${known}`,
    });
  }
  const columns = shape.at(-1) ?? 1;
  if (columns % type.blockSize !== 0) {
    cursor.refuse(`the tensor ${name} has rows of ${columns}, ${type.name} wants a multiple of ${type.blockSize}`);
  }
  let count = 1;
  for (const dim of shape) count *= dim;
  const bytes = (count / type.blockSize) * type.blockBytes;
  if (!Number.isSafeInteger(count * 4) || !Number.isSafeInteger(bytes)) {
    cursor.refuse(`the tensor ${name} is said to have the shape [${shape}]`);
  }
  return { name, type, shape, offset, bytes };
}

/** Data may have padding between tensors, never two tensors in the same place. */
function checkOverlaps(entries: readonly TensorEntry[], cursor: Cursor): void {
  let end = 0;
  let before = '';
  for (const entry of entries.filter(({ bytes }) => bytes > 0).sort((a, b) => a.offset - b.offset)) {
    if (entry.offset < end) cursor.refuse(`the tensors ${before} and ${entry.name} overlap`);
    end = entry.offset + entry.bytes;
    before = entry.name;
  }
}

const WINDOW_BYTES = 4 << 20;

function makeTensor(file: FileSource, entry: TensorEntry, start: number): Tensor {
  const { name, type, shape, bytes } = entry;
  if (start + bytes > file.size) {
    throw new NpucError('IO003', {
      message: `the tensor ${name} is said to end at byte ${start + bytes}, the file at ${file.size}`,
      where: file.path,
      hint: 'the file is truncated; download it again',
    });
  }
  const { decode, blockSize, blockBytes } = type;
  if (!decode) return new Tensor(type.plain!, shape, { kind: 'file', file, offset: start });
  const compute = (): Uint8Array => {
    const blocks = bytes / blockBytes;
    const out = new Float32Array(blocks * blockSize);
    const windowBlocks = Math.floor(WINDOW_BYTES / blockBytes);
    for (let first = 0; first < blocks; first += windowBlocks) {
      const count = Math.min(windowBlocks, blocks - first);
      const window = file.read(start + first * blockBytes, count * blockBytes);
      for (let i = 0; i < count; i++) decode(window, i * blockBytes, out, (first + i) * blockSize);
    }
    return new Uint8Array(out.buffer);
  };
  return new Tensor('f32', shape, { kind: 'derived', compute });
}

/** Reads forward through a file in windows. */
class Cursor {
  readonly #file: FileSource;
  readonly #decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
  #window: DataView = new DataView(new ArrayBuffer(0));
  #windowStart = 0;
  offset = 0;

  constructor(file: FileSource) {
    this.#file = file;
  }

  get where(): string {
    return this.#file.path;
  }

  get remaining(): number {
    return this.#file.size - this.offset;
  }

  refuse(message: string): never {
    throw new NpucError('IM120', { message, where: this.where, hint: 'is this really a GGUF file, and complete?' });
  }

  /** The next `length` bytes; the cursor moves past them. */
  view(length: number): DataView {
    if (length > this.remaining) {
      throw new NpucError('IO003', {
        message: `the header wants ${length} bytes at ${this.offset}, the file ends at ${this.#file.size}`,
        where: this.where,
        hint: 'the file is truncated; download it again',
      });
    }
    let at = this.offset - this.#windowStart;
    if (at + length > this.#window.byteLength) {
      const bytes = this.#file.read(this.offset, Math.min(this.remaining, Math.max(length, 1 << 18)));
      this.#window = new DataView(bytes.buffer);
      this.#windowStart = this.offset;
      at = 0;
    }
    this.offset += length;
    return new DataView(this.#window.buffer, at, length);
  }

  u32(): number {
    return this.view(4).getUint32(0, true);
  }

  /** A 64-bit count, size or offset. */
  size(): number {
    const value = this.view(8).getBigUint64(0, true);
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) this.refuse(`a size of ${value} at byte ${this.offset - 8}`);
    return Number(value);
  }

  /** A key or a tensor's name. An empty one means that the cursor is in padding. */
  name(): string {
    return this.string(MAX_NAME_BYTES) || this.refuse(`a name without letters at byte ${this.offset}`);
  }

  string(limit: number): string {
    const length = this.size();
    if (length > limit) this.refuse(`a string of ${length} bytes at byte ${this.offset}`);
    const view = this.view(length);
    const bytes = new Uint8Array(view.buffer, view.byteOffset, length);
    try {
      return this.#decoder.decode(bytes);
    } catch {
      return this.refuse(`the string at byte ${this.offset - length} is not UTF-8`);
    }
  }
}

import { NpucError } from '../errors.ts';

/**
 * Protobuf over ranged reads: a message is walked field by field through a window of the file, and the bytes of large
 * fields are never touched. What a message holds is said by a table (`onnx-schema.ts`), so one reader here and one writer in
 * `compiler/export/protobuf.ts` serve every message. Wire format: https://protobuf.dev/programming-guides/encoding.
 */

/** Something with a length whose bytes can be read in ranges: a FileSource, or bytes in memory. */
export interface RangeSource {
  readonly path: string;
  readonly size: number;
  read(offset: number, length: number): Uint8Array;
}

/** Bytes in memory as a RangeSource. */
export class BytesSource implements RangeSource {
  readonly path: string;
  readonly bytes: Uint8Array;

  constructor(bytes: Uint8Array, path = 'model in memory') {
    this.bytes = bytes;
    this.path = path;
  }

  get size(): number {
    return this.bytes.length;
  }

  read(offset: number, length: number): Uint8Array {
    return this.bytes.subarray(offset, offset + length);
  }
}

/** Bytes that a message leaves where they are; short ones were copied while the walker stood on them. */
export class Span {
  readonly source: RangeSource;
  readonly offset: number;
  readonly byteLength: number;
  readonly #bytes: Uint8Array | undefined;

  constructor(source: RangeSource, offset: number, byteLength: number, bytes?: Uint8Array) {
    this.source = source;
    this.offset = offset;
    this.byteLength = byteLength;
    this.#bytes = bytes;
  }

  /** Whether the bytes are in memory already. */
  get isRead(): boolean {
    return this.#bytes !== undefined;
  }

  read(): Uint8Array {
    return this.#bytes ?? this.source.read(this.offset, this.byteLength);
  }
}

/** What a field holds; lists end in `s`. The bytes of `span` and `numbers` stay in the file. */
export type FieldKind = 'int' | 'ints' | 'float' | 'floats' | 'string' | 'strings' | 'bytes' | 'byteStrings' | 'span';

/**
 * One field of a message: its JavaScript name, its number, and what it holds or the message that it holds. `numbers` are
 * spans of packed numbers (one span for each number that was written without packing) of the wire type `wire`.
 */
export type Field =
  | { readonly name: string; readonly number: number; readonly kind: FieldKind }
  | { readonly name: string; readonly number: number; readonly kind: 'numbers'; readonly wire: 0 | 1 | 5 }
  | { readonly name: string; readonly number: number; readonly kind: 'message' | 'messages'; readonly schema: Schema };

export interface Schema {
  readonly title: string;
  /** In field number order: the order in which they are written. */
  readonly fields: readonly Field[];
  readonly byNumber: ReadonlyMap<number, Field>;
  /** Keep the message's own byte range as `span`. */
  readonly keepsSpan: boolean;
}

/** Spans up to this length are copied while the window holds them: a read of their own would cost more. */
const EAGER_BYTES = 1024;
const WINDOW_BYTES = 64 << 10;
/** Deeper nesting than any model has; what nests deeper is damaged or hostile. */
const DEEPEST = 100;
const TEXT = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** Walks wire fields of a source from a position on. Never reads past `source.size`, always moves forward. */
export class WireReader {
  readonly source: RangeSource;
  position: number;
  #window: Uint8Array = new Uint8Array(0);
  #view: DataView = new DataView(this.#window.buffer);
  #start = 0;

  constructor(source: RangeSource, position = 0) {
    this.source = source;
    this.position = position;
  }

  /** @throws IO003 with the position. */
  fail(what: string): never {
    throw new NpucError('IO003', {
      message: `${what} at byte ${this.position}`,
      where: this.source.path,
      hint: 'the file is damaged, incomplete, or not an ONNX model',
    });
  }

  /** Makes `length` bytes at the position available in the window and answers their index there. */
  #need(length: number): number {
    const at = this.position - this.#start;
    if (at >= 0 && at + length <= this.#window.length) return at;
    if (this.position + length > this.source.size) this.fail('the file ends inside a field');
    this.#start = this.position;
    this.#window = this.source.read(this.position, Math.min(WINDOW_BYTES, this.source.size - this.position));
    this.#view = new DataView(this.#window.buffer, this.#window.byteOffset, this.#window.byteLength);
    return 0;
  }

  #byte(): number {
    const at = this.#need(1);
    this.position++;
    return this.#window[at]!;
  }

  /** A varint below 2^53: tags and lengths. */
  uint(): number {
    let value = 0;
    let scale = 1;
    for (let count = 0; count < 8; count++) {
      const byte = this.#byte();
      value += (byte & 127) * scale;
      if (byte < 128) {
        if (value > Number.MAX_SAFE_INTEGER) this.fail('a length is not believable');
        return value;
      }
      scale *= 128;
    }
    this.fail('a length is not believable');
  }

  /** A varint as int64: a number where that is exact, else a bigint. */
  int(): number | bigint {
    let low = 0;
    let high = 0;
    for (let shift = 0; shift < 70; shift += 7) {
      const byte = this.#byte();
      const bits = byte & 127;
      if (shift < 28) low |= bits << shift;
      else if (shift === 28) {
        low |= bits << 28;
        high = bits >>> 4;
      } else high |= bits << (shift - 32);
      if (byte < 128) {
        // High words from -2^21 to 2^21 - 1 keep the sum within 53 bits.
        if (high >= -0x200000 && high < 0x200000) return high * 0x100000000 + (low >>> 0);
        return (BigInt(high) << 32n) | BigInt(low >>> 0);
      }
    }
    this.fail('a number has more than ten bytes');
  }

  float(): number {
    const at = this.#need(4);
    this.position += 4;
    return this.#view.getFloat32(at, true);
  }

  /** The next `length` bytes, copied. */
  bytes(length: number): Uint8Array {
    if (this.position + length > this.source.size) this.fail('the file ends inside a field');
    let out: Uint8Array;
    if (length <= WINDOW_BYTES) {
      const at = this.#need(length);
      out = this.#window.slice(at, at + length);
    } else out = this.source.read(this.position, length).slice();
    this.position += length;
    return out;
  }

  /** The next `length` bytes as a name. @throws IO003 when they are not UTF-8. */
  string(length: number): string {
    if (length <= WINDOW_BYTES) {
      const at = this.#need(length);
      const bytes = this.#window.subarray(at, at + length);
      this.position += length;
      try {
        return TEXT.decode(bytes);
      } catch {
        this.fail('a name is not UTF-8 text');
      }
    }
    const bytes = this.bytes(length);
    try {
      return TEXT.decode(bytes);
    } catch {
      this.fail('a text is not UTF-8');
    }
  }

  /** The next `length` bytes left in place. */
  span(length: number): Span {
    const offset = this.position;
    if (length <= EAGER_BYTES) return new Span(this.source, offset, length, this.bytes(length));
    this.position += length;
    return new Span(this.source, offset, length);
  }
}

/** A decoded message: fields by their names. The schema's user gives it its real type. */
export type Message = Record<string, unknown> & { unknown?: Uint8Array; span?: Span };

/**
 * Decodes the message that starts at the reader and ends at `end`. Absent fields stay absent; a singular field met twice
 * keeps the last, as protobuf says; fields that the schema does not know are kept together, tags included, as `unknown`.
 * @throws IO003 for anything that is not well formed.
 */
export function decodeMessage(reader: WireReader, schema: Schema, end: number, depth = 0): Message {
  if (depth > DEEPEST) reader.fail(`messages nest deeper than ${DEEPEST}`);
  const message: Message = {};
  const start = reader.position;
  const unknown: Uint8Array[] = [];
  while (reader.position < end) {
    const fieldStart = reader.position;
    const tag = reader.uint();
    const wire = tag % 8;
    const number = Math.floor(tag / 8);
    const length = wire === 2 ? reader.uint() : 0;
    if (length > end - reader.position) reader.fail(`a field of ${schema.title} is longer than what holds it`);
    const field = schema.byNumber.get(number);
    if (field) decodeField(reader, field, wire, length, message, depth);
    else {
      skip(reader, wire, length);
      const fieldEnd = reader.position;
      if (fieldEnd > end) reader.fail(`${schema.title} is longer than what holds it`);
      reader.position = fieldStart;
      unknown.push(reader.bytes(fieldEnd - fieldStart));
    }
    if (reader.position > end) reader.fail(`${schema.title} is longer than what holds it`);
  }
  if (unknown.length > 0) message.unknown = new Uint8Array(Buffer.concat(unknown));
  if (schema.keepsSpan) message.span = new Span(reader.source, start, end - start);
  return message;
}

function skip(reader: WireReader, wire: number, length: number): void {
  if (wire === 0) reader.int();
  else if (wire === 1) reader.position += 8;
  else if (wire === 2) reader.position += length;
  else if (wire === 5) reader.position += 4;
  else reader.fail(`wire type ${wire} is not known`);
}

const WIRES: Readonly<Record<Field['kind'], readonly number[]>> = {
  int: [0],
  ints: [0, 2],
  float: [5],
  floats: [5, 2],
  string: [2],
  strings: [2],
  bytes: [2],
  byteStrings: [2],
  span: [2],
  numbers: [0, 1, 2, 5],
  message: [2],
  messages: [2],
};

function decodeField(
  reader: WireReader,
  field: Field,
  wire: number,
  length: number,
  message: Message,
  depth: number,
): void {
  if (!WIRES[field.kind].includes(wire)) reader.fail(`field ${field.name} has wire type ${wire}`);
  const end = reader.position + length;
  switch (field.kind) {
    case 'int':
      message[field.name] = reader.int();
      return;
    case 'float':
      message[field.name] = reader.float();
      return;
    case 'string':
      message[field.name] = reader.string(length);
      return;
    case 'bytes':
      message[field.name] = reader.bytes(length);
      return;
    case 'span':
      message[field.name] = reader.span(length);
      return;
    case 'message':
      message[field.name] = decodeMessage(reader, field.schema, end, depth + 1);
      return;
    default: {
      let list = message[field.name] as unknown[] | undefined;
      if (!list) {
        list = [];
        message[field.name] = list;
      }
      decodeEntry(reader, field, wire, length, list, depth);
    }
  }
}

function decodeEntry(
  reader: WireReader,
  field: Field,
  wire: number,
  length: number,
  list: unknown[],
  depth: number,
): void {
  const end = reader.position + length;
  switch (field.kind) {
    case 'ints':
      if (wire === 0) list.push(reader.int());
      else while (reader.position < end) list.push(reader.int());
      break;
    case 'floats':
      if (wire === 5) list.push(reader.float());
      else while (reader.position < end) list.push(reader.float());
      break;
    case 'strings':
      list.push(reader.string(length));
      break;
    case 'byteStrings':
      list.push(reader.bytes(length));
      break;
    case 'messages':
      list.push(decodeMessage(reader, field.schema, end, depth + 1));
      break;
    case 'numbers':
      if (wire === 2) list.push(reader.span(length));
      else if (wire !== field.wire) reader.fail(`field ${field.name} has wire type ${wire}`);
      else {
        const start = reader.position;
        skip(reader, wire, 0);
        const size = reader.position - start;
        reader.position = start;
        list.push(reader.span(size));
      }
      break;
    default:
      break;
  }
  if (wire === 2 && reader.position !== end) reader.fail(`field ${field.name} is longer than it says`);
}

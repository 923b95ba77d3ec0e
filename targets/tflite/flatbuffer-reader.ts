import { NpucError } from '../../compiler/errors.ts';
import type { TypedArray } from '../../compiler/ir/dtype.ts';
import { type ByteSource, SourceBytes } from './byte-source.ts';
import {
  FILE_IDENTIFIERS,
  type Field,
  SCALAR_BYTES,
  type ScalarType,
  type TableName,
  type TableValue,
  tableLayout,
} from './schema.ts';

/**
 * Reads a FlatBuffer by the schema's tables. `bytes` fields are not read: the result holds ranges of the source.
 * Every offset is checked against the source. References may overlap in a lying file, so the work is bounded by the size
 * of the file and not by what it claims.
 * @throws IO003 when the bytes are not such a FlatBuffer; TF105 when they use members this schema does not know
 */
export function readFlatBuffer<T extends TableName>(source: ByteSource, root: T): TableValue<T> {
  return new Reader(source).root(root) as TableValue<T>;
}

const PAGE = 1 << 16;
/** Pages kept: 4 MiB, whatever the file's size. */
const PAGES = 64;

/**
 * Work allowed, in bytes looked at: a legal file's tables are looked at once each, its shared vectors and strings a few
 * times. The ceiling is for files whose size is all weights; an 8-billion-parameter model's tables are far below it.
 */
const WORK_PER_BYTE = 16;
const MOST_WORK = 1 << 28;
/** What an object costs beyond its bytes. */
const TABLE_WORK = 64;

const VECTOR_TYPES = {
  bool: Uint8Array,
  i8: Int8Array,
  u8: Uint8Array,
  i16: Int16Array,
  u16: Uint16Array,
  i32: Int32Array,
  u32: Uint32Array,
  f32: Float32Array,
  i64: BigInt64Array,
  u64: BigUint64Array,
} as const satisfies Record<ScalarType, unknown>;

class Reader {
  readonly #source: ByteSource;
  readonly #pages = new Map<number, DataView>();
  readonly #text = new TextDecoder('utf-8', { fatal: true });
  #budget: number;

  constructor(source: ByteSource) {
    this.#source = source;
    this.#budget = Math.min(source.size * WORK_PER_BYTE + PAGE, MOST_WORK);
  }

  root(table: TableName): Record<string, unknown> {
    if (this.#source.size < 8) throw malformed(`${this.#source.size} bytes are too few for a FlatBuffer`);
    const wanted = FILE_IDENTIFIERS[table];
    const identifier = String.fromCharCode(...this.#source.read(4, 4));
    if (wanted !== undefined && identifier !== wanted) {
      throw malformed(`the file identifier is ${JSON.stringify(identifier)}, not ${wanted}`);
    }
    return this.#table(table, this.#reference(0));
  }

  #table(name: TableName, position: number): Record<string, unknown> {
    const layout = tableLayout(name);
    const vtable = position - Number(this.#scalar('i32', position));
    const vtableBytes = Number(this.#scalar('u16', vtable));
    const tableBytes = Number(this.#scalar('u16', vtable + 2));
    if (vtableBytes < 4 || tableBytes < 4) throw malformed(`the table ${name} at byte ${position} has no valid vtable`);
    this.#spend(TABLE_WORK + layout.slots * 2 + tableBytes);
    /** Where the value of a slot lies, or 0 when it is absent. */
    const at = (slot: number, bytes: number): number => {
      const entry = 4 + slot * 2;
      const offset = entry + 2 > vtableBytes ? 0 : Number(this.#scalar('u16', vtable + entry));
      if (offset !== 0 && offset + bytes > tableBytes)
        throw malformed(`field ${slot} of ${name} at byte ${position} leaves its table`);
      return offset === 0 ? 0 : position + offset;
    };
    const value: Record<string, unknown> = {};
    for (const field of layout.fields) {
      const read = this.#field(field, at, name);
      if (read !== undefined) value[field.name] = read;
    }
    return value;
  }

  #field(field: Field, at: (slot: number, bytes: number) => number, owner: TableName): unknown {
    if (field.kind === 'scalar') {
      const position = at(field.slot, SCALAR_BYTES[field.type]);
      const value = position === 0 ? field.absent : this.#scalar(field.type, position);
      return field.type === 'bool' ? value !== 0 : value;
    }
    if (field.kind === 'union') {
      const position = at(field.slot, 1);
      const code = position === 0 ? 0 : Number(this.#scalar('u8', position));
      const target = at(field.slot + 1, 4);
      if (code === 0 || target === 0) return undefined;
      const member = field.members[code - 1];
      if (member === undefined) {
        throw new NpucError('TF105', {
          message: `${owner}.${field.name} has the code ${code}; this schema ends at ${field.members.length}`,
          hint: 'the file was written for a newer LiteRT than this tool knows, or is damaged',
        });
      }
      return { kind: member, ...this.#table(member, this.#reference(target)) };
    }
    const position = at(field.slot, 4);
    if (position === 0) return undefined;
    const target = this.#reference(position);
    if (field.kind === 'table') return this.#table(field.table, target);
    const count = Number(this.#scalar('u32', target));
    const start = target + 4;
    if (field.kind === 'bytes') {
      this.#inside(start, count);
      return new SourceBytes(this.#source, start, count);
    }
    if (field.kind === 'string') return this.#string(start, count);
    if (field.kind === 'vector') return this.#vector(field.type, start, count);
    this.#inside(start, count * 4);
    this.#spend(count * 4);
    return Array.from({ length: count }, (_, i) => this.#table(field.table, this.#reference(start + i * 4)));
  }

  #string(start: number, count: number): string {
    this.#inside(start, count);
    this.#spend(count + 4);
    try {
      return this.#text.decode(this.#source.read(start, count));
    } catch (cause) {
      throw new NpucError('IO003', { message: `the text at byte ${start} is not UTF-8`, cause });
    }
  }

  #vector(type: ScalarType, start: number, count: number): TypedArray {
    const bytes = count * SCALAR_BYTES[type];
    this.#inside(start, bytes);
    this.#spend(bytes + 4);
    // A copy: aligned for the typed array, and independent of the source.
    const copy = new Uint8Array(bytes);
    copy.set(this.#source.read(start, bytes));
    return new VECTOR_TYPES[type](copy.buffer);
  }

  /** The position that the 32-bit offset at `position` points at. */
  #reference(position: number): number {
    const target = position + Number(this.#scalar('u32', position));
    this.#inside(target, 4);
    return target;
  }

  #scalar(type: ScalarType, position: number): number | bigint {
    const size = SCALAR_BYTES[type];
    this.#inside(position, size);
    const page = Math.floor(position / PAGE);
    const inPage = position - page * PAGE;
    const view = inPage + size <= PAGE ? this.#page(page) : viewOf(this.#source.read(position, size));
    const i = inPage + size <= PAGE ? inPage : 0;
    switch (type) {
      case 'i8':
        return view.getInt8(i);
      case 'bool':
      case 'u8':
        return view.getUint8(i);
      case 'i16':
        return view.getInt16(i, true);
      case 'u16':
        return view.getUint16(i, true);
      case 'i32':
        return view.getInt32(i, true);
      case 'u32':
        return view.getUint32(i, true);
      case 'f32':
        return view.getFloat32(i, true);
      case 'i64':
        return view.getBigInt64(i, true);
      case 'u64':
        return view.getBigUint64(i, true);
    }
  }

  #page(index: number): DataView {
    let view = this.#pages.get(index);
    if (view) return view;
    // The oldest page goes; tables that belong together lie together, so age is a good enough order.
    if (this.#pages.size >= PAGES) this.#pages.delete(this.#pages.keys().next().value!);
    const start = index * PAGE;
    view = viewOf(this.#source.read(start, Math.min(PAGE, this.#source.size - start)));
    this.#pages.set(index, view);
    return view;
  }

  #inside(position: number, bytes: number): void {
    if (position < 0 || position + bytes > this.#source.size) {
      throw malformed(`bytes ${position}..${position + bytes} lie outside the file (${this.#source.size} bytes)`);
    }
  }

  #spend(bytes: number): void {
    this.#budget -= bytes;
    if (this.#budget < 0) throw malformed('its tables overlap: reading them would never end');
  }
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function malformed(message: string): NpucError {
  return new NpucError('IO003', { message });
}

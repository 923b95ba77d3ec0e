import { Builder } from 'flatbuffers';
import { NpucError } from '../../compiler/errors.ts';
import {
  type BufferBytes,
  FILE_IDENTIFIERS,
  type Field,
  SCALAR_BYTES,
  type ScalarType,
  type TableName,
  type TableValue,
  tableLayout,
} from './schema.ts';

/** Bytes at a position of the file. */
export interface Segment {
  readonly position: number;
  readonly bytes: BufferBytes;
}

/** A FlatBuffer whose `bytes` fields are still to be written: `head`, then the segments, zeros between them. */
export interface FlatBuffer {
  /** Tables, a multiple of 16 bytes. */
  readonly head: Uint8Array;
  readonly segments: readonly Segment[];
  /** Length of the whole. */
  readonly byteLength: number;
}

/** Alignment of `bytes` data in the file: the schema forces it for Buffer.data. */
export const DATA_ALIGNMENT = 16;

/** A FlatBuffer reference reaches 2 GiB at most (the runtime's verifier uses signed offsets). */
export const REACH = 2 ** 31 - 1;

/**
 * Encodes a table by the schema. Same value, same bytes.
 * `bytes` fields are not copied: they lie behind the tables, which a FlatBuffer's forward offsets allow, so a file can be
 * streamed whatever its size.
 * @throws TF103 when a value does not fit its field, or the result is longer than a FlatBuffer can reach
 */
export function writeFlatBuffer<T extends TableName>(table: T, value: TableValue<T>): FlatBuffer {
  return new Writer().finish(table, value as Readonly<Record<string, unknown>>);
}

export function alignUp(position: number, alignment: number = DATA_ALIGNMENT): number {
  return Math.ceil(position / alignment) * alignment;
}

class Writer {
  readonly #builder = new Builder(1 << 14);
  /** Data vectors: position of the length word, counted from the end of the head. */
  readonly #vectors: { position: number; bytes: BufferBytes }[] = [];
  #tail = 0;

  finish(table: TableName, value: Readonly<Record<string, unknown>>): FlatBuffer {
    // Makes the head a multiple of 16 long, so that alignment counted from its end is alignment in the file.
    this.#builder.prep(DATA_ALIGNMENT, 0);
    this.#builder.finish(this.#table(table, value), FILE_IDENTIFIERS[table]);
    const head = this.#builder.asUint8Array();
    const byteLength = head.byteLength + this.#tail;
    if (byteLength > REACH) {
      throw new NpucError('TF103', {
        message: `the FlatBuffer would be ${byteLength} bytes; its offsets reach ${REACH}`,
        hint: 'write the buffers outside of it (externalBuffers)',
      });
    }
    const segments = this.#vectors.flatMap(({ position, bytes }) => {
      const length = new Uint8Array(4);
      new DataView(length.buffer).setUint32(0, bytes.byteLength, true);
      return [
        { position: head.byteLength + position, bytes: length },
        { position: head.byteLength + position + 4, bytes },
      ];
    });
    return { head, segments, byteLength };
  }

  #table(name: TableName, value: Readonly<Record<string, unknown>>): number {
    const { slots, fields } = tableLayout(name);
    // FlatBuffers builds from the leaves: everything referred to is written before the table that refers to it.
    const references = fields.map((field) => this.#referenced(field, value[field.name], name));
    this.#builder.startObject(slots);
    fields.forEach((field, i) => {
      if (field.kind === 'scalar') {
        this.#scalarField(field, value[field.name], name);
      } else if (field.kind === 'union') {
        const member = value[field.name] as { kind: TableName } | undefined;
        if (!member) return;
        this.#builder.addFieldInt8(field.slot, field.members.indexOf(member.kind) + 1, 0);
        this.#builder.addFieldOffset(field.slot + 1, references[i]!, 0);
      } else {
        this.#builder.addFieldOffset(field.slot, references[i]!, 0);
      }
    });
    return this.#builder.endObject();
  }

  /** Writes what the field refers to and gives its offset; 0 when there is nothing. */
  #referenced(field: Field, value: unknown, owner: TableName): number {
    if (value === undefined || field.kind === 'scalar') return 0;
    const where = `${owner}.${field.name}`;
    switch (field.kind) {
      case 'string':
        return this.#builder.createString(value as string);
      case 'bytes':
        return this.#data(value as BufferBytes);
      case 'vector':
        return this.#vector(field.type, value as ArrayLike<number | bigint>, where);
      case 'table':
        return this.#table(field.table, value as Readonly<Record<string, unknown>>);
      case 'union': {
        const { kind, ...member } = value as { kind: TableName };
        if (!field.members.includes(kind)) throw inconsistent(`${where} cannot be a ${kind}`);
        return this.#table(kind, member);
      }
      case 'tables': {
        const offsets = (value as Readonly<Record<string, unknown>>[]).map((entry) => this.#table(field.table, entry));
        this.#builder.startVector(4, offsets.length, 4);
        for (let i = offsets.length - 1; i >= 0; i--) this.#builder.addOffset(offsets[i]!);
        return this.#builder.endVector();
      }
    }
  }

  #data(bytes: BufferBytes): number {
    const position = alignUp(this.#tail + 4) - 4;
    this.#vectors.push({ position, bytes });
    this.#tail = position + 4 + bytes.byteLength;
    // The builder counts offsets backwards from the end of the head: what lies behind it is negative.
    return -position;
  }

  #vector(type: ScalarType, values: ArrayLike<number | bigint>, where: string): number {
    const size = SCALAR_BYTES[type];
    this.#builder.startVector(size, values.length, size);
    for (let i = values.length - 1; i >= 0; i--) this.#add(type, values[i]!, `${where}[${i}]`);
    return this.#builder.endVector();
  }

  #add(type: ScalarType, value: number | bigint, where: string): void {
    const builder = this.#builder;
    switch (type) {
      case 'bool':
        builder.addInt8(value ? 1 : 0);
        break;
      case 'f32':
        builder.addFloat32(Number(value));
        break;
      case 'i64':
      case 'u64':
        builder.addInt64(checkedBigInt(type, value, where));
        break;
      case 'i8':
      case 'u8':
        builder.addInt8(checkedInteger(type, value, where));
        break;
      case 'i16':
      case 'u16':
        builder.addInt16(checkedInteger(type, value, where));
        break;
      case 'i32':
      case 'u32':
        builder.addInt32(checkedInteger(type, value, where));
        break;
    }
  }

  #scalarField(field: Field & { kind: 'scalar' }, given: unknown, owner: TableName): void {
    if (given === undefined) return;
    const value = typeof given === 'boolean' ? Number(given) : (given as number | bigint);
    if (value === field.absent) return;
    this.#add(field.type, value, `${owner}.${field.name}`);
    this.#builder.slot(field.slot);
  }
}

const INTEGER_RANGES = {
  i8: [-128, 127],
  u8: [0, 255],
  i16: [-32768, 32767],
  u16: [0, 65535],
  i32: [-(2 ** 31), 2 ** 31 - 1],
  u32: [0, 2 ** 32 - 1],
} as const;

function checkedInteger(type: keyof typeof INTEGER_RANGES, value: number | bigint, where: string): number {
  const [low, high] = INTEGER_RANGES[type];
  if (typeof value !== 'number' || !Number.isInteger(value) || value < low || value > high) {
    throw inconsistent(`${where} is ${value}, which is no ${type}`);
  }
  return value;
}

function checkedBigInt(type: 'i64' | 'u64', value: number | bigint, where: string): bigint {
  if (typeof value === 'number' && !Number.isSafeInteger(value))
    throw inconsistent(`${where} is ${value}, which is no ${type}`);
  const integer = BigInt(value);
  if ((type === 'i64' ? BigInt.asIntN(64, integer) : BigInt.asUintN(64, integer)) !== integer) {
    throw inconsistent(`${where} is ${value}, which is no ${type}`);
  }
  return integer;
}

function inconsistent(message: string): NpucError {
  return new NpucError('TF103', { message });
}

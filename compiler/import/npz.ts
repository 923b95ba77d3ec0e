import { crc32, inflateRawSync } from 'node:zlib';
import { NpucError } from '../errors.ts';
import type { DType } from '../ir/dtype.ts';
import { DTYPES } from '../ir/dtype.ts';
import { elementCount, FileSource, type TensorData } from '../ir/tensor.ts';

const KINDS: Readonly<Record<string, DType>> = {
  '<f2': 'f16',
  '<f4': 'f32',
  '<f8': 'f64',
  '<i4': 'i32',
  '<u4': 'u32',
  '<i8': 'i64',
  '<u8': 'u64',
  '<u2': 'u16',
  '<i2': 'i16',
  '|u1': 'u8',
  '|i1': 'i8',
  '|b1': 'bool',
};

/** The zip trailer and the longest comment that may follow it. */
const END_BYTES = 22;
const LONGEST_COMMENT = 65535;
const ENTRY_BYTES = 46;
const LOCAL_BYTES = 30;

/**
 * Reads a NumPy .npz: a zip of .npy files, stored or deflated (NumPy, numpy.lib.format; PKWARE APPNOTE 4.3). Arrays in
 * Fortran order come row-major, strings (`<U..`) as `strings`.
 * @throws IO001 when the file cannot be opened; IO003, naming the array, when zip or array contradict themselves, a checksum
 * is wrong, or the element type has no place here
 */
export function readNpz(path: string): Record<string, TensorData> {
  const file = new FileSource(path);
  try {
    const arrays: Record<string, TensorData> = {};
    for (const entry of readDirectory(file)) {
      const name = entry.name.replace(/\.npy$/, '');
      if (Object.hasOwn(arrays, name)) throw malformed(path, `two arrays are called ${name}`);
      arrays[name] = parseNpy(readEntry(file, entry), `${path} (${name})`);
    }
    return arrays;
  } finally {
    file.close();
  }
}

interface Entry {
  readonly name: string;
  readonly method: number;
  readonly crc: number;
  readonly compressed: number;
  readonly size: number;
  readonly local: number;
}

function malformed(where: string, message: string, cause?: unknown): NpucError {
  return new NpucError('IO003', { message, where, hint: 'np.savez writes such files', cause });
}

function buffer(file: FileSource, offset: number, length: number): Buffer {
  const bytes = file.read(offset, length);
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function readDirectory(file: FileSource): Entry[] {
  const tailLength = Math.min(file.size, END_BYTES + LONGEST_COMMENT);
  const tail = buffer(file, file.size - tailLength, tailLength);
  const end = tail.lastIndexOf(Buffer.from([0x50, 0x4b, 5, 6]));
  if (end < 0 || end + END_BYTES > tail.length)
    throw malformed(file.path, 'this is no .npz: the zip has no end record');
  const count = tail.readUInt16LE(end + 10);
  const length = tail.readUInt32LE(end + 12);
  const start = tail.readUInt32LE(end + 16);
  if (count === 0xffff || start === 0xffffffff)
    throw malformed(file.path, 'zip64 archives are not read: save the arrays in files of less than 4 GB');
  if (start + length > file.size) throw malformed(file.path, 'the directory of the zip lies outside the file');
  const directory = buffer(file, start, length);
  const entries: Entry[] = [];
  for (let i = 0, at = 0; i < count; i++) {
    if (at + ENTRY_BYTES > length || directory.readUInt32LE(at) !== 0x02014b50)
      throw malformed(file.path, `entry ${i} of the zip is damaged`);
    const nameLength = directory.readUInt16LE(at + 28);
    const next = at + ENTRY_BYTES + nameLength + directory.readUInt16LE(at + 30) + directory.readUInt16LE(at + 32);
    if (next > length) throw malformed(file.path, `entry ${i} of the zip is damaged`);
    entries.push({
      name: directory.toString('utf8', at + ENTRY_BYTES, at + ENTRY_BYTES + nameLength),
      method: directory.readUInt16LE(at + 10),
      crc: directory.readUInt32LE(at + 16),
      compressed: directory.readUInt32LE(at + 20),
      size: directory.readUInt32LE(at + 24),
      local: directory.readUInt32LE(at + 42),
    });
    at = next;
  }
  return entries;
}

function readEntry(file: FileSource, entry: Entry): Buffer {
  const where = `${file.path} (${entry.name})`;
  const local = buffer(file, entry.local, LOCAL_BYTES);
  if (local.readUInt32LE(0) !== 0x04034b50) throw malformed(where, 'the entry of the zip is damaged');
  const start = entry.local + LOCAL_BYTES + local.readUInt16LE(26) + local.readUInt16LE(28);
  const raw = buffer(file, start, entry.compressed);
  const bytes = entry.method === 0 ? raw : inflate(raw, entry, where);
  if (bytes.length !== entry.size) throw malformed(where, `${bytes.length} bytes where the zip says ${entry.size}`);
  if (crc32(bytes) !== entry.crc) throw malformed(where, 'the checksum of the array is wrong');
  return bytes;
}

function inflate(raw: Buffer, entry: Entry, where: string): Buffer {
  if (entry.method !== 8) throw malformed(where, `compression method ${entry.method} is not read`);
  try {
    return inflateRawSync(raw, { maxOutputLength: Math.max(1, entry.size) });
  } catch (cause) {
    throw malformed(where, `the array cannot be decompressed: ${(cause as Error).message}`, cause);
  }
}

function parseNpy(bytes: Buffer, where: string): TensorData {
  if (bytes.length < 12 || bytes.toString('latin1', 0, 6) !== '\x93NUMPY')
    throw malformed(where, 'this is no .npy array');
  const wide = bytes[6]! > 1;
  const start = (wide ? 12 : 10) + (wide ? bytes.readUInt32LE(8) : bytes.readUInt16LE(8));
  if (start > bytes.length) throw malformed(where, 'the header of the array is truncated');
  const header = bytes.toString('latin1', wide ? 12 : 10, start);
  const descr = /'descr':\s*'([^']+)'/.exec(header)?.[1];
  const dims = /'shape':\s*\(([^)]*)\)/.exec(header)?.[1];
  const order = /'fortran_order':\s*(True|False)/.exec(header)?.[1];
  if (descr === undefined || dims === undefined || order === undefined)
    throw malformed(where, `the header of the array is not understood: ${header.trim().slice(0, 120)}`);
  const shape = dims
    .split(',')
    .map((dim) => dim.trim())
    .filter((dim) => dim !== '')
    .map(Number);
  if (!shape.every((dim) => Number.isSafeInteger(dim) && dim >= 0))
    throw malformed(where, `the shape (${dims}) is wrong`);
  const count = elementCount(shape);
  const body = new Uint8Array(bytes.subarray(start));
  if (descr.startsWith('<U')) {
    requireLength(body, count * Number(descr.slice(2)) * 4, `${descr}(${shape})`, where);
    return { dtype: 'string', shape, data: new Uint8Array(0), strings: readStrings(body, count) };
  }
  const dtype = KINDS[descr];
  if (!dtype) {
    throw new NpucError('IO003', {
      message: `elements of the NumPy type ${descr} are not read`,
      where,
      hint: `save the array as one of ${Object.keys(KINDS).join(' ')}`,
    });
  }
  const { array, bits } = DTYPES[dtype];
  requireLength(body, (count * bits) / 8, `${descr}(${shape})`, where);
  const tensor: TensorData = { dtype, shape, data: new array(body.buffer, 0, count) };
  return order === 'True' ? toRowMajor(tensor) : tensor;
}

function requireLength(body: Uint8Array, expected: number, what: string, where: string): void {
  if (body.length !== expected) throw malformed(where, `${body.length} bytes for ${what}, ${expected} are needed`);
}

/** Fixed-width UTF-32 strings, padded with zeros. */
function readStrings(body: Uint8Array, count: number): string[] {
  const codes = new DataView(body.buffer);
  const width = count === 0 ? 0 : body.length / 4 / count;
  return Array.from({ length: count }, (_, i) => {
    let text = '';
    for (let c = 0; c < width; c++) {
      const code = codes.getUint32((i * width + c) * 4, true);
      if (code > 0 && code <= 0x10ffff) text += String.fromCodePoint(code);
    }
    return text;
  });
}

/** A Fortran-ordered array: its first axis varies fastest. */
function toRowMajor(tensor: TensorData): TensorData {
  const { shape, data, dtype } = tensor;
  const source = data as Float32Array;
  const out = new (data.constructor as new (length: number) => Float32Array)(source.length);
  const index = new Array<number>(shape.length).fill(0);
  for (let to = 0; to < out.length; to++) {
    let from = 0;
    for (let axis = shape.length - 1; axis >= 0; axis--) from = from * shape[axis]! + index[axis]!;
    out[to] = source[from]!;
    for (let axis = shape.length - 1; axis >= 0 && ++index[axis]! === shape[axis]; axis--) index[axis] = 0;
  }
  return { dtype, shape, data: out };
}

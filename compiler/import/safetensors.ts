import { basename, dirname, join } from 'node:path';
import { NpucError } from '../errors.ts';
import { byteLengthOf, type DType } from '../ir/dtype.ts';
import { FileSource, Tensor } from '../ir/tensor.ts';
import { findDuplicateKey, isJsonObject, parseJsonObject, readJsonObject } from './json.ts';

/**
 * Type names of the safetensors format (README of huggingface/safetensors, `Dtype` of its Rust crate). The 6-bit floats are
 * left out: the IR has no such type.
 */
const DTYPE_NAMES: Readonly<Record<string, DType>> = {
  BOOL: 'bool',
  U8: 'u8',
  I8: 'i8',
  F4: 'f4e2m1',
  F8_E5M2: 'f8e5m2',
  F8_E4M3: 'f8e4m3fn',
  F8_E8M0: 'f8e8m0',
  F8_E4M3FNUZ: 'f8e4m3fnuz',
  F8_E5M2FNUZ: 'f8e5m2fnuz',
  I16: 'i16',
  U16: 'u16',
  F16: 'f16',
  BF16: 'bf16',
  I32: 'i32',
  U32: 'u32',
  F32: 'f32',
  F64: 'f64',
  I64: 'i64',
  U64: 'u64',
  C64: 'c64',
};

/** The format's name of each of our types that it has. */
export const SAFETENSORS_DTYPES: ReadonlyMap<DType, string> = new Map(
  Object.entries(DTYPE_NAMES).map(([name, dtype]) => [dtype, name]),
);

/** The cap that the format's reference implementation puts on a header. */
const MAX_HEADER_BYTES = 100_000_000;
const LENGTH_BYTES = 8;

interface Entry {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly begin: number;
  readonly end: number;
}

/**
 * Opens a .safetensors file, or the shards of a `*.safetensors.index.json`. Only headers are read; the tensors read their
 * bytes from the file when asked. The header is not trusted: the tensors must tile the data exactly, as the format demands.
 * @returns tensors by name, in the order of their bytes (of the index for shards)
 * @throws IO001 unreadable, IO003 truncated, IM101 the header lies, IM102 an unknown element type, IM103 the index is wrong
 */
export function openSafetensors(path: string): Map<string, Tensor> {
  return path.endsWith('.json') ? openSharded(path) : openSingle(path);
}

/** The files that hold the weights of `path`: itself, or its index and then the shards in the order of their names. */
export function listSafetensorsFiles(path: string): readonly string[] {
  return path.endsWith('.json') ? [path, ...new Set(readIndex(path).values())].sort() : [path];
}

function openSingle(path: string): Map<string, Tensor> {
  const file = new FileSource(path);
  try {
    const { entries, dataStart } = readHeader(file);
    return new Map(
      entries.map(({ name, dtype, shape, begin }) => [
        name,
        new Tensor(dtype, shape, { kind: 'file', file, offset: dataStart + begin }),
      ]),
    );
  } catch (error) {
    file.close();
    throw error;
  }
}

function readHeader(file: FileSource): { entries: Entry[]; dataStart: number } {
  const where = file.path;
  if (file.size < LENGTH_BYTES) {
    throw new NpucError('IO003', { message: `${file.size} bytes are too few for a safetensors file`, where });
  }
  const length = new DataView(file.read(0, LENGTH_BYTES).buffer).getBigUint64(0, true);
  if (length > BigInt(MAX_HEADER_BYTES)) {
    throw new NpucError('IM101', {
      message: `the header is said to have ${length} bytes (at most ${MAX_HEADER_BYTES})`,
      where,
      hint: 'is this really a safetensors file?',
    });
  }
  const dataStart = LENGTH_BYTES + Number(length);
  if (dataStart > file.size) {
    throw new NpucError('IO003', {
      message: `the header is said to end at byte ${dataStart}, the file at ${file.size}`,
      where,
      hint: 'the file is truncated; download it again',
    });
  }
  const bytes = file.read(LENGTH_BYTES, Number(length));
  const header = parseJsonObject(bytes, where, 'the safetensors header');
  const twice = findDuplicateKey(new TextDecoder().decode(bytes));
  if (twice !== undefined) {
    throw new NpucError('IM101', { message: `the header names ${JSON.stringify(twice)} twice`, where });
  }
  const entries = Object.entries(header)
    .filter(([name]) => name !== '__metadata__')
    .map(([name, value]) => readEntry(name, value, where))
    .sort((a, b) => a.begin - b.begin || a.end - b.end);
  checkTiling(entries, file.size - dataStart, where);
  return { entries, dataStart };
}

function readEntry(name: string, value: unknown, where: string): Entry {
  const refuse = (problem: string): never => {
    throw new NpucError('IM101', { message: `tensor ${JSON.stringify(name)}: ${problem}`, where });
  };
  if (!isJsonObject(value)) return refuse('its entry is not an object');
  const { dtype: dtypeName, shape, data_offsets: offsets } = value;
  if (typeof dtypeName !== 'string') return refuse('dtype is missing');
  const dtype = Object.hasOwn(DTYPE_NAMES, dtypeName) ? DTYPE_NAMES[dtypeName] : undefined;
  if (!dtype) {
    throw new NpucError('IM102', {
      message: `tensor ${JSON.stringify(name)} has the element type ${JSON.stringify(dtypeName)}`,
      where,
      hint: `known: ${Object.keys(DTYPE_NAMES).join(', ')}`,
    });
  }
  if (!isSizes(shape)) return refuse(`shape ${JSON.stringify(shape)} is not a list of sizes`);
  if (!isSizes(offsets) || offsets.length !== 2)
    return refuse(`data_offsets ${JSON.stringify(offsets)} are not a range`);
  const [begin, end] = offsets as [number, number];
  let count = 1;
  for (const dim of shape) count *= dim;
  const expected = byteLengthOf(dtype, count);
  // Without a zero among the dims a safe product had only safe partial products, so it is exact.
  if (!Number.isSafeInteger(expected) || end - begin !== expected) {
    return refuse(`${dtypeName}[${shape}] takes ${expected} bytes, data_offsets span ${end - begin}`);
  }
  return { name, dtype, shape, begin, end };
}

function isSizes(value: unknown): value is readonly number[] {
  return Array.isArray(value) && value.every((item) => Number.isSafeInteger(item) && item >= 0);
}

/** The format demands that tensors cover the data without a gap, an overlap or a rest. */
function checkTiling(entries: readonly Entry[], dataBytes: number, where: string): void {
  let at = 0;
  for (const { name, begin, end } of entries) {
    if (begin !== at) {
      const kind = begin < at ? 'overlaps the tensor before it' : 'leaves a gap before it';
      throw new NpucError('IM101', {
        message: `tensor ${JSON.stringify(name)} ${kind}: it begins at ${begin}, not ${at}`,
        where,
      });
    }
    at = end;
  }
  if (at > dataBytes) {
    throw new NpucError('IO003', {
      message: `the tensors take ${at} bytes, the file holds ${dataBytes} after its header`,
      where,
      hint: 'the file is truncated; download it again',
    });
  }
  if (at < dataBytes) {
    throw new NpucError('IM101', { message: `${dataBytes - at} bytes after the last tensor belong to none`, where });
  }
}

/** Tensor name to the path of its shard. */
function readIndex(path: string): Map<string, string> {
  const { weight_map: map } = readJsonObject(path);
  if (!isJsonObject(map)) throw new NpucError('IM103', { message: 'the index has no weight_map', where: path });
  const folder = dirname(path);
  const shards = new Map<string, string>();
  for (const [name, shard] of Object.entries(map)) {
    if (typeof shard !== 'string' || !isPlainFileName(shard)) {
      throw new NpucError('IM103', {
        message: `the index puts ${JSON.stringify(name)} into ${JSON.stringify(shard)}, which is not a .safetensors beside it`,
        where: path,
      });
    }
    shards.set(name, join(folder, shard));
  }
  return shards;
}

/** A shard must lie in the model's own folder: an index could otherwise read any file of the user's. */
function isPlainFileName(name: string): boolean {
  return name.endsWith('.safetensors') && basename(name) === name && !name.includes('\\') && !name.includes('\0');
}

function openSharded(path: string): Map<string, Tensor> {
  const shards = readIndex(path);
  const opened = new Map<string, Map<string, Tensor>>();
  try {
    for (const shard of new Set(shards.values())) opened.set(shard, openShard(shard, path));
    return collect(shards, opened, path);
  } catch (error) {
    for (const tensors of opened.values()) closeSafetensors(tensors);
    throw error;
  }
}

/** Closes the files behind the tensors; reading one later opens its file again. */
export function closeSafetensors(tensors: ReadonlyMap<string, Tensor>): void {
  for (const { storage } of tensors.values()) if (storage.kind === 'file') storage.file.close();
}

function collect(
  shards: ReadonlyMap<string, string>,
  opened: ReadonlyMap<string, ReadonlyMap<string, Tensor>>,
  path: string,
): Map<string, Tensor> {
  const tensors = new Map<string, Tensor>();
  for (const [name, shard] of shards) {
    const tensor = opened.get(shard)?.get(name);
    if (!tensor) {
      throw new NpucError('IM103', {
        message: `the index says that ${basename(shard)} holds ${JSON.stringify(name)}, but it does not`,
        where: path,
        hint: 'the shards come from another version of the model; download all of them again',
      });
    }
    tensors.set(name, tensor);
  }
  return tensors;
}

function openShard(shard: string, index: string): Map<string, Tensor> {
  try {
    return openSingle(shard);
  } catch (error) {
    if (error instanceof NpucError && error.code === 'IO001') {
      throw new NpucError('IM103', {
        message: `the shard ${basename(shard)} cannot be read`,
        where: index,
        hint: 'download every shard that the index names',
        cause: error,
      });
    }
    throw error;
  }
}

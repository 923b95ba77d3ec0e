import { realpathSync, statSync } from 'node:fs';
import { basename, dirname, join, sep } from 'node:path';
import { NpucError } from '../errors.ts';
import { byteLengthOf, DTYPES, type DType } from '../ir/dtype.ts';
import { elementCount, FileSource, Tensor } from '../ir/tensor.ts';
import { EXTERNAL, type TensorMessage } from './onnx-schema.ts';
import { readDType, readLength } from './onnx-types.ts';
import { BytesSource, type RangeSource, type Span, WireReader } from './protobuf.ts';

/** Turns TensorProtos into tensors. Raw and external bytes stay in their files; typed data fields are decoded. */
export class TensorSource {
  readonly #model: RangeSource;
  /** Folders that external data may lie in, as real paths; empty for a model in memory. */
  readonly #folders: readonly string[];
  readonly #files: Map<string, FileSource> = new Map();

  constructor(model: RangeSource) {
    this.#model = model;
    // A model that is itself a link (the Hugging Face cache) may have its data beside the link or beside the target.
    this.#folders =
      model instanceof FileSource
        ? [...new Set([realpathSync(dirname(model.path)), dirname(realpathSync(model.path))])]
        : [];
  }

  /** @throws IM306, IM307, IM308, IO003 */
  read(message: TensorMessage, where: string): Tensor {
    const dtype = readDType(Number(message.dataType ?? 0), where);
    const shape = (message.dims ?? []).map((dim) => readLength(dim, where));
    const count = elementCount(shape);
    if (!Number.isSafeInteger(count * 16)) fail(`shape [${shape}] has too many elements`, where);
    if (message.segment) fail('segmented tensors are not supported', where);
    if (Number(message.dataLocation ?? 0) === EXTERNAL) return this.#readExternal(message, dtype, shape, where);
    if (dtype === 'string') return readStrings(message, shape, count, where);
    const length = byteLengthOf(dtype, count);
    const raw = message.rawData as Span | undefined;
    if (raw && (raw.byteLength > 0 || length === 0)) {
      if (raw.byteLength !== length) fail(sizes(dtype, shape, length, raw.byteLength), where);
      return spanTensor(dtype, shape, raw);
    }
    if (length === 0) return new Tensor(dtype, shape, { kind: 'memory', bytes: new Uint8Array(0) });
    return readTyped(message, dtype, shape, length, where);
  }

  #readExternal(message: TensorMessage, dtype: DType, shape: readonly number[], where: string): Tensor {
    const entries = new Map((message.externalData ?? []).map((entry) => [entry.key ?? '', entry.value ?? '']));
    const location = entries.get('location') ?? '';
    const number = (key: string): number | undefined => {
      const text = entries.get(key);
      if (text === undefined || text === '') return undefined;
      const value = Number(text);
      if (/^\d+$/.test(text) && Number.isSafeInteger(value)) return value;
      throw new NpucError('IM308', { message: `external data with ${key} '${text}'`, where });
    };
    const offset = number('offset') ?? 0;
    const length = byteLengthOf(dtype, elementCount(shape));
    const said = number('length') ?? length;
    if (dtype === 'string') throw new NpucError('IM308', { message: 'strings cannot be external data', where });
    if (said !== length) throw new NpucError('IM308', { message: sizes(dtype, shape, length, said), where });
    const file = this.#open(location, where);
    if (offset + length > file.size) {
      throw new NpucError('IM308', {
        message: `bytes ${offset}..${offset + length} lie outside ${location} (${file.size} bytes)`,
        where,
        hint: 'the data file is incomplete, or belongs to another model',
      });
    }
    return new Tensor(dtype, shape, { kind: 'file', file, offset });
  }

  #open(location: string, where: string): FileSource {
    const known = this.#files.get(location);
    if (known) return known;
    if (this.#folders.length === 0) {
      throw new NpucError('IM308', { message: 'a model in memory cannot have external data', where });
    }
    const refuse = (why: string): never => {
      throw new NpucError('IM307', {
        message: `external data '${location}' ${why}`,
        where,
        hint: 'data files must lie in the folder of the model or below it',
      });
    };
    const parts = location.split(/[\\/]/);
    if (parts.includes('..') || parts[0] === '' || /^[A-Za-z]:/.test(location) || location.includes('\0')) {
      refuse('does not stay in the folder of the model');
    }
    const path = join(dirname(this.#model.path), location);
    let real: string;
    try {
      real = realpathSync(path);
      if (!statSync(real).isFile()) throw new Error('it is not a regular file');
    } catch (cause) {
      throw new NpucError('IO001', {
        message: `cannot read external data '${location}': ${(cause as Error).message}`,
        where,
        hint: `${basename(this.#model.path)} needs this file beside it`,
        cause,
      });
    }
    if (!this.#folders.some((folder) => real.startsWith(folder.endsWith(sep) ? folder : folder + sep))) {
      refuse('is a link that leaves the folder of the model');
    }
    const file = new FileSource(path);
    // Models may name thousands of data files: a descriptor is opened again when bytes are asked for.
    file.close();
    this.#files.set(location, file);
    return file;
  }
}

function fail(message: string, where: string): never {
  throw new NpucError('IM306', { message, where });
}

function sizes(dtype: DType, shape: readonly number[], needed: number, found: number): string {
  return `${dtype}[${shape}] takes ${needed} bytes, but there are ${found}`;
}

/** A tensor over bytes that already have the raw_data layout: left in the file unless they were read in passing. */
function spanTensor(dtype: DType, shape: readonly number[], span: Span): Tensor {
  if (span.source instanceof FileSource && !span.isRead) {
    return new Tensor(dtype, shape, { kind: 'file', file: span.source, offset: span.offset });
  }
  return new Tensor(dtype, shape, { kind: 'memory', bytes: span.read() });
}

/** String tensors as u32 length and bytes each (see encodeStrings), so bytes that are not UTF-8 survive. */
function readStrings(message: TensorMessage, shape: readonly number[], count: number, where: string): Tensor {
  const strings = message.stringData ?? [];
  if (strings.length !== count) fail(`string[${shape}] with ${strings.length} strings`, where);
  const bytes = Buffer.alloc(strings.reduce((sum, text) => sum + 4 + text.length, 0));
  let at = 0;
  for (const text of strings) {
    at = bytes.writeUInt32LE(text.length, at);
    bytes.set(text, at);
    at += text.length;
  }
  return new Tensor('string', shape, { kind: 'memory', bytes });
}

/**
 * float_data, double_data, int64_data, uint64_data and int32_data. The latter holds every type of up to 32 bits: f16 and bf16
 * as bits, 4-bit and 2-bit elements packed to bytes first (onnx.proto).
 */
function readTyped(
  message: TensorMessage,
  dtype: DType,
  shape: readonly number[],
  length: number,
  where: string,
): Tensor {
  const { bits, array } = DTYPES[dtype];
  let spans: Span[] | undefined;
  if (dtype === 'f32' || dtype === 'c64') spans = message.floatData;
  else if (dtype === 'f64' || dtype === 'c128') spans = message.doubleData;
  else if (dtype === 'i64') spans = message.int64Data;
  else if (dtype === 'u64' || dtype === 'u32') spans = message.uint64Data;
  else spans = message.int32Data;
  const stored = (spans ?? []).reduce((sum, span) => sum + span.byteLength, 0);
  if (array === Float32Array || array === Float64Array) {
    if (stored !== length) fail(sizes(dtype, shape, length, stored), where);
    if (spans!.length === 1) return spanTensor(dtype, shape, spans![0]!);
    const bytes = new Uint8Array(Buffer.concat(spans!.map((span) => span.read())));
    return new Tensor(dtype, shape, { kind: 'memory', bytes });
  }
  const width = Math.max(1, bits / 8);
  const count = length / width;
  // Each varint takes at least a byte: a lying shape is refused before anything of its size is allocated.
  if (count > stored) fail(`${dtype}[${shape}] has data for at most ${stored} elements`, where);
  const bytes = Buffer.alloc(length);
  let at = 0;
  for (const span of spans!) {
    const reader = new WireReader(new BytesSource(span.read(), where));
    while (reader.position < span.byteLength) {
      if (at === length) fail(`${dtype}[${shape}] has more data than elements`, where);
      writeInteger(bytes, reader.int(), at, width);
      at += width;
    }
  }
  if (at !== length) fail(`${dtype}[${shape}] has data for ${at / width} elements`, where);
  return new Tensor(dtype, shape, { kind: 'memory', bytes });
}

/** The low `width` bytes of an int64. */
function writeInteger(bytes: Buffer, value: number | bigint, at: number, width: number): void {
  if (typeof value === 'bigint') {
    if (width === 8) bytes.writeBigUInt64LE(BigInt.asUintN(64, value), at);
    else bytes.writeUIntLE(Number(BigInt.asUintN(width * 8, value)), at, width);
  } else if (width === 8) {
    bytes.writeUInt32LE(value >>> 0, at);
    bytes.writeInt32LE(Math.floor(value / 0x100000000), at + 4);
  } else bytes.writeUIntLE((width === 4 ? value : value & (256 ** width - 1)) >>> 0, at, width);
}

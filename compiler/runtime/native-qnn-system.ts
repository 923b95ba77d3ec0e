import { closeSync, fstatSync, openSync } from 'node:fs';
import koffi from 'koffi';
import type { DType } from '../ir/dtype.ts';
import { type Pointer, readCString } from './native-api.ts';

/**
 * Reads what an HTP context binary holds through libQnnSystem, for the native child only. No backend is loaded, so it
 * also works for binaries that cannot be executed here. Struct offsets: QNN system API 1.x of QAIRT 2.51 on x86-64,
 * BinaryInfo version 3, GraphInfo version 3 (facts measured on many binaries; another version is refused).
 */
export interface ContextTensor {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Present for fixed-point tensors: real = scale * (integer - zeroPoint). */
  readonly scale?: number;
  readonly zeroPoint?: number;
}

export interface ContextGraph {
  readonly name: string;
  readonly inputs: readonly ContextTensor[];
  readonly outputs: readonly ContextTensor[];
  /** Bytes of the buffer for values that do not fit the on-chip memory. */
  readonly spillFillBytes: number;
  readonly vtcmBytes: number;
  /** Graph finalization level, 0..3. */
  readonly optimizationLevel: number;
  readonly hvxThreads: number;
  /** Bytes of constants that are this graph's alone, and of those that it shares with the other graphs of the binary. */
  readonly ownWeightBytes: number;
  readonly sharedWeightBytes: number;
}

export interface ContextInfo {
  /** The vendor's build that wrote it, such as `v2.51.0.260908...`. */
  readonly buildId: string;
  readonly coreApi: string;
  readonly backendApi: string;
  readonly blobVersion: string;
  /** The vendor's SoC number. */
  readonly soc: number;
  /** Hexagon architecture, such as 79; 0 when the binary does not say. */
  readonly dspArch: number;
  readonly fileBytes: number;
  /** A few KiB less than the file. */
  readonly contextBlobBytes: number;
  readonly graphs: readonly ContextGraph[];
}

// Qnn_DataType_t of QnnTypes.h: the high byte is the kind, the low byte the width in BCD.
const TYPES: Readonly<Record<number, DType>> = {
  8: 'i8',
  22: 'i16',
  50: 'i32',
  100: 'i64',
  264: 'u8',
  278: 'u16',
  306: 'u32',
  356: 'u64',
  534: 'f16',
  562: 'f32',
  612: 'f64',
  772: 'i4',
  776: 'i8',
  790: 'i16',
  818: 'i32',
  1028: 'u4',
  1032: 'u8',
  1046: 'u16',
  1074: 'u32',
  1288: 'bool',
};
const TENSOR_BYTES = 144;
const GRAPH_BYTES = 88;
const GRAPH_BLOB_BYTES = 112;
const BODY = 8;
const ENCODING_SCALE_OFFSET = 0;
const ENCODING_BW_SCALE_OFFSET = 2;

type NativeFunction = (...values: unknown[]) => unknown;

const u8 = (base: Pointer, offset: number) => koffi.decode(base, offset, 'uint8_t') as number;
const u32 = (base: Pointer, offset: number) => koffi.decode(base, offset, 'uint32_t') as number;
const i32 = (base: Pointer, offset: number) => koffi.decode(base, offset, 'int32_t') as number;
const f32 = (base: Pointer, offset: number) => koffi.decode(base, offset, 'float') as number;
const u64 = (base: Pointer, offset: number) => Number(koffi.decode(base, offset, 'uint64_t'));
const pointer = (base: Pointer, offset: number) => koffi.decode(base, offset, 'void *') as Pointer | null;
const version = (base: Pointer, offset: number) => [0, 4, 8].map((step) => u32(base, offset + step)).join('.');

function text(base: Pointer, offset: number): string {
  const at = pointer(base, offset);
  return at ? readCString(at) : '';
}

/**
 * @param libraryPath libQnnSystem.so
 * @throws Error when the file is no context binary or one of a layout that is not known here.
 */
export function readBinaryInfo(libraryPath: string, path: string): ContextInfo {
  const { create, getInfo, free } = bindSystem(libraryPath);
  const mapping = mapFile(path);
  const handle: [Pointer | null] = [null];
  try {
    if (Number(create(handle)) !== 0) throw new Error('libQnnSystem cannot create a context');
    const info: [Pointer | null] = [null];
    const code = Number(getInfo(handle[0], mapping.address, mapping.length, info, [0]));
    if (code !== 0 || !info[0])
      throw new Error(`it is not an HTP context binary (QnnSystemContext_getBinaryInfo 0x${code.toString(16)})`);
    return decodeInfo(info[0], mapping.length);
  } finally {
    if (handle[0]) free(handle[0]);
    mapping.unmap();
  }
}

interface SystemFunctions {
  readonly create: NativeFunction;
  readonly getInfo: NativeFunction;
  readonly free: NativeFunction;
}

/** By library: koffi takes the name of a function's type once. */
const bound = new Map<string, SystemFunctions>();

function bindSystem(libraryPath: string): SystemFunctions {
  const known = bound.get(libraryPath);
  if (known) return known;
  const library = koffi.load(libraryPath);
  const outPtr = koffi.out(koffi.pointer('void *'));
  const getProviders = library.func('QnnSystemInterface_getProviders', 'uint64_t', [outPtr, koffi.out('uint32_t *')]);
  const list: [Pointer | null] = [null];
  const count: [number] = [0];
  const status = Number(getProviders(list, count));
  if (status !== 0 || count[0] === 0 || !list[0])
    throw new Error(`libQnnSystem offers no interface (status ${status})`);
  const provider = pointer(list[0], 0)!;
  // The function table starts at byte 32: create, get binary info, get metadata, free.
  const bind = (index: number, name: string, parameters: unknown[]) =>
    koffi.decode(
      pointer(provider, 32 + 8 * index)!,
      koffi.proto(`QnnSystemContext_${name}_${bound.size}`, 'uint64_t', parameters as string[]),
    ) as NativeFunction;
  const create = bind(0, 'create', [outPtr]);
  const getInfo = bind(1, 'getBinaryInfo', ['void *', 'void *', 'uint64_t', outPtr, koffi.out('uint64_t *')]);
  const free = bind(3, 'free', ['void *']);
  const functions = { create, getInfo, free };
  bound.set(libraryPath, functions);
  return functions;
}

function decodeInfo(info: Pointer, fileBytes: number): ContextInfo {
  const layout = u32(info, 0);
  if (layout !== 3) throw new Error(`binary info version ${layout} is not known (3 is)`);
  const graphs = pointer(info, BODY + 96);
  const metadata = pointer(info, BODY + 120);
  return {
    buildId: text(info, BODY + 8),
    coreApi: version(info, BODY + 16),
    backendApi: version(info, BODY + 28),
    blobVersion: version(info, BODY + 48),
    soc: u32(info, BODY + 128),
    dspArch: metadata && u32(info, BODY + 112) >= 8 ? u32(metadata, 4) : 0,
    fileBytes,
    contextBlobBytes: u64(info, BODY + 64),
    graphs: Array.from({ length: u32(info, BODY + 88) }, (_, index) => decodeGraph(graphs!, GRAPH_BYTES * index)),
  };
}

function decodeGraph(base: Pointer, at: number): ContextGraph {
  const layout = u32(base, at);
  if (layout !== 3) throw new Error(`graph info version ${layout} is not known (3 is)`);
  const body = at + BODY;
  const blob = pointer(base, body + 64);
  const blobBytes = u32(base, body + 56);
  if (!blob || blobBytes < GRAPH_BLOB_BYTES) throw new Error(`a graph has ${blobBytes} bytes of HTP blob info`);
  const tensors = (side: number) => {
    const list = pointer(base, body + side + 8);
    return Array.from({ length: u32(base, body + side) }, (_, index) => decodeTensor(list!, TENSOR_BYTES * index));
  };
  return {
    name: text(base, body),
    inputs: tensors(8),
    outputs: tensors(24),
    spillFillBytes: u64(blob, 8),
    vtcmBytes: u32(blob, 16),
    optimizationLevel: u32(blob, 20),
    hvxThreads: u64(blob, 32),
    // Undocumented; measured on shared and unshared binaries of weights of known size.
    ownWeightBytes: u64(blob, 88),
    sharedWeightBytes: u64(blob, 104),
  };
}

function decodeTensor(base: Pointer, at: number): ContextTensor {
  const body = at + BODY;
  const code = u32(base, body + 24);
  const name = text(base, body + 8);
  const dtype = TYPES[code];
  if (!dtype) throw new Error(`tensor ${name} has the unknown type 0x${code.toString(16)}`);
  const rank = u32(base, body + 72);
  const dims = pointer(base, body + 80);
  const shape = Array.from({ length: rank }, (_, axis) => u32(dims!, 4 * axis));
  if (u8(base, body + 32) !== 1) return { name, dtype, shape };
  // QNN's offset is the negated zero point.
  const encoding = u32(base, body + 36);
  const zero = (offset: number) => (offset === 0 ? 0 : -offset);
  if (encoding === ENCODING_SCALE_OFFSET)
    return { name, dtype, shape, scale: f32(base, body + 40), zeroPoint: zero(i32(base, body + 44)) };
  if (encoding === ENCODING_BW_SCALE_OFFSET)
    return { name, dtype, shape, scale: f32(base, body + 44), zeroPoint: zero(i32(base, body + 48)) };
  throw new Error(`tensor ${name} has the unexpected quantization encoding ${encoding}`);
}

/** Maps a whole file privately: binaries can be larger than a JavaScript buffer. */
function mapFile(path: string): { address: Pointer; length: number; unmap(): void } {
  const libc = koffi.load(null);
  const mmap = libc.func('mmap', 'void *', ['void *', 'size_t', 'int', 'int', 'int', 'int64_t']);
  const munmap = libc.func('munmap', 'int', ['void *', 'size_t']);
  const descriptor = openSync(path, 'r');
  try {
    const length = fstatSync(descriptor).size;
    if (length === 0) throw new Error('it is empty');
    // PROT_READ | PROT_WRITE, MAP_PRIVATE: the library takes a writable buffer; the file itself stays untouched.
    const address = mmap(null, length, 3, 2, descriptor, 0) as Pointer | null;
    if (!address || address === 0xffff_ffff_ffff_ffffn) throw new Error('it cannot be mapped into memory');
    return { address, length, unmap: () => munmap(address, length) };
  } finally {
    closeSync(descriptor);
  }
}

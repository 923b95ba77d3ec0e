/**
 * The native child: loads ONNX Runtime (and the QNN plugin when asked) by FFI and serves requests on descriptor 3 until
 * the parent closes it. Single-threaded and blocking on purpose; a crash here is the parent's coded error.
 * Arguments: library path, QNN library folder, log severity (0 verbose .. 4 fatal), parent's process id.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { byteLengthOf, DTYPES, type DType, dtypeOfOnnxCode } from '../ir/dtype.ts';
import { elementCount } from '../ir/tensor.ts';
import {
  dieWithParent,
  loadOrtApi,
  NativeBuffer,
  type OrtApi,
  type OrtFunction,
  type Pointer,
  readCString,
  readPointers,
  UnsupportedVersion,
  viewMemory,
} from './native-api.ts';
import {
  type OpenedSession,
  type OpenOptions,
  type Request,
  readExactly,
  receiveRequest,
  sendAnswer,
  type WireTensor,
} from './native-frames.ts';
import { readBinaryInfo } from './native-qnn-system.ts';

const CHANNEL = 3;
const QNN = 'QNNExecutionProvider';
// OrtErrorCode and ONNXType values of onnxruntime_c_api.h.
const ONNX_TYPE_TENSOR = 1;
const ARENA_ALLOCATOR = 1;
const DEFAULT_MEMORY = 0;

interface Session {
  readonly handle: Pointer;
  readonly ports: OpenedSession;
  readonly buffers: Map<string, NativeBuffer>;
}

const [libraryPath = '', qnnFolder = '', severity = '2', parent = '0'] = process.argv.slice(2);
const sessions = new Map<number, Session>();
let qnnDevice: Pointer | undefined;

dieWithParent(Number(parent));
dieFirst();
const ort = start();
if (ort) serve(ort);

function start(): { api: OrtApi; env: Pointer; memory: Pointer; allocator: Pointer } | undefined {
  try {
    const api = loadOrtApi(libraryPath);
    const env = api.get('CreateEnv', Number(severity), 'npuc');
    const memory = api.get('CreateCpuMemoryInfo', ARENA_ALLOCATOR, DEFAULT_MEMORY);
    const allocator = api.get('GetAllocatorWithDefaultOptions');
    sendAnswer(CHANNEL, { result: { version: api.version } });
    return { api, env, memory, allocator };
  } catch (error) {
    const unsupported = error instanceof UnsupportedVersion;
    sendAnswer(CHANNEL, { result: { unsupported }, error: (error as Error).message });
    return undefined;
  }
}

function serve(host: NonNullable<typeof ort>): void {
  for (;;) {
    const request = receiveRequest(CHANNEL);
    if (!request) break;
    try {
      if (request.op === 'run') runSession(host, request);
      else sendAnswer(CHANNEL, { result: handle(host, request) });
    } catch (error) {
      sendAnswer(CHANNEL, { error: (error as Error).message });
    }
  }
  // Vendor libraries are known to crash in their exit handlers; everything is written by now.
  process.kill(process.pid, 'SIGKILL');
}

function handle(host: NonNullable<typeof ort>, request: Exclude<Request, { op: 'run' }>): unknown {
  switch (request.op) {
    case 'open':
      return openSession(host, request.session, request.model, request.options);
    case 'release':
      return releaseSession(host, request.session);
    case 'context-info':
      return readBinaryInfo(join(qnnFolder, 'libQnnSystem.so'), request.path);
    case 'memory':
      return readUsage();
  }
}

function openSession(
  { api, env, allocator }: NonNullable<typeof ort>,
  id: number,
  model: string,
  options: OpenOptions,
): OpenedSession {
  const settings = api.get('CreateSessionOptions');
  try {
    api.call('SetSessionGraphOptimizationLevel', settings, options.optimizationLevel);
    api.call('SetIntraOpNumThreads', settings, options.threads);
    for (const [key, value] of Object.entries(options.sessionConfig))
      api.call('AddSessionConfigEntry', settings, key, value);
    if (options.provider === 'qnn') {
      qnnDevice ??= registerQnn(api, env);
      const entries = Object.entries({ backend_path: join(qnnFolder, 'libQnnHtp.so'), ...options.providerOptions });
      const keys = entries.map(([key]) => key);
      const values = entries.map(([, value]) => value);
      const append: OrtFunction = 'SessionOptionsAppendExecutionProvider_V2';
      api.call(append, settings, env, [qnnDevice], 1, keys, values, keys.length);
    }
    const session = api.get('CreateSession', env, model, settings);
    const ports = {
      inputs: describePorts(api, allocator, session, 'Input'),
      outputs: describePorts(api, allocator, session, 'Output'),
    };
    sessions.set(id, { handle: session, ports, buffers: new Map() });
    return ports;
  } finally {
    api.plain('ReleaseSessionOptions', settings);
  }
}

/** Registers the plugin once; on x86 it offers itself on the CPU device, so it is found by its name. */
function registerQnn(api: OrtApi, env: Pointer): Pointer {
  api.call('RegisterExecutionProviderLibrary', env, QNN, join(qnnFolder, 'libonnxruntime_providers_qnn.so'));
  const list: [Pointer | null] = [null];
  const count: [number | bigint] = [0];
  api.call('GetEpDevices', env, list, count);
  const device = readPointers(list[0]!, Number(count[0])).find(
    (candidate) => api.plain<string>('EpDevice_EpName', candidate) === QNN,
  );
  if (device === undefined) throw new Error('the QNN plugin offers no device');
  return device;
}

function describePorts(api: OrtApi, allocator: Pointer, session: Pointer, side: 'Input' | 'Output'): WireTensor[] {
  const count = Number(api.get<number | bigint>(`SessionGet${side}Count`, session));
  return Array.from({ length: count }, (_, index) => {
    const text = api.get(`SessionGet${side}Name`, session, index, allocator);
    const name = readCString(text);
    api.call('AllocatorFree', allocator, text);
    const type = api.get(`SessionGet${side}TypeInfo`, session, index);
    try {
      const tensor = api.get<Pointer | null>('CastTypeInfoToTensorInfo', type);
      if (!tensor) throw new Error(`${side.toLowerCase()} ${name} is not a tensor`);
      return { name, ...describeTensor(api, tensor) };
    } finally {
      api.plain('ReleaseTypeInfo', type);
    }
  });
}

/** Type and shape; symbolic dimensions are -1. */
function describeTensor(api: OrtApi, info: Pointer): { dtype: DType; shape: number[] } {
  const code = api.get<number>('GetTensorElementType', info);
  const dtype = dtypeOfOnnxCode(code);
  if (dtype === undefined) throw new Error(`element type ${code} is not known`);
  const rank = Number(api.get<number | bigint>('GetDimensionsCount', info));
  const dims = new NativeBuffer(rank * 8);
  try {
    api.call('GetDimensions', info, dims.pointer, rank);
    const view = new DataView(dims.bytes.buffer, dims.bytes.byteOffset, dims.bytes.byteLength);
    return { dtype, shape: Array.from({ length: rank }, (_, i) => Number(view.getBigInt64(i * 8, true))) };
  } finally {
    dims.free();
  }
}

function runSession({ api, memory }: NonNullable<typeof ort>, request: Extract<Request, { op: 'run' }>): void {
  const session = sessions.get(request.session);
  const values: Pointer[] = [];
  const dims: NativeBuffer[] = [];
  let results: Pointer[] = [];
  try {
    // The blobs follow the request and must be consumed before anything can be refused.
    const buffers = request.feeds.map((feed, index) => {
      const length = request.blobs?.[index] ?? 0;
      let buffer = session?.buffers.get(feed.name);
      if (!buffer || buffer.bytes.length < length) {
        buffer?.free();
        buffer = new NativeBuffer(length);
        session?.buffers.set(feed.name, buffer);
      }
      if (!readExactly(CHANNEL, buffer.bytes.subarray(0, length))) process.exit(0);
      return buffer;
    });
    if (!session) throw new Error('the session is closed');
    request.feeds.forEach((feed, index) => {
      const shape = new NativeBuffer(feed.shape.length * 8);
      dims.push(shape);
      const view = new DataView(shape.bytes.buffer, shape.bytes.byteOffset, shape.bytes.byteLength);
      feed.shape.forEach((dim, axis) => view.setBigInt64(axis * 8, BigInt(dim), true));
      const { pointer } = buffers[index]!;
      const bytes = byteLengthOf(feed.dtype, elementCount(feed.shape));
      const code = DTYPES[feed.dtype].code;
      const create: OrtFunction = 'CreateTensorWithDataAsOrtValue';
      values.push(api.get(create, memory, pointer, bytes, shape.pointer, feed.shape.length, code));
    });
    const names = request.feeds.map((feed) => feed.name);
    const out = new NativeBuffer(request.outputs.length * 8);
    dims.push(out);
    out.bytes.fill(0);
    const count = request.outputs.length;
    api.call('Run', session.handle, null, names, values, names.length, [...request.outputs], count, out.pointer);
    results = readPointers(out.pointer, count);
    const tensors: WireTensor[] = [];
    const blobs = results.map((value, index) => {
      const name = request.outputs[index]!;
      if (api.get<number>('GetValueType', value) !== ONNX_TYPE_TENSOR)
        throw new Error(`output ${name} is not a tensor`);
      const info = api.get('GetTensorTypeAndShape', value);
      const { dtype, shape } = describeTensor(api, info);
      api.plain('ReleaseTensorTypeAndShapeInfo', info);
      if (dtype === 'string') throw new Error(`output ${name} holds strings`);
      tensors.push({ name, dtype, shape });
      const length = byteLengthOf(dtype, elementCount(shape));
      return length === 0 ? new Uint8Array(0) : viewMemory(api.get('GetTensorMutableData', value), length);
    });
    sendAnswer(CHANNEL, { result: tensors }, blobs);
  } finally {
    for (const value of [...values, ...results]) if (value) api.plain('ReleaseValue', value);
    for (const buffer of dims) buffer.free();
  }
}

function releaseSession({ api }: NonNullable<typeof ort>, id: number): null {
  const session = sessions.get(id);
  if (!session) return null;
  sessions.delete(id);
  api.plain('ReleaseSession', session.handle);
  for (const buffer of session.buffers.values()) buffer.free();
  return null;
}

/** Peak resident set of this process in bytes (VmHWM of proc(5)) and the processor time of all its threads. */
function readUsage(): { peakRssBytes: number; cpuSeconds: number } {
  const line = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'));
  const { user, system } = process.cpuUsage();
  return { peakRssBytes: Number(line?.[1] ?? 0) * 1024, cpuSeconds: (user + system) / 1e6 };
}

/** When the system runs out of memory it is this process that goes, not the user's other ones: its parent can say why. */
function dieFirst(): void {
  try {
    writeFileSync('/proc/self/oom_score_adj', '1000');
  } catch {
    // Not every container lets it.
  }
}

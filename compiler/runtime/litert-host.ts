/**
 * The LiteRT child: loads libLiteRt by FFI, runs one signature of one file on all the given inputs, then ends. Vendors'
 * dispatch libraries are loaded into it, so it never runs in the tool's own process.
 * Argument: parent's process id. One request comes on descriptor 3, one answer goes back.
 */
import koffi from 'koffi';
import { byteLengthOf } from '../ir/dtype.ts';
import { elementCount } from '../ir/tensor.ts';
import { ELEMENT_TYPES, type LitertRequest } from './litert-dispatch.ts';
import { dieWithParent, NativeBuffer, type Pointer, viewMemory } from './native-api.ts';
import { readExactly, receiveRequest, sendAnswer, type WireTensor } from './native-frames.ts';

type NativeFunction = (...values: unknown[]) => unknown;

const CHANNEL = 3;
const ptr = 'void *';
const outPtr: unknown = koffi.out(koffi.pointer(ptr));

// litert/c: LiteRtEnvOptionTag, LiteRtAnyType, LiteRtHwAccelerators, LiteRtTensorBufferType, LiteRtTensorBufferLockMode.
const DISPATCH_LIBRARY_DIR = 1;
const ANY_STRING = 8;
const CPU_AND_NPU = 1 | 4;
const HOST_MEMORY = 1;
const [LOCK_READ, LOCK_WRITE] = [0, 1];
/** LiteRtRankedTensorType: element type, rank, 8 dimensions, 8 strides. */
const TYPE_BYTES = 72;

const [parent = '0'] = process.argv.slice(2);
dieWithParent(Number(parent));
const request = receiveRequest(CHANNEL) as unknown as LitertRequest | undefined;
if (request) {
  try {
    const blobs = (request.blobs ?? []).map((length) => {
      const bytes = new Uint8Array(length);
      if (!readExactly(CHANNEL, bytes)) process.exit(0);
      return bytes;
    });
    const results = runAll(request, blobs);
    sendAnswer(CHANNEL, { result: results.length }, results);
  } catch (error) {
    sendAnswer(CHANNEL, { error: (error as Error).message });
  }
}
// Vendors' exit handlers are not to be trusted; everything is written by now.
process.kill(process.pid, 'SIGKILL');

function runAll({ library, dispatch, model, signature, inputs, outputs, runs }: LitertRequest, blobs: Uint8Array[]) {
  const native = koffi.load(library, { global: true });
  const bind = (name: string, parameters: readonly unknown[]): NativeFunction => {
    const call = native.func(name, 'int', parameters as unknown as string[]);
    return (...values) => {
      const status = Number(call(...values));
      if (status !== 0) throw new Error(`${name} failed with status ${status}`);
      return status;
    };
  };
  const make = (name: string, parameters: readonly unknown[], ...values: unknown[]): Pointer => {
    const out: [Pointer | null] = [null];
    bind(name, [...parameters, outPtr])(...values, out);
    return out[0]!;
  };
  const folder = new NativeBuffer(dispatch.length + 1);
  folder.bytes.set(Buffer.from(`${dispatch}\0`));
  const option = new NativeBuffer(24);
  const view = new DataView(option.bytes.buffer, option.bytes.byteOffset, 24);
  view.setInt32(0, DISPATCH_LIBRARY_DIR, true);
  view.setInt32(8, ANY_STRING, true);
  view.setBigUint64(16, BigInt(folder.pointer), true);

  const environment = make('LiteRtCreateEnvironment', ['int', ptr], 1, option.pointer);
  const file = make('LiteRtCreateModelFromFile', [ptr, 'str'], environment, model);
  const options = make('LiteRtCreateOptions', []);
  bind('LiteRtSetOptionsHardwareAccelerators', [ptr, 'int'])(options, CPU_AND_NPU);
  const compiled = make('LiteRtCreateCompiledModel', [ptr, ptr, ptr], environment, file, options);

  const bufferFor = (tensor: WireTensor): Pointer => {
    const type = new NativeBuffer(TYPE_BYTES);
    const fields = new DataView(type.bytes.buffer, type.bytes.byteOffset, TYPE_BYTES);
    type.bytes.fill(0);
    fields.setInt32(0, ELEMENT_TYPES[tensor.dtype]!, true);
    fields.setUint32(4, tensor.shape.length, true);
    tensor.shape.forEach((dim, axis) => fields.setInt32(8 + 4 * axis, dim, true));
    const parameters = [ptr, 'int', ptr, 'size_t'];
    const bytes = bytesOf(tensor);
    return make('LiteRtCreateManagedTensorBuffer', parameters, environment, HOST_MEMORY, type.pointer, bytes);
  };
  const unlock = bind('LiteRtUnlockTensorBuffer', [ptr]);
  const lock = (buffer: Pointer, mode: number): Pointer => {
    const out: [Pointer | null] = [null];
    bind('LiteRtLockTensorBuffer', [ptr, outPtr, 'int'])(buffer, out, mode);
    return out[0]!;
  };
  const [fed, given] = [inputs.map(bufferFor), outputs.map(bufferFor)];
  const run = bind('LiteRtRunCompiledModel', [ptr, 'size_t', 'size_t', 'void **', 'size_t', 'void **']);
  const results: Uint8Array[] = [];
  for (let n = 0; n < runs; n++) {
    fed.forEach((buffer, i) => {
      const bytes = blobs[n * inputs.length + i]!;
      viewMemory(lock(buffer, LOCK_WRITE), bytes.length).set(bytes);
      unlock(buffer);
    });
    run(compiled, signature, fed.length, fed, given.length, given);
    given.forEach((buffer, i) => {
      results.push(viewMemory(lock(buffer, LOCK_READ), bytesOf(outputs[i]!)).slice());
      unlock(buffer);
    });
  }
  return results;
}

function bytesOf({ dtype, shape }: WireTensor): number {
  return byteLengthOf(dtype, elementCount(shape));
}

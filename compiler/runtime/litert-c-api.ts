import koffi from 'koffi';
import { byteLengthOf } from '../ir/dtype.ts';
import { elementCount } from '../ir/tensor.ts';
import { ELEMENT_TYPES } from './litert-types.ts';
import { NativeBuffer, type Pointer, viewMemory } from './native-api.ts';
import type { WireTensor } from './native-frames.ts';

type NativeFunction = (...values: unknown[]) => unknown;

const ptr = 'void *';
const outPtr: unknown = koffi.out(koffi.pointer(ptr));

// litert/c: LiteRtEnvOptionTag, LiteRtAnyType, LiteRtTensorBufferType, LiteRtTensorBufferLockMode.
const DISPATCH_LIBRARY_DIR = 1;
const ANY_STRING = 8;
const HOST_MEMORY = 1;
const [LOCK_READ, LOCK_WRITE] = [0, 1];
/** LiteRtRankedTensorType: element type, rank, 8 dimensions, 8 strides. */
const TYPE_BYTES = 72;

/** LiteRtHwAccelerators, as bits. */
export const ACCELERATORS = { cpu: 1, npu: 4 } as const;

/** A signature's buffers in native memory, filled and read in the order of its ports. */
export interface NativeSignature {
  run(inputs: readonly Uint8Array[]): Uint8Array[];
}

export interface NativeModel {
  /** @param index of the signature in the file */
  signature(index: number, inputs: readonly WireTensor[], outputs: readonly WireTensor[]): NativeSignature;
}

/**
 * Loads a TFLite file through LiteRT's C interface: that of libLiteRt, or of a library that has it inside (liblitert-lm).
 * Nothing is freed: the process ends with the work.
 * @param dispatch folder of a vendor's dispatch library, for files that a vendor compiled
 * @throws Error naming the call that failed and its status
 */
export function loadNativeModel(library: string, model: string, accelerators: number, dispatch?: string): NativeModel {
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
  const option = dispatch === undefined ? undefined : dispatchOption(dispatch);
  const environment = make('LiteRtCreateEnvironment', ['int', ptr], option ? 1 : 0, option?.pointer ?? null);
  const file = make('LiteRtCreateModelFromFile', [ptr, 'str'], environment, model);
  const options = make('LiteRtCreateOptions', []);
  bind('LiteRtSetOptionsHardwareAccelerators', [ptr, 'int'])(options, accelerators);
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
  const lockBuffer = bind('LiteRtLockTensorBuffer', [ptr, outPtr, 'int']);
  const lock = (buffer: Pointer, mode: number): Pointer => {
    const out: [Pointer | null] = [null];
    lockBuffer(buffer, out, mode);
    return out[0]!;
  };
  const run = bind('LiteRtRunCompiledModel', [ptr, 'size_t', 'size_t', 'void **', 'size_t', 'void **']);
  return {
    signature: (index, inputs, outputs) => {
      const [fed, given] = [inputs.map(bufferFor), outputs.map(bufferFor)];
      return {
        run: (feeds) => {
          fed.forEach((buffer, i) => {
            viewMemory(lock(buffer, LOCK_WRITE), feeds[i]!.length).set(feeds[i]!);
            unlock(buffer);
          });
          run(compiled, index, fed.length, fed, given.length, given);
          return given.map((buffer, i) => {
            const bytes = viewMemory(lock(buffer, LOCK_READ), bytesOf(outputs[i]!)).slice();
            unlock(buffer);
            return bytes;
          });
        },
      };
    },
  };
}

function dispatchOption(folder: string): NativeBuffer {
  const text = new NativeBuffer(folder.length + 1);
  text.bytes.set(Buffer.from(`${folder}\0`));
  const option = new NativeBuffer(24);
  const view = new DataView(option.bytes.buffer, option.bytes.byteOffset, 24);
  view.setInt32(0, DISPATCH_LIBRARY_DIR, true);
  view.setInt32(8, ANY_STRING, true);
  view.setBigUint64(16, BigInt(text.pointer), true);
  return option;
}

function bytesOf({ dtype, shape }: WireTensor): number {
  return byteLengthOf(dtype, elementCount(shape));
}

import koffi from 'koffi';

/**
 * ONNX Runtime's C API through FFI, for the native child only: a wrong call here is a segmentation fault.
 * OrtApi is a struct of function pointers that only ever grows at its end; the indices are positions in it
 * (onnxruntime_c_api.h of 1.32, compared with two independent bindings), which is why other versions are refused.
 */
export const SUPPORTED_ORT_VERSION = '1.32.0';

/** The API level whose functions are used; 1.32 still provides it. */
const API_LEVEL = 24;

/** A C pointer: koffi gives BigInt, null is 0n or null. */
export type Pointer = bigint;

type NativeFunction = (...values: unknown[]) => unknown;

// Calls run on a stack of koffi's own; graph compilers recurse deeper than its default of 1 MiB. Only possible before
// any library is loaded.
koffi.config({ sync_stack_size: 16 << 20, sync_heap_size: 16 << 20 });

const ptr = 'void *';
const outPtr: unknown = koffi.out(koffi.pointer('void *'));
const outSize: unknown = koffi.out('size_t *');
const outInt: unknown = koffi.out('int *');

type Signature = readonly [index: number, result: string, parameters: readonly unknown[]];

// Every function that returns a pointer here returns an OrtStatus*, null for success, except where said.
const FUNCTIONS = {
  CreateStatus: [0, ptr, ['int', 'str']],
  GetErrorMessage: [2, 'str', [ptr]],
  CreateEnv: [3, ptr, ['int', 'str', outPtr]],
  CreateSession: [7, ptr, [ptr, 'str', ptr, outPtr]],
  Run: [9, ptr, [ptr, ptr, 'const char **', 'void **', 'size_t', 'const char **', 'size_t', 'void *']],
  CreateSessionOptions: [10, ptr, [outPtr]],
  SetSessionGraphOptimizationLevel: [23, ptr, [ptr, 'int']],
  SetIntraOpNumThreads: [24, ptr, [ptr, 'int']],
  SessionGetInputCount: [30, ptr, [ptr, outSize]],
  SessionGetOutputCount: [31, ptr, [ptr, outSize]],
  SessionGetInputTypeInfo: [33, ptr, [ptr, 'size_t', outPtr]],
  SessionGetOutputTypeInfo: [34, ptr, [ptr, 'size_t', outPtr]],
  SessionGetInputName: [36, ptr, [ptr, 'size_t', ptr, outPtr]],
  SessionGetOutputName: [37, ptr, [ptr, 'size_t', ptr, outPtr]],
  CreateTensorWithDataAsOrtValue: [49, ptr, [ptr, ptr, 'size_t', ptr, 'size_t', 'int', outPtr]],
  GetTensorMutableData: [51, ptr, [ptr, outPtr]],
  // Returns null in its out parameter for a type that is not a tensor.
  CastTypeInfoToTensorInfo: [55, ptr, [ptr, outPtr]],
  GetTensorElementType: [60, ptr, [ptr, outInt]],
  GetDimensionsCount: [61, ptr, [ptr, outSize]],
  GetDimensions: [62, ptr, [ptr, ptr, 'size_t']],
  GetTensorTypeAndShape: [65, ptr, [ptr, outPtr]],
  GetValueType: [67, ptr, [ptr, outInt]],
  CreateCpuMemoryInfo: [69, ptr, ['int', 'int', outPtr]],
  AllocatorFree: [76, ptr, [ptr, ptr]],
  GetAllocatorWithDefaultOptions: [78, ptr, [outPtr]],
  ReleaseStatus: [93, 'void', [ptr]],
  ReleaseSession: [95, 'void', [ptr]],
  ReleaseValue: [96, 'void', [ptr]],
  ReleaseTypeInfo: [98, 'void', [ptr]],
  ReleaseTensorTypeAndShapeInfo: [99, 'void', [ptr]],
  ReleaseSessionOptions: [100, 'void', [ptr]],
  AddSessionConfigEntry: [130, ptr, [ptr, 'str', 'str']],
  RegisterExecutionProviderLibrary: [301, ptr, [ptr, 'str', 'str']],
  GetEpDevices: [303, ptr, [ptr, outPtr, outSize]],
  SessionOptionsAppendExecutionProvider_V2: [
    304,
    ptr,
    [ptr, ptr, 'void **', 'size_t', 'const char **', 'const char **', 'size_t'],
  ],
  EpDevice_EpName: [312, 'str', [ptr]],
} as const satisfies Record<string, Signature>;

export type OrtFunction = keyof typeof FUNCTIONS;

/** The bound API. */
export interface OrtApi {
  readonly version: string;
  /** Calls a function that returns an OrtStatus. @throws Error with ONNX Runtime's own message. */
  call(name: OrtFunction, ...values: unknown[]): void;
  /** As `call`, for a function whose last parameter is an out parameter; gives that value. */
  get<T = Pointer>(name: OrtFunction, ...values: unknown[]): T;
  /** Calls a function that does not return a status. */
  plain<T = void>(name: OrtFunction, ...values: unknown[]): T;
}

/** A version of the library whose struct layout this code was not checked against. */
export class UnsupportedVersion extends Error {}

/**
 * Loads the library and binds its functions.
 * @throws UnsupportedVersion for any version but SUPPORTED_ORT_VERSION; Error when the library cannot be loaded.
 */
export function loadOrtApi(libraryPath: string): OrtApi {
  const library = koffi.load(libraryPath, { global: true });
  const base = library.func('OrtGetApiBase', ptr, [])() as Pointer;
  const getApi = koffi.decode(koffi.decode(base, 0, ptr), koffi.proto('GetApi', ptr, ['uint32_t'])) as NativeFunction;
  const getVersion = koffi.decode(
    koffi.decode(base, 8, ptr),
    koffi.proto('GetVersionString', 'str', []),
  ) as NativeFunction;
  const version = String(getVersion());
  if (version !== SUPPORTED_ORT_VERSION)
    throw new UnsupportedVersion(`ONNX Runtime ${version}, expected ${SUPPORTED_ORT_VERSION}`);
  const table = getApi(API_LEVEL) as Pointer | null;
  if (!table) throw new UnsupportedVersion(`ONNX Runtime ${version} has no API level ${API_LEVEL}`);

  const bound = Object.fromEntries(
    Object.entries(FUNCTIONS).map(([name, [index, result, parameters]]) => {
      const type = koffi.proto(`Ort_${name}`, result, parameters as unknown as string[]);
      return [name, koffi.decode(koffi.decode(table, index * 8, ptr), type) as NativeFunction];
    }),
  ) as Record<OrtFunction, NativeFunction>;

  const check = (status: unknown) => {
    if (!status) return;
    const message = String(bound.GetErrorMessage(status));
    bound.ReleaseStatus(status);
    throw new Error(message);
  };
  return {
    version,
    call: (name, ...values) => check(bound[name](...values)),
    get: <T>(name: OrtFunction, ...values: unknown[]): T => {
      const out: [unknown] = [null];
      check(bound[name](...values, out));
      return out[0] as T;
    },
    plain: <T>(name: OrtFunction, ...values: unknown[]): T => bound[name](...values) as T,
  };
}

/** A C string at an address. */
export function readCString(pointer: Pointer): string {
  return koffi.decode(pointer, 'char', -1) as string;
}

/** Bytes at an address as a live view; valid only while the memory is. */
export function viewMemory(pointer: Pointer, length: number): Uint8Array {
  return new Uint8Array(koffi.view(pointer, length));
}

/** Memory outside the JavaScript heap: its address never changes while native code holds it. */
export class NativeBuffer {
  readonly pointer: Pointer;
  readonly bytes: Uint8Array;

  constructor(length: number) {
    this.pointer = koffi.alloc('uint8_t', Math.max(length, 1)) as Pointer;
    this.bytes = viewMemory(this.pointer, Math.max(length, 1)).subarray(0, length);
  }

  free(): void {
    koffi.free(this.pointer);
  }
}

/** An array of pointers at an address. */
export function readPointers(pointer: Pointer, count: number): Pointer[] {
  return koffi.decode(pointer, koffi.array(ptr, count)) as Pointer[];
}

/**
 * Makes the kernel kill this process when the thread that started it ends, however it ends: an orphaned compile would
 * go on using gigabytes. Linux only, prctl(PR_SET_PDEATHSIG = 1, SIGKILL = 9).
 */
export function dieWithParent(parent: number): void {
  koffi.load(null).func('prctl', 'int', ['int', 'unsigned long'])(1, 9);
  // The parent may have died before the call above.
  if (process.ppid !== parent) process.kill(process.pid, 'SIGKILL');
}

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { compileFunction } from 'node:vm';
import { NpucError } from '../errors.ts';

/** What is used of the WebAssembly API: the project's type libraries have neither the DOM's nor Node's. */
declare const WebAssembly: {
  compile(bytes: Uint8Array): Promise<WasmModule>;
  instantiate(module: WasmModule, imports: object): Promise<WasmInstance>;
  readonly RuntimeError: new () => Error;
};
interface WasmModule {
  readonly wasmModule: never;
}
interface WasmInstance {
  readonly exports: object;
}

/**
 * LiteRT's WebAssembly build, driven through its own bindings.
 *
 * The npm package wraps these bindings for browsers: it wants `self`, `importScripts` and a WebGPU device, one instance a
 * process, float, i32 and u8 tensors only, and it hides what the runtime prints. The bindings underneath need no
 * globals and take every element type; they are what the package's exact version (pinned in package.json) provides.
 */
export interface LitertEngine {
  readonly wasm: LitertBindings;
  readonly environment: Handle;
  /**
   * Does `action` and fails when the runtime printed an error meanwhile: out of memory, or with an unknown operator, it
   * prints, goes on, and returns whatever lay in memory.
   * @throws Error with everything that was said
   */
  attempt<T>(action: () => T): T;
}

/** A C++ object: must be deleted, or its memory is lost to the instance. */
export interface Handle {
  delete(): void;
}

export interface Vector<T> extends Handle {
  size(): number;
  get(index: number): T;
  push_back(item: T): void;
}

interface EnumElement {
  readonly value: number;
}

export interface TensorTypeHandle extends Handle {
  elementType(): EnumElement;
  layout(): Handle & { dimensions(): Vector<number> };
  /** Bytes of a tensor of this type; fails where a dimension is -1. */
  bytes(): number;
}

export interface TensorBufferHandle extends Handle {
  tensorType(): TensorTypeHandle;
  /** The address of the data; until `unlock`. */
  lock(mode: EnumElement): number;
  unlock(): void;
  packedSize(): number;
}

export interface ModelHandle extends Handle {
  getNumSignatures(): number;
  getSignature(index: number): Handle & {
    key(): string;
    inputNames(): Vector<string>;
    outputNames(): Vector<string>;
  };
  getInputTensorType(signature: number, input: number): TensorTypeHandle;
  getOutputTensorType(signature: number, output: number): TensorTypeHandle;
}

export interface CompiledHandle extends Handle {
  run(signature: number, inputs: TensorBufferHandle[]): TensorBufferHandle[];
}

export interface LitertBindings {
  /** Replaced whenever memory grows: never keep it. */
  readonly HEAPU8: Uint8Array;
  /** 0 when there is no room. */
  _malloc(bytes: number): number;
  _free(address: number): void;
  readonly VectorInt32: new () => Vector<number>;
  readonly LiteRtEnvironment: { create(device: null): Handle };
  readonly LiteRtLayout: { create(dimensions: Vector<number>): Handle };
  readonly LiteRtRankedTensorType: { create(type: EnumElement, layout: Handle): TensorTypeHandle };
  readonly LiteRtTensorBufferType: { readonly HOST_MEMORY: EnumElement };
  readonly LiteRtTensorBufferLockMode: { readonly READ: EnumElement; readonly WRITE: EnumElement };
  readonly LiteRtTensorBuffer: {
    createManaged(environment: Handle, kind: EnumElement, type: TensorTypeHandle, bytes: number): TensorBufferHandle;
  };
  loadModel(environment: Handle, address: number, bytes: number): ModelHandle;
  compileModel(environment: Handle, model: ModelHandle, options: object): CompiledHandle;
}

type ModuleFactory = (options: object) => Promise<LitertBindings>;

/**
 * The build without relaxed SIMD, on every host: relaxed instructions give other bits on other CPUs, and Node 20 lacks them.
 * It is single-threaded.
 */
const BUILD = 'litert_wasm_compat_internal';

let compiled: Promise<{ factory: ModuleFactory; module: WasmModule }> | undefined;

/**
 * A fresh instance: its own memory (2 GiB at most, never shrinking, freed with the instance), and a crash in it harms no
 * other. The code is compiled once a process.
 * @throws RT110 when the package is not there or does not start
 */
export async function createLitertEngine(): Promise<LitertEngine> {
  try {
    compiled ??= compile();
    const { factory, module } = await compiled;
    let lines: string[] = [];
    const print = (line: string): void => {
      // A loop that warns on every run must not fill the memory.
      if (lines.length < 1000) lines.push(line);
    };
    let fail: (cause: unknown) => void = () => {};
    const failed = new Promise<never>((_, reject) => {
      fail = reject;
    });
    const started = factory({
      print,
      printErr: print,
      instantiateWasm(imports: object, done: (instance: WasmInstance) => void) {
        WebAssembly.instantiate(module, imports).then(done, fail);
        return {};
      },
    });
    const wasm = await Promise.race([started, failed]);
    return {
      wasm,
      environment: wasm.LiteRtEnvironment.create(null),
      attempt(action) {
        lines = [];
        const said = (): string[] => lines.filter((line) => line.startsWith('ERROR'));
        let result: ReturnType<typeof action>;
        try {
          result = action();
        } catch (cause) {
          if (isTrap(cause)) throw cause;
          throw new Error(plainText([(cause as Error).message, ...said()]), { cause });
        }
        const errors = said();
        if (errors.length > 0) throw new Error(plainText(errors));
        return result;
      },
    };
  } catch (cause) {
    compiled = undefined;
    throw new NpucError('RT110', {
      message: `LiteRT's WebAssembly does not start: ${(cause as Error).message}`,
      hint: 'reinstall the package @litertjs/core',
      cause,
    });
  }
}

/** The runtime's messages in one line, without its own severities and source places. */
function plainText(messages: readonly string[]): string {
  return messages
    .flatMap((message) => message.split('\n'))
    .map((line) =>
      line
        .replace(/^\W*ERROR:\s*/, '')
        .replace(/^\[[^\]]*\]\s*/, '')
        .replace(/\.?\s*$/, ''),
    )
    .filter((line) => line !== '')
    .join('; ');
}

/** The engine's name and version, for reports. */
export function litertEngineName(): string {
  const manifest = createRequire(import.meta.url).resolve('@litertjs/core/package.json');
  const { version } = JSON.parse(readFileSync(manifest, 'utf8')) as { version: string };
  return `litert.js ${version} wasm`;
}

async function compile(): Promise<{ factory: ModuleFactory; module: WasmModule }> {
  const require = createRequire(import.meta.url);
  const folder = join(dirname(require.resolve('@litertjs/core/package.json')), 'wasm');
  const script = join(folder, `${BUILD}.js`);
  // The script is CommonJS inside an ES module package, so neither import nor require reads it: give it its wrapper here.
  const names = ['module', 'exports', 'require', '__filename', '__dirname', 'FinalizationRegistry'];
  const wrapper = compileFunction(readFileSync(script, 'utf8'), names, { filename: script });
  const exported: { exports: unknown } = { exports: {} };
  wrapper(exported, exported.exports, require, script, folder, NoFinalization);
  const module = await WebAssembly.compile(readFileSync(join(folder, `${BUILD}.wasm`)));
  return { factory: exported.exports as ModuleFactory, module };
}

/**
 * Stands in for FinalizationRegistry. Handles are deleted by hand here; a finalizer would run destructors in an instance
 * that has crashed, and its exception would end the process.
 */
class NoFinalization {
  register(): void {}
  unregister(): void {}
}

/** True for a trap: the instance's memory is in an unknown state and it must not be called again. */
export function isTrap(error: unknown): boolean {
  return error instanceof WebAssembly.RuntimeError;
}

import type { Engine } from './engine.ts';
import { WASM_BASE64 } from './wasm-bytes.ts';

/** What is used of the WebAssembly API: the project's type libraries have neither the DOM's nor Node's. */
declare const WebAssembly: {
  Module: new (bytes: Uint8Array) => object;
  Instance: new (module: object) => { readonly exports: Record<string, unknown> };
};
interface WasmMemory {
  readonly buffer: ArrayBuffer;
  grow(pages: number): number;
}

/** A function of assembly/index.ts: arguments are addresses in the instance's memory, counts and numbers. */
type WasmFunction = (...args: number[]) => number;
type FunctionName =
  | 'heapBase'
  | 'decodeBf16'
  | 'decodeF16'
  | 'encodeF16'
  | 'absmax'
  | 'minMax'
  | 'finiteRange'
  | 'channelStatistics'
  | 'histogram'
  | 'difference'
  | 'quantizeI8'
  | 'fakeQuantize'
  | 'fakeQuantizeAffine'
  | 'packI4'
  | 'unpackI4'
  | 'dequantizeI8'
  | 'weightedErrors'
  | 'searchScales'
  | 'searchLpbq'
  | 'factorHessian'
  | 'roundCompensated'
  | 'transpose32'
  | 'transpose8';
type WasmFunctions = Record<FunctionName, WasmFunction>;

/** Kernels read at most two vectors past the end of an array: regions are kept apart by more. */
const GAP = 64;
const PAGE = 65536;

type Values = Float32Array | Float64Array | Int8Array | Uint8Array | Uint32Array;

/**
 * Lays out `inputs`, `outputs` and a scratch region in the instance's memory, copies the inputs in, calls `kernel` with the
 * functions and the addresses in that order, and copies the outputs back. An output that is also an input shares its region.
 */
type Run = (
  inputs: readonly Values[],
  outputs: readonly Values[],
  kernel: (functions: WasmFunctions, ...addresses: number[]) => number,
  scratchBytes?: number,
) => number;

/** The memory is laid out anew for each call and grows to the largest one. */
function instantiate(): Run {
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(Buffer.from(WASM_BASE64, 'base64')));
  const functions = exports as unknown as WasmFunctions;
  const memory = exports.memory as WasmMemory;
  const base = functions.heapBase();
  let bytes = new Uint8Array(memory.buffer);

  return (inputs, outputs, kernel, scratchBytes = 0) => {
    let end = base;
    const place = (size: number): number => {
      const address = (end + GAP + 15) & ~15;
      end = address + size;
      return address;
    };
    const inputAddresses = inputs.map((input) => place(input.byteLength));
    const outputAddresses = outputs.map((output) => {
      const shared = inputs.indexOf(output);
      return shared < 0 ? place(output.byteLength) : inputAddresses[shared];
    });
    const scratch = place(scratchBytes);
    if (end + GAP > bytes.length) {
      memory.grow(Math.ceil((end + GAP - bytes.length) / PAGE));
      bytes = new Uint8Array(memory.buffer);
    }
    inputs.forEach((input, i) => {
      bytes.set(new Uint8Array(input.buffer, input.byteOffset, input.byteLength), inputAddresses[i]);
    });
    const answer = kernel(functions, ...inputAddresses, ...outputAddresses, scratch);
    outputs.forEach((output, i) => {
      const from = outputAddresses[i];
      const target = new Uint8Array(output.buffer, output.byteOffset, output.byteLength);
      target.set(bytes.subarray(from, from + output.byteLength));
    });
    return answer;
  };
}

/** An engine with a WebAssembly instance of its own, made on first use. Each thread has one. */
export function createWasmEngine(): Engine {
  let instance: Run | undefined;
  const run: Run = (...call) => {
    instance ??= instantiate();
    return instance(...call);
  };

  return {
    decodeBf16(source, target) {
      run([source], [target], (f, s, t) => f.decodeBf16(s, t, target.length));
    },
    decodeF16(source, target) {
      run([source], [target], (f, s, t) => f.decodeF16(s, t, target.length));
    },
    encodeF16(source, target) {
      run([source], [target], (f, s, t) => f.encodeF16(s, t, source.length));
    },

    absmax: (source, group, target) => run([source], [target], (f, s, t) => f.absmax(s, t, target.length, group)) >>> 0,
    minMax: (source, group, minima, maxima) =>
      run([source], [minima, maxima], (f, s, low, high) => f.minMax(s, low, high, minima.length, group)) >>> 0,
    finiteRange(source) {
      const range = new Float32Array(2);
      const skipped = run([source], [range], (f, s, r) => f.finiteRange(s, source.length, r));
      return { min: range[0], max: range[1], skipped };
    },
    channelStatistics(source, maxima, squares) {
      const columns = maxima.length;
      const rows = source.length / columns;
      return (
        run([source, maxima, squares], [maxima, squares], (f, s, m, q) =>
          f.channelStatistics(s, rows, columns, m, q),
        ) >>> 0
      );
    },
    histogram(source, low, perUnit, counts) {
      const added = new Uint32Array(counts.length);
      run([source, added], [added], (f, s, c) => f.histogram(s, source.length, low, perUnit, counts.length - 1, c));
      for (let i = 0; i < added.length; i++) counts[i] += added[i];
    },
    difference: (a, b, result) => run([a, b], [result], (f, x, y, r) => f.difference(x, y, a.length, r)),

    quantizeI8: (source, group, scales, range, target) =>
      run([source, scales], [target], (f, s, c, t) =>
        f.quantizeI8(s, c, t, scales.length, group, range.min, range.max),
      ) >>> 0,
    quantizeI4: (source, group, scales, range, target) =>
      run(
        [source, scales],
        [target],
        (f, s, c, t, integers) => {
          const bits = f.quantizeI8(s, c, integers, scales.length, group, range.min, range.max);
          f.packI4(integers, t, source.length);
          return bits;
        },
        source.length,
      ) >>> 0,
    fakeQuantize: (source, group, scales, range, target) =>
      run([source, scales], [target], (f, s, c, t) =>
        f.fakeQuantize(s, c, t, scales.length, group, range.min, range.max),
      ) >>> 0,
    fakeQuantizeAffine(source, scale, min, max, target) {
      run([source], [target], (f, s, t) => f.fakeQuantizeAffine(s, t, source.length, scale, min, max));
    },
    packI4: (source, target) => run([source], [target], (f, s, t) => f.packI4(s, t, source.length)) === 0,
    unpackI4(source, target) {
      run([source], [target], (f, s, t) => f.unpackI4(s, t, target.length));
    },
    dequantizeI8(source, group, scales, target) {
      run([source, scales], [target], (f, s, c, t) => f.dequantizeI8(s, c, t, scales.length, group));
    },
    dequantizeI4(source, group, scales, target) {
      run(
        [source, scales],
        [target],
        (f, s, c, t, integers) => {
          f.unpackI4(s, integers, target.length);
          return f.dequantizeI8(integers, c, t, scales.length, group);
        },
        target.length,
      );
    },

    weightedErrors(source, importance, group, scales, range, errors) {
      run([source, importance, scales], [errors], (f, s, h, c, e) =>
        f.weightedErrors(s, h, importance.length, group, scales.length, c, e, range.min, range.max),
      );
    },
    searchScales(source, importance, group, range, scales, errors) {
      run([source, importance], [scales, errors], (f, s, h, c, e) =>
        f.searchScales(s, h, importance.length, group, scales.length, c, e, range.min, range.max),
      );
    },
    searchLpbq(source, importance, block, range, channelScales, blockScales, errors) {
      const columns = importance.length;
      const { length: rows } = channelScales;
      run(
        [source, importance],
        [channelScales, blockScales, errors],
        (f, s, h, c, b, e, scratch) => f.searchLpbq(s, h, columns, block, rows, c, b, e, range.min, range.max, scratch),
        (columns / block) * 9,
      );
    },

    factorHessian: (hessian, stride, factors, diagonal) =>
      run(
        [hessian],
        [factors, diagonal],
        (f, h, u, d, scratch) => f.factorHessian(h, diagonal.length, stride, u, d, scratch),
        stride * 8 * 32,
      ),
    roundCompensated(source, stride, factors, diagonal, scales, groups, range, integers, errors) {
      const columns = diagonal.length;
      const { length: rows } = errors;
      run(
        [source, factors, diagonal, scales, groups],
        [integers, errors],
        (f, w, u, d, s, g, q, e, scratch) =>
          f.roundCompensated(
            w,
            rows,
            columns,
            stride,
            u,
            d,
            s,
            scales.length / rows,
            g,
            range.min,
            range.max,
            q,
            e,
            scratch,
          ),
        stride * 4 * 4,
      );
    },

    transpose32(source, rows, columns, target) {
      run([source], [target], (f, s, t) => f.transpose32(s, t, rows, columns));
    },
    transpose8(source, rows, columns, target) {
      run([source], [target], (f, s, t) => f.transpose8(s, t, rows, columns));
    },
  };
}

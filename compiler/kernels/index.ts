import { createKernels } from './create-kernels.ts';
import { plainEngine } from './plain.ts';
import { createWasmEngine } from './wasm-engine.ts';

export * from './kernels.ts';
export { expandTwoLevelScales, splitBlockScales, type TwoLevelScales } from './lpbq.ts';
export { createKernelPool, type KernelPool } from './pool.ts';

/** The kernels to use: WebAssembly SIMD, one instance per thread, compiled on first use. */
export const wasmKernels = createKernels(createWasmEngine());

/** The same results, bit for bit, from plain TypeScript: several times slower, for tests and for reading. */
export const plainKernels = createKernels(plainEngine);

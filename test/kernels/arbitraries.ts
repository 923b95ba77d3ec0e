import fc from 'fast-check';
import { createKernels } from '../../compiler/kernels/create-kernels.ts';
import { INT4, INT4_SYMMETRIC, INT8_SYMMETRIC, type Layout, plainKernels } from '../../compiler/kernels/index.ts';
import { createWasmEngine } from '../../compiler/kernels/wasm-engine.ts';

/** WebAssembly with windows so small that every test crosses several, against the plain twin with its usual ones. */
export const smallWindows = createKernels(createWasmEngine(), 2048);
export const twin = plainKernels;

/** The bits of any typed array, so that -0, NaN payloads and the last bit of a sum count. */
export function bitsOf(values: ArrayBufferView): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

/** Finite f32 of every kind: ordinary, tiny, subnormal, huge, zeros of both signs, multiples of a half (ties). */
export const finiteFloat = fc.oneof(
  { weight: 6, arbitrary: fc.float({ min: -4, max: 4, noNaN: true }) },
  { weight: 2, arbitrary: fc.integer({ min: -300, max: 300 }).map((n) => n / 2) },
  { weight: 1, arbitrary: fc.constantFrom(0, -0, 1.401298464324817e-45, -1e-40, 1.1754943508222875e-38, 3e38, -3e38) },
  { weight: 1, arbitrary: fc.float({ noNaN: true, noDefaultInfinity: true }) },
);

export const anyFloat = fc.oneof(
  { weight: 8, arbitrary: finiteFloat },
  { weight: 1, arbitrary: fc.constantFrom(Infinity, -Infinity, Number.NaN) },
);

export const rangeArbitrary = fc.constantFrom(INT4, INT4_SYMMETRIC, INT8_SYMMETRIC, { min: -128, max: 127 });

export interface MatrixCase {
  readonly layout: Layout;
  readonly weights: Float32Array;
  readonly importance: Float32Array | undefined;
}

/** A matrix with some rows of zeros and, half of the time, an importance per column. */
export function matrixCase(values: fc.Arbitrary<number> = finiteFloat): fc.Arbitrary<MatrixCase> {
  return fc
    .record({
      rows: fc.integer({ min: 1, max: 6 }),
      blocks: fc.integer({ min: 1, max: 5 }),
      block: fc.constantFrom(1, 3, 8, 16, 31, 32, 64, 100, 200),
      zeroRow: fc.integer({ min: 0, max: 12 }),
      weighted: fc.boolean(),
    })
    .chain(({ rows, blocks, block, zeroRow, weighted }) => {
      const columns = blocks * block;
      const importanceValue = fc.oneof(fc.float({ min: 0, max: 100, noNaN: true }), fc.constantFrom(0, 1e-6, 1e6));
      return fc.record({
        layout: fc.constant({ rows, columns, block }),
        weights: floats(values, rows * columns).map((weights) => {
          if (zeroRow < rows) weights.fill(0, zeroRow * columns, (zeroRow + 1) * columns);
          return weights;
        }),
        importance: weighted ? floats(importanceValue, columns) : fc.constant(undefined),
      });
    });
}

/** Exactly `length` f32: a few drawn values repeated in a shuffled way, which is fast and still meets every lane. */
export function floats(values: fc.Arbitrary<number>, length: number): fc.Arbitrary<Float32Array> {
  const drawn = Math.min(length, 48);
  return fc
    .tuple(fc.array(values, { minLength: drawn, maxLength: drawn }), fc.integer({ min: 1, max: 0x7fffffff }))
    .map(([some, seed]) => {
      let state = seed;
      return Float32Array.from({ length }, (_, i) => {
        if (i < drawn) return some[i];
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
        return some[(state >>> 8) % drawn];
      });
    });
}

/** Deterministic normal-like values, for cases that need a realistic matrix of some size. */
export function gaussian(length: number, seed: number, scale = 1): Float32Array {
  let state = seed >>> 0;
  const uniform = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state + 0.5) / 2 ** 32;
  };
  return Float32Array.from({ length }, () => {
    return scale * Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  });
}

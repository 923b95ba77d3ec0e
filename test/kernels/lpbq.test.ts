import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  expandTwoLevelScales,
  INT4,
  type Layout,
  splitBlockScales,
  wasmKernels,
} from '../../compiler/kernels/index.ts';
import { bitsOf, gaussian, matrixCase, rangeArbitrary, smallWindows, twin } from './arbitraries.ts';

/** Row sums in block order, as the search adds them. */
function rowErrors(errors: Float64Array, rows: number): Float64Array {
  const blocks = errors.length / rows;
  return Float64Array.from({ length: rows }, (_, row) => {
    let sum = 0;
    for (let j = 0; j < blocks; j++) sum += errors[row * blocks + j];
    return sum;
  });
}

const total = (errors: Float64Array): number => errors.reduce((a, b) => a + b, 0);

function realisticWeights(layout: Layout, seed: number): Float32Array {
  const weights = gaussian(layout.rows * layout.columns, seed, 0.02);
  // Some input channels are larger, as in trained models: block scales then differ.
  for (let i = 0; i < weights.length; i++) if ((i % layout.columns) % 97 === 5) weights[i] *= 6;
  return weights;
}

describe('two-level scale search', () => {
  it('gives the same scales and errors, bit for bit', () => {
    fc.assert(
      fc.property(matrixCase(), rangeArbitrary, ({ weights, layout, importance }, range) => {
        const search = { range, importance };
        const wasm = smallWindows.searchLpbq(weights, layout, search);
        const plain = twin.searchLpbq(weights, layout, search);
        expect(bitsOf(wasm.channelScales)).toEqual(bitsOf(plain.channelScales));
        expect(wasm.blockScales).toEqual(plain.blockScales);
        expect(bitsOf(wasm.errors)).toEqual(bitsOf(plain.errors));
      }),
    );
  });

  it('answers legal scales whose measured error is the reported one', () => {
    fc.assert(
      fc.property(matrixCase(), ({ weights, layout, importance }) => {
        const search = { range: INT4, importance };
        const found = smallWindows.searchLpbq(weights, layout, search);
        expect(found.blockScales.every((b) => b >= 1 && b <= 15)).toBe(true);
        expect(found.channelScales.every((scale) => scale >= 2 ** -126 && scale < Infinity)).toBe(true);
        const measured = smallWindows.measureErrors(weights, layout, expandTwoLevelScales(found), search);
        expect(bitsOf(rowErrors(measured, layout.rows))).toEqual(bitsOf(found.errors));
      }),
    );
  });

  it('is never worse than rounding absmax scales to their largest / 15', () => {
    fc.assert(
      fc.property(matrixCase(), ({ weights, layout, importance }) => {
        const search = { range: INT4, importance };
        const absmax = twin.findAbsmax(weights, layout).map((value) => Math.max(value / 7, 2 ** -120));
        const plain = expandTwoLevelScales(splitBlockScales(absmax, layout));
        const plainErrors = rowErrors(smallWindows.measureErrors(weights, layout, plain, search), layout.rows);
        const { errors } = smallWindows.searchLpbq(weights, layout, search);
        expect(errors.findIndex((error, row) => !(error <= plainErrors[row]))).toBe(-1);
      }),
    );
  });

  it.each([
    [16, 1.16, 0.82],
    [32, 1.08, 0.82],
    [64, 1.04, 0.76],
  ])('block %i: close to free block scales, far from rounded ones', (block, aboveFree, belowRounded) => {
    const layout = { rows: 32, columns: 576, block };
    const weights = realisticWeights(layout, 21);
    const importance = gaussian(layout.columns, 22).map((value) => Math.exp(value));
    const search = { range: INT4, importance };
    const found = total(wasmKernels.searchLpbq(weights, layout, search).errors);
    const free = wasmKernels.searchScales(weights, layout, search);
    const roundedFree = expandTwoLevelScales(splitBlockScales(free.scales, layout));
    const absmax = wasmKernels.findAbsmax(weights, layout).map((value) => value / 7);
    const roundedAbsmax = expandTwoLevelScales(splitBlockScales(absmax, layout));
    expect(found / total(free.errors)).toBeLessThan(aboveFree);
    expect(found).toBeLessThan(total(wasmKernels.measureErrors(weights, layout, roundedFree, search)));
    expect(found / total(wasmKernels.measureErrors(weights, layout, roundedAbsmax, search))).toBeLessThan(belowRounded);
  });

  it('gives a row of zeros scales of 1, and a zero block among others a block scale of 1', () => {
    const weights = new Float32Array(128);
    weights.set(gaussian(32, 4), 64);
    const layout = { rows: 2, columns: 64, block: 32 };
    for (const kernels of [smallWindows, twin]) {
      const found = kernels.searchLpbq(weights, layout, { range: INT4 });
      expect([found.channelScales[0], ...found.blockScales.subarray(0, 2)]).toEqual([1, 1, 1]);
      expect(found.blockScales[3]).toBe(1);
      expect(found.errors[0]).toBe(0);
    }
  });
});

describe('rounding given block scales', () => {
  it('maps the largest to 15 and keeps small ones at 1', () => {
    const layout = { rows: 1, columns: 64, block: 16 };
    const { channelScales, blockScales } = splitBlockScales(Float32Array.of(1.5, 0.3, 0.01, 0.75), layout);
    expect([...blockScales]).toEqual([15, 3, 1, 8]);
    expect(channelScales[0]).toBe(Math.fround(0.1));
  });
});

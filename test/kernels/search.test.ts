import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { INT4, INT8_SYMMETRIC, type Layout, type SearchOptions, wasmKernels } from '../../compiler/kernels/index.ts';
import { bitsOf, finiteFloat, gaussian, matrixCase, rangeArbitrary, smallWindows, twin } from './arbitraries.ts';

/** sum h (w - q s)^2 in f64 with the quantized weights that the kernels really write. */
function writtenErrors(
  weights: Float32Array,
  layout: Layout,
  scales: Float32Array,
  { range, importance }: SearchOptions,
): number[] {
  const fake = new Float32Array(weights.length);
  twin.fakeQuantizeWeights(weights, layout, scales, range, fake);
  return Array.from(scales, (_, g) => {
    let sum = 0;
    for (let i = g * layout.block; i < (g + 1) * layout.block; i++) {
      sum += (importance?.[i % layout.columns] ?? 1) * (weights[i] - fake[i]) ** 2;
    }
    return sum;
  });
}

function absmaxScales(weights: Float32Array, layout: Layout, max: number): Float32Array {
  return twin.findAbsmax(weights, layout).map((absmax) => {
    const scale = Math.fround(absmax / max);
    return scale < 2 ** -120 ? 1 : scale;
  });
}

describe('scale search', () => {
  it('gives the same scales and errors, bit for bit', () => {
    fc.assert(
      fc.property(matrixCase(), rangeArbitrary, ({ weights, layout, importance }, range) => {
        const search = { range, importance };
        const wasm = smallWindows.searchScales(weights, layout, search);
        const plain = twin.searchScales(weights, layout, search);
        expect(bitsOf(wasm.scales)).toEqual(bitsOf(plain.scales));
        expect(bitsOf(wasm.errors)).toEqual(bitsOf(plain.errors));
      }),
    );
  });

  it('reports the error that measureErrors gives, and is never worse than absmax', () => {
    fc.assert(
      fc.property(matrixCase(), rangeArbitrary, ({ weights, layout, importance }, range) => {
        const search = { range, importance };
        const { scales, errors } = smallWindows.searchScales(weights, layout, search);
        const measured = smallWindows.measureErrors(weights, layout, scales, search);
        expect(bitsOf(measured)).toEqual(bitsOf(twin.measureErrors(weights, layout, scales, search)));
        expect(bitsOf(errors)).toEqual(bitsOf(measured));
        const plain = absmaxScales(weights, layout, range.max);
        const plainErrors = smallWindows.measureErrors(weights, layout, plain, search);
        expect(errors.findIndex((error, g) => !(error <= plainErrors[g]))).toBe(-1);
      }),
    );
  });

  it('measures what quantizing then really costs', () => {
    const ordinary = fc.oneof(fc.float({ min: -4, max: 4, noNaN: true }), fc.constantFrom(0, 1.5, -2.5));
    fc.assert(
      fc.property(matrixCase(ordinary), rangeArbitrary, ({ weights, layout, importance }, range) => {
        const search = { range, importance };
        const { scales, errors } = smallWindows.searchScales(weights, layout, search);
        const written = writtenErrors(weights, layout, scales, search);
        errors.forEach((error, g) => {
          // f32 sums of at most 64 terms, and x / scale rounded to f32.
          const slack = 1e-3 * written[g] + 1e-9 * scales[g] ** 2 * layout.block * 1e6;
          expect(Math.abs(error - written[g])).toBeLessThanOrEqual(slack);
        });
      }),
    );
  });

  it('comes within a percent of an exhaustive search on normal weights', () => {
    const layout = { rows: 24, columns: 576, block: 64 };
    const weights = gaussian(layout.rows * layout.columns, 5, 0.02);
    const importance = gaussian(layout.columns, 6).map((value) => Math.exp(1.5 * value));
    const search = { range: INT4, importance };
    const found = wasmKernels.searchScales(weights, layout, search).errors.reduce((a, b) => a + b, 0);
    const full = absmaxScales(weights, layout, 7);
    const best = new Float64Array(full.length).fill(Infinity);
    for (let k = 140; k >= 40; k--) {
      const errors = wasmKernels.measureErrors(
        weights,
        layout,
        full.map((scale) => scale * (k / 128)),
        search,
      );
      errors.forEach((error, g) => {
        best[g] = Math.min(best[g], error);
      });
    }
    const exhaustive = best.reduce((a, b) => a + b, 0);
    const absmax = wasmKernels.measureErrors(weights, layout, full, search).reduce((a, b) => a + b, 0);
    expect(found).toBeGreaterThanOrEqual(exhaustive);
    expect(found / exhaustive).toBeLessThan(1.01);
    expect(found / absmax).toBeLessThan(0.65);
  });

  it('follows the importance: a channel that matters keeps its outlier', () => {
    const weights = gaussian(128, 8);
    weights[5] = 6;
    const layout = { rows: 1, columns: 128, block: 128 };
    const importance = new Float32Array(128).fill(1);
    const outlierError = (): number => {
      const search = { range: INT4, importance };
      const fake = new Float32Array(128);
      wasmKernels.fakeQuantizeWeights(
        weights,
        layout,
        wasmKernels.searchScales(weights, layout, search).scales,
        INT4,
        fake,
      );
      return Math.abs(fake[5] - 6);
    };
    expect(outlierError()).toBeGreaterThan(0.5);
    importance[5] = 1000;
    expect(outlierError()).toBeLessThan(0.01);
  });

  it('gives rows of zeros and of nearly nothing a scale of 1', () => {
    const weights = new Float32Array(96).fill(1e-40, 32, 64).fill(0.5, 64);
    const layout = { rows: 3, columns: 32, block: 32 };
    const { scales, errors } = smallWindows.searchScales(weights, layout, { range: INT8_SYMMETRIC });
    expect([scales[0], scales[1]]).toEqual([1, 1]);
    expect([...errors]).toEqual([0, 0, 0]);
    expect(scales[2]).toBe(Math.fround(0.5 / 127));
  });

  it('refuses what cannot be searched, with a code', () => {
    const layout = { rows: 2, columns: 8, block: 4, name: 'w' };
    const weights = new Float32Array(16).fill(1);
    for (const kernels of [smallWindows, twin]) {
      for (const name of ['searchScales', 'searchLpbq'] as const) {
        for (const wrong of [Number.NaN, -1, Infinity]) {
          const importance = new Float32Array(8).fill(1);
          importance[3] = wrong;
          expect(() => kernels[name](weights, layout, { range: INT4, importance })).toThrow(
            expect.objectContaining({ code: 'QT013', where: 'w', message: expect.stringContaining('channel 3') }),
          );
        }
        const broken = weights.slice();
        broken[9] = -Infinity;
        expect(() => kernels[name](broken, layout, { range: INT4 })).toThrow(
          expect.objectContaining({ code: 'QT010', message: expect.stringContaining('[1, 1]') }),
        );
      }
    }
    const long = { rows: 1, columns: 3 << 20, block: 64, name: 'w' };
    expect(() => wasmKernels.searchScales(new Float32Array(3 << 20), long, { range: INT4 })).toThrow(
      expect.objectContaining({ code: 'QT015', where: 'w' }),
    );
  });

  it('measures non-finite weights as an error, not as a number', () => {
    fc.assert(
      fc.property(finiteFloat, (scale) => {
        const layout = { rows: 1, columns: 2, block: 2 };
        const attempt = (): Float64Array =>
          smallWindows.measureErrors(Float32Array.of(Number.NaN, 1), layout, Float32Array.of(scale), { range: INT4 });
        expect(attempt).toThrow(expect.objectContaining({ code: scale > 0 ? 'QT010' : 'QT012' }));
      }),
      { numRuns: 20 },
    );
  });
});

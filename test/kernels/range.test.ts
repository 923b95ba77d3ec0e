import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  cosineSimilarity,
  createChannelStatistics,
  createDifferenceSums,
  createHistogram,
  signalToNoise,
} from '../../compiler/kernels/index.ts';
import { anyFloat, bitsOf, finiteFloat, floats, gaussian, matrixCase, smallWindows, twin } from './arbitraries.ts';

const anyArray = (values: fc.Arbitrary<number>): fc.Arbitrary<Float32Array> =>
  fc.integer({ min: 0, max: 1500 }).chain((length) => floats(values, length));

describe('weight ranges', () => {
  it('finds absmax and min-max alike, and as a plain loop does', () => {
    fc.assert(
      fc.property(matrixCase(), ({ weights, layout }) => {
        const absmax = smallWindows.findAbsmax(weights, layout);
        const { min, max } = smallWindows.findMinMax(weights, layout);
        expect(bitsOf(absmax)).toEqual(bitsOf(twin.findAbsmax(weights, layout)));
        const plain = twin.findMinMax(weights, layout);
        expect(bitsOf(min)).toEqual(bitsOf(plain.min));
        expect(bitsOf(max)).toEqual(bitsOf(plain.max));
        for (let g = 0; g < absmax.length; g++) {
          const block = weights.subarray(g * layout.block, (g + 1) * layout.block);
          expect(absmax[g]).toBe(Math.max(...block.map(Math.abs)));
          expect([min[g], max[g]]).toEqual([Math.min(...block) + 0, Math.max(...block) + 0]);
        }
      }),
    );
  });

  it('folds a row that is longer than a window', () => {
    const weights = gaussian(5000, 3);
    weights[4321] = -77;
    const layout = { rows: 1, columns: 5000, block: 5000 };
    expect([...smallWindows.findAbsmax(weights, layout)]).toEqual([77]);
    expect(smallWindows.findMinMax(weights, layout).min[0]).toBe(-77);
  });

  it.each([Number.NaN, Infinity, -Infinity])('refuses %s with its place', (wrong) => {
    const weights = new Float32Array(40 * 30).fill(1);
    weights[33 * 30 + 7] = wrong;
    const layout = { rows: 40, columns: 30, block: 10, name: 'layers.0.q_proj' };
    for (const kernels of [smallWindows, twin]) {
      const attempts = [() => kernels.findAbsmax(weights, layout), () => kernels.findMinMax(weights, layout)];
      for (const attempt of attempts) {
        expect(attempt).toThrow(
          expect.objectContaining({
            code: 'QT010',
            where: 'layers.0.q_proj',
            message: expect.stringContaining('[33, 7]'),
          }),
        );
      }
    }
  });
});

describe('activation ranges', () => {
  it('takes the range of what is finite and counts the rest', () => {
    fc.assert(
      fc.property(anyArray(anyFloat), (values) => {
        const range = smallWindows.findRange(values);
        expect(range).toEqual(twin.findRange(values));
        const finite = values.filter(Number.isFinite);
        expect(range).toEqual({
          min: finite.reduce((a, b) => Math.min(a, b), Infinity) + 0,
          max: finite.reduce((a, b) => Math.max(a, b), -Infinity) + 0,
          skipped: values.length - finite.length,
        });
      }),
    );
  });

  it('accumulates channels over calls as over one matrix', () => {
    fc.assert(
      fc.property(matrixCase(fc.float({ min: -1000, max: 1000, noNaN: true })), ({ weights, layout }) => {
        const { rows, columns } = layout;
        const results = [smallWindows, twin].map((kernels) => {
          const statistics = createChannelStatistics(columns);
          kernels.accumulateChannels(weights.subarray(0, columns), statistics);
          if (rows > 1) kernels.accumulateChannels(weights.subarray(columns), statistics);
          expect(statistics.tokens).toBe(rows);
          return statistics;
        });
        expect(bitsOf(results[0].absmax)).toEqual(bitsOf(results[1].absmax));
        expect(bitsOf(results[0].sumSquares)).toEqual(bitsOf(results[1].sumSquares));
        for (let c = 0; c < columns; c++) {
          let sum = 0;
          for (let r = 0; r < rows; r++) sum += weights[r * columns + c] ** 2;
          expect(results[0].sumSquares[c]).toBe(sum);
        }
      }),
    );
  });

  it('refuses activations that are not finite', () => {
    const values = new Float32Array(12);
    values[7] = Number.NaN;
    for (const kernels of [smallWindows, twin]) {
      const attempt = (): void => kernels.accumulateChannels(values, createChannelStatistics(4));
      expect(attempt).toThrow(expect.objectContaining({ code: 'QT010', message: expect.stringContaining('[1, 3]') }));
    }
  });

  it('counts a histogram alike, every finite value once', () => {
    fc.assert(
      fc.property(anyArray(anyFloat), fc.constantFrom(2048, 7), (values, bins) => {
        const results = [smallWindows, twin].map((kernels) => {
          const histogram = createHistogram(-3, 2.5, bins);
          kernels.accumulateHistogram(values, histogram);
          kernels.accumulateHistogram(values, histogram);
          return histogram;
        });
        expect(results[0]).toEqual(results[1]);
        const counted = results[0].counts.reduce((a, b) => a + b, 0);
        expect(counted + results[0].skipped).toBe(2 * values.length);
      }),
    );
  });

  it('puts values into the bins they belong to and outside ones into the ends', () => {
    const histogram = createHistogram(0, 4, 4);
    smallWindows.accumulateHistogram(Float32Array.of(-9, 0, 0.5, 1, 2.5, 3.99, 4, 100, Number.NaN), histogram);
    expect([...histogram.counts]).toEqual([3, 1, 1, 3]);
    expect(histogram.skipped).toBe(1);
  });
});

describe('differences', () => {
  it('sums pairs alike and leaves non-finite pairs out', () => {
    fc.assert(
      fc.property(anyArray(anyFloat), anyArray(anyFloat), (a, b) => {
        const length = Math.min(a.length, b.length);
        const results = [smallWindows, twin].map((kernels) => {
          const sums = createDifferenceSums();
          kernels.accumulateDifference(a.subarray(0, length), b.subarray(0, length), sums);
          return sums;
        });
        expect(results[0]).toEqual(results[1]);
        expect(results[0].count).toBe(length);
      }),
    );
  });

  it('agrees with a plain f64 loop over more than one span', () => {
    const a = gaussian(150_000, 1);
    const b = a.map((value, i) => value + (i % 3) * 0.01);
    const sums = createDifferenceSums();
    smallWindows.accumulateDifference(a, b, sums);
    let signal = 0;
    let noise = 0;
    for (let i = 0; i < a.length; i++) {
      signal += a[i] ** 2;
      noise += (a[i] - b[i]) ** 2;
    }
    expect(sums.reference2).toBeCloseTo(signal, 6);
    expect(sums.difference2).toBeCloseTo(noise, 9);
    expect(signalToNoise(sums)).toBeCloseTo(10 * Math.log10(signal / noise), 9);
    expect(cosineSimilarity(sums)).toBeGreaterThan(0.999);
    expect(sums.maxDifference).toBeCloseTo(0.02, 6);
  });

  it('says Infinity and 1 where nothing differs', () => {
    fc.assert(
      fc.property(fc.array(finiteFloat, { minLength: 1 }), (values) => {
        const sums = createDifferenceSums();
        smallWindows.accumulateDifference(Float32Array.from(values), Float32Array.from(values), sums);
        expect(signalToNoise(sums)).toBe(Infinity);
        expect(cosineSimilarity(sums)).toBeCloseTo(1, 12);
      }),
    );
  });
});

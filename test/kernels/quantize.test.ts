import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { INT4, INT4_SYMMETRIC, INT8_SYMMETRIC, type Layout, type QuantRange } from '../../compiler/kernels/index.ts';
import { anyFloat, bitsOf, floats, gaussian, matrixCase, rangeArbitrary, smallWindows, twin } from './arbitraries.ts';

/** absmax scales made safe, as a caller without a search would. */
function absmaxScales(weights: Float32Array, layout: Layout, range: QuantRange): Float32Array {
  return twin.findAbsmax(weights, layout).map((absmax) => Math.max(absmax / range.max, 1e-30));
}

describe('quantizing weights', () => {
  it('gives the same integers and the same fake-quantized floats', () => {
    fc.assert(
      fc.property(matrixCase(), rangeArbitrary, ({ weights, layout }, range) => {
        const scales = absmaxScales(weights, layout, range);
        const results = [smallWindows, twin].map((kernels) => {
          const integers = new Int8Array(weights.length);
          const fake = new Float32Array(weights.length);
          const back = new Float32Array(weights.length);
          kernels.quantizeI8(weights, layout, scales, range, integers);
          kernels.fakeQuantizeWeights(weights, layout, scales, range, fake);
          kernels.dequantizeI8(integers, layout, scales, back);
          expect(bitsOf(fake)).toEqual(bitsOf(back));
          return { integers, fake };
        });
        expect(results[0].integers).toEqual(results[1].integers);
        expect(bitsOf(results[0].fake)).toEqual(bitsOf(results[1].fake));
      }),
    );
  });

  it('packs int4 as quantizing to i8 and packing does, odd sizes included', () => {
    fc.assert(
      fc.property(matrixCase(), fc.constantFrom(INT4, INT4_SYMMETRIC), ({ weights, layout }, range) => {
        const scales = absmaxScales(weights, layout, range);
        const integers = new Int8Array(weights.length);
        twin.quantizeI8(weights, layout, scales, range, integers);
        for (const kernels of [smallWindows, twin]) {
          const packed = new Uint8Array(Math.ceil(weights.length / 2));
          const unpacked = new Int8Array(weights.length);
          const floatsBack = new Float32Array(weights.length);
          const expected = new Float32Array(weights.length);
          kernels.quantizeI4(weights, layout, scales, range, packed);
          kernels.unpackI4(packed, unpacked);
          expect(unpacked).toEqual(integers);
          kernels.dequantizeI4(packed, layout, scales, floatsBack);
          kernels.dequantizeI8(integers, layout, scales, expected);
          expect(bitsOf(floatsBack)).toEqual(bitsOf(expected));
        }
      }),
    );
  });

  it.each([3, 85])('keeps int4 pairs together where windows hold an odd number of blocks of %i', (block) => {
    const layout = { rows: 40, columns: 3 * block, block };
    const weights = gaussian(layout.rows * layout.columns, block);
    const scales = absmaxScales(weights, layout, INT4);
    const integers = new Int8Array(weights.length);
    const packed = new Uint8Array(weights.length / 2);
    const unpacked = new Int8Array(weights.length);
    twin.quantizeI8(weights, layout, scales, INT4, integers);
    smallWindows.quantizeI4(weights, layout, scales, INT4, packed);
    smallWindows.unpackI4(packed, unpacked);
    expect(unpacked).toEqual(integers);
  });

  it('refuses an odd block that is longer than a window, which no cut at whole bytes divides', () => {
    const layout = { rows: 2, columns: 333, block: 333, name: 'w' };
    const attempt = (): void =>
      smallWindows.quantizeI4(new Float32Array(666), layout, Float32Array.of(1, 1), INT4, new Uint8Array(333));
    expect(attempt).toThrow(expect.objectContaining({ code: 'QT015', where: 'w' }));
  });

  it('errs by half a scale at most inside the limits, and clips outside', () => {
    const weight = fc.float({ min: -10, max: 10, noNaN: true });
    fc.assert(
      fc.property(
        matrixCase(weight),
        fc.float({ min: Math.fround(0.01), max: 3, noNaN: true }),
        ({ weights, layout }, scale) => {
          const scales = new Float32Array(weights.length / layout.block).fill(scale);
          const fake = new Float32Array(weights.length);
          smallWindows.fakeQuantizeWeights(weights, layout, scales, INT4, fake);
          for (let i = 0; i < weights.length; i++) {
            const inside = Math.min(Math.max(weights[i], INT4.min * scale), INT4.max * scale);
            expect(Math.abs(fake[i] - inside)).toBeLessThanOrEqual((scale / 2) * (1 + 1e-5));
          }
        },
      ),
    );
  });

  it('rounds ties to even', () => {
    const weights = Float32Array.of(0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 127.5, -126.5, -127.5, 0.49999997);
    const layout = { rows: 1, columns: weights.length, block: weights.length };
    const integers = new Int8Array(weights.length);
    for (const kernels of [smallWindows, twin]) {
      kernels.quantizeI8(weights, layout, Float32Array.of(1), INT8_SYMMETRIC, integers);
      expect([...integers]).toEqual([0, 2, 2, 0, -2, -2, 126, 127, -126, -127, 0]);
    }
  });

  it('works in place and over groups longer than a window', () => {
    const weights = gaussian(3 * 4000, 9);
    const layout = { rows: 3, columns: 4000, block: 4000 };
    const scales = absmaxScales(weights, layout, INT8_SYMMETRIC);
    const expected = new Float32Array(weights.length);
    twin.fakeQuantizeWeights(weights, layout, scales, INT8_SYMMETRIC, expected);
    smallWindows.fakeQuantizeWeights(weights, layout, scales, INT8_SYMMETRIC, weights);
    expect(bitsOf(weights)).toEqual(bitsOf(expected));
  });

  it('refuses what it cannot quantize, with a code', () => {
    const weights = new Float32Array(64).fill(1);
    const layout = { rows: 2, columns: 32, block: 16, name: 'w' };
    const scales = new Float32Array(4).fill(0.1);
    const target = new Int8Array(64);
    for (const kernels of [smallWindows, twin]) {
      const quantize = (w: Float32Array, l: Layout, s: Float32Array) => () =>
        kernels.quantizeI8(w, l, s, INT8_SYMMETRIC, target);
      const withNaN = weights.slice();
      withNaN[37] = Number.NaN;
      const code = (expected: string) => expect.objectContaining({ code: expected, where: 'w' });
      expect(quantize(withNaN, layout, scales)).toThrow(code('QT010'));
      expect(quantize(weights, { ...layout, block: 12 }, scales)).toThrow(code('QT104'));
      for (const wrong of [0, -1, Number.NaN, Infinity]) {
        expect(quantize(weights, layout, Float32Array.of(1, 1, wrong, 1))).toThrow(code('QT012'));
      }
      const packed = new Uint8Array(32);
      const asI4 = (w: Float32Array, range: QuantRange) => () => kernels.quantizeI4(w, layout, scales, range, packed);
      expect(asI4(withNaN, INT4)).toThrow(code('QT010'));
      expect(asI4(weights, INT8_SYMMETRIC)).toThrow(expect.objectContaining({ code: 'QT014' }));
      expect(() => kernels.fakeQuantizeWeights(withNaN, layout, scales, INT4, new Float32Array(64))).toThrow(
        code('QT010'),
      );
    }
  });
});

describe('int4 pairs', () => {
  it('returns what was packed, low half first', () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: -8, max: 7 }), { maxLength: 5000 }), (values) => {
        const integers = Int8Array.from(values);
        const packed = [smallWindows, twin].map((kernels) => {
          const bytes = new Uint8Array(Math.ceil(values.length / 2)).fill(0xaa);
          const back = new Int8Array(values.length);
          kernels.packI4(integers, bytes);
          kernels.unpackI4(bytes, back);
          expect(back).toEqual(integers);
          return bytes;
        });
        expect(packed[0]).toEqual(packed[1]);
      }),
    );
    const bytes = new Uint8Array(2);
    smallWindows.packI4(Int8Array.of(1, -1, -8), bytes);
    expect([...bytes]).toEqual([0xf1, 0x08]);
  });

  it('refuses integers outside int4, wherever they stand', () => {
    for (const at of [0, 31, 32, 700, 1999]) {
      for (const wrong of [8, -9, 127, -128]) {
        const integers = new Int8Array(2000);
        integers[at] = wrong;
        for (const kernels of [smallWindows, twin]) {
          const attempt = (): void => kernels.packI4(integers, new Uint8Array(1000));
          expect(attempt).toThrow(
            expect.objectContaining({ code: 'QT014', message: expect.stringContaining(`${wrong} at index ${at}`) }),
          );
        }
      }
    }
  });
});

describe('fake-quantized activations', () => {
  const encodings = fc.record({
    scale: fc.float({ min: Math.fround(1e-6), max: 10, noNaN: true }),
    limits: fc.constantFrom([0, 255], [0, 65535], [-32768, 32767], [-128, 127]),
    zero: fc.float({ min: 0, max: 1, noNaN: true }),
  });

  it('agrees with the twin and with the formula', () => {
    const values = fc.integer({ min: 1, max: 1200 }).chain((length) => floats(anyFloat, length));
    fc.assert(
      fc.property(values, encodings, (array, { scale, limits: [min, max], zero }) => {
        const zeroPoint = min + Math.floor(zero * (max - min));
        const encoding = { scale, zeroPoint, min, max };
        const results = [smallWindows, twin].map((kernels) => {
          const target = new Float32Array(array.length);
          kernels.fakeQuantizeActivations(array, encoding, target);
          return target;
        });
        expect(bitsOf(results[0])).toEqual(bitsOf(results[1]));
        for (let i = 0; i < array.length; i++) {
          if (Number.isNaN(array[i])) {
            expect(results[0][i]).toBeNaN();
            continue;
          }
          const clipped = Math.min(Math.max(array[i], (min - zeroPoint) * scale), (max - zeroPoint) * scale);
          // Half a step, and the rounding of x / scale and of the product at 16 bits.
          expect(Math.abs(results[0][i] - clipped)).toBeLessThanOrEqual(scale * (0.5 + 65536 * 2 ** -22));
          if (results[0][i] === 0) expect(Object.is(results[0][i], 0)).toBe(true);
        }
      }),
    );
  });

  it('does what ONNX QuantizeLinear and DequantizeLinear do', () => {
    const target = new Float32Array(6);
    const encoding = { scale: 0.5, zeroPoint: 3, min: 0, max: 255 };
    smallWindows.fakeQuantizeActivations(Float32Array.of(-10, -1.25, -0.75, 0.25, 0.75, 1000), encoding, target);
    expect([...target]).toEqual([-1.5, -1, -1, 0, 1, 126]);
  });
});

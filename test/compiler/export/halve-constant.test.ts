import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { halveLazily, toHalves } from '../../../compiler/export/halve-constant.ts';
import { halfToNumber } from '../../../compiler/ir/dtype.ts';
import { Tensor, transposeTensor } from '../../../compiler/ir/tensor.ts';

describe('half floats of a constant', () => {
  it('are the nearest ones', () => {
    fc.assert(
      fc.property(fc.float({ min: -65504, max: 65504, noNaN: true }), (value) => {
        const [bits] = toHalves(Float32Array.of(value), 'w');
        const half = halfToNumber(bits!);
        const spacing = Math.max(2 ** -24, 2 ** (Math.floor(Math.log2(Math.max(Math.abs(value), 2 ** -14))) - 10));
        expect(Math.abs(half - value)).toBeLessThanOrEqual(spacing / 2);
      }),
    );
  });

  it('are one tensor for one constant, and the transpose of a stored matrix stays its transpose', () => {
    const rows = Tensor.of('f32', [2, 3], [1, 2, 3, 4, 5, 6]);
    const weight = transposeTensor(rows);
    const half = halveLazily(weight, 'w');
    expect(halveLazily(weight, 'w')).toBe(half);
    expect([half.dtype, half.shape, [...half.toFloats()]]).toEqual(['f16', [3, 2], [1, 4, 2, 5, 3, 6]]);
    expect(transposeTensor(half)).toBe(halveLazily(rows, 'w'));
  });

  it('do not exist for large numbers, infinities and NaN', () => {
    expect(() => toHalves(Float32Array.of(1, 65520), 'w')).toThrow(
      expect.objectContaining({
        code: 'QT011',
        where: 'w',
        message: expect.stringContaining('element 1 of w is 65520'),
      }),
    );
    expect([...toHalves(Float32Array.of(65519.99), 'w')]).toEqual([0x7bff]);
    for (const value of [Number.NaN, Number.POSITIVE_INFINITY]) {
      expect(() => toHalves(Float32Array.of(value), 'w')).toThrow(expect.objectContaining({ code: 'QT010' }));
    }
  });
});

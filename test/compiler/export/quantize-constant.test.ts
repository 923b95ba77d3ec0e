import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { dequantizeConstant, quantizeConstant, quantizeLazily } from '../../../compiler/export/quantize-constant.ts';
import { type Encoding, integerRange, roundEven } from '../../../compiler/ir/encoding.ts';
import { elementCount, Tensor, transposeTensor } from '../../../compiler/ir/tensor.ts';

const integersOf = (bytes: Uint8Array, { dtype }: Encoding, shape: readonly number[]): number[] =>
  new Tensor(dtype, shape, { kind: 'memory', bytes }).toNumbers();

/** Scale and zero point of one element, straight from the definition of Encoding. */
function parametersAt(encoding: Encoding, shape: readonly number[], index: number): { scale: number; zero: number } {
  const { axis, block, scale, zeroPoint, channelAxis, blockScale } = encoding;
  const at: number[] = [];
  let rest = index;
  for (let d = shape.length - 1; d >= 0; d--) {
    at[d] = rest % shape[d]!;
    rest = Math.floor(rest / shape[d]!);
  }
  let slot = 0;
  if (axis !== undefined && block === undefined) slot = at[axis]!;
  else if (axis !== undefined) {
    for (let d = 0; d < shape.length; d++) {
      slot = slot * (d === axis ? shape[d]! / block! : shape[d]!) + (d === axis ? Math.floor(at[d]! / block!) : at[d]!);
    }
  }
  const step = blockScale ? Math.fround(blockScale[slot]! * scale[at[channelAxis!]!]!) : scale[slot]!;
  return { scale: step, zero: zeroPoint?.[zeroPoint.length === 1 ? 0 : slot] ?? 0 };
}

function quantizeByDefinition(data: Float32Array, encoding: Encoding, shape: readonly number[]): number[] {
  const [low, high] = integerRange(encoding.dtype);
  const floor = encoding.dtype === 'i8' && !encoding.zeroPoint?.some((zero) => zero !== 0) ? -127 : low;
  return Array.from(data, (value, index) => {
    const { scale, zero } = parametersAt(encoding, shape, index);
    return Math.min(high, Math.max(floor, roundEven(Math.fround(value / scale)) + zero));
  });
}

const scales = (count: number): fc.Arbitrary<Float32Array> =>
  fc
    .array(fc.double({ min: 0.004, max: 0.5, noNaN: true }), { minLength: count, maxLength: count })
    .map((entries) => Float32Array.from(entries));
const bytes = (count: number): fc.Arbitrary<Uint8Array> =>
  fc.uint8Array({ min: 1, max: 15, minLength: count, maxLength: count });

/** Shapes [rows, columns] with encodings of every form over either axis. */
const cases = fc
  .record({
    rows: fc.integer({ min: 1, max: 6 }),
    columns: fc.integer({ min: 1, max: 6 }),
    block: fc.integer({ min: 1, max: 3 }),
  })
  .chain(({ rows, columns, block }) =>
    fc.constantFrom(0, 1).chain((axis) => {
      const shape = axis === 0 ? [rows * block, columns] : [rows, columns * block];
      const blocks = rows * columns;
      const dtype = fc.constantFrom<Encoding['dtype'][]>('i4', 'u4', 'i8', 'u8', 'i16', 'u16');
      const zero = (count: number): fc.Arbitrary<Int32Array | undefined> =>
        fc.option(
          fc
            .array(fc.integer({ min: 0, max: 7 }), { minLength: count, maxLength: count })
            .map((entries) => Int32Array.from(entries)),
          {
            nil: undefined,
          },
        );
      const encoding: fc.Arbitrary<Encoding> = fc.oneof(
        fc.record({ dtype, scale: scales(1), zeroPoint: zero(1) }),
        fc.record({ dtype, scale: scales(shape[axis]!), axis: fc.constant(axis), zeroPoint: zero(shape[axis]!) }),
        fc.record({
          dtype,
          scale: scales(blocks),
          axis: fc.constant(axis),
          block: fc.constant(block),
          zeroPoint: zero(blocks),
        }),
        fc.record({
          dtype: fc.constantFrom<Encoding['dtype'][]>('i4', 'i8'),
          scale: scales(shape[1 - axis]!),
          axis: fc.constant(axis),
          block: fc.constant(block),
          channelAxis: fc.constant(1 - axis),
          blockScale: bytes(blocks),
        }),
      );
      const size = elementCount(shape);
      const data = fc.array(fc.double({ min: -9, max: 9, noNaN: true }), { minLength: size, maxLength: size });
      return fc.record({
        shape: fc.constant(shape),
        encoding,
        data: data.map((entries) => Float32Array.from(entries)),
      });
    }),
  );

describe('constants under an encoding', () => {
  it('are rounded by the definition, whatever the form, the axis and how they are stored', () => {
    fc.assert(
      fc.property(cases, ({ shape, encoding, data }) => {
        const expected = quantizeByDefinition(data, encoding, shape);
        const plain = Tensor.of('f32', shape, data);
        expect(integersOf(quantizeConstant(plain, encoding, 'w'), encoding, shape)).toEqual(expected);
        // The same matrix, stored transposed: the integers are transposed instead of the floats.
        const [rows, columns] = shape as [number, number];
        const turned = Float32Array.from(data, (_, i) => data[(i % rows) * columns + Math.floor(i / rows)]!);
        const stored = transposeTensor(Tensor.of('f32', [columns, rows], turned));
        expect(stored.shape).toEqual(shape);
        expect(integersOf(quantizeConstant(stored, encoding, 'w'), encoding, shape)).toEqual(expected);
      }),
      { numRuns: 400 },
    );
  });

  it('are within half a step where they are not clipped', () => {
    fc.assert(
      fc.property(cases, ({ shape, encoding, data }) => {
        const tensor = quantizeLazily(Tensor.of('f32', shape, data), encoding, 'w');
        const integers = tensor.toNumbers();
        const reals = dequantizeConstant(tensor, encoding);
        const [low, high] = integerRange(encoding.dtype);
        data.forEach((value, index) => {
          const { scale, zero } = parametersAt(encoding, shape, index);
          expect(reals[index]).toBe(Math.fround((integers[index]! - zero) * scale));
          const clipped = integers[index]! <= Math.max(low, -127) || integers[index]! >= high;
          if (!clipped) expect(Math.abs(reals[index]! - value)).toBeLessThanOrEqual((scale / 2) * (1 + 1e-5));
        });
      }),
    );
  });

  it('keep -128 out of symmetric i8 only', () => {
    const data = Tensor.of('f32', [2], [-200, 200]);
    const symmetric: Encoding = { dtype: 'i8', scale: Float32Array.of(1) };
    const affine: Encoding = { ...symmetric, zeroPoint: Int32Array.of(-3) };
    expect(integersOf(quantizeConstant(data, symmetric, 'w'), symmetric, [2])).toEqual([-127, 127]);
    expect(integersOf(quantizeConstant(data, affine, 'w'), affine, [2])).toEqual([-128, 127]);
  });

  it('must be finite', () => {
    for (const encoding of [
      { dtype: 'i8', scale: Float32Array.of(1) },
      { dtype: 'u16', scale: Float32Array.of(1) },
    ] satisfies Encoding[]) {
      for (const value of [Number.NaN, Number.POSITIVE_INFINITY]) {
        const data = Tensor.of('f32', [1, 2], [1, value]);
        expect(() => quantizeConstant(data, encoding, 'w')).toThrow(expect.objectContaining({ code: 'QT010' }));
      }
    }
  });

  it('saturate instead of failing when a scale is far too small', () => {
    const encoding: Encoding = { dtype: 'u16', scale: Float32Array.of(1e-38) };
    const data = Tensor.of('f32', [2], [3e38, -3e38]);
    expect(integersOf(quantizeConstant(data, encoding, 'w'), encoding, [2])).toEqual([65535, 0]);
  });
});

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { bitsOf, gaussian, smallWindows, twin } from './arbitraries.ts';

const side = fc.oneof(fc.integer({ min: 1, max: 40 }), fc.constantFrom(63, 64, 65, 128, 513, 1030));

describe('transposes', () => {
  it('moves every f32 and i8 to its place', () => {
    fc.assert(
      fc.property(side, side, (rows, columns) => {
        const source = gaussian(rows * columns, rows * 7 + columns);
        const bytes = Int8Array.from(source, (value) => value * 30);
        for (const kernels of [smallWindows, twin]) {
          const target = new Float32Array(source.length);
          const byteTarget = new Int8Array(source.length);
          kernels.transposeF32(source, rows, columns, target);
          kernels.transposeI8(bytes, rows, columns, byteTarget);
          const at = target.findIndex((value, i) => value !== source[(i % rows) * columns + Math.floor(i / rows)]);
          const byteAt = byteTarget.findIndex(
            (value, i) => value !== bytes[(i % rows) * columns + Math.floor(i / rows)],
          );
          expect([at, byteAt]).toEqual([-1, -1]);
        }
      }),
      { numRuns: 60 },
    );
  });

  it('moves packed int4 as unpacking, transposing and packing does, odd sides included', () => {
    fc.assert(
      fc.property(side, side, (rows, columns) => {
        const integers = Int8Array.from(gaussian(rows * columns, rows + 3 * columns), (v) =>
          Math.max(-8, Math.min(7, v * 4)),
        );
        const packed = new Uint8Array(Math.ceil(integers.length / 2));
        const turned = new Int8Array(integers.length);
        const expected = new Uint8Array(packed.length);
        twin.packI4(integers, packed);
        twin.transposeI8(integers, rows, columns, turned);
        twin.packI4(turned, expected);
        for (const kernels of [smallWindows, twin]) {
          const target = new Uint8Array(packed.length).fill(0xee);
          kernels.transposeI4(packed, rows, columns, target);
          expect(Buffer.compare(target, expected)).toBe(0);
        }
      }),
      { numRuns: 60 },
    );
  });

  it('is its own inverse on a matrix of several tiles', () => {
    const source = gaussian(700 * 1100, 2);
    const there = new Float32Array(source.length);
    const back = new Float32Array(source.length);
    wasmKernels.transposeF32(source, 700, 1100, there);
    wasmKernels.transposeF32(there, 1100, 700, back);
    expect(Buffer.compare(bitsOf(back), bitsOf(source))).toBe(0);
  });

  it('refuses sizes that do not fit', () => {
    expect(() => wasmKernels.transposeI4(new Uint8Array(6), 3, 5, new Uint8Array(8))).toThrow(
      /6 entries, 8 are needed/,
    );
  });
});

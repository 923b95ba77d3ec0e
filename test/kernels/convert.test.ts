import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { anyFloat, bitsOf, floats, smallWindows, twin } from './arbitraries.ts';

const allHalves = new Uint8Array(new Uint16Array(65536).map((_, i) => i).buffer);

describe('f16 and bf16', () => {
  it('decodes every f16 pattern alike, and as IEEE 754 says', () => {
    const wasm = new Float32Array(65536);
    const plain = new Float32Array(65536);
    smallWindows.decodeF16(allHalves, wasm);
    twin.decodeF16(allHalves, plain);
    expect(bitsOf(wasm)).toEqual(bitsOf(plain));
    for (let half = 0; half < 65536; half++) {
      const exponent = (half >> 10) & 31;
      const mantissa = half & 1023;
      const sign = half & 0x8000 ? -1 : 1;
      const magnitude = exponent === 0 ? mantissa * 2 ** -24 : (1024 + mantissa) * 2 ** (exponent - 25);
      const expected = exponent < 31 ? sign * magnitude : mantissa === 0 ? sign * Infinity : Number.NaN;
      if (!Object.is(wasm[half], expected)) expect([half, wasm[half]]).toEqual([half, expected]);
    }
  });

  it('encodes back every f16 that is not NaN', () => {
    const values = new Float32Array(65536);
    twin.decodeF16(allHalves, values);
    for (const kernels of [smallWindows, twin]) {
      const encoded = new Uint8Array(131072);
      kernels.encodeF16(values, encoded);
      const halves = new Uint16Array(encoded.buffer);
      const wrong = halves.findIndex((half, i) => half !== (Number.isNaN(values[i]) ? (i & 0x8000) | 0x7e00 : i));
      expect(wrong).toBe(-1);
    }
  });

  it('rounds the middle between two f16 to the even one', () => {
    const values = new Float32Array(65536);
    twin.decodeF16(allHalves, values);
    const middles = Float32Array.from({ length: 0x7bff }, (_, i) => (values[i] + values[i + 1]) / 2);
    for (const kernels of [smallWindows, twin]) {
      const encoded = new Uint8Array(middles.length * 2);
      kernels.encodeF16(middles, encoded);
      const halves = new Uint16Array(encoded.buffer);
      expect(halves.findIndex((half, i) => half !== i + (i & 1))).toBe(-1);
    }
    const edges = new Uint8Array(8);
    smallWindows.encodeF16(Float32Array.of(65519.996, 65520, 2 ** -25, -(2 ** -25) * 1.0001), edges);
    expect([...new Uint16Array(edges.buffer)]).toEqual([0x7bff, 0x7c00, 0, 0x8001]);
  });

  it('converts any floats and any bytes alike', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 700 }).chain((length) => floats(anyFloat, length)),
        fc.uint8Array({ maxLength: 1500 }),
        (values, bytes) => {
          const half = [smallWindows, twin].map((kernels) => {
            const target = new Uint8Array(values.length * 2);
            kernels.encodeF16(values, target);
            return target;
          });
          expect(half[0]).toEqual(half[1]);
          // An odd offset: file ranges start anywhere.
          const source = bytes.subarray(bytes.length % 2);
          for (const name of ['decodeBf16', 'decodeF16'] as const) {
            const decoded = [smallWindows, twin].map((kernels) => {
              const target = new Float32Array(source.length / 2);
              kernels[name](source, target);
              return bitsOf(target);
            });
            expect(decoded[0]).toEqual(decoded[1]);
          }
        },
      ),
    );
  });

  it('takes bf16 as the upper half of f32', () => {
    const target = new Float32Array(3);
    smallWindows.decodeBf16(new Uint8Array(Uint16Array.of(0x3f80, 0xc040, 0x7f80).buffer), target);
    expect([...target]).toEqual([1, -3, Infinity]);
  });

  it('refuses arrays that do not fit together', () => {
    expect(() => smallWindows.decodeF16(new Uint8Array(5), new Float32Array(2))).toThrow(/5 entries, 4 are needed/);
  });
});

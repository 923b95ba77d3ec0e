import { roundEven } from '../ir/encoding.ts';
import { INFINITE_BITS } from './engine.ts';
import { bitsOf } from './plain-range.ts';

/** Twins of assembly/convert.ts and assembly/transpose.ts. Format facts: IEEE 754 binary16; bf16 is f32's upper half. */

export function decodeBf16(source: Uint8Array, target: Float32Array): void {
  const bits = bitsOf(target);
  for (let i = 0; i < bits.length; i++) bits[i] = (source[2 * i] << 16) | (source[2 * i + 1] << 24);
}

export function decodeF16(source: Uint8Array, target: Float32Array): void {
  const bits = bitsOf(target);
  for (let i = 0; i < bits.length; i++) bits[i] = halfToFloatBits(source[2 * i] | (source[2 * i + 1] << 8));
}

function halfToFloatBits(half: number): number {
  const sign = (half & 0x8000) << 16;
  const exponent = (half >> 10) & 31;
  const mantissa = half & 0x3ff;
  if (exponent === 31) return sign | INFINITE_BITS | (mantissa << 13);
  if (exponent > 0) return sign | ((exponent + 112) << 23) | (mantissa << 13);
  if (mantissa === 0) return sign;
  const shift = Math.clz32(mantissa) - 21;
  return sign | ((113 - shift) << 23) | (((mantissa << shift) & 0x3ff) << 13);
}

export function encodeF16(source: Float32Array, target: Uint8Array): void {
  const bits = bitsOf(source);
  for (let i = 0; i < bits.length; i++) {
    const half = floatToHalf(bits[i], Math.abs(source[i]));
    target[2 * i] = half & 255;
    target[2 * i + 1] = half >> 8;
  }
}

function floatToHalf(bits: number, magnitude: number): number {
  const sign = (bits >>> 16) & 0x8000;
  if (Number.isNaN(magnitude)) return sign | 0x7e00;
  if (magnitude >= 65520) return sign | 0x7c00;
  // A subnormal's integer is its bits; 1024 is already the smallest normal number.
  if (magnitude < 2 ** -14) return sign | roundEven(magnitude * 2 ** 24);
  // A mantissa that rounds up to 1024 carries into the exponent.
  const exponent = ((bits >> 23) & 255) - 112;
  return sign | ((exponent << 10) + roundEven((bits & 0x7fffff) / 8192));
}

/** [rows, columns] to [columns, rows], in blocks so that both sides stay in the cache. */
export function transpose<T extends Float32Array | Int8Array>(
  source: T,
  rows: number,
  columns: number,
  target: T,
): void {
  const block = 64;
  for (let r0 = 0; r0 < rows; r0 += block) {
    for (let c0 = 0; c0 < columns; c0 += block) {
      const r1 = Math.min(rows, r0 + block);
      const c1 = Math.min(columns, c0 + block);
      for (let r = r0; r < r1; r++) for (let c = c0; c < c1; c++) target[c * rows + r] = source[r * columns + c];
    }
  }
}

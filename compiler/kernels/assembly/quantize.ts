// Rounding (ties to even, as ONNX QuantizeLinear: divide by the scale, then round), packing, and the way back.
import { absBits, maxLane } from './lanes';

// @ts-ignore: decorator
@inline
function roundClamped(v: v128, scale: v128, low: v128, high: v128): v128 {
  return f32x4.pmin(f32x4.pmax(f32x4.nearest(f32x4.div(v, scale)), low), high);
}

/**
 * f32 to i8, one scale for each group of `group` values. Answers the largest absolute value as bits: 0x7f800000 and
 * above means that a value was not finite.
 */
export function quantizeI8(source: usize, scales: usize, target: usize, groups: i32, group: i32, min: f32, max: f32): u32 {
  const low = f32x4.splat(min);
  const high = f32x4.splat(max);
  let bits = i32x4.splat(0);
  for (let g = 0; g < groups; g++, scales += 4) {
    const scale = v128.load32_splat(scales);
    const end = source + (<usize>group << 2);
    const body = source + (<usize>(group & ~15) << 2);
    for (; source < body; source += 64, target += 16) {
      const a = v128.load(source);
      const b = v128.load(source, 16);
      const c = v128.load(source, 32);
      const d = v128.load(source, 48);
      bits = i32x4.max_u(bits, i32x4.max_u(absBits(a), absBits(b)));
      bits = i32x4.max_u(bits, i32x4.max_u(absBits(c), absBits(d)));
      const ab = i16x8.narrow_i32x4_s(
        i32x4.trunc_sat_f32x4_s(roundClamped(a, scale, low, high)),
        i32x4.trunc_sat_f32x4_s(roundClamped(b, scale, low, high)),
      );
      const cd = i16x8.narrow_i32x4_s(
        i32x4.trunc_sat_f32x4_s(roundClamped(c, scale, low, high)),
        i32x4.trunc_sat_f32x4_s(roundClamped(d, scale, low, high)),
      );
      v128.store(target, i8x16.narrow_i16x8_s(ab, cd));
    }
    for (; source < end; source += 4, target++) {
      const v = v128.load32_splat(source);
      bits = i32x4.max_u(bits, absBits(v));
      store<i8>(target, <i8>i32x4.extract_lane(i32x4.trunc_sat_f32x4_s(roundClamped(v, scale, low, high)), 0));
    }
  }
  return maxLane(bits);
}

/** f32 to the nearest number that the quantized form holds; same answer as quantizeI8. `target` may be `source`. */
export function fakeQuantize(source: usize, scales: usize, target: usize, groups: i32, group: i32, min: f32, max: f32): u32 {
  const low = f32x4.splat(min);
  const high = f32x4.splat(max);
  const zero = f32x4.splat(0);
  let bits = i32x4.splat(0);
  for (let g = 0; g < groups; g++, scales += 4) {
    const scale = v128.load32_splat(scales);
    const end = source + (<usize>group << 2);
    const body = source + (<usize>(group & ~3) << 2);
    for (; source < body; source += 16, target += 16) {
      const v = v128.load(source);
      bits = i32x4.max_u(bits, absBits(v));
      v128.store(target, f32x4.add(f32x4.mul(roundClamped(v, scale, low, high), scale), zero));
    }
    for (; source < end; source += 4, target += 4) {
      const v = v128.load32_splat(source);
      bits = i32x4.max_u(bits, absBits(v));
      v128.store32_lane(target, f32x4.add(f32x4.mul(roundClamped(v, scale, low, high), scale), zero), 0);
    }
  }
  return maxLane(bits);
}

/** Two signed 4-bit integers a byte, the first in the low half. Answers non-zero if a value is outside -8..7. */
export function packI4(source: usize, target: usize, count: i32): i32 {
  const nibbles = i8x16.splat(0x0f);
  const bytes = i16x8.splat(0x00ff);
  let outside = i8x16.splat(0);
  const body = source + <usize>(count & ~31);
  for (; source < body; source += 32, target += 16) {
    const a = v128.load(source);
    const b = v128.load(source, 16);
    outside = v128.or(outside, v128.or(aboveNibble(a), aboveNibble(b)));
    const low = v128.and(a, nibbles);
    const high = v128.and(b, nibbles);
    v128.store(
      target,
      i8x16.narrow_i16x8_u(
        v128.and(v128.or(low, i16x8.shr_u(low, 4)), bytes),
        v128.and(v128.or(high, i16x8.shr_u(high, 4)), bytes),
      ),
    );
  }
  let wrong = v128.any_true(outside) ? 1 : 0;
  for (let rest = count & 31; rest > 0; rest -= 2, source += 2, target++) {
    const first = <i32>load<i8>(source);
    const second = rest > 1 ? <i32>load<i8>(source, 1) : 0;
    wrong |= (first + 8) & ~15;
    wrong |= (second + 8) & ~15;
    store<u8>(target, <u8>((first & 15) | ((second & 15) << 4)));
  }
  return wrong;
}

// @ts-ignore: decorator
@inline
function aboveNibble(v: v128): v128 {
  return v128.and(i8x16.add(v, i8x16.splat(8)), i8x16.splat(<i8>0xf0));
}

export function unpackI4(source: usize, target: usize, count: i32): void {
  const body = source + <usize>((count & ~31) >> 1);
  for (; source < body; source += 16, target += 32) {
    const v = v128.load(source);
    const low = i8x16.shr_s(i8x16.shl(v, 4), 4);
    const high = i8x16.shr_s(v, 4);
    v128.store(target, i8x16.shuffle(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
    v128.store(target, i8x16.shuffle(low, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), 16);
  }
  for (let rest = count & 31; rest > 0; rest -= 2, source++, target += 2) {
    const byte = <i32>load<i8>(source);
    store<i8>(target, <i8>((byte << 28) >> 28));
    if (rest > 1) store<i8>(target, <i8>(byte >> 4), 1);
  }
}

export function dequantizeI8(source: usize, scales: usize, target: usize, groups: i32, group: i32): void {
  for (let g = 0; g < groups; g++, scales += 4) {
    const scale = v128.load32_splat(scales);
    const end = source + <usize>group;
    const body = source + <usize>(group & ~7);
    for (; source < body; source += 8, target += 32) {
      const v = v128.load8x8_s(source);
      v128.store(target, f32x4.mul(f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(v)), scale));
      v128.store(target, f32x4.mul(f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(v)), scale), 16);
    }
    for (; source < end; source++, target += 4) store<f32>(target, <f32>load<i8>(source) * load<f32>(scales));
  }
}

/**
 * Affine fake quantization with one scale: min and max are the integer limits less the zero point. NaN stays NaN: each
 * clamp keeps its first operand when the comparison fails.
 */
export function fakeQuantizeAffine(
  source: usize, target: usize, count: i32, scale: f32, min: f32, max: f32,
): void {
  const scales = f32x4.splat(scale);
  const low = f32x4.splat(min);
  const high = f32x4.splat(max);
  const zero = f32x4.splat(0);
  const body = source + (<usize>(count & ~3) << 2);
  for (; source < body; source += 16, target += 16) {
    v128.store(target, f32x4.add(f32x4.mul(roundClamped(v128.load(source), scales, low, high), scales), zero));
  }
  for (let rest = count & 3; rest > 0; rest--, source += 4, target += 4) {
    const v = v128.load32_splat(source);
    v128.store32_lane(target, f32x4.add(f32x4.mul(roundClamped(v, scales, low, high), scales), zero), 0);
  }
}

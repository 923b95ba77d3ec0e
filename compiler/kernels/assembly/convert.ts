// Number formats: bf16 and f16 to f32, f32 to f16. Exact, or rounded ties to even.

/** bf16 is the upper half of f32. */
export function decodeBf16(source: usize, target: usize, count: i32): void {
  const body = source + (<usize>(count & ~7) << 1);
  for (; source < body; source += 16, target += 32) {
    const v = v128.load(source);
    v128.store(target, i32x4.shl(i32x4.extend_low_i16x8_u(v), 16));
    v128.store(target, i32x4.shl(i32x4.extend_high_i16x8_u(v), 16), 16);
  }
  for (let rest = count & 7; rest > 0; rest--, source += 2, target += 4) {
    store<u32>(target, <u32>load<u16>(source) << 16);
  }
}

/**
 * The exponent and mantissa shifted into f32 are 2^-112 of the value, subnormals included, so one exact product decodes
 * them; infinity and NaN then only lack the upper exponent bits.
 */
// @ts-ignore: decorator
@inline
function widenHalf(half: v128): v128 {
  const magnitude = i32x4.shl(v128.and(half, i32x4.splat(0x7fff)), 13);
  const value = f32x4.mul(magnitude, f32x4.splat(5192296858534827628530496329220096.0)); // 2^112
  const special = v128.and(i32x4.ge_s(magnitude, i32x4.splat(0x7c00 << 13)), i32x4.splat(0x7f800000));
  const sign = i32x4.shl(v128.and(half, i32x4.splat(0x8000)), 16);
  return v128.or(v128.or(value, special), sign);
}

export function decodeF16(source: usize, target: usize, count: i32): void {
  const body = source + (<usize>(count & ~7) << 1);
  for (; source < body; source += 16, target += 32) {
    const v = v128.load(source);
    v128.store(target, widenHalf(i32x4.extend_low_i16x8_u(v)));
    v128.store(target, widenHalf(i32x4.extend_high_i16x8_u(v)), 16);
  }
  for (let rest = count & 7; rest > 0; rest--, source += 2, target += 4) {
    v128.store32_lane(target, widenHalf(i32x4.splat(<i32>load<u16>(source))), 0);
  }
}

/**
 * Normal results: rebias the exponent and add half a unit (one less where the kept mantissa is even), so that the carry
 * does the rounding. Subnormal results: adding 0.5 makes the f32 adder round at 2^-24. NaN becomes the quiet 0x7e00.
 */
// @ts-ignore: decorator
@inline
function narrowToHalf(value: v128): v128 {
  const magnitude = v128.and(value, i32x4.splat(0x7fffffff));
  const sign = i32x4.shr_u(v128.and(value, i32x4.splat(<i32>0x80000000)), 16);
  const isNan = i32x4.gt_s(magnitude, i32x4.splat(0x7f800000));
  const special = v128.or(i32x4.splat(0x7c00), v128.and(isNan, i32x4.splat(0x0200)));
  const small = i32x4.sub(f32x4.add(magnitude, f32x4.splat(0.5)), i32x4.splat(0x3f000000));
  const odd = v128.and(i32x4.shr_u(magnitude, 13), i32x4.splat(1));
  const rebias = 0xfff - (112 << 23);
  const normal = i32x4.shr_u(i32x4.add(i32x4.add(magnitude, i32x4.splat(rebias)), odd), 13);
  const finite = v128.bitselect(small, normal, i32x4.gt_s(i32x4.splat(0x38800000), magnitude));
  return v128.or(v128.bitselect(finite, special, i32x4.gt_s(i32x4.splat(0x47800000), magnitude)), sign);
}

export function encodeF16(source: usize, target: usize, count: i32): void {
  const body = source + (<usize>(count & ~7) << 2);
  for (; source < body; source += 32, target += 16) {
    v128.store(target, i16x8.narrow_i32x4_u(narrowToHalf(v128.load(source)), narrowToHalf(v128.load(source, 16))));
  }
  for (let rest = count & 7; rest > 0; rest--, source += 4, target += 2) {
    store<u16>(target, <u16>i32x4.extract_lane(narrowToHalf(v128.load32_zero(source)), 0));
  }
}

// Shared vector pieces: tail masks, horizontal reductions, absolute values as integers.

/** Eight full lanes followed by eight empty ones: the mask of `rest` live lanes starts at element 8 - rest. */
const TAIL_MASKS: usize = memory.data<u32>([
  0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0, 0, 0, 0, 0, 0, 0, 0,
]);

/** Address of the masks (two vectors) that keep the first `rest` of eight f32 lanes. */
// @ts-ignore: decorator
@inline
export function tailMask(rest: i32): usize {
  return TAIL_MASKS + (<usize>(8 - rest) << 2);
}

/** Absolute value as an unsigned integer: orders like the real number, with infinity and NaN above every finite value. */
// @ts-ignore: decorator
@inline
export function absBits(v: v128): v128 {
  return v128.and(v, i32x4.splat(0x7fffffff));
}

// @ts-ignore: decorator
@inline
export function maxLane(v: v128): u32 {
  v = i32x4.max_u(v, i8x16.shuffle(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  return max<u32>(<u32>i32x4.extract_lane(v, 0), <u32>i32x4.extract_lane(v, 1));
}

/** (lane 0 + lane 2) + (lane 1 + lane 3): the fixed tree of every f32 sum. */
// @ts-ignore: decorator
@inline
export function sumLanes(v: v128): f32 {
  v = f32x4.add(v, i8x16.shuffle(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  return f32x4.extract_lane(v, 0) + f32x4.extract_lane(v, 1);
}

/** Largest absolute value of `count` f32, as its bits. */
// @ts-ignore: decorator
@inline
export function absmaxBits(source: usize, count: i32): u32 {
  let low = i32x4.splat(0);
  let high = i32x4.splat(0);
  const body = source + (<usize>(count & ~7) << 2);
  for (; source < body; source += 32) {
    low = i32x4.max_u(low, absBits(v128.load(source)));
    high = i32x4.max_u(high, absBits(v128.load(source, 16)));
  }
  const rest = count & 7;
  if (rest) {
    const mask = tailMask(rest);
    low = i32x4.max_u(low, absBits(v128.and(v128.load(source), v128.load(mask))));
    high = i32x4.max_u(high, absBits(v128.and(v128.load(source, 16), v128.load(mask, 16))));
  }
  return maxLane(i32x4.max_u(low, high));
}

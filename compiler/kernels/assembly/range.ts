// Ranges of weights and activations, and per-channel statistics.
import { absBits, absmaxBits, maxLane, tailMask } from './lanes';

const INFINITE_BITS: u32 = 0x7f800000;

/** Absolute maximum of each group of `group` values. Answers the largest as bits: 0x7f800000 and above is not finite. */
export function absmax(source: usize, target: usize, groups: i32, group: i32): u32 {
  let largest: u32 = 0;
  for (let i = 0; i < groups; i++) {
    const bits = absmaxBits(source, group);
    largest = max<u32>(largest, bits);
    store<u32>(target, bits);
    source += <usize>group << 2;
    target += 4;
  }
  return largest;
}

/** Minimum and maximum of each group; -0 counts as 0. Answers the largest absolute value as bits. */
export function minMax(source: usize, minima: usize, maxima: usize, groups: i32, group: i32): u32 {
  let bits = i32x4.splat(0);
  for (let i = 0; i < groups; i++) {
    let low = f32x4.splat(Infinity);
    let high = f32x4.splat(-Infinity);
    const end = source + (<usize>group << 2);
    const body = source + (<usize>(group & ~3) << 2);
    for (; source < body; source += 16) {
      const v = v128.load(source);
      bits = i32x4.max_u(bits, absBits(v));
      low = f32x4.pmin(low, v);
      high = f32x4.pmax(high, v);
    }
    for (; source < end; source += 4) {
      const v = v128.load32_splat(source);
      bits = i32x4.max_u(bits, absBits(v));
      low = f32x4.pmin(low, v);
      high = f32x4.pmax(high, v);
    }
    store<f32>(minima, lowestLane(low) + <f32>0);
    store<f32>(maxima, highestLane(high) + <f32>0);
    minima += 4;
    maxima += 4;
  }
  return maxLane(bits);
}

// @ts-ignore: decorator
@inline
function lowestLane(v: v128): f32 {
  v = f32x4.pmin(v, i8x16.shuffle(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  const a = f32x4.extract_lane(v, 0);
  const b = f32x4.extract_lane(v, 1);
  return b < a ? b : a;
}

// @ts-ignore: decorator
@inline
function highestLane(v: v128): f32 {
  v = f32x4.pmax(v, i8x16.shuffle(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  const a = f32x4.extract_lane(v, 0);
  const b = f32x4.extract_lane(v, 1);
  return a < b ? b : a;
}

/** Minimum and maximum over the finite values (two f32 at `result`). Answers how many values are not finite. */
export function finiteRange(source: usize, count: i32, result: usize): i32 {
  let low = f32x4.splat(Infinity);
  let high = f32x4.splat(-Infinity);
  let skipped = i32x4.splat(0);
  const infinite = i32x4.splat(INFINITE_BITS);
  const body = source + (<usize>(count & ~3) << 2);
  for (; source < body; source += 16) {
    const v = v128.load(source);
    const finite = i32x4.lt_s(absBits(v), infinite);
    low = f32x4.pmin(low, v128.bitselect(v, low, finite));
    high = f32x4.pmax(high, v128.bitselect(v, high, finite));
    skipped = i32x4.add(skipped, i32x4.add(finite, i32x4.splat(1)));
  }
  let total =
    i32x4.extract_lane(skipped, 0) +
    i32x4.extract_lane(skipped, 1) +
    i32x4.extract_lane(skipped, 2) +
    i32x4.extract_lane(skipped, 3);
  let least = lowestLane(low);
  let most = highestLane(high);
  for (let rest = count & 3; rest > 0; rest--, source += 4) {
    const v = load<f32>(source);
    if (!isFinite<f32>(v)) {
      total++;
      continue;
    }
    if (v < least) least = v;
    if (most < v) most = v;
  }
  store<f32>(result, least + <f32>0);
  store<f32>(result, most + <f32>0, 4);
  return total;
}

/**
 * Adds `rows` rows of `columns` activations to the running absolute maximum (f32) and sum of squares (f64) of each
 * channel. Answers the largest absolute value as bits.
 */
export function channelStatistics(source: usize, rows: i32, columns: i32, maxima: usize, squares: usize): u32 {
  let largest = i32x4.splat(0);
  const body = columns & ~3;
  for (let row = 0; row < rows; row++) {
    let m = maxima;
    let s = squares;
    for (let i = 0; i < body; i += 4, source += 16, m += 16, s += 32) {
      const v = v128.load(source);
      const bits = absBits(v);
      largest = i32x4.max_u(largest, bits);
      v128.store(m, i32x4.max_u(v128.load(m), bits));
      const low = f64x2.promote_low_f32x4(v);
      const high = f64x2.promote_low_f32x4(i8x16.shuffle(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
      v128.store(s, f64x2.add(v128.load(s), f64x2.mul(low, low)));
      v128.store(s, f64x2.add(v128.load(s, 16), f64x2.mul(high, high)), 16);
    }
    for (let i = body; i < columns; i++, source += 4, m += 4, s += 8) {
      const bits = load<u32>(source) & 0x7fffffff;
      largest = i32x4.max_u(largest, i32x4.splat(bits));
      store<u32>(m, max<u32>(load<u32>(m), bits));
      const value = <f64>load<f32>(source);
      store<f64>(s, load<f64>(s) + value * value);
    }
  }
  return maxLane(largest);
}

/**
 * Counts values into `bins` bins: bin = trunc((x - low) * perUnit), clamped to the first and last. counts is u32[bins + 1];
 * its last entry counts what is not finite.
 */
export function histogram(source: usize, count: i32, low: f32, perUnit: f32, bins: i32, counts: usize): void {
  const from = f32x4.splat(low);
  const factor = f32x4.splat(perUnit);
  const last = f32x4.splat(<f32>(bins - 1));
  const infinite = i32x4.splat(INFINITE_BITS);
  for (let left = count; left > 0; left -= 4, source += 16) {
    const v = v128.load(source);
    const scaled = f32x4.mul(f32x4.sub(v, from), factor);
    const clamped = i32x4.trunc_sat_f32x4_s(f32x4.pmin(f32x4.pmax(scaled, f32x4.splat(0)), last));
    const bin = v128.bitselect(clamped, i32x4.splat(bins), i32x4.lt_s(absBits(v), infinite));
    countBin(counts, i32x4.extract_lane(bin, 0));
    if (left > 1) countBin(counts, i32x4.extract_lane(bin, 1));
    if (left > 2) countBin(counts, i32x4.extract_lane(bin, 2));
    if (left > 3) countBin(counts, i32x4.extract_lane(bin, 3));
  }
}

// @ts-ignore: decorator
@inline
function countBin(counts: usize, bin: i32): void {
  const at = counts + (<usize>bin << 2);
  store<u32>(at, load<u32>(at) + 1);
}

/**
 * f64 sums over pairs of finite values, in four lanes by index: result = [a a, b b, a b, (a - b)^2, max |a - b|].
 * Answers how many pairs were left out.
 */
export function difference(a: usize, b: usize, count: i32, result: usize): i32 {
  let aaLow = f64x2.splat(0), abLow = f64x2.splat(0), bbLow = f64x2.splat(0), ddLow = f64x2.splat(0), mLow = f64x2.splat(0);
  let aaHigh = f64x2.splat(0), abHigh = f64x2.splat(0), bbHigh = f64x2.splat(0), ddHigh = f64x2.splat(0), mHigh = f64x2.splat(0);
  let skipped = 0;
  const infinite = i32x4.splat(INFINITE_BITS);
  for (let left = count; left > 0; left -= 4, a += 16, b += 16) {
    let x = v128.load(a);
    let y = v128.load(b);
    if (left < 4) {
      const live = v128.load(tailMask(left));
      x = v128.and(x, live);
      y = v128.and(y, live);
    }
    const finite = v128.and(i32x4.lt_s(absBits(x), infinite), i32x4.lt_s(absBits(y), infinite));
    skipped += 4 - popcnt<i32>(i32x4.bitmask(finite));
    x = v128.and(x, finite);
    y = v128.and(y, finite);
    const xLow = f64x2.promote_low_f32x4(x);
    const yLow = f64x2.promote_low_f32x4(y);
    const xHigh = f64x2.promote_low_f32x4(i8x16.shuffle(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
    const yHigh = f64x2.promote_low_f32x4(i8x16.shuffle(y, y, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
    const dLow = f64x2.sub(xLow, yLow);
    const dHigh = f64x2.sub(xHigh, yHigh);
    aaLow = f64x2.add(aaLow, f64x2.mul(xLow, xLow));
    aaHigh = f64x2.add(aaHigh, f64x2.mul(xHigh, xHigh));
    bbLow = f64x2.add(bbLow, f64x2.mul(yLow, yLow));
    bbHigh = f64x2.add(bbHigh, f64x2.mul(yHigh, yHigh));
    abLow = f64x2.add(abLow, f64x2.mul(xLow, yLow));
    abHigh = f64x2.add(abHigh, f64x2.mul(xHigh, yHigh));
    ddLow = f64x2.add(ddLow, f64x2.mul(dLow, dLow));
    ddHigh = f64x2.add(ddHigh, f64x2.mul(dHigh, dHigh));
    mLow = f64x2.pmax(mLow, f64x2.abs(dLow));
    mHigh = f64x2.pmax(mHigh, f64x2.abs(dHigh));
  }
  storeSum(result, aaLow, aaHigh);
  storeSum(result + 8, bbLow, bbHigh);
  storeSum(result + 16, abLow, abHigh);
  storeSum(result + 24, ddLow, ddHigh);
  const m = f64x2.pmax(mLow, mHigh);
  store<f64>(result, max<f64>(f64x2.extract_lane(m, 0), f64x2.extract_lane(m, 1)), 32);
  return skipped;
}

/** (lane 0 + lane 2) + (lane 1 + lane 3). */
// @ts-ignore: decorator
@inline
function storeSum(target: usize, low: v128, high: v128): void {
  const v = f64x2.add(low, high);
  store<f64>(target, f64x2.extract_lane(v, 0) + f64x2.extract_lane(v, 1));
}

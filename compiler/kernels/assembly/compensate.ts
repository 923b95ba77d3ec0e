// Rounding with error feedback (GPTQ, in the form of LDLQ) and the factorization that it needs.
import { sumLanes } from './lanes';

/** Rows that are factored together, so that each later row is read once for all of them. */
const PANEL: i32 = 32;

/** Later rows whose multiples are subtracted in one sweep over a panel row. */
const SWEEP: i32 = 4;

/**
 * H = U D U^T with U unit upper triangular, from the last row to the first. Of `hessian` [columns, columns] the lower
 * triangle is read. Row j of `factors` (`stride` f32, a multiple of 8, zeros behind) receives U[0..j-1, j]; `diagonal` receives
 * D. Accumulates in f64, stores f32. Answers the row whose pivot is not positive, or -1.
 */
export function factorHessian(
  hessian: usize, columns: i32, stride: i32, factors: usize, diagonal: usize, panel: usize,
): i32 {
  const bytes = <usize>stride << 2;
  const panelBytes = <usize>stride << 3;
  memory.fill(factors, 0, bytes * <usize>columns);
  for (let end = columns; end > 0; end -= PANEL) {
    const start = max(0, end - PANEL);
    for (let j = start; j < end; j++) {
      const row = panel + <usize>(j - start) * panelBytes;
      promoteRow(hessian + (<usize>j * <usize>columns << 2), row, j + 1, stride);
      let m = end;
      for (; m + SWEEP <= columns; m += SWEEP) {
        const u = factors + <usize>m * bytes;
        const at = <usize>j << 2;
        const d = diagonal + (<usize>m << 2);
        subtractFour(
          row, u, bytes, j + 1,
          <f64>load<f32>(u + at) * <f64>load<f32>(d),
          <f64>load<f32>(u + bytes + at) * <f64>load<f32>(d, 4),
          <f64>load<f32>(u + 2 * bytes + at) * <f64>load<f32>(d, 8),
          <f64>load<f32>(u + 3 * bytes + at) * <f64>load<f32>(d, 12),
        );
      }
      for (; m < columns; m++) {
        const u = factors + <usize>m * bytes;
        const c = <f64>load<f32>(u + (<usize>j << 2)) * <f64>load<f32>(diagonal + (<usize>m << 2));
        subtractOne(row, u, j + 1, c);
      }
    }
    for (let j = end - 1; j >= start; j--) {
      const row = panel + <usize>(j - start) * panelBytes;
      const pivot = load<f64>(row + (<usize>j << 3));
      if (!(<f32>pivot > 0)) return j;
      store<f32>(diagonal + (<usize>j << 2), <f32>pivot);
      const u = factors + <usize>j * bytes;
      for (let i = 0; i < j; i++) store<f32>(u + (<usize>i << 2), <f32>(load<f64>(row + (<usize>i << 3)) / pivot));
      for (let a = start; a < j; a++) {
        subtractOne(
          panel + <usize>(a - start) * panelBytes, u, a + 1,
          <f64>load<f32>(u + (<usize>a << 2)) * <f64>(<f32>pivot),
        );
      }
    }
  }
  return -1;
}

/** `count` f32 as f64, and zeros up to `stride`. */
function promoteRow(source: usize, target: usize, count: i32, stride: i32): void {
  for (let i = 0; i < count; i++) store<f64>(target + (<usize>i << 3), <f64>load<f32>(source + (<usize>i << 2)));
  memory.fill(target + (<usize>count << 3), 0, <usize>(stride - count) << 3);
}

/** row[0..count) -= c u: pairs of values, and one value more than `count` where it is odd (nobody reads it). */
function subtractOne(row: usize, u: usize, count: i32, c: f64): void {
  const factor = f64x2.splat(c);
  const end = row + (<usize>((count + 1) & ~1) << 3);
  for (; row < end; row += 16, u += 8) {
    v128.store(row, f64x2.sub(v128.load(row), f64x2.mul(factor, f64x2.promote_low_f32x4(v128.load64_zero(u)))));
  }
}

/** The same for four consecutive rows of factors, in order. */
function subtractFour(row: usize, u: usize, bytes: usize, count: i32, a: f64, b: f64, c: f64, d: f64): void {
  const fa = f64x2.splat(a);
  const fb = f64x2.splat(b);
  const fc = f64x2.splat(c);
  const fd = f64x2.splat(d);
  const end = row + (<usize>((count + 1) & ~1) << 3);
  for (; row < end; row += 16, u += 8) {
    let x = f64x2.sub(v128.load(row), f64x2.mul(fa, f64x2.promote_low_f32x4(v128.load64_zero(u))));
    x = f64x2.sub(x, f64x2.mul(fb, f64x2.promote_low_f32x4(v128.load64_zero(u + bytes))));
    x = f64x2.sub(x, f64x2.mul(fc, f64x2.promote_low_f32x4(v128.load64_zero(u + 2 * bytes))));
    v128.store(row, f64x2.sub(x, f64x2.mul(fd, f64x2.promote_low_f32x4(v128.load64_zero(u + 3 * bytes)))));
  }
}

/** Value of one row at column k after what the errors so far ask for; `e` and `u` have zeros behind k. */
// @ts-ignore: decorator
@inline
function dot(e: usize, u: usize, length: usize): f32 {
  let a = f32x4.splat(0);
  let b = f32x4.splat(0);
  for (let i: usize = 0; i < length; i += 32) {
    a = f32x4.add(a, f32x4.mul(v128.load(e + i), v128.load(u + i)));
    b = f32x4.add(b, f32x4.mul(v128.load(e + i, 16), v128.load(u + i, 16)));
  }
  return sumLanes(f32x4.add(a, b));
}

/**
 * Rounds each row of `weights` [rows, columns] column by column: q_k = round((w_k + sum_j<k e_j U_jk) / s_k), clipped, with
 * e_j = w_j - q_j s_j. Column k takes scale `groups[k]` of the row's `scaleCount`. `errors` (f64) receives sum_k d_k r_k^2 of
 * each row, r_k what rounding column k left: the squared error of the layer's output. `scratch` holds 4 rows of `stride` f32.
 */
export function roundCompensated(
  weights: usize, rows: i32, columns: i32, stride: i32, factors: usize, diagonal: usize,
  scales: usize, scaleCount: i32, groups: usize, min: f32, max: f32, integers: usize, errors: usize, scratch: usize,
): void {
  const bytes = <usize>stride << 2;
  const rowBytes = <usize>columns << 2;
  const scaleBytes = <usize>scaleCount << 2;
  let row = 0;
  for (; row + 4 <= rows; row += 4) {
    memory.fill(scratch, 0, 4 * bytes);
    for (let r: usize = 0; r < 4; r++) store<f64>(errors + (r << 3), 0);
    for (let k = 0; k < columns; k++) {
      const u = factors + <usize>k * bytes;
      const length = <usize>((k + 7) & ~7) << 2;
      let a0 = f32x4.splat(0);
      let a1 = f32x4.splat(0);
      let b0 = f32x4.splat(0);
      let b1 = f32x4.splat(0);
      let c0 = f32x4.splat(0);
      let c1 = f32x4.splat(0);
      let d0 = f32x4.splat(0);
      let d1 = f32x4.splat(0);
      const second = scratch + bytes;
      const third = second + bytes;
      const fourth = third + bytes;
      for (let i: usize = 0; i < length; i += 32) {
        const u0 = v128.load(u + i);
        const u1 = v128.load(u + i, 16);
        a0 = f32x4.add(a0, f32x4.mul(v128.load(scratch + i), u0));
        a1 = f32x4.add(a1, f32x4.mul(v128.load(scratch + i, 16), u1));
        b0 = f32x4.add(b0, f32x4.mul(v128.load(second + i), u0));
        b1 = f32x4.add(b1, f32x4.mul(v128.load(second + i, 16), u1));
        c0 = f32x4.add(c0, f32x4.mul(v128.load(third + i), u0));
        c1 = f32x4.add(c1, f32x4.mul(v128.load(third + i, 16), u1));
        d0 = f32x4.add(d0, f32x4.mul(v128.load(fourth + i), u0));
        d1 = f32x4.add(d1, f32x4.mul(v128.load(fourth + i, 16), u1));
      }
      const at = <usize>k << 2;
      const scale = scales + (<usize>load<u32>(groups + at) << 2);
      const d = <f64>load<f32>(diagonal + at);
      roundOne(weights + at, sumLanes(f32x4.add(a0, a1)), scale, min, max, integers + k, scratch + at, errors, d);
      roundOne(
        weights + rowBytes + at, sumLanes(f32x4.add(b0, b1)), scale + scaleBytes, min, max,
        integers + columns + k, second + at, errors + 8, d,
      );
      roundOne(
        weights + 2 * rowBytes + at, sumLanes(f32x4.add(c0, c1)), scale + 2 * scaleBytes, min, max,
        integers + 2 * columns + k, third + at, errors + 16, d,
      );
      roundOne(
        weights + 3 * rowBytes + at, sumLanes(f32x4.add(d0, d1)), scale + 3 * scaleBytes, min, max,
        integers + 3 * columns + k, fourth + at, errors + 24, d,
      );
    }
    weights += 4 * rowBytes;
    integers += 4 * columns;
    scales += 4 * scaleBytes;
    errors += 32;
  }
  for (; row < rows; row++) {
    memory.fill(scratch, 0, bytes);
    store<f64>(errors, 0);
    for (let k = 0; k < columns; k++) {
      const at = <usize>k << 2;
      const sum = dot(scratch, factors + <usize>k * bytes, <usize>((k + 7) & ~7) << 2);
      const scale = scales + (<usize>load<u32>(groups + at) << 2);
      roundOne(
        weights + at, sum, scale, min, max, integers + k, scratch + at, errors, <f64>load<f32>(diagonal + at),
      );
    }
    weights += rowBytes;
    integers += columns;
    scales += scaleBytes;
    errors += 8;
  }
}

// @ts-ignore: decorator
@inline
function roundOne(
  weight: usize, sum: f32, scale: usize, min: f32, max: f32, integer: usize, error: usize, total: usize, d: f64,
): void {
  const w = load<f32>(weight);
  const s = load<f32>(scale);
  const wanted = w + sum;
  let q = nearest<f32>(wanted / s);
  q = q < min ? min : q > max ? max : q;
  const value = q * s;
  store<i8>(integer, <i8>q);
  store<f32>(error, w - value);
  const rest = <f64>(wanted - value);
  store<f64>(total, load<f64>(total) + d * rest * rest);
}

import { roundEven } from '../ir/encoding.ts';
import type { QuantRange } from './kernels.ts';

/** Twins of assembly/compensate.ts: see there for the method. */

const { fround } = Math;
const PANEL = 32;

export function factorHessian(
  hessian: Float32Array,
  stride: number,
  factors: Float32Array,
  diagonal: Float32Array,
): number {
  const columns = diagonal.length;
  factors.fill(0);
  const panel = Array.from({ length: PANEL }, () => new Float64Array(columns));
  const subtract = (row: Float64Array, m: number, count: number, factor: number): void => {
    for (let i = 0; i < count; i++) row[i] -= factor * factors[m * stride + i];
  };
  for (let end = columns; end > 0; end -= PANEL) {
    const start = Math.max(0, end - PANEL);
    for (let j = start; j < end; j++) {
      const row = panel[j - start]!;
      for (let i = 0; i <= j; i++) row[i] = hessian[j * columns + i];
      for (let m = end; m < columns; m++) subtract(row, m, j + 1, factors[m * stride + j] * diagonal[m]);
    }
    for (let j = end - 1; j >= start; j--) {
      const row = panel[j - start]!;
      const pivot = row[j];
      diagonal[j] = pivot;
      if (!(diagonal[j] > 0)) return j;
      for (let i = 0; i < j; i++) factors[j * stride + i] = row[i] / pivot;
      for (let a = start; a < j; a++) subtract(panel[a - start]!, j, a + 1, factors[j * stride + a] * diagonal[j]);
    }
  }
  return -1;
}

export function roundCompensated(
  weights: Float32Array,
  stride: number,
  factors: Float32Array,
  diagonal: Float32Array,
  scales: Float32Array,
  groups: Uint32Array,
  range: QuantRange,
  integers: Int8Array,
  errors: Float64Array,
): void {
  const columns = diagonal.length;
  const scaleCount = scales.length / errors.length;
  const e = new Float32Array(columns);
  const lanes = new Float32Array(8);
  for (let row = 0; row < errors.length; row++) {
    let total = 0;
    for (let k = 0; k < columns; k++) {
      lanes.fill(0);
      for (let i = 0; i < k; i++) lanes[i & 7] += fround(e[i] * factors[k * stride + i]);
      const a = fround(lanes[0] + lanes[4]);
      const b = fround(lanes[1] + lanes[5]);
      const c = fround(lanes[2] + lanes[6]);
      const d = fround(lanes[3] + lanes[7]);
      const w = weights[row * columns + k];
      const s = scales[row * scaleCount + groups[k]];
      const wanted = fround(w + fround(fround(a + c) + fround(b + d)));
      const q = Math.min(range.max, Math.max(range.min, roundEven(fround(wanted / s))));
      const value = fround(q * s);
      integers[row * columns + k] = q;
      e[k] = w - value;
      const rest = fround(wanted - value);
      total += diagonal[k] * rest * rest;
    }
    errors[row] = total;
  }
}

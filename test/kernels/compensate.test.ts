import fc from 'fast-check';
import { expect, test } from 'vitest';
import { INT4, INT8_SYMMETRIC, type Kernels, wasmKernels } from '../../compiler/kernels/index.ts';
import { bitsOf, smallWindows, twin } from './arbitraries.ts';

/** Reproducible noise in -1..1. */
function noise(count: number, seed: number): Float32Array {
  let state = seed >>> 0 || 1;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

/** X^T X / samples of inputs whose channels hang together, plus damping. */
function secondMoments(columns: number, samples: number, seed: number): Float32Array {
  const mixing = noise(columns * columns, seed + 1);
  const source = noise(samples * columns, seed + 2);
  const h = new Float64Array(columns * columns);
  for (let t = 0; t < samples; t++) {
    const x = new Float64Array(columns);
    for (let i = 0; i < columns; i++)
      for (let j = 0; j < Math.min(columns, 8); j++) x[i]! += mixing[i * columns + j]! * source[t * columns + j]!;
    for (let i = 0; i < columns; i++) x[i]! += 0.1 * source[t * columns + i]!;
    for (let i = 0; i < columns; i++)
      for (let j = 0; j < columns; j++) h[i * columns + j]! += (x[i]! * x[j]!) / samples;
  }
  const mean = Array.from({ length: columns }, (_, i) => h[i * columns + i]!).reduce((a, b) => a + b, 0) / columns;
  for (let i = 0; i < columns; i++) h[i * columns + i]! += 0.01 * mean;
  return Float32Array.from(h);
}

function round(kernels: Kernels, weights: Float32Array, h: Float32Array, rows: number, groupSize: number) {
  const columns = weights.length / rows;
  const groups = Uint32Array.from({ length: columns }, (_, k) => Math.floor(k / groupSize));
  const count = groups.at(-1)! + 1;
  const scales = Float32Array.from({ length: rows * count }, (_, i) => 0.1 + 0.01 * (i % 7));
  const factors = kernels.factorHessian(h, columns);
  return {
    factors,
    scales,
    groups,
    ...kernels.roundCompensated(weights, { rows, columns, block: columns }, factors, scales, groups, INT4),
  };
}

test('WebAssembly and its twin give the same bits', () => {
  fc.assert(
    fc.property(
      fc.record({
        rows: fc.integer({ min: 1, max: 9 }),
        columns: fc.integer({ min: 1, max: 90 }),
        seed: fc.nat(),
        group: fc.constantFrom(1, 16, 64, 999),
      }),
      ({ rows, columns, seed, group }) => {
        const weights = noise(rows * columns, seed);
        const h = secondMoments(columns, 2 * columns, seed);
        const a = round(smallWindows, weights, h, rows, group);
        const b = round(twin, weights, h, rows, group);
        expect(bitsOf(a.factors.rows)).toEqual(bitsOf(b.factors.rows));
        expect(bitsOf(a.factors.diagonal)).toEqual(bitsOf(b.factors.diagonal));
        expect(a.integers).toEqual(b.integers);
        expect(bitsOf(a.errors)).toEqual(bitsOf(b.errors));
      },
    ),
    { numRuns: 60 },
  );
});

test('the factors give the matrix back', () => {
  for (const columns of [1, 7, 33, 100]) {
    const h = secondMoments(columns, 3 * columns, columns);
    const { rows, diagonal } = wasmKernels.factorHessian(h, columns);
    const stride = (columns + 7) & ~7;
    const u = (i: number, k: number): number => (i === k ? 1 : i < k ? rows[k * stride + i]! : 0);
    const scale = Math.max(...h);
    for (let i = 0; i < columns; i++) {
      for (let j = 0; j <= i; j++) {
        let sum = 0;
        for (let k = i; k < columns; k++) sum += u(i, k) * diagonal[k]! * u(j, k);
        expect(Math.abs(sum - h[i * columns + j]!) / scale).toBeLessThan(1e-5);
      }
    }
  }
});

/** GPTQ as its paper writes it (2210.17323, algorithm 1), in f64 with the inverse Hessian: an independent reference. */
function textbookGptq(row: Float32Array, h: Float32Array, scaleOf: (k: number) => number): number[] {
  const n = row.length;
  const inverse = Array.from({ length: n }, (_, i) =>
    Float64Array.from({ length: 2 * n }, (_, j) => (j < n ? h[i * n + j]! : j - n === i ? 1 : 0)),
  );
  for (let i = 0; i < n; i++) {
    const pivot = inverse[i]![i]!;
    for (let j = 0; j < 2 * n; j++) inverse[i]![j]! /= pivot;
    for (let r = 0; r < n; r++) {
      if (r === i) continue;
      const factor = inverse[r]![i]!;
      for (let j = 0; j < 2 * n; j++) inverse[r]![j]! -= factor * inverse[i]![j]!;
    }
  }
  const hinv = inverse.map((line) => line.slice(n));
  const w = Float64Array.from(row);
  const integers: number[] = [];
  for (let k = 0; k < n; k++) {
    const s = scaleOf(k);
    const q = Math.min(7, Math.max(-8, Math.floor(w[k]! / s + 0.5)));
    integers.push(q);
    const error = (w[k]! - q * s) / hinv[k]![k]!;
    for (let j = k + 1; j < n; j++) w[j]! -= error * hinv[k]![j]!;
    // The rest of the matrix without column k: Gaussian elimination on the inverse.
    for (let i = k + 1; i < n; i++)
      for (let j = k + 1; j < n; j++) hinv[i]![j]! -= (hinv[i]![k]! * hinv[k]![j]!) / hinv[k]![k]!;
  }
  return integers;
}

test('it is GPTQ, and better than rounding to nearest', () => {
  const [rows, columns] = [8, 48];
  const weights = noise(rows * columns, 5);
  const h = secondMoments(columns, 200, 6);
  const { integers, errors, scales, groups } = round(wasmKernels, weights, h, rows, 16);
  const count = scales.length / rows;
  const loss = (row: number, q: (k: number) => number): number => {
    const e = Array.from(
      { length: columns },
      (_, k) => weights[row * columns + k]! - q(k) * scales[row * count + groups[k]!]!,
    );
    return e.reduce((sum, a, i) => sum + e.reduce((inner, b, j) => inner + a * b * h[i * columns + j]!, 0), 0);
  };
  let same = 0;
  for (let row = 0; row < rows; row++) {
    const scaleOf = (k: number): number => scales[row * count + groups[k]!]!;
    const expected = textbookGptq(weights.subarray(row * columns, (row + 1) * columns), h, scaleOf);
    expected.forEach((q, k) => {
      if (q === integers[row * columns + k]) same++;
    });
    const found = loss(row, (k) => integers[row * columns + k]!);
    expect(found / errors[row]!).toBeCloseTo(1, 3);
    const nearest = loss(row, (k) =>
      Math.min(7, Math.max(-8, Math.floor(weights[row * columns + k]! / scaleOf(k) + 0.5))),
    );
    expect(found).toBeLessThan(nearest);
  }
  expect(same / (rows * columns)).toBeGreaterThan(0.99);
});

test('moments that are not positive definite are refused', () => {
  const h = Float32Array.of(1, 2, 2, 1);
  for (const kernels of [wasmKernels, twin])
    expect(() => kernels.factorHessian(h, 2, 'w')).toThrow(expect.objectContaining({ code: 'QT017', where: 'w' }));
  const { factors, scales, groups } = round(wasmKernels, noise(8, 1), secondMoments(4, 20, 1), 2, 2);
  expect(() =>
    wasmKernels.roundCompensated(
      noise(8, 1),
      { rows: 2, columns: 4, block: 4 },
      factors,
      scales.fill(0),
      groups,
      INT8_SYMMETRIC,
    ),
  ).toThrow(expect.objectContaining({ code: 'QT012' }));
});

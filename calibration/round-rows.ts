import type { HessianFactors, Kernels, QuantRange } from '../compiler/kernels/kernels.ts';

/** Added to the diagonal of the second moments, as a share of its mean (GPTQ 2210.17323, section 3.3). */
const DAMPING = 0.01;

/** Second moments of a layer's input, factored for all matrices that read it. */
export interface FactoredMoments {
  readonly columns: number;
  /** Input channels in the order of rounding. */
  readonly order: Uint32Array;
  readonly factors: HessianFactors;
}

/**
 * Orders, dampens and factors the mean of x x^T [columns, columns] (symmetric; the lower triangle is read).
 * @throws QT017 when it is not positive definite even so
 */
export function factorMoments(
  moments: Float32Array | Float64Array,
  columns: number,
  kernels: Kernels,
  name: string,
): FactoredMoments {
  const power = (k: number): number => moments[k * columns + k]!;
  // The channels that carry most are rounded first, while there are others left to make up for it.
  const order = Uint32Array.from({ length: columns }, (_, k) => k).sort((a, b) => power(b) - power(a) || a - b);
  let trace = 0;
  for (let k = 0; k < columns; k++) trace += power(k);
  // Channels that never carried anything do no harm then.
  const damping = trace > 0 ? (DAMPING * trace) / columns : 1;
  const turned = new Float32Array(moments.length);
  for (let i = 0; i < columns; i++) {
    for (let j = 0; j <= i; j++) {
      const [a, b] = [order[i]!, order[j]!];
      turned[i * columns + j] = moments[Math.max(a, b) * columns + Math.min(a, b)]!;
    }
    turned[i * columns + i] = turned[i * columns + i]! + damping;
  }
  return { columns, order, factors: kernels.factorHessian(turned, columns, name) };
}

/**
 * Rounds rows [rows, columns] so that each column makes up for the errors of those before it in the order of rounding.
 * @param scales [rows, scales a row]; input channel k takes scale groups[k] of its row
 * @returns integers [rows, columns], channels in their own order
 */
export function roundRows(
  rows: Float32Array,
  { columns, order, factors }: FactoredMoments,
  scales: Float32Array,
  groups: Uint32Array,
  range: QuantRange,
  kernels: Kernels,
  name: string,
): Int8Array {
  const count = rows.length / columns;
  const turned = new Float32Array(rows.length);
  for (let n = 0; n < count; n++) {
    for (let k = 0; k < columns; k++) turned[n * columns + k] = rows[n * columns + order[k]!]!;
  }
  const layout = { rows: count, columns, block: columns, name };
  const inOrder = order.map((k) => groups[k]!);
  const { integers } = kernels.roundCompensated(turned, layout, factors, scales, inOrder, range);
  const target = new Int8Array(integers.length);
  for (let n = 0; n < count; n++) {
    for (let k = 0; k < columns; k++) target[n * columns + order[k]!] = integers[n * columns + k]!;
  }
  return target;
}

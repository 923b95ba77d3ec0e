/**
 * The matrix product behind MatMul, Gemm, Conv and Attention. Sums are kept in double precision and rounded once: this is
 * the reference, not a contest (about 1 GFLOP/s and core). Two rows by four steps of depth share one pass over the columns,
 * which halves and quarters the memory traffic that a plain triple loop drowns in.
 */
export interface MatrixView {
  readonly data: Float32Array | Float64Array;
  /** Offset of the first element; rows lie one after another. */
  readonly at: number;
}

/** out[rows, columns] = a[rows, depth] * b[depth, columns]. */
export function multiplyMatrices(
  a: MatrixView,
  b: MatrixView,
  out: { readonly data: { [index: number]: number }; readonly at: number },
  rows: number,
  depth: number,
  columns: number,
): void {
  const sums = [new Float64Array(columns), new Float64Array(columns)] as const;
  for (let row = 0; row < rows; row += 2) {
    // A last row without a partner is its own.
    const partner = Math.min(row + 1, rows - 1);
    multiplyRows(a.data, a.at + row * depth, a.at + partner * depth, b, sums, depth, columns);
    for (let j = 0; j < columns; j++) out.data[out.at + row * columns + j] = sums[0][j]!;
    for (let j = 0; j < columns; j++) out.data[out.at + partner * columns + j] = sums[partner - row]![j]!;
  }
}

function multiplyRows(
  left: Float32Array | Float64Array,
  first: number,
  second: number,
  b: MatrixView,
  [s, t]: readonly [Float64Array, Float64Array],
  depth: number,
  columns: number,
): void {
  s.fill(0);
  t.fill(0);
  const right = b.data;
  const whole = depth - (depth % 4);
  for (let k = 0; k < whole; k += 4) {
    const [f0, f1, f2, f3] = [left[first + k]!, left[first + k + 1]!, left[first + k + 2]!, left[first + k + 3]!];
    const [g0, g1, g2, g3] = [left[second + k]!, left[second + k + 1]!, left[second + k + 2]!, left[second + k + 3]!];
    const b0 = b.at + k * columns;
    const b1 = b0 + columns;
    const b2 = b1 + columns;
    const b3 = b2 + columns;
    for (let j = 0; j < columns; j++) {
      const x0 = right[b0 + j]!;
      const x1 = right[b1 + j]!;
      const x2 = right[b2 + j]!;
      const x3 = right[b3 + j]!;
      s[j] = s[j]! + f0 * x0 + f1 * x1 + f2 * x2 + f3 * x3;
      t[j] = t[j]! + g0 * x0 + g1 * x1 + g2 * x2 + g3 * x3;
    }
  }
  for (let k = whole; k < depth; k++) {
    const from = b.at + k * columns;
    const f = left[first + k]!;
    const g = left[second + k]!;
    for (let j = 0; j < columns; j++) {
      const x = right[from + j]!;
      s[j] = s[j]! + f * x;
      t[j] = t[j]! + g * x;
    }
  }
}

/** The transpose of a [rows, columns] matrix. */
export function transposeMatrix<T extends Float32Array | Float64Array>(
  data: T,
  at: number,
  rows: number,
  columns: number,
): T {
  const out = new (data.constructor as new (length: number) => T)(rows * columns);
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) out[j * rows + i] = data[at + i * columns + j]!;
  return out;
}

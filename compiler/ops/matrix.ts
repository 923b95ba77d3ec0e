/**
 * The matrix product behind MatMul, Gemm, Conv and Attention. Sums are kept in double precision and rounded once, so
 * results do not depend on any blocking: this is the reference, not a contest (about 1 GFLOP/s).
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
  const left = a.data;
  const right = b.data;
  const sums = new Float64Array(columns);
  for (let i = 0; i < rows; i++) {
    sums.fill(0);
    const row = a.at + i * depth;
    for (let k = 0; k < depth; k++) {
      const factor = left[row + k]!;
      const from = b.at + k * columns;
      for (let j = 0; j < columns; j++) sums[j] = sums[j]! + factor * right[from + j]!;
    }
    const to = out.at + i * columns;
    for (let j = 0; j < columns; j++) out.data[to + j] = sums[j]!;
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

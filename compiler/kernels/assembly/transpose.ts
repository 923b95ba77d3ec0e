// [rows, columns] to [columns, rows]: square register tiles inside blocks that stay in the first cache.

const BLOCK: i32 = 64;

export function transpose32(source: usize, target: usize, rows: i32, columns: i32): void {
  const from = <usize>columns << 2;
  const to = <usize>rows << 2;
  for (let r0 = 0; r0 < rows; r0 += BLOCK) {
    const r1 = min(rows, r0 + BLOCK);
    for (let c0 = 0; c0 < columns; c0 += BLOCK) {
      const c1 = min(columns, c0 + BLOCK);
      let r = r0;
      for (; r + 4 <= r1; r += 4) {
        let c = c0;
        for (; c + 4 <= c1; c += 4) {
          const s = source + <usize>r * from + (<usize>c << 2);
          const t = target + <usize>c * to + (<usize>r << 2);
          const a = v128.load(s);
          const b = v128.load(s + from);
          const d = v128.load(s + 2 * from);
          const e = v128.load(s + 3 * from);
          const abLow = i8x16.shuffle(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
          const abHigh = i8x16.shuffle(a, b, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
          const deLow = i8x16.shuffle(d, e, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
          const deHigh = i8x16.shuffle(d, e, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
          v128.store(t, i8x16.shuffle(abLow, deLow, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23));
          v128.store(t + to, i8x16.shuffle(abLow, deLow, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31));
          v128.store(t + 2 * to, i8x16.shuffle(abHigh, deHigh, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23));
          v128.store(t + 3 * to, i8x16.shuffle(abHigh, deHigh, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31));
        }
        for (; c < c1; c++) {
          for (let i = r; i < r + 4; i++) move32(source, target, i, c, from, to);
        }
      }
      for (; r < r1; r++) {
        for (let c = c0; c < c1; c++) move32(source, target, r, c, from, to);
      }
    }
  }
}

// @ts-ignore: decorator
@inline
function move32(source: usize, target: usize, r: i32, c: i32, from: usize, to: usize): void {
  store<u32>(target + <usize>c * to + (<usize>r << 2), load<u32>(source + <usize>r * from + (<usize>c << 2)));
}

export function transpose8(source: usize, target: usize, rows: i32, columns: i32): void {
  const from = <usize>columns;
  const to = <usize>rows;
  for (let r0 = 0; r0 < rows; r0 += BLOCK) {
    const r1 = min(rows, r0 + BLOCK);
    for (let c0 = 0; c0 < columns; c0 += BLOCK) {
      const c1 = min(columns, c0 + BLOCK);
      let r = r0;
      for (; r + 8 <= r1; r += 8) {
        let c = c0;
        for (; c + 8 <= c1; c += 8) tile8(source + <usize>r * from + <usize>c, target + <usize>c * to + <usize>r, from, to);
        for (; c < c1; c++) {
          for (let i = r; i < r + 8; i++) move8(source, target, i, c, from, to);
        }
      }
      for (; r < r1; r++) {
        for (let c = c0; c < c1; c++) move8(source, target, r, c, from, to);
      }
    }
  }
}

/** Three rounds of interleaving turn eight rows of eight bytes into eight columns. */
// @ts-ignore: decorator
@inline
function tile8(s: usize, t: usize, from: usize, to: usize): void {
  const a = zipBytes(v128.load64_zero(s), v128.load64_zero(s + from));
  const b = zipBytes(v128.load64_zero(s + 2 * from), v128.load64_zero(s + 3 * from));
  const c = zipBytes(v128.load64_zero(s + 4 * from), v128.load64_zero(s + 5 * from));
  const d = zipBytes(v128.load64_zero(s + 6 * from), v128.load64_zero(s + 7 * from));
  const abLow = i8x16.shuffle(a, b, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
  const abHigh = i8x16.shuffle(a, b, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
  const cdLow = i8x16.shuffle(c, d, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
  const cdHigh = i8x16.shuffle(c, d, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
  storeTwoColumns(t, to, i8x16.shuffle(abLow, cdLow, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23));
  storeTwoColumns(t + 2 * to, to, i8x16.shuffle(abLow, cdLow, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31));
  storeTwoColumns(t + 4 * to, to, i8x16.shuffle(abHigh, cdHigh, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23));
  storeTwoColumns(t + 6 * to, to, i8x16.shuffle(abHigh, cdHigh, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31));
}

// @ts-ignore: decorator
@inline
function zipBytes(a: v128, b: v128): v128 {
  return i8x16.shuffle(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}

// @ts-ignore: decorator
@inline
function storeTwoColumns(t: usize, to: usize, v: v128): void {
  v128.store64_lane(t, v, 0);
  v128.store64_lane(t + to, v, 1);
}

// @ts-ignore: decorator
@inline
function move8(source: usize, target: usize, r: i32, c: i32, from: usize, to: usize): void {
  store<u8>(target + <usize>c * to + <usize>r, load<u8>(source + <usize>r * from + <usize>c));
}

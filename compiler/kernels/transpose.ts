import { checkLength } from './check.ts';
import type { Engine } from './engine.ts';
import type { Kernels } from './kernels.ts';

/** Side of the square tiles that are gathered, transposed and scattered: 1 MiB of f32 or i8, even for int4 pairs. */
const TILE_F32 = 512;
const TILE_I8 = 1024;

type Values = Float32Array | Int8Array | Uint8Array;

/** The transposing kernels: tiles keep both sides in the second cache and the engine's window small. */
export function createTransposes(engine: Engine): Pick<Kernels, 'transposeF32' | 'transposeI8' | 'transposeI4'> {
  return {
    transposeF32(source, rows, columns, target) {
      checkLength('source', source.length, rows * columns);
      checkLength('target', target.length, rows * columns);
      const gathered = new Float32Array(Math.min(rows, TILE_F32) * Math.min(columns, TILE_F32));
      const turned = new Float32Array(gathered.length);
      for (const tile of tiles(rows, columns, TILE_F32)) {
        const from = gathered.subarray(0, tile.height * tile.width);
        const to = turned.subarray(0, from.length);
        gather(source, columns, tile, from);
        engine.transpose32(from, tile.height, tile.width, to);
        scatter(to, tile, target, rows);
      }
    },
    transposeI8(source, rows, columns, target) {
      checkLength('source', source.length, rows * columns);
      checkLength('target', target.length, rows * columns);
      const gathered = new Int8Array(Math.min(rows, TILE_I8) * Math.min(columns, TILE_I8));
      const turned = new Int8Array(gathered.length);
      for (const tile of tiles(rows, columns, TILE_I8)) {
        const from = gathered.subarray(0, tile.height * tile.width);
        const to = turned.subarray(0, from.length);
        gather(source, columns, tile, from);
        engine.transpose8(from, tile.height, tile.width, to);
        scatter(to, tile, target, rows);
      }
    },
    transposeI4(source, rows, columns, target) {
      const bytes = Math.ceil((rows * columns) / 2);
      checkLength('source bytes', source.length, bytes);
      checkLength('target bytes', target.length, bytes);
      if (rows % 2 === 1 || columns % 2 === 1) transposeNibbles(source, rows, columns, target);
      else transposePairs(engine, source, rows, columns, target);
    },
  };
}

/** Even sides: every tile's rows and columns start on a byte. */
function transposePairs(engine: Engine, source: Uint8Array, rows: number, columns: number, target: Uint8Array): void {
  const size = Math.min(rows, TILE_I8) * Math.min(columns, TILE_I8);
  const packed = new Uint8Array(size / 2);
  const integers = new Int8Array(size);
  const turned = new Int8Array(size);
  for (const tile of tiles(rows, columns, TILE_I8)) {
    const { height, width } = tile;
    const count = height * width;
    const pairs = packed.subarray(0, count / 2);
    gather(source, columns / 2, { ...tile, column: tile.column / 2, width: width / 2 }, pairs);
    engine.unpackI4(pairs, integers.subarray(0, count));
    engine.transpose8(integers.subarray(0, count), height, width, turned.subarray(0, count));
    engine.packI4(turned.subarray(0, count), pairs);
    scatter(pairs, { ...tile, row: tile.row / 2, height: height / 2 }, target, rows / 2);
  }
}

/** An odd side puts rows in the middle of bytes: one integer at a time. */
function transposeNibbles(source: Uint8Array, rows: number, columns: number, target: Uint8Array): void {
  target.fill(0);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      const from = r * columns + c;
      const to = c * rows + r;
      target[to >> 1] |= ((source[from >> 1] >> (4 * (from & 1))) & 15) << (4 * (to & 1));
    }
  }
}

interface Tile {
  readonly row: number;
  readonly column: number;
  readonly height: number;
  readonly width: number;
}

function* tiles(rows: number, columns: number, side: number): Generator<Tile> {
  for (let row = 0; row < rows; row += side) {
    for (let column = 0; column < columns; column += side) {
      yield { row, column, height: Math.min(side, rows - row), width: Math.min(side, columns - column) };
    }
  }
}

/** The tile of a matrix of `stride` columns, row after row. */
function gather(source: Values, stride: number, tile: Tile, target: Values): void {
  for (let r = 0; r < tile.height; r++) {
    const start = (tile.row + r) * stride + tile.column;
    target.set(source.subarray(start, start + tile.width), r * tile.width);
  }
}

/** Writes the transposed tile (its columns are rows now) into the transposed matrix of `stride` columns. */
function scatter(source: Values, tile: Tile, target: Values, stride: number): void {
  for (let c = 0; c < tile.width; c++) {
    const start = c * tile.height;
    target.set(source.subarray(start, start + tile.height), (tile.column + c) * stride + tile.row);
  }
}

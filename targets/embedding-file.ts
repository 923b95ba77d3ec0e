import { closeSync, openSync, writeSync } from 'node:fs';
import { NpucError } from '../compiler/errors.ts';
import { toHalves } from '../compiler/export/halve-constant.ts';
import { halfToNumber, type TypedArray } from '../compiler/ir/dtype.ts';
import { type Encoding, integerRange } from '../compiler/ir/encoding.ts';
import { FileSource, type Tensor } from '../compiler/ir/tensor.ts';
import { INT8_SYMMETRIC, type Kernels } from '../compiler/kernels/kernels.ts';
import type { EmbeddingLookup } from '../compiler/runtime/decoder-session.ts';

/** `i8-per-row`: integers with one scale a row. `f16`: half floats. */
export type EmbeddingForm = 'i8-per-row' | 'f16';

/** Rows that are converted at a time when half floats are written. */
const ROWS_AT_ONCE = 4096;

/**
 * Writes an embedding table [rows, columns] for hosts that look rows up themselves. Little endian:
 *
 *     u32 rows, u32 columns
 *     i8-per-row   f32 scale of every row, then i8 [rows, columns]: real = scale * integer
 *     f16          half floats [rows, columns]
 *
 * 8 bits per row are what integer schemes use: head and embedding at 8 bits cost nothing that shows (facts accuracy).
 * @throws IO002 when the file cannot be written, QT011 when a weight does not fit half floats
 */
export function writeEmbedding(path: string, table: Tensor, form: EmbeddingForm, kernels: Kernels): void {
  const [rows, columns] = table.shape as [number, number];
  const weights = table.toFloats();
  let descriptor: number | undefined;
  try {
    const file = openSync(path, 'w');
    descriptor = file;
    const write = (data: NodeJS.ArrayBufferView): void => {
      for (let done = 0; done < data.byteLength; )
        done += writeSync(file, data, done, Math.min(data.byteLength - done, 1 << 30));
    };
    write(Uint32Array.of(rows, columns));
    if (form === 'f16') {
      const step = ROWS_AT_ONCE * columns;
      for (let at = 0; at < weights.length; at += step) write(toHalves(weights.subarray(at, at + step), 'embedding'));
      return;
    }
    const layout = { rows, columns, block: columns, name: 'embedding' };
    const { scales } = kernels.searchScales(weights, layout, { range: INT8_SYMMETRIC });
    const integers = new Int8Array(rows * columns);
    kernels.quantizeI8(weights, layout, scales, INT8_SYMMETRIC, integers);
    write(scales);
    write(integers);
  } catch (cause) {
    if (cause instanceof NpucError) throw cause;
    throw new NpucError('IO002', { message: `cannot write ${path}: ${(cause as Error).message}`, where: path, cause });
  } finally {
    if (descriptor !== undefined) closeSync(descriptor);
  }
}

export interface OpenedEmbedding {
  readonly rows: number;
  readonly width: number;
  readonly lookup: EmbeddingLookup;
  /** The integers of a table of 8 bits, [ids.length, width], and the scale of every row. */
  readonly raw?: { readonly rows: (ids: readonly number[]) => Int8Array; readonly scales: Float32Array };
  close(): void;
}

/**
 * Rows of 8 bits as the integers of a port, in Genie's way (its tensor dumps, every number): unsigned integers times the
 * ratio of the scales, and the zero point that is left, each cut off, not rounded.
 */
export function requantizeRows(
  { rows, scales }: NonNullable<OpenedEmbedding['raw']>,
  ids: readonly number[],
  { dtype, scale, zeroPoint }: Encoding,
): TypedArray {
  const integers = rows(ids);
  const width = integers.length / ids.length;
  const [low, high] = integerRange(dtype);
  const out = dtype === 'u8' ? new Uint8Array(integers.length) : new Uint16Array(integers.length);
  ids.forEach((id, row) => {
    const ratio = scales[id]! / scale[0]!;
    const offset = Math.trunc((zeroPoint?.[0] ?? 0) - 128 * ratio);
    for (let at = row * width; at < (row + 1) * width; at++)
      out[at] = Math.min(high, Math.max(low, Math.trunc((integers[at]! + 128) * ratio) + offset));
  });
  return out;
}

/**
 * Opens an embedding file; rows are read as they are asked for.
 * @throws IO001 when it cannot be read, IO003 when its length is not what its header says
 */
export function openEmbedding(path: string, form: EmbeddingForm): OpenedEmbedding {
  const file = new FileSource(path);
  const [rows, columns] = new Uint32Array(file.read(0, 8).buffer) as unknown as [number, number];
  const [start, rowBytes] = form === 'f16' ? [8, columns * 2] : [8 + rows * 4, columns];
  if (file.size !== start + rows * rowBytes) {
    file.close();
    throw new NpucError('IO003', {
      message: `the embedding file has ${file.size} bytes, ${rows} rows of ${columns} take ${start + rows * rowBytes}`,
      where: path,
      hint: 'compile again',
    });
  }
  const scales = form === 'f16' ? undefined : new Float32Array(file.read(8, rows * 4).buffer);
  const readRow = (id: number): ArrayLike<number> => {
    const { buffer } = file.read(start + id * rowBytes, rowBytes);
    return form === 'f16' ? new Uint16Array(buffer) : new Int8Array(buffer);
  };
  const readRows = (ids: readonly number[]): Int8Array => {
    const out = new Int8Array(ids.length * columns);
    ids.forEach((id, i) => {
      out.set(readRow(id), i * columns);
    });
    return out;
  };
  return {
    rows,
    width: columns,
    ...(scales ? { raw: { rows: readRows, scales } } : {}),
    lookup: (ids) => {
      const out = new Float32Array(ids.length * columns);
      ids.forEach((id, i) => {
        const row = readRow(id);
        for (let c = 0; c < columns; c++) out[i * columns + c] = scales ? row[c]! * scales[id]! : halfToNumber(row[c]!);
      });
      return out;
    },
    close: () => file.close(),
  };
}

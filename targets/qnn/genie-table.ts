import { closeSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { NpucError } from '../../compiler/errors.ts';
import { quantizeValues } from '../../compiler/runtime/decoder-session.ts';
import { type OpenedEmbedding, openEmbedding } from '../embedding-file.ts';
import { type ManifestTarget, portEncodings } from '../target.ts';

/**
 * A lookup table as Genie takes it (measured on libGenie 1.21): no header, one row per token. `ufixed8` and `ufixed16` have
 * one scale and offset for all, QNN's offset being the negated zero point, or a file of each with a number per row: f32
 * scales and i32 offsets.
 */
export interface GenieTable {
  readonly file: string;
  readonly datatype: 'float32' | 'ufixed8' | 'ufixed16';
  readonly rows: number;
  readonly width: number;
  readonly quantization?: { readonly scale: number | string; readonly offset: number | string };
}

const TABLE = 'embedding.raw';
const SCALES = 'embedding-scales.raw';
const OFFSETS = 'embedding-offsets.raw';
const ROWS_AT_ONCE = 4096;
/** The unsigned zero of signed integers. */
const ZERO_8 = 128;

/** Bytes of one number of a table. */
export const TABLE_BYTES: Readonly<Record<GenieTable['datatype'], number>> = { float32: 4, ufixed8: 1, ufixed16: 2 };

/** The files of a table. */
export function tableFiles({ file, quantization }: GenieTable): string[] {
  return [file, quantization?.scale, quantization?.offset].filter((name) => typeof name === 'string');
}

/**
 * Writes the table of a compiled folder for Genie. Rows of 8 bits stay as they are, their integers made unsigned; half
 * floats, which Genie does not take, become the integers of the port that they go into, or floats for a float port.
 * @throws IO002
 */
export function writeGenieTable(folder: string, target: ManifestTarget, out: string): GenieTable | undefined {
  if (!target.embedding) return undefined;
  const embedding = openEmbedding(join(folder, target.embedding.file), target.embedding.form);
  try {
    return writeTable(embedding, target, out);
  } finally {
    embedding.close();
  }
}

function writeTable(embedding: OpenedEmbedding, { ports, protocol }: ManifestTarget, out: string): GenieTable {
  const { rows, width } = embedding;
  const windows = function* (): Generator<number[]> {
    for (let start = 0; start < rows; start += ROWS_AT_ONCE)
      yield Array.from({ length: Math.min(ROWS_AT_ONCE, rows - start) }, (_, i) => start + i);
  };
  const write = (name: string, pieces: Iterable<NodeJS.ArrayBufferView>): void => writePieces(join(out, name), pieces);
  const port = portEncodings(ports).get(protocol.names.tokens);
  const common = { file: TABLE, rows, width };
  if (!port) {
    write(TABLE, map(windows(), embedding.lookup));
    return { ...common, datatype: 'float32' };
  }
  const { raw } = embedding;
  if (raw) {
    write(
      TABLE,
      map(windows(), (ids) => Uint8Array.from(raw.rows(ids), (integer) => integer + ZERO_8)),
    );
    write(SCALES, [raw.scales]);
    write(OFFSETS, [new Int32Array(rows).fill(-ZERO_8)]);
    return { ...common, datatype: 'ufixed8', quantization: { scale: SCALES, offset: OFFSETS } };
  }
  write(
    TABLE,
    map(windows(), (ids) => quantizeValues(embedding.lookup(ids), port)),
  );
  return {
    ...common,
    datatype: port.dtype === 'u8' ? 'ufixed8' : 'ufixed16',
    quantization: { scale: port.scale[0]!, offset: -(port.zeroPoint?.[0] ?? 0) },
  };
}

function* map<T, U>(items: Iterable<T>, change: (item: T) => U): Generator<U> {
  for (const item of items) yield change(item);
}

function writePieces(path: string, pieces: Iterable<NodeJS.ArrayBufferView>): void {
  let descriptor: number | undefined;
  try {
    const file = openSync(path, 'w');
    descriptor = file;
    for (const piece of pieces)
      for (let done = 0; done < piece.byteLength; ) done += writeSync(file, piece, done, piece.byteLength - done);
  } catch (cause) {
    throw new NpucError('IO002', { message: `cannot write ${path}: ${(cause as Error).message}`, where: path, cause });
  } finally {
    if (descriptor !== undefined) closeSync(descriptor);
  }
}

import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, utimesSync, writeFileSync } from 'node:fs';
import { cacheFolder, PARTIAL, pruneCache } from '../compiler/cache.ts';
import type { Encoding } from '../compiler/ir/encoding.ts';
import type { Recipe } from './recipe.ts';
import type { StatisticsKey } from './statistics-cache.ts';

/** Raised when scales are searched in another way: older entries are then not found. */
const FORMAT = 2;

/** Entries that were not used for longest go when the folder grows beyond this. */
const CACHE_BYTES = 2 ** 30;

/** What searched scales depend on: the statistics' own key, the recipe with every choice made, and the target's formats. */
export interface SearchKey extends StatisticsKey {
  readonly recipe: Recipe;
  readonly format: string;
  readonly contract: string;
}

/** Scale that moved from an activation's channels into weights. */
export interface MovedScale {
  readonly exponent: number;
  /** Absent where nothing moved. */
  readonly scales?: Float32Array;
}

/**
 * The searched scales of migrations from the cache folder, or found and kept there: shapes, SoCs of one architecture class and
 * the processes of a sweep share them. Without a key nothing is kept.
 * @param compute gets what is known; otherwise it searches, and `moved` says what it found
 */
export async function cachedMigration<T extends { readonly moved: ReadonlyMap<string, MovedScale> }>(
  key: SearchKey | undefined,
  compute: (known?: ReadonlyMap<string, MovedScale>) => Promise<T>,
): Promise<T> {
  if (!key) return compute();
  const name = nameOf('migration', key);
  const known = readEntry(name, decodeMoved);
  const result = await compute(known);
  if (!known) writeEntry(name, encodeMoved(result.moved));
  return result;
}

/** The searched encodings of weights from the cache folder, or found and kept there. Without a key nothing is kept. */
export async function cachedEncodings(
  key: SearchKey | undefined,
  compute: () => Promise<Map<string, Encoding>>,
): Promise<Map<string, Encoding>> {
  if (!key) return compute();
  const name = nameOf('encodings', key);
  const known = readEntry(name, decodeEncodings);
  if (known) return known;
  const encodings = await compute();
  writeEntry(name, encodeEncodings(encodings));
  return encodings;
}

function nameOf(kind: string, key: SearchKey): string {
  return createHash('sha256')
    .update(JSON.stringify([FORMAT, kind, key]))
    .digest('hex');
}

/** An entry that cannot be read counts as absent. */
function readEntry<T>(name: string, decode: (text: string) => T): T | undefined {
  const path = cacheFolder('search', name);
  try {
    const entry = decode(readFileSync(path, 'utf8'));
    const now = new Date();
    utimesSync(path, now, now);
    return entry;
  } catch {
    return undefined;
  }
}

/** An entry that cannot be written is not kept: a cache that is full or read-only costs time, not the compile. */
function writeEntry(name: string, text: string): void {
  const path = cacheFolder('search', name);
  const partial = cacheFolder('search', `${PARTIAL}${process.pid}`);
  try {
    mkdirSync(cacheFolder('search'), { recursive: true });
    writeFileSync(partial, text);
    renameSync(partial, path);
    pruneCache(cacheFolder('search'), CACHE_BYTES, path);
  } catch {
    // As above.
  }
}

const toText = (array: Float32Array | Int32Array | Uint8Array): string =>
  Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString('base64');

function bytesOf(text: string): ArrayBuffer {
  const bytes = Buffer.from(text, 'base64');
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength) as ArrayBuffer;
}

function encodeMoved(moved: ReadonlyMap<string, MovedScale>): string {
  return JSON.stringify(
    [...moved].map(([site, { exponent, scales }]) => [site, exponent, scales ? toText(scales) : null]),
  );
}

function decodeMoved(text: string): Map<string, MovedScale> {
  const entries = JSON.parse(text) as [string, number, string | null][];
  return new Map(
    entries.map(([site, exponent, scales]) => [
      site,
      { exponent, ...(scales === null ? {} : { scales: new Float32Array(bytesOf(scales)) }) },
    ]),
  );
}

/** Exact: numbers of arrays as base64 of their bits. */
export function encodeEncodings(encodings: ReadonlyMap<string, Encoding>): string {
  return JSON.stringify(
    [...encodings].map(([name, { scale, zeroPoint, blockScale, ...rest }]) => [
      name,
      {
        ...rest,
        scale: toText(scale),
        ...(zeroPoint ? { zeroPoint: toText(zeroPoint) } : {}),
        ...(blockScale ? { blockScale: toText(blockScale) } : {}),
      },
    ]),
  );
}

/** @throws Error when the text is not what encodeEncodings writes */
export function decodeEncodings(text: string): Map<string, Encoding> {
  type Stored = Omit<Encoding, 'scale' | 'zeroPoint' | 'blockScale'> & {
    readonly scale: string;
    readonly zeroPoint?: string;
    readonly blockScale?: string;
  };
  return new Map(
    (JSON.parse(text) as [string, Stored][]).map(([name, { scale, zeroPoint, blockScale, ...rest }]) => [
      name,
      {
        ...rest,
        scale: new Float32Array(bytesOf(scale)),
        ...(zeroPoint === undefined ? {} : { zeroPoint: new Int32Array(bytesOf(zeroPoint)) }),
        ...(blockScale === undefined ? {} : { blockScale: new Uint8Array(bytesOf(blockScale)) }),
      },
    ]),
  );
}

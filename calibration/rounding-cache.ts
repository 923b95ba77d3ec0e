import { createHash } from 'node:crypto';
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeSync,
} from 'node:fs';
import { cacheFolder, PARTIAL, pruneCache } from '../compiler/cache.ts';
import type { Encoding } from '../compiler/ir/encoding.ts';
import { FileSource, Tensor } from '../compiler/ir/tensor.ts';
import type { StatisticsKey } from './statistics-cache.ts';

/** Raised when integers are chosen in another way: older entries are then not found. */
const FORMAT = 2;

/** Entries that were not used for longest go when the folder grows beyond this. */
const CACHE_BYTES = 2 * 2 ** 30;

/** What chosen integers depend on. */
export interface RoundingKey extends StatisticsKey {
  /** Scales of the weights, and the exponents that moved scale into them. */
  readonly encodings: ReadonlyMap<string, Encoding>;
  readonly exponents: ReadonlyMap<string, number>;
}

/**
 * Chosen integers from the cache folder, or computed and kept there: targets and shapes of one recipe share them. They stay
 * in the file and are read when they are asked for. An entry that cannot be read counts as absent, one that cannot be written
 * is not kept.
 */
export async function cachedRounding(
  key: RoundingKey,
  compute: () => Promise<Map<string, Tensor>>,
): Promise<Map<string, Tensor>> {
  const folder = cacheFolder('rounding');
  const path = cacheFolder('rounding', digestOf(key));
  const known = readEntry(path, key.encodings);
  if (known) return known;
  const rounded = await compute();
  try {
    mkdirSync(folder, { recursive: true });
    writeEntry(cacheFolder('rounding', `${PARTIAL}${process.pid}`), path, key.encodings, rounded);
    pruneCache(folder, CACHE_BYTES, path);
    return readEntry(path, key.encodings) ?? rounded;
  } catch {
    // A cache that is full or read-only costs time, not the compile.
    return rounded;
  }
}

function digestOf({ encodings, exponents, ...key }: RoundingKey): string {
  const hash = createHash('sha256').update(JSON.stringify([FORMAT, key, [...exponents]]));
  for (const [name, { dtype, scale, axis, block, blockScale }] of encodings) {
    hash.update(JSON.stringify([name, dtype, axis, block]));
    hash.update(new Uint8Array(scale.buffer, scale.byteOffset, scale.byteLength));
    if (blockScale) hash.update(blockScale);
  }
  return hash.digest('hex');
}

/** Packed integers one after the other in the order of the encodings, a line of names and shapes before them. */
function writeEntry(
  partial: string,
  path: string,
  encodings: ReadonlyMap<string, Encoding>,
  rounded: ReadonlyMap<string, Tensor>,
): void {
  const file = openSync(partial, 'w');
  try {
    const tensors = [...encodings.keys()].flatMap((name) => {
      const tensor = rounded.get(name);
      return tensor ? [{ name, tensor }] : [];
    });
    writeSync(file, `${JSON.stringify(tensors.map(({ name, tensor }) => [name, tensor.shape]))}\n`);
    for (const { tensor } of tensors) writeSync(file, tensor.read());
    renameSync(partial, path);
  } catch (error) {
    rmSync(partial, { force: true });
    throw error;
  } finally {
    closeSync(file);
  }
}

/** Longest first line that is looked for: names and shapes of some hundred thousand weights. */
const HEADER_BYTES = 16 << 20;

function readEntry(path: string, encodings: ReadonlyMap<string, Encoding>): Map<string, Tensor> | undefined {
  if (!existsSync(path)) return undefined;
  try {
    // The time of use, not that of change: who has the file open takes one that changed for another.
    utimesSync(path, new Date(), statSync(path).mtime);
    const file = new FileSource(path);
    const head = Buffer.from(file.read(0, Math.min(file.size, HEADER_BYTES)));
    const end = head.indexOf('\n');
    const listed = JSON.parse(head.toString('utf8', 0, end)) as [string, number[]][];
    const rounded = new Map<string, Tensor>();
    let offset = end + 1;
    for (const [name, shape] of listed) {
      const tensor = new Tensor('i4', shape, { kind: 'file', file, offset });
      offset += tensor.byteLength;
      if (!encodings.has(name) || offset > file.size) throw new Error(`${name} does not fit`);
      rounded.set(name, tensor);
    }
    if (offset !== file.size) throw new Error('the file does not end with its last tensor');
    return rounded;
  } catch {
    return undefined;
  }
}

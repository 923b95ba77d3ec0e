import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { cacheFolder } from '../compiler/cache.ts';
import type { ValueStatistics } from './statistics.ts';

/** Raised when what statistics hold, or how they are collected, changes: older entries are then not found. */
const FORMAT = 5;

/** What statistics depend on: the checkpoint's bytes, the windows of text, and the engine that ran the float model. */
export interface StatisticsKey {
  readonly checkpoint: string;
  readonly windows: readonly (readonly number[])[];
  readonly engine: string;
  /** Of the residual stream, where it is rotated. */
  readonly rotation?: 'none' | 'hadamard';
  /** Of gated products, where channels with outliers are apart. */
  readonly outliers?: 'none' | 'apart';
}

interface StoredStatistics {
  readonly min: number;
  readonly max: number;
  readonly typical: number;
  readonly channels?: { readonly min: string; readonly max: string; readonly meanSquare: string };
}

/**
 * Statistics from the cache folder, or computed and kept there: they are the same for every scheme, shape and SoC. An entry
 * that cannot be read counts as absent, one that cannot be written is not kept.
 */
export async function cachedStatistics(
  key: StatisticsKey,
  compute: () => Promise<Map<string, ValueStatistics>>,
): Promise<{ readonly statistics: Map<string, ValueStatistics>; readonly cached: boolean }> {
  const digest = createHash('sha256')
    .update(JSON.stringify([FORMAT, key]))
    .digest('hex');
  const path = cacheFolder('statistics', `${digest}.json`);
  try {
    return { statistics: decodeStatistics(readFileSync(path, 'utf8')), cached: true };
  } catch {
    const statistics = await compute();
    try {
      mkdirSync(dirname(path), { recursive: true });
      const partial = `${path}.${process.pid}`;
      writeFileSync(partial, encodeStatistics(statistics));
      renameSync(partial, path);
    } catch {
      // A cache that is full or read-only costs time, not the compile.
    }
    return { statistics, cached: false };
  }
}

const toText = (array: Float32Array | Float64Array): string =>
  Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString('base64');

function bytesOf(text: string): ArrayBuffer {
  const bytes = Buffer.from(text, 'base64');
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength) as ArrayBuffer;
}

/** Exact: floats as base64 of their bits, scalars as JSON's shortest round-trip numbers. */
export function encodeStatistics(statistics: ReadonlyMap<string, ValueStatistics>): string {
  const entries = [...statistics].map(([name, { min, max, typical, channels }]): [string, StoredStatistics] => [
    name,
    {
      min,
      max,
      typical,
      ...(channels
        ? {
            channels: { min: toText(channels.min), max: toText(channels.max), meanSquare: toText(channels.meanSquare) },
          }
        : {}),
    },
  ]);
  return JSON.stringify(entries);
}

/** @throws Error when the text is not what encodeStatistics writes, or an entry is not finite: JSON makes null of it */
export function decodeStatistics(text: string): Map<string, ValueStatistics> {
  const entries = JSON.parse(text) as [string, StoredStatistics][];
  for (const [name, { min, max, typical }] of entries) {
    if (![min, max, typical].every(Number.isFinite)) throw new Error(`${name} is not finite`);
  }
  return new Map(
    entries.map(([name, { min, max, typical, channels }]) => [
      name,
      {
        min,
        max,
        typical,
        ...(channels
          ? {
              channels: {
                min: new Float32Array(bytesOf(channels.min)),
                max: new Float32Array(bytesOf(channels.max)),
                meanSquare: new Float64Array(bytesOf(channels.meanSquare)),
              },
            }
          : {}),
      },
    ]),
  );
}

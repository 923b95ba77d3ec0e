import { mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { cacheFolder } from '../../compiler/cache.ts';

/** Logs kept; the oldest go. */
const KEPT = 20;
/** Of a longer log the end is kept: verbose ones of large models have hundreds of megabytes. */
const MOST_BYTES = 16 << 20;

/**
 * Keeps what the vendor's libraries wrote before they failed, as `logs/<time>-<name>.log` in the cache folder.
 * @returns the file; undefined when there is nothing to keep, or no place: the error itself matters more
 */
export function keepLog(name: string, text: string): string | undefined {
  if (text.trim() === '') return undefined;
  const folder = cacheFolder('logs');
  const time = new Date().toISOString().replaceAll(/[:.]/g, '-');
  const path = join(folder, `${time}-${name.replaceAll(/[^\w.-]/g, '_')}.log`);
  try {
    mkdirSync(folder, { recursive: true });
    writeFileSync(path, Buffer.from(text).subarray(-MOST_BYTES));
    const logs = readdirSync(folder)
      .filter((file) => file.endsWith('.log'))
      .sort();
    for (const file of logs.slice(0, -KEPT)) rmSync(join(folder, file), { force: true });
    return path;
  } catch {
    return undefined;
  }
}

import { readdirSync, rmSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';

/**
 * A path in the user's cache folder: `$NPUC_CACHE`, else `$XDG_CACHE_HOME/npuc`, else `~/.cache/npuc`.
 * Nothing is created.
 */
export function cacheFolder(...parts: readonly string[]): string {
  const own = process.env.NPUC_CACHE;
  if (own) return join(resolve(own), ...parts);
  // The XDG specification says that a relative XDG_CACHE_HOME is to be ignored.
  const xdg = process.env.XDG_CACHE_HOME;
  return join(xdg?.startsWith('/') ? join(xdg, 'npuc') : join(homedir(), '.cache', 'npuc'), ...parts);
}

/** Prefix of entries that are being made. */
export const PARTIAL = 'partial-';
const DAY_MS = 24 * 3600 * 1000;

/**
 * Removes the entries of a cache folder that were used least recently until it is within the limit, and what runs that died
 * more than a day ago have left. `keep` stays, and so does a younger unfinished entry: another process may be making it. A
 * process that has an entry's file open keeps its bytes.
 */
export function pruneCache(folder: string, limitBytes: number, keep: string): void {
  const entries: { path: string; bytes: number; used: number }[] = [];
  for (const name of readdirSync(folder)) {
    const path = join(folder, name);
    try {
      const { atimeMs, mtimeMs } = statSync(path);
      const used = Math.max(atimeMs, mtimeMs);
      if (name.startsWith(PARTIAL)) {
        if (Date.now() - used > DAY_MS) rmSync(path, { recursive: true, force: true });
        continue;
      }
      entries.push({
        path,
        used,
        bytes: sizeOf(path),
      });
    } catch {
      // Removed by another process meanwhile.
    }
  }
  entries.sort((a, b) => a.used - b.used);
  let total = entries.reduce((sum, entry) => sum + entry.bytes, 0);
  for (const entry of entries) {
    if (total <= limitBytes) return;
    if (entry.path === keep) continue;
    rmSync(entry.path, { recursive: true, force: true });
    total -= entry.bytes;
  }
}

function sizeOf(path: string): number {
  const stat = statSync(path);
  if (!stat.isDirectory()) return stat.size;
  return readdirSync(path).reduce((sum, file) => sum + sizeOf(join(path, file)), 0);
}

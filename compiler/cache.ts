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

import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync, utimesSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { cacheFolder, PARTIAL, pruneCache } from '../../compiler/cache.ts';
import { describeFile } from '../manifest.ts';
import { type Soc, socOfNumber } from '../socs.ts';
import { type ContextModel, compileContext } from './compile-context.ts';
import type { Toolchain } from './toolchain.ts';

/** Raised when the way twins are compiled changes: older entries are then not found. */
const FORMAT = 2;

/** Twins that were not used for longest go when the folder grows beyond this. */
const CACHE_BYTES = 2 * 2 ** 30;

/** Compiles at a time; each takes one thread and about 1 GB on a model of 135 M weights. */
const PARALLEL = 2;

/**
 * The EPContext models of unshared twins, one per source, compiled from the same QDQ bytes as the shared binary (which
 * cannot be executed on x86). A twin is kept in the cache folder under the digest of everything that it depends on: the
 * sources, the SoC and the toolchain. Loading one takes half a second, compiling one half a minute on a model of 135 M weights.
 * @param soc the vendor's number, as the manifest keeps it
 * @throws QN010, QN011, QN012, RT202 as compileContext
 */
export async function provideTwins(
  toolchain: Toolchain,
  sources: readonly ContextModel[],
  soc: number,
): Promise<string[]> {
  const known = socOfNumber(soc);
  const paths: string[] = [];
  const waiting = [...sources.entries()];
  const work = async (): Promise<void> => {
    for (let next = waiting.shift(); next; next = waiting.shift()) {
      paths[next[0]] = await provideTwin(toolchain, next[1], known);
    }
  };
  const done = await Promise.allSettled(Array.from({ length: Math.min(PARALLEL, availableParallelism()) }, work));
  for (const result of done) if (result.status === 'rejected') throw result.reason;
  return paths;
}

async function provideTwin(toolchain: Toolchain, source: ContextModel, soc: Soc): Promise<string> {
  const twins = cacheFolder('twins');
  const folder = join(twins, digestOf(toolchain, source, soc));
  const path = join(folder, `${source.name}_ctx.onnx`);
  if (existsSync(path)) {
    const now = new Date();
    utimesSync(folder, now, now);
    return path;
  }
  mkdirSync(twins, { recursive: true });
  const partial = mkdtempSync(join(twins, PARTIAL));
  try {
    await compileContext(toolchain, [source], { soc, share: false, outputFolder: partial });
    try {
      renameSync(partial, folder);
    } catch (error) {
      // Another process may have been faster: its twin was made from the same bytes.
      if (!existsSync(path)) throw error;
    }
  } finally {
    rmSync(partial, { recursive: true, force: true });
  }
  pruneCache(twins, CACHE_BYTES, folder);
  return path;
}

function digestOf(toolchain: Toolchain, source: ContextModel, soc: Soc): string {
  const files = [basename(source.path), ...(source.externalData ?? [])];
  const digests = files.map((name) => describeFile(dirname(source.path), name).sha256);
  return createHash('sha256')
    .update(JSON.stringify([FORMAT, toolchain.versions, soc.number, source.name, digests]))
    .digest('hex');
}

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
  const entries = twinFolders(toolchain, sources, known);
  const paths: string[] = [];
  const waiting = [...sources.entries()];
  const work = async (): Promise<void> => {
    for (let next = waiting.shift(); next; next = waiting.shift()) {
      paths[next[0]] = await provideTwin(toolchain, next[1], known, entries[next[0]]!);
    }
  };
  const done = await Promise.allSettled(Array.from({ length: Math.min(PARALLEL, availableParallelism()) }, work));
  for (const result of done) if (result.status === 'rejected') throw result.reason;
  return paths;
}

/** The binaries of the twins that were made before, in the order of the sources; none where one is missing. */
export function findTwins(toolchain: Toolchain, sources: readonly ContextModel[], soc: number): string[] | undefined {
  const folders = twinFolders(toolchain, sources, socOfNumber(soc));
  const paths = folders.map((folder, i) => join(folder, `${sources[i]!.name}_ctx_qnn.bin`));
  return paths.every((path) => existsSync(path)) ? paths : undefined;
}

async function provideTwin(toolchain: Toolchain, source: ContextModel, soc: Soc, folder: string): Promise<string> {
  const twins = cacheFolder('twins');
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

/** Where the twins are kept, one folder per source. */
function twinFolders(toolchain: Toolchain, sources: readonly ContextModel[], soc: Soc): string[] {
  // All graphs of a bundle have one data file.
  const known = new Map<string, string>();
  const digestOf = (folder: string, name: string): string => {
    const path = join(folder, name);
    const digest = known.get(path) ?? describeFile(folder, name).sha256;
    known.set(path, digest);
    return digest;
  };
  return sources.map(({ name, path, externalData = [] }) => {
    const digests = [basename(path), ...externalData].map((file) => digestOf(dirname(path), file));
    const entry = JSON.stringify([FORMAT, toolchain.versions, soc.number, name, digests]);
    return join(cacheFolder('twins'), createHash('sha256').update(entry).digest('hex'));
  });
}

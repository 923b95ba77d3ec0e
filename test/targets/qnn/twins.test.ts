import {
  appendFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { pruneCache } from '../../../compiler/cache.ts';
import { NativeHost } from '../../../compiler/runtime/ort-native.ts';
import { provideTwins } from '../../../targets/qnn/twins.ts';
import { findSoc } from '../../../targets/socs.ts';
import { lpbqMatmul, noise, writeModel } from './tiny-onnx.ts';
import { toolchain } from './toolchain-or-skip.ts';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'npuc-test-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe.skipIf(!toolchain)('twins', () => {
  let cache: string;
  beforeEach(() => {
    cache = mkdtempSync(join(folder, 'cache-'));
    // The toolchain was found before; only what is written from now on goes here.
    vi.stubEnv('NPUC_CACHE', cache);
  });
  afterEach(() => vi.unstubAllEnvs());

  const soc = findSoc('SM8750').number;
  const source = (name: string, rows: number) => ({
    name,
    path: writeModel(join(folder, `${name}.onnx`), lpbqMatmul(rows)),
  });
  const entries = () => readdirSync(join(cache, 'twins')).sort();

  test('are compiled once per source, SoC and name, and compute what the model computes', async () => {
    const sources = [source('prefill', 8), source('decode', 1)];
    const paths = await provideTwins(toolchain!, sources, soc);
    expect(entries()).toHaveLength(2);
    const written = entries().map(
      (name) => statSync(join(cache, 'twins', name, readdirSync(join(cache, 'twins', name))[0]!)).mtimeMs,
    );
    expect(await provideTwins(toolchain!, sources, soc)).toEqual(paths);
    expect(
      entries().map(
        (name) => statSync(join(cache, 'twins', name, readdirSync(join(cache, 'twins', name))[0]!)).mtimeMs,
      ),
    ).toEqual(written);

    const host = await NativeHost.start(toolchain!);
    const data = noise(8 * 128, 3);
    const feeds = { x: { dtype: 'f32', shape: [1, 8, 128], data } } as const;
    const cpu = await host.openSession(sources[0]!.path, { provider: 'cpu' });
    const twin = await host.openSession(paths[0]!, { provider: 'qnn' });
    const direct = await host.openSession(sources[0]!.path, { provider: 'qnn', soc });
    const [a, b, c] = [await cpu.run(feeds), await twin.run(feeds), await direct.run(feeds)].map(
      (results) => Object.values(results)[0]!.data as Float32Array,
    );
    expect(b).toEqual(c);
    const signal = a!.reduce((sum, value) => sum + value * value, 0);
    const error = a!.reduce((sum, value, i) => sum + (value - b![i]!) ** 2, 0);
    expect(10 * Math.log10(signal / error)).toBeGreaterThan(60);
    await host.close();

    await provideTwins(toolchain!, sources, findSoc('SM8650').number);
    expect(entries()).toHaveLength(4);
    appendFileSync(sources[1]!.path, Buffer.from([0x12, 0x00]));
    await provideTwins(toolchain!, [sources[1]!], soc);
    expect(entries()).toHaveLength(5);
  });

  test('two at once leave one whole entry', async () => {
    const one = source('same', 4);
    const [a, b] = await Promise.all([provideTwins(toolchain!, [one], soc), provideTwins(toolchain!, [one], soc)]);
    expect(a).toEqual(b);
    expect(entries()).toHaveLength(1);
  });

  test('a source that is not there is a coded error and leaves nothing', async () => {
    const missing = { name: 'missing', path: join(folder, 'missing.onnx') };
    await expect(provideTwins(toolchain!, [missing], soc)).rejects.toMatchObject({ code: 'IO001' });
    await expect(provideTwins(toolchain!, [source('known', 1)], 4711)).rejects.toMatchObject({ code: 'TG001' });
    expect(readdirSync(cache)).toEqual([]);
  });
});

describe('the cache folder', () => {
  const at = (hours: number) => new Date(Date.now() - hours * 3600 * 1000);
  const entry = (cache: string, name: string, bytes: number, hours: number) => {
    mkdirSync(join(cache, name), { recursive: true });
    writeFileSync(join(cache, name, 'data'), Buffer.alloc(bytes));
    utimesSync(join(cache, name), at(hours), at(hours));
  };

  test('loses what was not used for longest, never the entry just made', () => {
    const cache = mkdtempSync(join(folder, 'prune-'));
    entry(cache, 'old', 600, 5);
    entry(cache, 'older', 600, 9);
    entry(cache, 'new', 600, 1);
    pruneCache(cache, 1200, join(cache, 'new'));
    expect(readdirSync(cache).sort()).toEqual(['new', 'old']);
    pruneCache(cache, 100, join(cache, 'old'));
    expect(readdirSync(cache)).toEqual(['old']);
    pruneCache(cache, 100, join(cache, 'old'));
    expect(readdirSync(cache)).toEqual(['old']);
  });

  test('loses what died unfinished, not what is being made', () => {
    const cache = mkdtempSync(join(folder, 'prune-'));
    entry(cache, 'partial-dead', 10, 30);
    entry(cache, 'partial-running', 10, 2);
    pruneCache(cache, 0, '');
    expect(readdirSync(cache)).toEqual(['partial-running']);
  });
});

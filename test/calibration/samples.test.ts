import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { randomSamples, readSamples, type SamplePort, samplePorts } from '../../calibration/samples.ts';
import { parseModule } from '../../compiler/ir/text.ts';
import { encodeNpz, floats } from '../compiler/import/write-npz.ts';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'npuc-samples-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const ports: readonly SamplePort[] = [
  { name: 'x', dtype: 'f32', shape: [1, 2, 3] },
  { name: 'rate', dtype: 'i64', shape: [] },
];
const image = floats([1, 2, 3], (i) => i);
const rate = { dtype: 'i64', shape: [], data: BigInt64Array.of(16000n) } as const;

function write(name: string, arrays: Parameters<typeof encodeNpz>[0]): string {
  const path = join(folder, name);
  writeFileSync(path, encodeNpz(arrays));
  return path;
}

describe('readSamples', () => {
  test('takes arrays named like the inputs, or in_<input>, and leaves others alone', () => {
    const { feeds, random } = readSamples(write('one.npz', { in_x: image, rate, out_y: image }), ports);
    expect(feeds).toEqual([{ x: image, rate }]);
    expect(random).toBe(false);
  });

  test('cuts several samples along the first axis, or along one more in front, and repeats what comes once', () => {
    const flat = floats([3, 2, 3], (i) => i);
    const deep = floats([3, 1, 2, 3], (i) => i);
    for (const x of [flat, deep]) {
      const { feeds } = readSamples(write('three.npz', { x, rate }), ports);
      expect(feeds.map((feed) => [...(feed.x!.data as Float32Array)])).toEqual([
        [0, 1, 2, 3, 4, 5],
        [6, 7, 8, 9, 10, 11],
        [12, 13, 14, 15, 16, 17],
      ]);
      expect(feeds.map((feed) => feed.rate)).toEqual([rate, rate, rate]);
    }
  });

  test('reads a folder in the order of names, whatever else lies there', () => {
    const many = join(folder, 'many');
    mkdirSync(many);
    writeFileSync(join(many, 'b.npz'), encodeNpz({ x: floats([1, 2, 3], () => 2), rate }));
    writeFileSync(join(many, 'a.npz'), encodeNpz({ x: floats([1, 2, 3], () => 1), rate }));
    writeFileSync(join(many, 'notes.txt'), 'no samples');
    expect(readSamples(many, ports).feeds.map((feed) => feed.x!.data[0])).toEqual([1, 2]);
  });

  test('converts the types that NumPy makes by itself', () => {
    const x = { dtype: 'f64', shape: [1, 2, 3], data: Float64Array.of(0, 1, 2, 3, 4, 5) } as const;
    const narrow = { dtype: 'i32', shape: [], data: Int32Array.of(-8000) } as const;
    const [feed] = readSamples(write('types.npz', { x, rate: narrow }), ports).feeds;
    expect(feed).toEqual({ x: image, rate: { ...rate, data: BigInt64Array.of(-8000n) } });
  });

  test('has one digest for the same samples and another for others', () => {
    const first = readSamples(write('d1.npz', { x: image, rate }), ports).digest;
    expect(readSamples(write('d2.npz', { in_rate: rate, in_x: image }), ports).digest).toBe(first);
    expect(readSamples(write('d3.npz', { x: floats([1, 2, 3], (i) => i + 1), rate }), ports).digest).not.toBe(first);
  });

  const bytes = { dtype: 'u8', shape: [1, 2, 3], data: new Uint8Array(6) } as const;
  test.each<[string, Parameters<typeof encodeNpz>[0], RegExp]>([
    ['an input that is missing', { x: image }, /no array for the input rate/],
    ['no arrays at all', {}, /no array for the input x/],
    ['another shape', { x: floats([1, 3, 2], () => 0), rate }, /shape \[1,3,2\], the model takes \[1,2,3\]/],
    ['another rank', { x: floats([6], () => 0), rate }, /shape \[6\]/],
    ['an empty batch', { x: floats([0, 2, 3], () => 0), rate }, /shape \[0,2,3\]/],
    ['integers for floats', { x: bytes, rate }, /is u8, the model takes f32/],
    ['floats for integers', { x: image, rate: floats([], () => 1) }, /is f32, the model takes i64/],
    [
      'samples that do not pair up',
      { x: floats([3, 2, 3], () => 0), rate: { dtype: 'i64', shape: [2], data: BigInt64Array.of(1n, 2n) } },
      /rate has 2 samples, another input has 3/,
    ],
  ])('refuses %s, naming the input', (_, arrays, message) => {
    const path = write('bad.npz', arrays);
    expect(() => readSamples(path, ports)).toThrow(
      expect.objectContaining({ code: 'QT120', message: expect.stringMatching(message), where: path }),
    );
  });

  test('refuses integers that do not fit', () => {
    const path = write('big.npz', { x: { dtype: 'i64', shape: [1], data: BigInt64Array.of(300n) } });
    expect(() => readSamples(path, [{ name: 'x', dtype: 'u8', shape: [1] }])).toThrow(
      expect.objectContaining({ code: 'QT120', message: expect.stringMatching(/300, which is no u8/) }),
    );
  });

  test('refuses a path that is not there and a folder without samples', () => {
    const bare = join(folder, 'bare');
    mkdirSync(bare);
    expect(() => readSamples(join(folder, 'nowhere'), ports)).toThrow(expect.objectContaining({ code: 'IO001' }));
    expect(() => readSamples(bare, ports)).toThrow(expect.objectContaining({ code: 'QT120' }));
  });
});

describe('randomSamples', () => {
  const graph = parseModule(
    'npuir 1\nopset 21\ngraph @g\n  in %x : f32[2,3]\n  in %ids : i64[4]\n  %y = Relu(%x)\n  out %y\n  out %ids\n',
  ).graph();

  test('are the same for a seed, differ between seeds and samples, and say that they are made up', () => {
    const samples = randomSamples(graph, 3, 1);
    expect(samples).toEqual(randomSamples(graph, 3, 1));
    expect(samples.random).toBe(true);
    expect(randomSamples(graph, 3, 2).digest).not.toBe(samples.digest);
    expect(samples.feeds[0]).not.toEqual(samples.feeds[1]);
    for (const feed of samples.feeds) {
      expect(feed.x!.shape).toEqual([2, 3]);
      for (const id of feed.ids!.data) expect([0n, 1n]).toContain(id);
    }
    expect(samplePorts(graph).map(({ name }) => name)).toEqual(['x', 'ids']);
  });
});

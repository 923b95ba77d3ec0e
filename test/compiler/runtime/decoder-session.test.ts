import { describe, expect, test } from 'vitest';
import { elementCount, type TensorData } from '../../../compiler/ir/tensor.ts';
import { type DecoderProtocol, DecoderSession } from '../../../compiler/runtime/decoder-session.ts';
import { generateGreedy, generateTokens, sampleToken } from '../../../compiler/runtime/generate.ts';
import type { Runner, Tensors } from '../../../compiler/runtime/runner.ts';

const VOCAB = 8;
const CACHE = 24;

const protocol: DecoderProtocol = {
  contract: 'plain',
  layers: 1,
  headDim: 2,
  vocabSize: VOCAB,
  cache: CACHE,
  rotary: 'in-graph',
  frequencies: [1],
  names: {
    tokens: 'ids',
    mask: 'mask',
    positions: 'positions',
    logits: 'logits',
    pastKey: ['pk'],
    pastValue: ['pv'],
    newKey: ['nk'],
    newValue: ['nv'],
  },
  keyTimeAxis: 2,
  valueTimeAxis: 1,
};

/** What one run of a graph was given. */
interface Run {
  readonly size: number;
  readonly cache: number;
  readonly ids: readonly number[];
  readonly past: readonly number[];
}

const floats = (shape: readonly number[], at: (index: number) => number): TensorData => ({
  dtype: 'f32',
  shape,
  data: Float32Array.from({ length: elementCount(shape) }, (_, i) => at(i)),
});

/**
 * A graph that says of every token the next one (id + 1, so the most likely token is known) and keeps the ids in its caches:
 * keys [1,2,time,1], values [1,time,2,1].
 */
function countingGraph(size: number, runs: Run[], givesLogits = true, cache = CACHE): Runner {
  const shapes = {
    pk: [1, 2, cache - size, 1],
    pv: [1, cache - size, 2, 1],
    ids: [1, size],
    mask: [1, 1, size, cache],
    positions: [1, size],
  };
  return {
    engine: 'counting',
    inputs: Object.entries(shapes).map(([name, shape]) => ({ name, dtype: 'f32', shape })),
    outputs: ['nk', 'nv', ...(givesLogits ? ['logits'] : [])].map((name) => ({ name, dtype: 'f32', shape: [] })),
    run: async (feeds: Tensors) => {
      for (const [name, shape] of Object.entries(shapes)) expect(feeds[name]!.shape, name).toEqual(shape);
      const ids = Array.from(feeds.ids!.data as Int32Array);
      const keys = feeds.pk!.data as Float32Array;
      const values = feeds.pv!.data as Float32Array;
      const past = Array.from(keys.subarray(0, cache - size));
      // Both layouts hold the same tokens, in both heads.
      expect(Array.from(keys.subarray(cache - size))).toEqual(past);
      expect(Array.from(values)).toEqual(past.flatMap((id) => [id, id]));
      runs.push({ size, cache, ids, past });
      return {
        nk: floats([1, 2, size, 1], (i) => ids[i % size]!),
        nv: floats([1, size, 2, 1], (i) => ids[i >> 1]!),
        ...(givesLogits
          ? {
              logits: floats([1, size, VOCAB], (i) =>
                (ids[Math.floor(i / VOCAB)]! + 1) % VOCAB === i % VOCAB ? 9 : 0,
              ),
            }
          : {}),
      };
    },
    close: async () => {},
  };
}

function open(sizes: readonly number[], silent: readonly number[] = []): { session: DecoderSession; runs: Run[] } {
  const runs: Run[] = [];
  const graphs = new Map(sizes.map((size) => [size, countingGraph(size, runs, !silent.includes(size))]));
  return { session: new DecoderSession({ protocol, graphs }), runs };
}

const count = (length: number): number[] => Array.from({ length }, (_, i) => (i % 6) + 1);
const next = (row: Float32Array): number => row.indexOf(9);

describe('feed', () => {
  test('keeps what it was fed in both caches, in order', async () => {
    const { session, runs } = open([4, 1]);
    const ids = count(11);
    const rows = await session.feed(ids, 'all');
    expect(rows.map(next)).toEqual(ids.map((id) => id + 1));
    await session.feed([3]);
    expect(runs.at(-1)!.past.slice(0, 11)).toEqual(ids);
    expect(runs.at(-1)!.past.slice(11)).toEqual(new Array(12).fill(0));
    expect([session.length, session.room]).toEqual([12, 12]);
    session.reset();
    await session.feed([5]);
    expect(runs.at(-1)!.past).toEqual(new Array(23).fill(0));
  });

  test.each([
    [9, [8, 1]],
    [8, [8]],
    [7, [8]],
    [3, [4]],
    [4, [4]],
    [1, [1]],
    [13, [8, 8]],
    [12, [8, 4]],
    [11, [8, 4]],
    [17, [8, 8, 1]],
  ])(
    '%i tokens over graphs of 8, 4 and 1 take %j: the smallest graph that holds what is left',
    async (length, sizes) => {
      const { session, runs } = open([8, 4, 1]);
      await session.feed(count(length));
      expect(runs.map(({ size }) => size)).toEqual(sizes);
    },
  );

  test('near the end of the cache, graphs that no longer fit give way to smaller ones', async () => {
    const { session, runs } = open([8, 4, 1]);
    await session.feed(count(19));
    runs.length = 0;
    await session.feed(count(5));
    expect(runs.map(({ size }) => size)).toEqual([4, 1]);
    expect(session.room).toBe(0);
  });

  test('prefill graphs without logits leave the last token to the decode graph', async () => {
    for (const length of [1, 2, 4, 5, 6, 9]) {
      const { session, runs } = open([4, 1], [4]);
      const [row] = await session.feed(count(length));
      expect(next(row!)).toBe(count(length).at(-1)! + 1);
      expect(runs.at(-1)!.size).toBe(1);
      expect(session.length).toBe(length);
    }
  });

  test('without a decode graph the smallest graph takes a single token', async () => {
    const { session, runs } = open([8, 4]);
    const rows = await session.feed([3]);
    expect(next(rows[0]!)).toBe(4);
    expect(runs.map(({ size }) => size)).toEqual([4]);
  });

  test('more than the cache holds is refused before anything runs', async () => {
    const { session, runs } = open([4, 1]);
    await session.feed(count(4));
    await expect(session.feed(count(21))).rejects.toMatchObject({ code: 'RT102', message: /21 .*20/ });
    expect(runs.length).toBe(1);
    expect(session.length).toBe(4);
    await session.feed(count(20));
    await expect(session.feed([1])).rejects.toMatchObject({ code: 'RT102' });
  });
});

describe('several caches', () => {
  const openSeveral = (): { session: DecoderSession; runs: Run[] } => {
    const runs: Run[] = [];
    const graphs = [24, 8, 16].flatMap((cache) =>
      [1, 4].map((tokens) => ({ tokens, cache, runner: countingGraph(tokens, runs, true, cache) })),
    );
    return { session: new DecoderSession({ protocol, graphs }), runs };
  };
  const shape = ({ size, cache }: Run): string => `${size}x${cache}`;

  test('the state begins in the smallest and moves on when the next chunk needs more', async () => {
    const { session, runs } = openSeveral();
    expect(session.cacheSizes).toEqual([8, 16, 24]);
    const ids = count(14);
    expect((await session.feed(ids, 'all')).map(next)).toEqual(ids.map((id) => id + 1));
    expect(runs.map(shape)).toEqual(['4x8', '4x8', '4x16', '4x16']);
    expect([session.length, session.room, session.cache]).toEqual([14, 10, 16]);
    for (const id of [1, 2, 3]) await session.feed([id]);
    expect(runs.slice(4).map(shape)).toEqual(['1x16', '1x16', '1x24']);
    expect(runs.at(-1)!.past.slice(0, 16)).toEqual([...ids, 1, 2]);
    expect(runs.at(-1)!.past.slice(16)).toEqual(new Array(7).fill(0));
    session.reset();
    await session.feed([5]);
    expect(shape(runs.at(-1)!)).toBe('1x8');
    expect(runs.at(-1)!.past).toEqual(new Array(7).fill(0));
  });

  test('chunks are cut as in the largest cache alone', async () => {
    for (const lengths of [[3, 9], [7, 1, 1, 5], [20, 4], [5, 2, 16], [24]]) {
      const several = openSeveral();
      const alone = openSeveral();
      alone.session.pinCache(24);
      for (const length of lengths) {
        const rows = await several.session.feed(count(length), 'all');
        expect(rows).toEqual(await alone.session.feed(count(length), 'all'));
      }
      expect(several.runs.map(({ size, ids }) => [size, ids])).toEqual(alone.runs.map(({ size, ids }) => [size, ids]));
      expect(new Set(alone.runs.map(({ cache }) => cache))).toEqual(new Set([24]));
    }
  });

  test('a pinned cache is the whole room, and one that is not there is a coded error', async () => {
    const { session, runs } = openSeveral();
    session.pinCache(8);
    expect(session.room).toBe(8);
    await expect(session.feed(count(9))).rejects.toMatchObject({ code: 'RT102', message: /the cache of 8 / });
    await session.feed(count(8));
    expect(new Set(runs.map(({ cache }) => cache))).toEqual(new Set([8]));
    expect(() => session.pinCache(12)).toThrow(expect.objectContaining({ code: 'RT104', hint: 'there are 8, 16, 24' }));
    session.pinCache();
    expect(session.room).toBe(24);
  });
});

describe('generateTokens', () => {
  test('ends after the count, at an end token, and when the cache is full', async () => {
    const { session } = open([4, 1]);
    expect(await generateGreedy(session, [0], 3)).toEqual([1, 2, 3]);
    expect(await generateGreedy(session, [0], 9, [4])).toEqual([1, 2, 3]);
    const long = await generateGreedy(session, count(20), 100);
    // Four fit into the cache; the fifth is known once the fourth is in.
    expect(long.length).toBe(5);
    expect(session.room).toBe(0);
  });
  test('an empty prompt is a coded error', async () => {
    const { session } = open([4, 1]);
    await expect(generateGreedy(session, [], 3)).rejects.toMatchObject({ code: 'RT103' });
  });
  test('a prompt that fills the cache gives one token', async () => {
    const { session } = open([4, 1]);
    expect(await generateGreedy(session, count(24), 5)).toEqual([count(24).at(-1)! + 1]);
  });
  test('logits that are no numbers end in an error, not in a text', async () => {
    const { session } = open([1]);
    const broken = new DecoderSession({
      protocol,
      graphs: new Map([
        [
          1,
          {
            ...countingGraph(1, []),
            run: async () => ({
              nk: floats([1, 2, 1, 1], () => 0),
              nv: floats([1, 1, 2, 1], () => 0),
              logits: floats([1, 1, VOCAB], () => Number.NaN),
            }),
          },
        ],
      ]),
    });
    await expect(generateGreedy(broken, [1], 3)).rejects.toMatchObject({ code: 'RT112' });
    const options = { temperature: 1, topK: 0, topP: 1, seed: 1 };
    await expect(generateTokens(broken, [1], 3, [], options).next()).rejects.toMatchObject({ code: 'RT112' });
    await session.close();
  });
});

describe('sampleToken', () => {
  const logits = Float32Array.of(0, 3, 1, 3, 2);
  const sample = (random: number, options: object = {}): number =>
    sampleToken(logits, { temperature: 1, topK: 0, topP: 1, seed: 0, ...options }, () => random);

  test('greedy takes the first of equals', () => {
    expect(sample(0.999, { temperature: 0 })).toBe(1);
  });
  test('top-k keeps the likeliest, ties by index', () => {
    for (const random of [0, 0.5, 0.999]) expect(sample(random, { topK: 1 })).toBe(1);
    expect(new Set([0, 0.3, 0.6, 0.999].map((random) => sample(random, { topK: 3 })))).toEqual(new Set([1, 3, 4]));
  });
  test('top-p keeps the fewest tokens that reach the share', () => {
    // Probabilities of 1 and 3 are 0.39 each.
    for (const random of [0, 0.999]) expect(sample(random, { topP: 0.3 })).toBe(1);
    expect(new Set([0, 0.4, 0.6, 0.999].map((random) => sample(random, { topP: 0.5 })))).toEqual(new Set([1, 3]));
  });
  test('frequencies follow the probabilities', () => {
    const weights = logits.map((value) => Math.exp(value / 2));
    const total = weights.reduce((a, b) => a + b);
    const draws = Array.from({ length: 1000 }, (_, i) => sample((i + 0.5) / 1000, { temperature: 2 }));
    logits.forEach((_, id) => {
      expect(draws.filter((drawn) => drawn === id).length / 1000).toBeCloseTo(weights[id]! / total, 2);
    });
  });
});

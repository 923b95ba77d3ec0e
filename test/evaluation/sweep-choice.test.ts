import { describe, expect, test } from 'vitest';
import { answerBudget, parseBudget } from '../../evaluation/sweep/budget.ts';
import { comparePoints, markFront } from '../../evaluation/sweep/choose-points.ts';
import { makePoint } from './make-sweep.ts';

const points = markFront([
  makePoint({ cache: 512, memory: 100e6, seconds: 1, ratio: 1.2 }),
  makePoint({ cache: 1024, memory: 150e6, seconds: 1.2, ratio: 1.05 }),
  makePoint({ cache: 2048, memory: 200e6, seconds: 1.5, ratio: 1.01 }),
  // Beaten by the one before in all three.
  makePoint({ cache: 2048, tokens: 32, memory: 210e6, seconds: 2, ratio: 1.02 }),
]);

describe('the front', () => {
  test('holds what no other point beats in memory, time and quality at once', () => {
    expect(points.map(({ front }) => front)).toEqual([true, true, true, false]);
  });

  test('is one for every SoC, and without points that do not fit or failed', () => {
    const marked = markFront([
      makePoint({ soc: 'SM8650', memory: 1e6, seconds: 1, ratio: 1 }),
      makePoint({ soc: 'SM8750', memory: 2e6, seconds: 2, ratio: 2 }),
      { ...makePoint({ memory: 1e5, seconds: 1, ratio: 1 }), failure: { code: 'QN011', message: 'no' } },
    ]);
    expect(marked.map(({ front }) => front)).toEqual([true, true, false]);
  });

  test('of a plan takes a larger cache for quality, and does not compare schemes', () => {
    const marked = markFront([
      makePoint({ cache: 512, memory: 1e6, seconds: 1 }),
      makePoint({ cache: 1024, memory: 2e6, seconds: 1 }),
      makePoint({ cache: 512, tokens: 32, memory: 2e6, seconds: 1 }),
      makePoint({ cache: 512, scheme: 'w8a8', memory: 9e6, seconds: 9 }),
    ]);
    expect(marked.map(({ front }) => front)).toEqual([true, true, false, true]);
  });

  test('of equal points has the first', () => {
    const same = { memory: 1e6, seconds: 1, ratio: 1 };
    expect(markFront([makePoint(same), makePoint(same)]).map(({ front }) => front)).toEqual([true, false]);
  });
});

describe('a budget', () => {
  test('is answered with the best point within it', () => {
    expect(answerBudget('memory<=160MB', points)).toMatchObject({ best: points[1]!.id, fitting: 2 });
    expect(answerBudget('memory<=1GiB, ppl <= 1.05x', points)).toMatchObject({ best: points[2]!.id, fitting: 3 });
    expect(answerBudget('cache<2048,cache>=512', points)).toMatchObject({ best: points[1]!.id, fitting: 2 });
  });

  test('that nothing satisfies is answered with the bound, and by how much', () => {
    expect(answerBudget('memory<=50MB', points).impossible).toEqual([
      `memory<=50MB is impossible: the nearest is 100 MB (${points[0]!.id}), 100 % above it`,
    ]);
    expect(answerBudget('ppl<=1.00x', points).impossible).toEqual([
      `ppl<=1.00x is impossible: the nearest is 1.0100x (${points[2]!.id}), 1.0 % above it`,
    ]);
  });

  test('whose bounds exclude one another says how far each is from the others', () => {
    expect(answerBudget('memory<=120MB,ppl<=1.1x', points)).toEqual({
      budget: 'memory<=120MB,ppl<=1.1x',
      fitting: 0,
      impossible: [
        `memory<=120MB is impossible where ppl<=1.1x holds: the nearest is 150 MB (${points[1]!.id}), 25 % above it`,
        `ppl<=1.1x is impossible where memory<=120MB holds: the nearest is 1.2000x (${points[0]!.id}), 9.1 % above it`,
      ],
    });
    expect(answerBudget('memory<=120MB,ppl<=1.02x,time<=1.3s', points).impossible).toHaveLength(1);
  });

  test.each([
    ['memory', 'memory is no bound'],
    ['memory<=1.5', 'needs a unit of bytes'],
    ['memory<=1.5GiB,', 'a bound is empty'],
    ['memry<=1GiB', 'did you mean memory?'],
    ['ppl<=1.05%', 'is no bound'],
    ['ppl<=2s', 'takes x or none'],
    ['decode>=20MB', 'takes none'],
    ['memory=1GiB', 'is no bound'],
    ['', 'a bound is empty'],
    ['memory<=-1GiB', 'is no bound'],
  ])('%j cannot be read', (text, why) => {
    expect(() => parseBudget(text)).toThrow(
      expect.objectContaining({ code: 'SW001', message: expect.stringContaining(why) as string }) as Error,
    );
  });

  test('on a figure that no point has, or without a point, is refused', () => {
    const plan = markFront([makePoint({ memory: 1e6, seconds: 1 })]);
    expect(() => answerBudget('ppl<=1.1x', plan)).toThrow(expect.objectContaining({ code: 'SW002' }) as Error);
    expect(() => answerBudget('memory<=1GiB', [])).toThrow(expect.objectContaining({ code: 'SW002' }) as Error);
  });
});

test('the best point is the one of least loss, then of the largest cache, then the fastest', () => {
  const [a, b, c] = markFront([
    makePoint({ cache: 512, memory: 1e6, seconds: 1 }),
    makePoint({ cache: 1024, memory: 2e6, seconds: 2 }),
    makePoint({ cache: 1024, tokens: 32, memory: 3e6, seconds: 1 }),
  ]);
  expect([a!, b!, c!].sort(comparePoints)).toEqual([c, b, a]);
});

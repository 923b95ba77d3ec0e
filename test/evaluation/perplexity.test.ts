import { expect, test } from 'vitest';
import type { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { evaluateLogits } from '../../evaluation/perplexity.ts';

/** A session that predicts the token after the last one it saw, and notes what it was fed. */
function counter(fed: number[][], certainty: number): DecoderSession {
  const session = {
    reset: () => fed.push([]),
    feed: async (ids: readonly number[]) => {
      fed.at(-1)!.push(...ids);
      return ids.map((id) => Float32Array.from({ length: 16 }, (_, i) => (i === id + 1 ? certainty : 0)));
    },
  };
  return session as unknown as DecoderSession;
}

const text = Array.from({ length: 11 }, (_, i) => i);

test('every window starts with the prefix and an empty cache; each token but its first is predicted', async () => {
  const fed: number[][] = [];
  const reports = await evaluateLogits(counter([], 5), new Map([['other', counter(fed, 3)]]), text, {
    window: 5,
    prefix: [15],
  });
  expect(fed).toEqual([
    [15, 0, 1, 2, 3],
    [15, 4, 5, 6, 7],
    [15, 8, 9, 10],
  ]);
  const report = reports.get('other')!;
  expect(report.predictions).toBe(3 + 3 + 2);
  expect(report.topAgreement).toBe(1);
  expect(report.referencePerplexity).toBeCloseTo((Math.exp(5) + 15) / Math.exp(5), 6);
  expect(report.perplexity).toBeCloseTo((Math.exp(3) + 15) / Math.exp(3), 6);
});

test.each([
  [{ window: 1 }, 11],
  [{ window: 0 }, 11],
  [{ window: -4 }, 11],
  [{ window: Number.NaN }, 11],
  [{ window: 2, prefix: [15] }, 11],
  [{ window: 8 }, 1],
  [{ window: 8 }, 0],
])('%j over %i tokens is refused: nothing would be predicted', async (options, length) => {
  const run = evaluateLogits(counter([], 5), new Map([['other', counter([], 3)]]), text.slice(0, length), options);
  await expect(run).rejects.toMatchObject({ code: 'QT110' });
});

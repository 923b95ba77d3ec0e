import { describe, expect, test } from 'vitest';
import { buildDecoder } from '../../compiler/import/decoder-model.ts';
import { checkShapes, graphRequests, largestCache } from '../../targets/graph-requests.ts';
import { makeBiasedDecoder } from './small-decoder.ts';

describe('graphRequests', () => {
  const names = (tokens: number[], caches: number[]): string[] =>
    graphRequests({ tokens, caches }).map(({ name }) => name);

  test('every pair once, a decode graph always; names say the cache where there are several', () => {
    expect(names([128], [1024])).toEqual(['prefill_128', 'decode']);
    expect(names([], [1024])).toEqual(['decode']);
    expect(names([32, 128, 1, 32], [2048, 512, 512])).toEqual([
      'prefill_128_c512',
      'prefill_32_c512',
      'decode_c512',
      'prefill_128_c2048',
      'prefill_32_c2048',
      'decode_c2048',
    ]);
  });

  test('all are made for the largest context', () => {
    const shapes = { tokens: [8], caches: [64, 16, 32] };
    expect(largestCache(shapes)).toBe(64);
    expect(new Set(graphRequests(shapes).map(({ context }) => context))).toEqual(new Set([64]));
  });
});

test('pairs without room for a past are named, all at once', () => {
  const shapes = { tokens: [128, 32], caches: [32, 64, 256] };
  expect(() => checkShapes(shapes)).toThrow(
    expect.objectContaining({
      code: 'IM410',
      message: expect.stringMatching(
        /: not so --cache 32 with --tokens 128, --cache 64 with --tokens 128, --cache 32 with --tokens 32$/,
      ),
    }),
  );
  expect(() => checkShapes({ tokens: [1], caches: [1] })).toThrow(/--cache 1 with --tokens 1$/);
  checkShapes({ tokens: [31], caches: [32] });
});

test('graphs of every cache have the rotary tables of the whole context, dynamic scaling among them', async () => {
  const { config, weights, quantize } = await makeBiasedDecoder();
  const decoder = await quantize('w8a16', 'onnx');
  const tables = graphRequests({ tokens: [4], caches: [16, 64] }).map((request) => {
    const graph = decoder.stamp(request).graph();
    return graph.constants.filter(({ name }) => /^rotary_(cos|sin)$/.test(name)).map(({ data }) => data!.shape[0]);
  });
  expect(tables).toEqual([
    [64, 64],
    [64, 64],
    [64, 64],
    [64, 64],
  ]);
  // What the tables are made for decides the base of dynamic scaling.
  const dynamic = { ...config, rope: { ...config.rope, type: 'dynamic' as const, factor: 2, originalPositions: 16 } };
  const [short, long] = [16, 64].map((context) => {
    const graph = buildDecoder(dynamic, weights, context, true).graph();
    return graph.constants
      .find(({ name }) => /^rotary_cos$/.test(name))!
      .data!.toFloats()
      .slice(0, 64);
  });
  expect(short).not.toEqual(long);
});

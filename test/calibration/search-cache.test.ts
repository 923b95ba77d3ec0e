import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { calibrationShape, collectDecoderStatistics, cutWindows } from '../../calibration/decoder-statistics.ts';
import { type QuantizedDecoder, quantizeDecoder } from '../../calibration/quantize-decoder.ts';
import { makeRecipe } from '../../calibration/recipe.ts';
import { decodeEncodings, encodeEncodings } from '../../calibration/search-cache.ts';
import type { Statistics } from '../../calibration/statistics.ts';
import { defaultText, readTokens } from '../../calibration/texts.ts';
import { openCheckpoint } from '../../compiler/import/checkpoint.ts';
import { type DecoderModel, readDecoderModel } from '../../compiler/import/decoder-model.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import type { Kernels } from '../../compiler/kernels/kernels.ts';
import { formatOf } from '../../targets/index.ts';
import { demo } from '../cli/run-npuc.ts';

let cache: string;
let model: DecoderModel;
let windows: number[][];
let statistics: Statistics;
const before = process.env.NPUC_CACHE;

beforeAll(async () => {
  cache = mkdtempSync(join(tmpdir(), 'npuc-search-'));
  process.env.NPUC_CACHE = cache;
  model = readDecoderModel(await openCheckpoint(demo));
  const shape = calibrationShape(model.config);
  const { ids } = readTokens(defaultText('calibration'), model.checkpoint.tokenizer!, 2 * shape.window, shape.window);
  windows = cutWindows(ids, shape, 2);
  statistics = await collectDecoderStatistics(model.config, model.weights, windows);
});
afterAll(() => {
  if (before === undefined) delete process.env.NPUC_CACHE;
  else process.env.NPUC_CACHE = before;
  rmSync(cache, { recursive: true, force: true });
});

/** Kernels that count how often scales are searched. */
function countSearches(): { kernels: Kernels; searches: () => number } {
  let searches = 0;
  const kernels: Kernels = {
    ...wasmKernels,
    searchScales: (...args) => {
      searches++;
      return wasmKernels.searchScales(...args);
    },
    searchLpbq: (...args) => {
      searches++;
      return wasmKernels.searchLpbq(...args);
    },
  };
  return { kernels, searches: () => searches };
}

async function quantize(checkpoint: string): Promise<{ decoder: QuantizedDecoder; searches: number }> {
  const { kernels, searches } = countSearches();
  const decoder = await quantizeDecoder({
    config: model.config,
    weights: model.weights,
    statistics,
    windows,
    recipe: makeRecipe('w4a16'),
    ...formatOf('qnn'),
    kernels,
    cacheKey: { checkpoint, windows, engine: 'test' },
  });
  return { decoder, searches: searches() };
}

describe('searched scales', () => {
  test('are found once, and are the same when they come from the cache', async () => {
    const first = await quantize('a');
    const second = await quantize('a');
    expect(first.searches).toBeGreaterThan(0);
    expect(second.searches).toBe(0);
    expect(second.decoder.weightEncodings).toEqual(first.decoder.weightEncodings);
    expect(second.decoder.migration.exponents).toEqual(first.decoder.migration.exponents);
    expect([...first.decoder.migration.exponents.values()].some((exponent) => exponent > 0)).toBe(true);
    for (const name of ['model.layers.1.mlp.down_proj.weight', 'model.layers.0.input_layernorm.weight'])
      expect(second.decoder.migration.weights.get(name)!.toFloats()).toEqual(
        first.decoder.migration.weights.get(name)!.toFloats(),
      );
  });

  test('of another checkpoint are searched again, and so is what is damaged', async () => {
    expect((await quantize('b')).searches).toBeGreaterThan(0);
    const { decoder } = await quantize('b');
    for (const name of readdirSync(join(cache, 'search'))) writeFileSync(join(cache, 'search', name), '[["x"');
    const again = await quantize('b');
    expect(again.searches).toBeGreaterThan(0);
    expect(again.decoder.weightEncodings).toEqual(decoder.weightEncodings);
  });

  test('keep every number of an encoding', () => {
    const encodings = new Map([
      [
        'w',
        {
          dtype: 'i4' as const,
          scale: Float32Array.of(0.1, 1e-30),
          axis: 0,
          block: 32,
          channelAxis: 1,
          blockScale: Uint8Array.of(1, 15),
          zeroPoint: Int32Array.of(-3, 0),
        },
      ],
    ]);
    expect(decodeEncodings(encodeEncodings(encodings))).toEqual(encodings);
  });
});

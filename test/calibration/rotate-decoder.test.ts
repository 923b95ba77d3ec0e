import { existsSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { buildPlainDecoder } from '../../calibration/decoder-statistics.ts';
import {
  createRotation,
  findSinkDirection,
  hasStreamOutliers,
  rotateDecoder,
} from '../../calibration/rotate-decoder.ts';
import { defaultText, readTokens, startTokens } from '../../calibration/texts.ts';
import { openCheckpoint } from '../../compiler/import/checkpoint.ts';
import { type DecoderModel, readDecoderModel } from '../../compiler/import/decoder-model.ts';
import { Tensor } from '../../compiler/ir/tensor.ts';
import { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { openModule } from '../../compiler/runtime/engine.ts';
import { plainContract } from '../../passes/io-contract.ts';
import { makeProtocol } from '../../passes/protocol.ts';

const material = '../shared/material';

async function logitsOf({ config, weights }: Pick<DecoderModel, 'config' | 'weights'>, ids: readonly number[]) {
  const runner = await openModule(buildPlainDecoder(config, weights, 32, 64));
  const session = new DecoderSession({
    protocol: makeProtocol(config, plainContract, 64),
    graphs: new Map([[32, runner]]),
  });
  const logits = await session.feed(ids, 'all');
  await session.close();
  return logits;
}

/** Biases everywhere that a decoder may have them. */
function withBiases({ config, weights }: DecoderModel): Pick<DecoderModel, 'config' | 'weights'> {
  const biased = new Map(weights);
  for (const [name, tensor] of weights) {
    if (!/_proj\.weight$/.test(name)) continue;
    const outputs = tensor.shape[1]!;
    const bias = Float32Array.from({ length: outputs }, (_, i) => 0.1 * Math.sin(i + 1));
    biased.set(name.replace('.weight', '.bias'), Tensor.of('f32', [outputs], bias));
  }
  return { config, weights: biased };
}

describe.each([
  ['the demo model', 'fixtures/demo'],
  ['stories260k', `${material}/stories260k/hf`],
])('a rotation of %s', (_, path) => {
  test.skipIf(!existsSync(path))('leaves the logits as they are, biases or not', async () => {
    const checkpoint = await openCheckpoint(path);
    const model = readDecoderModel(checkpoint);
    const text = readTokens(defaultText('evaluation'), checkpoint.tokenizer!, 40, 40).ids;
    const ids = [...startTokens(checkpoint.tokenizer!), ...text];
    for (const source of [model, withBiases(model)]) {
      const expected = await logitsOf(source, ids);
      const rotated = rotateDecoder({ ...source, embed: model.embed });
      const got = await logitsOf(rotated, ids);
      const largest = Math.max(...expected.flatMap((row) => row!.reduce((a, b) => Math.max(a, Math.abs(b)), 0)));
      expected.forEach((row, i) => {
        row!.forEach((value, j) => {
          if (Math.abs(value - got[i]![j]!) > 1e-4 * largest) expect(got[i]![j]).toBe(value);
        });
      });
    }
    const table = rotateDecoder(model).weights.get('model.embed_tokens.weight')!.toFloats();
    const width = model.config.hiddenSize;
    expect(rotateDecoder(model).embed([3, 1])).toEqual(
      Float32Array.from([...table.subarray(3 * width, 4 * width), ...table.subarray(width, 2 * width)]),
    );
    // It did something: norms have no weights of their own any more.
    expect(new Set(rotateDecoder(model).weights.get('model.norm.weight')!.toFloats())).toEqual(new Set([1]));
    checkpoint.close();
  });
});

describe('the matrices', () => {
  test('are orthogonal and spread a single channel over all, for any width', () => {
    fc.assert(
      fc.property(fc.constantFrom(1, 2, 3, 5, 8, 12, 36, 48, 64, 100, 576, 896), fc.nat(1000), (width, seed) => {
        const rotate = createRotation(width, seed);
        const matrix = new Float32Array(width * width);
        for (let i = 0; i < width; i++) matrix[i * width + i] = 1;
        rotate(matrix);
        const i = seed % width;
        for (const j of [i, (i + 1) % width, (i + width - 1) % width]) {
          let dot = 0;
          for (let k = 0; k < width; k++) dot += matrix[i * width + k]! * matrix[j * width + k]!;
          expect(dot).toBeCloseTo(i === j ? 1 : 0, 5);
        }
        const largest = matrix.subarray(i * width, (i + 1) * width).reduce((a, b) => Math.max(a, Math.abs(b)), 0);
        expect(largest).toBeLessThanOrEqual(Math.SQRT2 / Math.sqrt(width) + 1e-6);
      }),
      { numRuns: 40 },
    );
  });

  test('spread the direction of the sinks evenly and with one sign, and stay orthogonal', () => {
    fc.assert(
      fc.property(fc.constantFrom(2, 3, 36, 64, 576), fc.nat(1000), (width, seed) => {
        const raw = Float64Array.from({ length: width }, (_, i) => Math.sin(seed + 7 * i) ** 9);
        const length = Math.hypot(...raw);
        const sink = raw.map((value) => value / length);
        const rotate = createRotation(width, seed, sink);
        const rows = new Float32Array(2 * width);
        rows.set(sink);
        rows[width + (seed % width)] = 1;
        rotate(rows);
        for (const value of rows.subarray(0, width)) expect(value).toBeCloseTo(1 / Math.sqrt(width), 5);
        expect(Math.hypot(...rows.subarray(width))).toBeCloseTo(1, 5);
        const dot = rows.subarray(0, width).reduce((sum, value, i) => sum + value * rows[width + i]!, 0);
        expect(dot).toBeCloseTo(sink[seed % width]!, 5);
      }),
      { numRuns: 40 },
    );
  });

  test('the direction is that of the largest rows of the residual stream', () => {
    const config = { layers: 2 } as DecoderModel['config'];
    const seen = (min: number[], max: number[]) => ({
      min: Math.min(...min),
      max: Math.max(...max),
      typical: 1,
      channels: { min: new Float32Array(min), max: new Float32Array(max), meanSquare: new Float64Array(min.length) },
    });
    const statistics = new Map([
      ['layers.0.mlp_product', seen([-900], [0])],
      ['layers.0.mlp_residual', seen([-1, -2, -3], [5, 1, 1])],
      ['layers.1.attn_residual', seen([-1, -40, -2], [30, 1, 2])],
    ]);
    expect(Array.from(findSinkDirection(config, statistics)!, (value) => Number(value.toFixed(3)))).toEqual([
      0.6, -0.799, 0.04,
    ]);
    expect(findSinkDirection(config, new Map())).toBeUndefined();
  });

  test('outliers are those of the residual stream', () => {
    const config = { layers: 2 } as DecoderModel['config'];
    const seen = (max: number) => ({ min: -1, max, typical: 0.5 });
    const rest = new Map([['layers.0.mlp_product', seen(1e4)]]);
    expect(hasStreamOutliers(config, new Map([...rest, ['layers.1.attn_residual', seen(49)]]))).toBe(false);
    expect(hasStreamOutliers(config, new Map([...rest, ['layers.1.attn_residual', seen(51)]]))).toBe(true);
  });
});

import { describe, expect, test } from 'vitest';
import { buildPlainDecoder, collectDecoderStatistics } from '../../calibration/decoder-statistics.ts';
import { chooseRange } from '../../calibration/range.ts';
import { makeRecipe } from '../../calibration/recipe.ts';
import { type DecoderSource, rotateDecoder } from '../../calibration/rotate-decoder.ts';
import { findOutlierChannels, separateOutliers } from '../../calibration/separate-outliers.ts';
import { defaultText, readTokens, startTokens } from '../../calibration/texts.ts';
import { openCheckpoint } from '../../compiler/import/checkpoint.ts';
import { readDecoderModel } from '../../compiler/import/decoder-model.ts';
import { Tensor } from '../../compiler/ir/tensor.ts';
import { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { openModule } from '../../compiler/runtime/engine.ts';
import { plainContract } from '../../passes/io-contract.ts';
import { makeProtocol } from '../../passes/protocol.ts';

async function logitsOf({ config, weights }: DecoderSource, ids: readonly number[]): Promise<Float32Array[]> {
  const runner = await openModule(buildPlainDecoder(config, weights, 32, 64));
  const protocol = makeProtocol(config, plainContract, 64);
  const session = new DecoderSession({ protocol, graphs: new Map([[32, runner]]) });
  const logits = await session.feed(ids, 'all');
  await session.close();
  return logits;
}

/** The model with one channel of layer 1's product made a thousand times as large, and biases in its MLP. */
function withOutlier(source: DecoderSource, channel: number): DecoderSource {
  const mlp = 'model.layers.1.mlp';
  const weights = new Map(source.weights);
  const { hiddenSize, intermediateSize } = source.config;
  const up = weights.get(`${mlp}.up_proj.weight`)!;
  const enlarged = up.toFloats().map((value, i) => (i % intermediateSize === channel ? 1000 * value : value));
  weights.set(`${mlp}.up_proj.weight`, Tensor.of('f32', up.shape, enlarged));
  for (const [name, size] of [
    ['gate_proj', intermediateSize],
    ['up_proj', intermediateSize],
    ['down_proj', hiddenSize],
  ] as const) {
    const bias = Float32Array.from({ length: size }, (_, i) => 0.05 * Math.sin(i));
    weights.set(`${mlp}.${name}.bias`, Tensor.of('f32', [size], bias));
  }
  return { ...source, weights };
}

describe('channels with outliers', () => {
  test('are found and separated; the logits stay, rotated or not', async () => {
    const checkpoint = await openCheckpoint('fixtures/demo');
    const model = readDecoderModel(checkpoint);
    const source = withOutlier(model, 5);
    const { config } = source;
    const text = readTokens(defaultText('evaluation'), checkpoint.tokenizer!, 32, 32).ids;
    const ids = [...startTokens(checkpoint.tokenizer!), ...text].slice(0, 32);
    const statistics = await collectDecoderStatistics(config, source.weights, [[...ids, ...ids]]);
    const channels = findOutlierChannels(config, statistics);
    expect([...channels.keys()]).toEqual([1]);
    expect(channels.get(1)).toContain(5);
    expect(findOutlierChannels(config, await collectDecoderStatistics(config, model.weights, [ids])).size).toBe(0);
    const separated = separateOutliers(source, channels);
    expect(separated.weights.get('model.layers.1.mlp.down_proj.outliers.weight')!.shape).toEqual([
      64,
      config.hiddenSize,
    ]);
    const after = await collectDecoderStatistics(config, separated.weights, [[...ids, ...ids]]);
    const reach = (name: string): number => Math.max(-after.get(name)!.min, after.get(name)!.max);
    expect(reach('layers.1.mlp_product')).toBeLessThan(0.1 * reach('layers.1.mlp_product.outliers'));
    const expected = await logitsOf(source, ids);
    const largest = Math.max(...expected.flatMap((row) => row.reduce((a, b) => Math.max(a, Math.abs(b)), 0)));
    for (const changed of [separated, rotateDecoder(separated)]) {
      const got = await logitsOf(changed, ids);
      expected.forEach((row, i) => {
        row.forEach((value, j) => {
          if (Math.abs(value - got[i]![j]!) > 1e-4 * largest) expect(got[i]![j]).toBe(value);
        });
      });
    }
    checkpoint.close();
  });
});

test('16-bit ranges have room for what calibration has not seen, as far as typical values keep their steps', () => {
  const recipe = makeRecipe('w8a16');
  expect(chooseRange({ min: -2, max: 3, typical: 1 }, recipe, 16)).toEqual({ min: -4, max: 6 });
  expect(chooseRange({ min: -64, max: 100, typical: 1 }, recipe, 16)).toEqual({ min: -81.92, max: 128 });
  expect(chooseRange({ min: -2, max: 3000, typical: 1 }, recipe, 16)).toEqual({ min: -2, max: 3000 });
  expect(chooseRange({ min: -2, max: 3, typical: 1 }, makeRecipe('w8a8'), 8)).toEqual({ min: -2, max: 3 });
});

import { describe, expect, test } from 'vitest';
import { findAnchors } from '../../calibration/anchor-stream.ts';
import {
  buildPlainDecoder,
  calibrationShape,
  collectDecoderStatistics,
  cutWindows,
} from '../../calibration/decoder-statistics.ts';
import { type QuantizedDecoder, quantizeDecoder } from '../../calibration/quantize-decoder.ts';
import { chooseRange } from '../../calibration/range.ts';
import { makeRecipe } from '../../calibration/recipe.ts';
import { type DecoderSource, rotateDecoder } from '../../calibration/rotate-decoder.ts';
import { findOutliers, type LayerOutliers, separateOutliers } from '../../calibration/separate-outliers.ts';
import type { ChannelStatistics, ValueStatistics } from '../../calibration/statistics.ts';
import { defaultText, readTokens, startTokens } from '../../calibration/texts.ts';
import { openCheckpoint } from '../../compiler/import/checkpoint.ts';
import { readDecoderModel } from '../../compiler/import/decoder-model.ts';
import type { DecoderConfig } from '../../compiler/import/huggingface/config.ts';
import { Tensor } from '../../compiler/ir/tensor.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { openModule } from '../../compiler/runtime/engine.ts';
import { compareGraphValues } from '../../evaluation/compare-graph-values.ts';
import { plainContract } from '../../passes/io-contract.ts';
import { makeProtocol } from '../../passes/protocol.ts';
import { decoderStages } from '../../passes/split-decoder.ts';
import { formatOf } from '../../targets/index.ts';
import { shardDecoder } from '../../targets/tflite/shard-decoder.ts';

async function logitsOf({ config, weights }: DecoderSource, ids: readonly number[]): Promise<Float32Array[]> {
  const runner = await openModule(buildPlainDecoder(config, weights, 32, 64));
  const protocol = makeProtocol(config, plainContract, 64);
  const session = new DecoderSession({ protocol, graphs: new Map([[32, runner]]) });
  const logits = await session.feed(ids, 'all');
  await session.close();
  return logits;
}

/** Biases in the MLP of layer 1. */
function withBiases(source: DecoderSource): DecoderSource {
  const weights = new Map(source.weights);
  const { hiddenSize, intermediateSize } = source.config;
  for (const [name, size] of [
    ['gate_proj', intermediateSize],
    ['up_proj', intermediateSize],
    ['down_proj', hiddenSize],
  ] as const) {
    const bias = Float32Array.from({ length: size }, (_, i) => 0.05 * Math.sin(i));
    weights.set(`model.layers.1.mlp.${name}.bias`, Tensor.of('f32', [size], bias));
  }
  return { ...source, weights };
}

/** The 64 channels that reach furthest, with the least bound that cuts no other one off. */
function furthest({ min, max }: ChannelStatistics): LayerOutliers {
  const reach = Array.from(max, (value, channel) => Math.max(-min[channel]!, value));
  const order = [...reach.keys()].sort((a, b) => reach[b]! - reach[a]!);
  const channels = order.slice(0, 64).sort((a, b) => a - b);
  const negative = new Set(channels.filter((channel) => -min[channel]! > max[channel]!));
  const others = channels.map((channel) => (negative.has(channel) ? max[channel]! : -min[channel]!));
  return { channels, negative, bound: Math.max(reach[order[64]!]!, ...others) };
}

describe('outliers of a gated product', () => {
  test('on a path of their own leave the logits as they are, rotated or not, anchored or not', async () => {
    const checkpoint = await openCheckpoint('fixtures/demo');
    const source = withBiases(readDecoderModel(checkpoint));
    const { config } = source;
    const text = readTokens(defaultText('evaluation'), checkpoint.tokenizer!, 32, 32).ids;
    const ids = [...startTokens(checkpoint.tokenizer!), ...text].slice(0, 32);
    const statistics = await collectDecoderStatistics(config, source.weights, [ids]);
    const outliers = furthest(statistics.get('layers.1.mlp_product')!.channels!);
    expect(outliers.negative.size).toBeGreaterThan(0);
    const separated = separateOutliers(source, new Map([[1, outliers]]));
    const anchored = { ...separated, config: { ...config, anchors: [0, 2] } };
    const after = await collectDecoderStatistics(config, separated.weights, [ids]);
    // The path carries something.
    expect(after.get('layers.1.mlp_product.outliers')!.max).toBeGreaterThan(0.2 * outliers.bound);
    expect(after.get('layers.1.mlp_product')!.max).toBeLessThanOrEqual(outliers.bound);
    const expected = await logitsOf(source, ids);
    const largest = Math.max(...expected.flatMap((row) => row.reduce((a, b) => Math.max(a, Math.abs(b)), 0)));
    const rotated = rotateDecoder(separated);
    for (const changed of [separated, rotated, anchored, { ...rotated, config: anchored.config }]) {
      const got = await logitsOf(changed, ids);
      expected.forEach((row, i) => {
        row.forEach((value, j) => {
          if (Math.abs(value - got[i]![j]!) > 1e-4 * largest) expect(got[i]![j]).toBe(value);
        });
      });
    }
    checkpoint.close();
  });

  test('are found where few channels dwarf the others, with their sign and a bound above the rest', () => {
    const config = { layers: 1, intermediateSize: 512 } as DecoderConfig;
    const channels = (change: (min: Float32Array, max: Float32Array) => void): Map<string, ValueStatistics> => {
      const [min, max] = [new Float32Array(512).fill(-2), new Float32Array(512).fill(3)];
      change(min, max);
      const meanSquare = new Float64Array(512).fill(1);
      const seen = { min: Math.min(...min), max: Math.max(...max), typical: 1, channels: { min, max, meanSquare } };
      return new Map([['layers.0.mlp_product', seen]]);
    };
    const two = channels((min, max) => {
      min[7] = -900;
      max[100] = 400;
    });
    const found = findOutliers(config, two).get(0)!;
    expect(found.channels).toHaveLength(64);
    expect(found.channels).toEqual(expect.arrayContaining([7, 100]));
    expect([...found.negative]).toEqual([7]);
    expect(found.bound).toBe(6);
    // Outliers to both sides, many channels of them, or small ones stay where they are.
    for (const change of [
      (min: Float32Array, max: Float32Array) => [min.fill(-900, 7, 8), max.fill(800, 7, 8)],
      (_: Float32Array, max: Float32Array) => max.fill(900, 0, 100),
      (_: Float32Array, max: Float32Array) => max.fill(150, 0, 2),
    ]) {
      expect(findOutliers(config, channels(change)).size).toBe(0);
    }
  });
});

describe('anchors of the residual stream', () => {
  test('stand where sinks are large, four layers apart, and the last layer has none', () => {
    const config = { layers: 10, hiddenSize: 16 } as DecoderConfig;
    const seen = (max: number): ValueStatistics => ({ min: -1, max, typical: 1 });
    const statistics = new Map(
      Array.from({ length: 10 }, (_, i) => [`layers.${i}.mlp_residual`, seen(i < 2 ? 99 : 200)] as const),
    );
    expect(findAnchors(config, statistics)).toEqual([2, 6]);
    expect(findAnchors(config, new Map())).toEqual([]);
    // Behind the first one they go on: what was added since would be in one piece to the end.
    statistics.set('layers.6.mlp_residual', seen(99));
    expect(findAnchors(config, statistics)).toEqual([2, 6]);
  });

  /** The demo model with outliers of layer 1 apart and anchors behind layers 0 and 2. */
  async function quantizeAnchored(
    scheme: string,
    ...target: Parameters<typeof formatOf>
  ): Promise<{ decoder: QuantizedDecoder; ids: readonly number[] }> {
    const checkpoint = await openCheckpoint('fixtures/demo');
    const model = readDecoderModel(checkpoint);
    const text = readTokens(defaultText('calibration'), checkpoint.tokenizer!, 300, 64).ids;
    const windows = cutWindows(text, calibrationShape(model.config), 2, startTokens(checkpoint.tokenizer!));
    const before = await collectDecoderStatistics(model.config, model.weights, windows);
    const outliers = furthest(before.get('layers.1.mlp_product')!.channels!);
    const separated = separateOutliers(model, new Map([[1, outliers]]));
    const config = { ...model.config, anchors: [0, 2] };
    const decoder = await quantizeDecoder({
      config,
      weights: separated.weights,
      statistics: await collectDecoderStatistics(config, separated.weights, windows),
      windows,
      recipe: makeRecipe(scheme, { cache: 16 }),
      ...formatOf(...target),
      kernels: wasmKernels,
    });
    return { decoder, ids: windows[0]!.slice(0, 32) };
  }

  test('shards end at anchors, where one value passes', async () => {
    const { decoder } = await quantizeAnchored('w8a16', 'tflite', 'in-graph', 'mediatek');
    const requests = [
      { name: 'prefill', tokens: 8, cache: 16, logits: 'none' },
      { name: 'decode', tokens: 1, cache: 16, logits: 'all' },
    ] as const;
    const entries = shardDecoder(decoder, requests, 3).map(({ graphs }) => graphs.map(({ inputs }) => inputs[0]!.name));
    expect(entries.slice(1)).toEqual([0, 2].map((layer) => Array(2).fill(`layers.${layer}.mlp_residual`)));
    expect(() => shardDecoder(decoder, requests, 4)).toThrow(expect.objectContaining({ code: 'QN017' }));
  });

  test.each([
    ['w8a16', 'qnn'],
    ['w8a16', 'tflite'],
    ['w4a16', 'onnx'],
    ['w8a8', 'qnn'],
  ] as const)('%s for %s: quantized with both, it stays close to the float model', async (scheme, target) => {
    const { decoder, ids } = await quantizeAnchored(scheme, target);
    // Between anchors two values pass from layer to layer: no cut there.
    const stages = decoderStages(decoder.stamp({ name: 'g', tokens: 8, cache: 16, logits: 'all' }).graph());
    expect(stages.flatMap(({ end }) => /layers.*/.exec(end ?? '') ?? [])).toEqual(
      [0, 2, 3].map((layer) => `layers.${layer}.mlp_residual`),
    );
    const values = await compareGraphValues(decoder, 32, 64, ids);
    const named = (name: string): number => values.find((value) => value.name === name)!.sqnr;
    expect(values.map(({ name }) => name)).toEqual(
      expect.arrayContaining(['layers.1.mlp_base', 'layers.2.attn_updates', 'layers.3.attn_residual']),
    );
    for (const name of ['layers.1.mlp_residual', 'layers.3.mlp_residual']) {
      expect(named(name), name).toBeGreaterThan(scheme === 'w8a16' ? 30 : 15);
    }
  });
});

test('16-bit products with long tails have room for what calibration has not seen, as far as typical values keep steps', () => {
  const recipe = makeRecipe('w8a16');
  expect(chooseRange({ min: -2, max: 40, typical: 1 }, recipe, 16, true)).toEqual({ min: -4, max: 80 });
  expect(chooseRange({ min: -64, max: 100, typical: 1 }, recipe, 16, true)).toEqual({ min: -81.92, max: 128 });
  expect(chooseRange({ min: -2, max: 3000, typical: 1 }, recipe, 16, true)).toEqual({ min: -2, max: 3000 });
  expect(chooseRange({ min: -2, max: 20, typical: 1 }, recipe, 16, true)).toEqual({ min: -2, max: 20 });
  expect(chooseRange({ min: -2, max: 40, typical: 1 }, recipe, 16)).toEqual({ min: -2, max: 40 });
  expect(chooseRange({ min: -2, max: 40, typical: 1 }, makeRecipe('w8a8'), 8, true)).toEqual({ min: -2, max: 40 });
});

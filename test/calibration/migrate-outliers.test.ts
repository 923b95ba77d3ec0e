import { describe, expect, test } from 'vitest';
import { calibrationShape, collectDecoderStatistics } from '../../calibration/decoder-statistics.ts';
import { decoderSites, migrateOutliers } from '../../calibration/migrate-outliers.ts';
import { litertFormat, makeRecipe } from '../../calibration/recipe.ts';
import { parseDecoderConfig } from '../../compiler/import/huggingface/config.ts';
import { collectWeights } from '../../compiler/import/huggingface/llama.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { seededRandom } from '../../compiler/runtime/generate.ts';
import { randomCheckpoint } from '../reference-decoder.ts';

describe.each([
  { name: 'without biases', biases: false },
  { name: 'with biases', biases: true },
])('$name', ({ biases }) => {
  test.each(['w8a8', 'w4a16'])('%s: the migrated statistics are those of the migrated model', async (scheme) => {
    const config = parseDecoderConfig(
      {
        architectures: ['LlamaForCausalLM'],
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        vocab_size: 64,
        max_position_embeddings: 64,
        attention_bias: biases,
        mlp_bias: biases,
      },
      'config.json',
    );
    const weights = collectWeights(config, randomCheckpoint(config, { attentionBias: biases, mlpBias: biases }), 'x');
    const { window } = calibrationShape(config);
    const random = seededRandom(7);
    const windows = [0, 1].map(() => Array.from({ length: window }, () => Math.floor(random() * config.vocabSize)));
    const statistics = await collectDecoderStatistics(config, weights, windows);
    const recipe = makeRecipe(scheme, scheme === 'w4a16' ? { block: 16 } : {});
    const sites = decoderSites(config.layers);
    const migration = await migrateOutliers(weights, sites, statistics, recipe, litertFormat, wasmKernels);
    expect([...migration.exponents.values()].some((exponent) => exponent > 0)).toBe(true);
    const measured = await collectDecoderStatistics(config, migration.weights, windows);
    for (const [name, { min, max, channels }] of measured) {
      const told = migration.statistics.get(name)!;
      const near = 1e-3 * (max - min);
      expect(Math.abs(told.min - min), `${name} ${told.min} ${min}`).toBeLessThanOrEqual(near);
      expect(Math.abs(told.max - max), `${name} ${told.max} ${max}`).toBeLessThanOrEqual(near);
      channels?.meanSquare.forEach((square, k) => {
        expect(told.channels!.meanSquare[k]! / square, `${name} channel ${k}`).toBeCloseTo(1, 2);
      });
    }
  });
});

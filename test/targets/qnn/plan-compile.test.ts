import { describe, expect, test } from 'vitest';
import { planWeights } from '../../../calibration/plan-weights.ts';
import { makeRecipe } from '../../../calibration/recipe.ts';
import { buildDecoder } from '../../../compiler/import/decoder-model.ts';
import { parseDecoderConfig } from '../../../compiler/import/huggingface/config.ts';
import { collectWeights } from '../../../compiler/import/huggingface/llama.ts';
import { applyIoContract } from '../../../passes/apply-io-contract.ts';
import { formatOf } from '../../../targets/index.ts';
import {
  countGraphs,
  measureStages,
  planCompile,
  predictCompile,
  type SplitRequest,
  type StageLoad,
} from '../../../targets/qnn/plan-compile.ts';
import { randomCheckpoint } from '../../reference-decoder.ts';

const layer = (index: number, weights = 60e6): StageLoad => ({
  name: `layers.${index}`,
  end: `layers.${index}.mlp_residual`,
  weights,
  bytes: weights * 0.52,
  narrowWeights: weights,
  blockWeights: weights,
  otherBytes: 0,
  scoreRows: 32,
});
const plain = (name: string, bytes: number): StageLoad => ({
  name,
  weights: bytes,
  bytes,
  narrowWeights: 0,
  blockWeights: 0,
  otherBytes: bytes,
  scoreRows: 0,
});
/** About the shape of Llama-3.2-1B: a table of 16 bits, 16 layers of 4, a head of 8. */
const large: StageLoad[] = [
  { ...plain('embedding', 525e6), end: 'embedding' },
  ...Array.from({ length: 16 }, (_, index) => layer(index)),
  plain('head', 263e6),
];
const eight = { tokens: 2, caches: 4, slots: 129 * 7680, share: true };
const auto: SplitRequest = { split: 'auto', embedding: false, head: false };

describe('the prediction', () => {
  test('grows with every graph that shares, and not where each is compiled alone', () => {
    const peak = (graphs: number, share: boolean): number => predictCompile([layer(0)], graphs, share, 0).peakBytes;
    expect(peak(1, false)).toBeGreaterThan(0.2e9 + 60e6 * 3);
    const step = peak(2, true) - peak(1, true);
    expect(step).toBeGreaterThan(60e6 * 2);
    expect(peak(8, true)).toBeCloseTo(peak(1, true) + 7 * step);
    expect(peak(8, false)).toBe(peak(1, false));
    const seconds = (graphs: number): number => predictCompile([layer(0)], graphs, true, 0).cpuSeconds;
    expect(seconds(8)).toBeCloseTo(8 * seconds(1));
    // Attention over long caches takes time beside the weights.
    expect(predictCompile([layer(0)], 1, true, 128 * 4096).cpuSeconds).toBeGreaterThan(1.5 * seconds(1));
  });
});

test('graphs are counted for every pair of sizes, the decode graph among them', () => {
  const counts = countGraphs({ tokens: [128, 128], caches: [512, 1024, 2048, 4096] }, true);
  expect(counts).toEqual(eight);
});

describe('auto', () => {
  test('leaves a model whole that no limit touches', () => {
    const plan = planCompile(large.slice(0, 3), { tokens: 2, caches: 1, slots: 129 * 1024, share: true }, auto);
    expect(plan.cuts).toEqual([]);
    expect(plan.parts).toMatchObject([{ stages: ['embedding', 'layers.1'], graphs: 2 }]);
  });

  test('keeps every part within the budget, with as few parts as do', () => {
    const budget = 12 * 2 ** 30;
    const plan = planCompile(large, eight, { ...auto, maxMemory: budget });
    for (const part of plan.parts) expect(part.peakBytes).toBeLessThanOrEqual(budget);
    const fewer = plan.parts.length - 1;
    expect(() => planCompile(large, eight, { ...auto, split: fewer, maxMemory: budget })).toThrow(
      expect.objectContaining({ code: 'QN017', hint: `--split ${plan.parts.length} is enough` }),
    );
    // The table apart: it is compiled for two sizes of tokens, not for eight graphs.
    expect(plan.parts[0]).toMatchObject({ stages: ['embedding', 'embedding'], graphs: 2 });
    // Every stage is in one part, in order.
    expect(plan.parts.reduce((sum, part) => sum + part.weights, 0)).toBe(
      large.reduce((sum, stage) => sum + stage.weights, 0),
    );
    expect(plan.cuts).toEqual(
      plan.parts.slice(0, -1).map(({ stages }) => large.find((s) => s.name === stages[1])!.end),
    );
    expect(planCompile(large, eight, { ...auto, maxMemory: budget })).toEqual(plan);
  });

  test('a context holds 4 GB with all that belongs to it', () => {
    const wide = Array.from({ length: 4 }, (_, index) => layer(index, 3.6e9));
    const plan = planCompile(wide, { tokens: 1, caches: 1, slots: 1024, share: true }, auto);
    expect(plan.parts.map(({ stages }) => stages)).toEqual([
      ['layers.0', 'layers.1'],
      ['layers.2', 'layers.3'],
    ]);
    const refusal = expect.objectContaining({ code: 'QN017', message: expect.stringContaining('addresses 4.00 GiB') });
    expect(() => planCompile(wide, eight, { ...auto, split: 1 })).toThrow(refusal);
    expect(() => planCompile([layer(0, 9e9)], eight, auto)).toThrow(refusal);
  });
});

describe('a number of parts', () => {
  test('balances them: equal layers in equal parts', () => {
    const layers = large.slice(1, 17);
    const plan = planCompile(layers, eight, { ...auto, split: 4 });
    expect(plan.cuts).toEqual([3, 7, 11].map((index) => `layers.${index}.mlp_residual`));
    expect(new Set(plan.parts.map(({ peakBytes }) => peakBytes)).size).toBe(1);
  });

  test('embedding and head apart where that is asked for', () => {
    const plan = planCompile(large, eight, { split: 3, embedding: true, head: true });
    expect(plan.parts.map(({ stages, graphs }) => [...stages, graphs])).toEqual([
      ['embedding', 'embedding', 2],
      ['layers.0', 'layers.15', 8],
      ['head', 'head', 2],
    ]);
    expect(planCompile(large, eight, { split: 'auto', embedding: true, head: false }).parts).toHaveLength(2);
  });

  test('what cannot be is refused with what can', () => {
    const refuse = (request: SplitRequest): unknown => {
      try {
        return planCompile(large, eight, request);
      } catch (error) {
        return error;
      }
    };
    expect(refuse({ ...auto, split: 19 })).toMatchObject({
      code: 'QN017',
      message: expect.stringContaining('1 to 18'),
    });
    expect(refuse({ split: 2, embedding: true, head: true })).toMatchObject({
      message: expect.stringContaining('3 to 18'),
    });
    const least = refuse({ ...auto, maxMemory: 1e9 }) as { message: string; hint: string };
    expect(least).toMatchObject({ code: 'QN017', message: expect.stringContaining('--max-memory allows 0.93 GiB') });
    const enough = Number(/--max-memory (\d+)MiB is the least/.exec(least.hint)![1]) * 2 ** 20;
    expect(planCompile(large, eight, { ...auto, maxMemory: enough }).parts.length).toBeGreaterThan(1);
    expect(refuse({ ...auto, maxMemory: enough - 2 ** 20 })).toMatchObject({ code: 'QN017' });
  });
});

test('stages are measured from the forms of the weights', () => {
  const config = parseDecoderConfig(
    {
      architectures: ['LlamaForCausalLM'],
      hidden_size: 64,
      intermediate_size: 96,
      num_hidden_layers: 2,
      num_attention_heads: 4,
      num_key_value_heads: 2,
      vocab_size: 100,
      max_position_embeddings: 64,
      tie_word_embeddings: true,
    },
    'config.json',
  );
  const weights = collectWeights(config, randomCheckpoint(config), 'random');
  const module = buildDecoder(config, weights, 2);
  const { contract, format } = formatOf('qnn');
  applyIoContract(module, contract, { tokens: 1, cache: 2 });
  const recipe = makeRecipe('w4a16', { block: 64 });
  const stages = measureStages(module.graph(), planWeights(module.graph(), recipe, format, []), recipe);
  expect(stages.map(({ name, end }) => [name, end])).toEqual([
    ['embedding', 'embedding'],
    ['layers.0', 'layers.0.mlp_residual'],
    ['layers.1', 'layers.1.mlp_residual'],
    ['head', undefined],
  ]);
  const [embedding, first, , head] = stages;
  expect(embedding).toMatchObject({ weights: 6400, bytes: 12800, otherBytes: 12800 });
  // Blocks of 64 divide 64 channels, not the 96 of down_proj: that one has 8 bits.
  const down = 96 * 64 + 4 * 64;
  const narrow = 64 * (64 + 32 + 32 + 64 + 96 + 96);
  const scales = (64 + 32 + 32 + 64 + 96 + 96) * 5;
  const norms = 2 * 64 * 2;
  expect(first).toMatchObject({ narrowWeights: narrow, blockWeights: narrow, otherBytes: down + norms });
  expect(stages.map(({ scoreRows }) => scoreRows)).toEqual([0, 4, 4, 0]);
  expect(first!.bytes).toBe(narrow / 2 + scales + down + norms);
  expect(head).toMatchObject({ weights: 6400 + 64, otherBytes: 6400 + 400 + 128 });
  const half = measureStages(module.graph(), new Map(), makeRecipe('fp16'));
  expect(half[0]!.bytes).toBe(12800);
  expect(half[1]!.otherBytes).toBe(half[1]!.bytes);
});

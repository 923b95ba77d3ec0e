import { describe, expect, test } from 'vitest';
import { buildPlainDecoder, collectDecoderStatistics } from '../../calibration/decoder-statistics.ts';
import { type QuantizedDecoder, quantizeDecoder } from '../../calibration/quantize-decoder.ts';
import { makeRecipe, type RecipeOptions } from '../../calibration/recipe.ts';
import { dequantizeConstant, quantizeLazily } from '../../compiler/export/quantize-constant.ts';
import { lookUpRows } from '../../compiler/import/decoder-model.ts';
import { type DecoderConfig, parseDecoderConfig } from '../../compiler/import/huggingface/config.ts';
import { collectWeights, type DecoderWeights } from '../../compiler/import/huggingface/llama.ts';
import type { Module } from '../../compiler/ir/graph.ts';
import { Tensor } from '../../compiler/ir/tensor.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { openModule } from '../../compiler/runtime/engine.ts';
import { makeProtocol } from '../../passes/protocol.ts';
import { formatOf } from '../../targets/index.ts';
import type { TargetName } from '../../targets/target.ts';
import { randomCheckpoint } from '../reference-decoder.ts';

const config: DecoderConfig = parseDecoderConfig(
  {
    architectures: ['LlamaForCausalLM'],
    hidden_size: 32,
    intermediate_size: 48,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    vocab_size: 48,
    max_position_embeddings: 64,
  },
  'config.json',
);

const windows = [0, 1].map((shift) => Array.from({ length: 64 }, (_, i) => (i * 7 + shift) % 48));

/** The tensors of a random checkpoint with one of them changed, [outputs, inputs]. */
function withChange(name: string, change: (floats: Float32Array, inputs: number) => unknown): DecoderWeights {
  const tensors = randomCheckpoint(config);
  const { shape } = tensors.get(name)!;
  const floats = tensors.get(name)!.toFloats().slice();
  change(floats, shape.at(-1)!);
  tensors.set(name, Tensor.of('f32', shape, floats));
  return collectWeights(config, tensors, 'random');
}

async function quantize(weights: DecoderWeights, scheme: string, target: TargetName, options: RecipeOptions = {}) {
  const statistics = await collectDecoderStatistics(config, weights, windows);
  const recipe = makeRecipe(scheme, options);
  const embed = lookUpRows(weights.get('model.embed_tokens.weight')!);
  const common = { config, weights, embed, statistics, windows, recipe, kernels: wasmKernels };
  return quantizeDecoder({ ...common, ...formatOf(target) });
}

async function logits(module: Module, decoder: QuantizedDecoder): Promise<Float32Array[]> {
  const session = new DecoderSession({
    protocol: makeProtocol(decoder.config, decoder.contract, 40),
    graphs: new Map([[32, await openModule(module)]]),
    ...(decoder.contract.embedding === 'embeds' ? { embedding: decoder.embed } : {}),
  });
  const rows = await session.feed(windows[0]!.slice(0, 32), 'all');
  await session.close();
  return rows;
}

const up = 'model.layers.0.mlp.up_proj.weight';
const CASES: readonly (readonly [string, string, (floats: Float32Array, inputs: number) => void])[] = [
  ['an output channel of zeros', up, (floats, inputs) => floats.fill(0, 3 * inputs, 4 * inputs)],
  [
    'an input channel of zeros',
    up,
    (floats, inputs) => {
      for (let i = 5; i < floats.length; i += inputs) floats[i] = 0;
    },
  ],
  ['a matrix of zeros', 'model.layers.0.self_attn.v_proj.weight', (floats) => floats.fill(0)],
  ['a matrix of zeros before the product', up, (floats) => floats.fill(0)],
  ['a channel of one number', up, (floats, inputs) => floats.fill(0.25, 3 * inputs, 4 * inputs)],
  ['a channel of denormals', up, (floats, inputs) => floats.fill(1e-40, 3 * inputs, 4 * inputs)],
  ['denormals among numbers', up, (floats) => floats.fill(-1e-42, 40, 60)],
  ['one number that dwarfs its channel', up, (floats) => floats.fill(500, 7, 8)],
  ['a norm of zeros', 'model.layers.1.input_layernorm.weight', (floats) => floats.fill(0)],
  [
    'a token whose row is zeros',
    'model.embed_tokens.weight',
    (floats, inputs) => floats.fill(0, 7 * inputs, 8 * inputs),
  ],
];

describe.each(CASES)('%s', (_, name, change) => {
  test.each<[string, TargetName, RecipeOptions]>([
    ['w4a16', 'onnx', { block: 16 }],
    ['w4a16', 'qnn', { block: 0, rounding: 'nearest' }],
    ['w8a8', 'tflite', {}],
    ['w8a16', 'qnn', { rotation: 'none' }],
  ])('%s for %s: finite scales, and what is small stays small', async (scheme, target, options) => {
    const weights = withChange(name, change);
    const decoder = await quantize(weights, scheme, target, options);
    const graph = decoder.stamp({ name: 'check', tokens: 1, cache: 2, logits: 'all' }).graph();
    for (const value of graph.values) {
      const { encoding, data, payload } = value;
      if (!encoding) continue;
      expect(
        encoding.scale.every((scale) => scale > 0 && Number.isFinite(scale)),
        value.name,
      ).toBe(true);
      if (!data || value.type?.kind !== 'tensor' || value.type.dtype !== 'f32') continue;
      const integers = payload ?? quantizeLazily(data, encoding, value.name);
      const real = dequantizeConstant(integers, encoding);
      const float = data.toFloats();
      expect(real.every(Number.isFinite), value.name).toBe(true);
      // Zeros are zeros: every encoding holds 0 exactly. Error feedback may give one a step of its channel.
      if (!payload)
        expect(
          real.findIndex((each, i) => float[i] === 0 && each !== 0),
          value.name,
        ).toBe(-1);
    }
    const module = decoder.stamp({ name: 'check', tokens: 32, cache: 40, logits: 'all' });
    const got = await logits(module, decoder);
    expect(got.every((row) => row.every(Number.isFinite))).toBe(true);
    const expected = await logits(decoder.lowerFloat({ name: 'float', tokens: 32, cache: 40, logits: 'all' }), decoder);
    let [signal, noise] = [0, 0];
    expected.forEach((row, i) => {
      row.forEach((value, j) => {
        signal += value * value;
        noise += (value - got[i]![j]!) ** 2;
      });
    });
    expect(10 * Math.log10(signal / noise)).toBeGreaterThan(scheme === 'w8a16' ? 25 : 5);
  });
});

describe('what is no number', () => {
  test.each([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])('%s is an error', async (bad) => {
    const weights = withChange(up, (floats) => floats.fill(bad, 9, 10));
    await expect(quantize(weights, 'w8a16', 'onnx')).rejects.toMatchObject({ code: 'QT010' });
  });

  test('nor is what overflows on the way', async () => {
    const weights = withChange(up, (floats) => floats.fill(3e38));
    await expect(quantize(weights, 'w8a16', 'onnx')).rejects.toMatchObject({ code: 'QT010' });
  });
});

describe('blocks that do not divide the input channels', () => {
  test('are 8 bits per channel with a remark, or an error where an override asks for them', async () => {
    const weights = collectWeights(config, randomCheckpoint(config), 'random');
    const decoder = await quantize(weights, 'w4a16', 'onnx', { block: 32 });
    const down = 'model.layers.1.mlp.down_proj.weight';
    expect(decoder.plan.weights.get(down)!.form).toMatchObject({ bits: 8, block: 0 });
    expect(decoder.plan.weights.get(up)!.form).toMatchObject({ bits: 4, block: 32 });
    expect(decoder.plan.remarks.join('\n')).toContain(`${down}: 8 bits per channel, blocks of 32 do not divide 48`);
    const overrides = [{ match: 'down_proj', weight: { bits: 4, block: 32 } }] as const;
    await expect(quantize(weights, 'w8a16', 'onnx', { overrides })).rejects.toMatchObject({
      code: 'QT104',
      where: 'model.layers.0.mlp.down_proj',
    });
  });
});

test('the float model is the one that was given: nothing of the checks changes it', async () => {
  const weights = withChange(up, (floats, inputs) => floats.fill(1e-40, 3 * inputs, 4 * inputs));
  const decoder = await quantize(weights, 'w8a16', 'onnx', { rotation: 'none' });
  const expected = await logits(buildPlainDecoder(config, weights, 32, 40), decoder);
  const got = await logits(decoder.lowerFloat({ name: 'float', tokens: 32, cache: 40, logits: 'all' }), decoder);
  expect(got).toEqual(expected);
});

test('tokens that the calibration text does not have keep their embedding; what lies beyond the ranges saturates', async () => {
  const weights = withChange('model.embed_tokens.weight', (floats, inputs) => {
    // The text below has tokens 0 to 7 alone; token 40 is twenty times as large as they are.
    for (let i = 40 * inputs; i < 41 * inputs; i++) floats[i] = 20 * floats[i]!;
  });
  const text = [Array.from({ length: 64 }, (_, i) => i % 8)];
  const statistics = await collectDecoderStatistics(config, weights, text);
  const embed = lookUpRows(weights.get('model.embed_tokens.weight')!);
  const recipe = makeRecipe('w8a16', { rotation: 'none' });
  const common = { config, weights, embed, statistics, windows: text, recipe, kernels: wasmKernels };
  const decoder = await quantizeDecoder({ ...common, ...formatOf('qnn') });
  const graph = decoder.stamp({ name: 'check', tokens: 1, cache: 2, logits: 'all' }).graph();
  const table = graph.find('model.embed_tokens.weight')!;
  const real = dequantizeConstant(quantizeLazily(table.data!, table.encoding!, table.name), table.encoding!);
  const largest = table.data!.toFloats().reduce((most, each) => Math.max(most, Math.abs(each)), 0);
  table.data!.toFloats().forEach((each, i) => {
    if (Math.abs(real[i]! - each) > largest / 32768) expect(real[i]).toBe(each);
  });
  const session = new DecoderSession({
    protocol: makeProtocol(decoder.config, decoder.contract, 40),
    graphs: new Map([[32, await openModule(decoder.stamp({ name: 'check', tokens: 32, cache: 40, logits: 'all' }))]]),
  });
  const rows = await session.feed([40, 41, 42, 40], 'all');
  await session.close();
  expect(rows.every((row) => row.every(Number.isFinite))).toBe(true);
});

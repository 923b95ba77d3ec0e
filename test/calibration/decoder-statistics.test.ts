import { describe, expect, test } from 'vitest';
import {
  addHistograms,
  calibrationShape,
  collectDecoderStatistics,
  cutWindows,
} from '../../calibration/decoder-statistics.ts';
import { type DecoderConfig, parseDecoderConfig } from '../../compiler/import/huggingface/config.ts';
import { collectWeights } from '../../compiler/import/huggingface/llama.ts';
import { Tensor } from '../../compiler/ir/tensor.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { openWithJavaScript } from '../../compiler/runtime/onnxruntime.ts';
import { randomCheckpoint } from '../reference-decoder.ts';

const configOf = (positions: number): DecoderConfig =>
  parseDecoderConfig(
    {
      architectures: ['LlamaForCausalLM'],
      hidden_size: 16,
      intermediate_size: 24,
      num_hidden_layers: 1,
      num_attention_heads: 2,
      vocab_size: 32,
      max_position_embeddings: positions,
    },
    'config.json',
  );

describe('the shape of calibration', () => {
  test.each([
    [2, 1, 2],
    [3, 1, 3],
    [33, 16, 33],
    [64, 32, 64],
    [131, 64, 131],
    [4096, 64, 256],
  ])('%i positions: chunks of %i in windows of %i', (positions, tokens, window) => {
    expect(calibrationShape(configOf(positions))).toEqual({ tokens, window });
  });

  test('windows are whole chunks, each behind the prefix', () => {
    const shape = calibrationShape(configOf(33));
    const ids = Array.from({ length: 100 }, (_, i) => i);
    const windows = cutWindows(ids, shape, 9, [7]);
    expect(windows.length).toBe(3);
    for (const [i, window] of windows.entries()) expect(window).toEqual([7, ...ids.slice(31 * i, 31 * (i + 1))]);
    expect(cutWindows(ids, shape, 2, []).map((window) => window.length)).toEqual([32, 32]);
  });

  test('an odd number of positions calibrates', async () => {
    const config = configOf(33);
    const weights = collectWeights(config, randomCheckpoint(config), 'random');
    const windows = cutWindows(new Array(64).fill(3), calibrationShape(config), 2);
    const statistics = await collectDecoderStatistics(config, weights, windows);
    expect(statistics.get('logits')!.max).toBeGreaterThan(0);
  });
});

test('a value that is not finite is an error that names it, whatever runtimes make of NaN in a minimum', async () => {
  const config = configOf(64);
  const tensors = randomCheckpoint(config);
  const name = 'model.layers.0.mlp.down_proj.weight';
  const { shape } = tensors.get(name)!;
  const floats = tensors.get(name)!.toFloats().slice();
  floats[5] = Number.NaN;
  tensors.set(name, Tensor.of('f32', shape, floats));
  const windows = [Array.from({ length: 64 }, (_, i) => i % 32)];
  await expect(collectDecoderStatistics(config, collectWeights(config, tensors, 'x'), windows)).rejects.toMatchObject({
    code: 'QT010',
    message: expect.stringContaining('layers.0.down_proj'),
    where: 'model.layers.0.mlp.down_proj',
  });
});

test('a decoder that is run part by part has the statistics of the whole, and no part holds more than it may', async () => {
  const config = { ...configOf(64), layers: 3 };
  const weights = collectWeights(config, randomCheckpoint(config), 'random');
  const windows = [0, 1].map((shift) => Array.from({ length: 64 }, (_, i) => (i * 7 + shift) % 32));
  let opened = 0;
  const open = (path: string) => {
    opened++;
    return openWithJavaScript(path, 'onnxruntime-web');
  };
  const whole = await collectDecoderStatistics(config, weights, windows, { open });
  expect(opened).toBe(1);
  const steps: string[] = [];
  const onProgress = (done: number, total: number): void => void steps.push(`${done}/${total}`);
  // One byte: every stage is a part.
  const cut = await collectDecoderStatistics(config, weights, windows, { open, weightBytes: 1, onProgress });
  expect(opened).toBe(1 + 5);
  expect(steps.at(-1)).toBe('10/10');
  expect(cut).toEqual(whole);
  const counts = await addHistograms(config, weights, windows, whole, wasmKernels, { open });
  expect(await addHistograms(config, weights, windows, whole, wasmKernels, { open, weightBytes: 1 })).toEqual(counts);
});

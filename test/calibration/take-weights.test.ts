import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  buildPlainDecoder,
  calibrationShape,
  collectDecoderStatistics,
  cutWindows,
} from '../../calibration/decoder-statistics.ts';
import { type QuantizedDecoder, quantizeDecoder } from '../../calibration/quantize-decoder.ts';
import { makeRecipe } from '../../calibration/recipe.ts';
import { defaultText, readTokens } from '../../calibration/texts.ts';
import { writeOnnx } from '../../compiler/export/onnx.ts';
import { openCheckpoint } from '../../compiler/import/checkpoint.ts';
import { type DecoderModel, readDecoderModel } from '../../compiler/import/decoder-model.ts';
import { openOnnx } from '../../compiler/import/onnx.ts';
import type { Module } from '../../compiler/ir/graph.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { openModule } from '../../compiler/runtime/engine.ts';
import { plainContract } from '../../passes/io-contract.ts';
import { makeProtocol } from '../../passes/protocol.ts';
import { formatOf } from '../../targets/index.ts';
import type { TargetName } from '../../targets/target.ts';
import { demo } from '../cli/run-npuc.ts';
import {
  type PackOptions,
  packAwq,
  packBytes,
  packCompressed,
  packGptq,
  packModel,
  type Quantized,
  realNumbers,
} from '../compiler/import/quantized/pack-checkpoint.ts';

let work: string;
const quantized = new Map<string, Map<string, Quantized>>();
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-taken-'));
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

const CASES: Readonly<Record<string, PackOptions>> = {
  gptq: {
    quantization: { quant_method: 'gptq', bits: 4, group_size: 64, sym: true, desc_act: false },
    pack: packGptq,
    options: { bits: 4, group: 64 },
  },
  'gptq with zero points': {
    quantization: { quant_method: 'gptq', bits: 4, group_size: 128, sym: false, checkpoint_format: 'gptq_v2' },
    pack: (matrix) => packGptq(matrix, 'gptq_v2'),
    options: { bits: 4, group: 128, symmetric: false },
  },
  'gptq in activation order': {
    quantization: { quant_method: 'gptq', bits: 4, group_size: 64, sym: true, desc_act: true },
    pack: packGptq,
    options: { bits: 4, group: 64, actOrder: true },
  },
  awq: {
    quantization: { quant_method: 'awq', bits: 4, group_size: 64, version: 'gemm' },
    pack: packAwq,
    options: { bits: 4, group: 64, symmetric: false },
  },
  'compressed-tensors w4 per channel': {
    quantization: { quant_method: 'compressed-tensors', format: 'pack-quantized' },
    pack: packCompressed,
    options: { bits: 4 },
  },
  'compressed-tensors w8a8': {
    quantization: { quant_method: 'compressed-tensors', format: 'int-quantized' },
    pack: packBytes,
    options: { bits: 8 },
  },
};

async function open(name: string): Promise<DecoderModel> {
  const folder = join(work, name.replaceAll(' ', '-'));
  quantized.set(name, await packModel(folder, demo, CASES[name]!));
  return readDecoderModel(await openCheckpoint(folder));
}

async function quantize(model: DecoderModel, target: TargetName, scheme: string, requantize = false) {
  const { config, weights, embed, taken, checkpoint } = model;
  const shape = calibrationShape(config);
  const { ids } = readTokens(defaultText('calibration'), checkpoint.tokenizer!, 2 * shape.window, shape.window);
  const windows = cutWindows(ids, shape, 2);
  const statistics = await collectDecoderStatistics(config, weights, windows);
  const common = { config, weights, embed, taken, requantize, statistics, windows, kernels: wasmKernels };
  const recipe = makeRecipe(scheme, { rotation: 'none' });
  return { decoder: await quantizeDecoder({ ...common, recipe, ...formatOf(target) }), ids };
}

const request = { name: 'check', tokens: 16, cache: 32, logits: 'all' } as const;

/** Integers of every layer's matrix in a graph, [K, N], counted from 0. */
function integersOf(module: Module, matrices: ReadonlyMap<string, Quantized>): void {
  for (const [name, { outputs, inputs, integers, bits }] of matrices) {
    const value = module.graph().find(name)!;
    const offset = value.encoding!.dtype.startsWith('i') ? 2 ** (bits - 1) : 0;
    const got = value.payload!.toNumbers();
    const wrong = got.findIndex(
      (integer, i) => integer + offset !== integers[(i % outputs) * inputs + Math.floor(i / outputs)],
    );
    expect(wrong, name).toBe(-1);
    expect(got.length).toBe(outputs * inputs);
  }
}

async function logits(module: Module, decoder: QuantizedDecoder, ids: readonly number[]): Promise<Float32Array[]> {
  const protocol = makeProtocol(decoder.config, plainContract, request.cache);
  const graphs = new Map([[request.tokens, await openModule(module)]]);
  const session = new DecoderSession({ protocol, graphs });
  const rows = await session.feed(ids, 'all');
  await session.close();
  return rows;
}

describe.each(['gptq', 'gptq with zero points', 'awq', 'compressed-tensors w4 per channel', 'compressed-tensors w8a8'])(
  'a checkpoint in %s',
  (name) => {
    test('is written to ONNX integer by integer, and computes what its integers stand for', async () => {
      const model = await open(name);
      const matrices = quantized.get(name)!;
      // The float model of every comparison is the checkpoint as it is meant.
      for (const [key, matrix] of matrices) {
        if (key.includes('q_proj')) continue;
        const { outputs, inputs } = matrix;
        const real = realNumbers(matrix);
        const got = model.weights.get(key)!.toFloats();
        expect(got.findIndex((value, i) => value !== real[(i % outputs) * inputs + Math.floor(i / outputs)])).toBe(-1);
      }
      const { decoder, ids } = await quantize(model, 'onnx', 'w4a16');
      integersOf(decoder.stamp(request), matrices);
      expect(decoder.plan.remarks[0]).toMatch(/^28 of 29 weights are the checkpoint's own integers \(\w/);
      expect(decoder.migration.exponents.size).toBe(0);
      // The file: ONNX Runtime multiplies these integers with their scales, float activations around them.
      const module = decoder.stamp(request);
      for (const value of module.graph().values) if (!matrices.has(value.name)) delete value.encoding;
      const path = join(work, `${name.replaceAll(' ', '-')}.onnx`);
      writeOnnx(module, path);
      const stored = openOnnx(path).graph().find('model.layers.2.mlp.down_proj.weight_q')!.data!;
      expect(stored.toNumbers()).toEqual(
        decoder.stamp(request).graph().find('model.layers.2.mlp.down_proj.weight')!.payload!.toNumbers(),
      );
      const expected = await logits(
        buildPlainDecoder(model.config, model.weights, request.tokens, request.cache),
        decoder,
        ids.slice(0, 24),
      );
      const got = await logits(module, decoder, ids.slice(0, 24));
      let [signal, noise] = [0, 0];
      expected.forEach((row, i) => {
        row.forEach((value, j) => {
          signal += value * value;
          noise += (value - got[i]![j]!) ** 2;
        });
      });
      expect(10 * Math.log10(signal / Math.max(noise, 1e-30))).toBeGreaterThan(100);
      model.checkpoint.close();
    }, 60_000);
  },
);

describe('targets that hold fewer forms', () => {
  test.each<[string, TargetName, string]>([
    ['compressed-tensors w4 per channel', 'qnn', 'w4a16'],
    ['compressed-tensors w8a8', 'qnn', 'w8a8'],
    ['compressed-tensors w8a8', 'tflite', 'w8a8'],
    ['gptq', 'tflite', 'dynamic-int4'],
  ])('%s fits %s as it is', async (name, target, scheme) => {
    const model = await open(name);
    const { decoder } = await quantize(model, target, scheme);
    integersOf(decoder.stamp(request), quantized.get(name)!);
    model.checkpoint.close();
  });

  test.each<[string, TargetName, RegExp]>([
    ['gptq', 'qnn', /cannot hold 28 of 28 .*floats for groups/],
    ['gptq', 'tflite', /cannot hold 28 of 28 .*floats for groups/],
    ['awq', 'qnn', /zero points/],
    ['gptq in activation order', 'onnx', /activation order/],
  ])(
    '%s does not fit %s: an error, or rounding again with what it costs',
    async (name, target, message) => {
      const model = await open(name);
      await expect(quantize(model, target, 'w4a16')).rejects.toMatchObject({
        code: 'QT133',
        where: 'model.layers.0.mlp.down_proj.weight',
        message: expect.stringMatching(message) as string,
      });
      const { decoder } = await quantize(model, target, 'w8a16', true);
      expect(decoder.plan.remarks.at(-1)).toMatch(
        /^28 quantized weights of the checkpoint were rounded again \(.*\): (\d\d\.\d) dB, least model\./,
      );
      model.checkpoint.close();
    },
    60_000,
  );
});

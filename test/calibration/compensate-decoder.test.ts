import { mkdtempSync, readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { compensateDecoder } from '../../calibration/compensate-decoder.ts';
import { buildDecoderLayer, layerFeeds, runLayer } from '../../calibration/decoder-layer.ts';
import { buildPlainDecoder, calibrationShape, cutWindows } from '../../calibration/decoder-statistics.ts';
import { cachedRounding } from '../../calibration/rounding-cache.ts';
import { defaultText, readTokens, startTokens } from '../../calibration/texts.ts';
import { searchWeight, weightRows } from '../../calibration/weights.ts';
import { dequantizeConstant, dequantizeLazily, quantizeLazily } from '../../compiler/export/quantize-constant.ts';
import { openCheckpoint } from '../../compiler/import/checkpoint.ts';
import { type DecoderModel, readDecoderModel } from '../../compiler/import/decoder-model.ts';
import type { DecoderWeights } from '../../compiler/import/huggingface/llama.ts';
import type { Encoding } from '../../compiler/ir/encoding.ts';
import { toFloats } from '../../compiler/ir/tensor.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { openModule } from '../../compiler/runtime/engine.ts';
import { evaluateLogits } from '../../evaluation/perplexity.ts';
import { plainContract } from '../../passes/io-contract.ts';
import { makeProtocol } from '../../passes/protocol.ts';

let model: DecoderModel;
let windows: number[][];
let held: readonly number[];
beforeAll(async () => {
  model = readDecoderModel(await openCheckpoint('fixtures/demo'));
  const { tokenizer } = model.checkpoint;
  const shape = calibrationShape(model.config);
  const text = readTokens(defaultText('calibration'), tokenizer!, 12 * shape.window, shape.window);
  windows = cutWindows(text.ids, shape, 12, startTokens(tokenizer!));
  held = readTokens(defaultText('evaluation'), tokenizer!, 512, 64).ids;
});
afterAll(() => model.checkpoint.close());

/** 4-bit encodings of every linear weight of the layers; blocks of 0 are one scale per channel. */
async function encode(block: 0 | 64): Promise<Map<string, Encoding>> {
  const encodings = new Map<string, Encoding>();
  for (const [name, tensor] of model.weights) {
    if (!/layers\..*proj\.weight$/.test(name)) continue;
    const [inputs, outputs] = tensor.shape as [number, number];
    const rows = weightRows(tensor, wasmKernels);
    const form = { bits: 4, block } as const;
    encodings.set(name, (await searchWeight(rows, outputs, inputs, form, undefined, wasmKernels, name)).encoding);
  }
  return encodings;
}

async function openWith(weights: DecoderWeights): Promise<DecoderSession> {
  const runner = await openModule(buildPlainDecoder(model.config, weights, 64, 256));
  return new DecoderSession({
    protocol: makeProtocol(model.config, plainContract, 256),
    graphs: new Map([[64, runner]]),
  });
}

test('layers one after the other compute what the whole decoder computes', async () => {
  const { config, weights } = model;
  const window = windows[0]!.length;
  const feeds = layerFeeds(config, window);
  let stream = model.embed(windows[0]!);
  for (let index = 0; index < config.layers; index++) {
    const layer = buildDecoderLayer(config, weights, index, window, false);
    const runner = await openModule(layer.module);
    stream = toFloats((await runLayer(runner, feeds, stream, window, [layer.output]))[layer.output]!);
    await runner.close();
  }
  const whole = buildPlainDecoder(config, weights, window, window + 1);
  const last = `layers.${config.layers - 1}.mlp_residual`;
  whole.graph().outputs.push(whole.graph().find(last)!);
  const runner = await openModule(whole);
  const pasts = Object.fromEntries(
    Array.from({ length: config.layers }, (_, layer) => [
      [plainContract.names.pastKey(layer), feeds[plainContract.names.pastKey(0)]!],
      [plainContract.names.pastValue(layer), feeds[plainContract.names.pastValue(0)]!],
    ]).flat(),
  );
  const ids = { dtype: 'i32', shape: [1, window], data: Int32Array.from(windows[0]!) } as const;
  const results = await runner.run({ ...feeds, ...pasts, [plainContract.names.tokens]: ids }, [last]);
  await runner.close();
  const expected = toFloats(results[last]!);
  const largest = expected.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
  expected.forEach((value, i) => {
    if (Math.abs(value - stream[i]!) > 1e-5 * largest) expect(stream[i]).toBe(value);
  });
});

describe.each([0, 64] as const)('integers that make up for each other, blocks of %i', (block) => {
  test('bring the decoder nearer to float than the nearest ones', async () => {
    const encodings = await encode(block);
    const { config, embed } = model;
    const inputs = { config, weights: model.weights, encodings, embed, windows, kernels: wasmKernels };
    const rounded = await compensateDecoder(inputs);
    expect([...rounded.keys()].sort()).toEqual([...encodings.keys()].sort());
    const nearest = new Map(model.weights);
    const compensated = new Map(model.weights);
    for (const [name, encoding] of encodings) {
      const weight = model.weights.get(name)!;
      nearest.set(name, dequantizeLazily(quantizeLazily(weight, encoding, name), encoding));
      const integers = rounded.get(name)!;
      expect(integers.shape).toEqual(weight.shape);
      compensated.set(name, dequantizeLazily(integers, encoding));
      // An error is made up for by its neighbours, not by leaving the grid.
      const floats = dequantizeConstant(integers, encoding);
      const requantized = quantizeLazily(dequantizeLazily(integers, encoding), encoding, name);
      expect(dequantizeConstant(requantized, encoding)).toEqual(floats);
    }
    const sessions = new Map([
      ['nearest', await openWith(nearest)],
      ['compensated', await openWith(compensated)],
    ]);
    const reference = await openWith(model.weights);
    const report = await evaluateLogits(reference, sessions, held, { window: 256, prefix: windows[0]!.slice(0, 1) });
    for (const session of [reference, ...sessions.values()]) await session.close();
    const [before, after] = [report.get('nearest')!.divergence, report.get('compensated')!.divergence];
    console.log(`blocks of ${block}: KL ${before.toFixed(4)} with the nearest, ${after.toFixed(4)}`);
    expect(after).toBeLessThan(0.9 * before);
  });
});

test('chosen integers are kept, and a damaged entry is made again', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'npuc-test-'));
  vi.stubEnv('NPUC_CACHE', folder);
  try {
    const encodings = new Map([...(await encode(0))].slice(0, 3));
    const key = { checkpoint: 'x', windows: [[1]], engine: 'y', encodings, exponents: new Map() };
    const rounded = new Map(
      [...encodings].map(([name, encoding]) => [name, quantizeLazily(model.weights.get(name)!, encoding, name)]),
    );
    let computed = 0;
    const read = async (changed: Partial<typeof key> = {}): Promise<Record<string, string>> => {
      const result = await cachedRounding({ ...key, ...changed }, () => {
        computed++;
        return Promise.resolve(rounded);
      });
      return Object.fromEntries([...result].map(([name, tensor]) => [name, tensor.digest]));
    };
    const expected = Object.fromEntries([...rounded].map(([name, tensor]) => [name, tensor.digest]));
    expect(await read()).toEqual(expected);
    expect(await read()).toEqual(expected);
    expect(computed).toBe(1);
    expect(await read({ engine: 'z' })).toEqual(expected);
    expect(await read({ exponents: new Map([['layers.0.attn_norm', 0.5]]) })).toEqual(expected);
    expect(computed).toBe(3);
    const entries = readdirSync(join(folder, 'rounding'));
    expect(entries).toHaveLength(3);
    for (const entry of entries) truncateSync(join(folder, 'rounding', entry), 5000);
    expect(await read()).toEqual(expected);
    for (const entry of entries) writeFileSync(join(folder, 'rounding', entry), 'not an entry');
    expect(await read()).toEqual(expected);
    expect(computed).toBe(5);
  } finally {
    vi.unstubAllEnvs();
    rmSync(folder, { recursive: true, force: true });
  }
});

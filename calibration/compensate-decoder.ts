import { setImmediate } from 'node:timers/promises';
import { blockScales, dequantizeLazily } from '../compiler/export/quantize-constant.ts';
import type { DecoderConfig } from '../compiler/import/huggingface/config.ts';
import type { DecoderWeights } from '../compiler/import/huggingface/llama.ts';
import type { Encoding } from '../compiler/ir/encoding.ts';
import { Tensor, toFloats } from '../compiler/ir/tensor.ts';
import { INT4, type Kernels } from '../compiler/kernels/kernels.ts';
import { type OpenEngine, openModule } from '../compiler/runtime/engine.ts';
import { buildDecoderLayer, layerFeeds, momentsOf, runLayer } from './decoder-layer.ts';
import { factorMoments, roundRows } from './round-rows.ts';
import { weightRows } from './weights.ts';

export interface CompensateDecoderInputs {
  readonly config: DecoderConfig;
  /** Float weights, [K, N]. */
  readonly weights: DecoderWeights;
  /** The 4-bit encodings of weights to be rounded; others are not touched. */
  readonly encodings: ReadonlyMap<string, Encoding>;
  /** Embedding rows of token ids, f32 [ids.length, hidden]. */
  readonly embed: (ids: readonly number[]) => Float32Array;
  /** Windows of one length. */
  readonly windows: readonly (readonly number[])[];
  readonly kernels: Kernels;
  readonly open?: OpenEngine;
  readonly onLayer?: (done: number, total: number) => void;
}

/**
 * Rounds the 4-bit weights of a decoder so that each column makes up for the errors of those before it (GPTQ), layer by
 * layer, each on what the layers before it give once they are quantized. Scales stay as they are.
 * One layer's weights, its second moments and the residual stream of all windows are in memory.
 * @returns integers i4 [K, N] by weight name
 * @throws QT017 when the calibration text does not determine the second moments
 */
export async function compensateDecoder(inputs: CompensateDecoderInputs): Promise<Map<string, Tensor>> {
  const { config, windows, encodings } = inputs;
  const rounded = new Map<string, Tensor>();
  const window = windows[0]!.length;
  const streams = windows.map((ids) => inputs.embed(ids));
  const feeds = layerFeeds(config, window);
  for (let index = 0; index < config.layers; index++) {
    const moments = await collectMoments(inputs, index, window, streams, feeds);
    for (const { weights, hessian } of moments) {
      for (const [name, integers] of await roundWeights(inputs, weights, hessian)) rounded.set(name, integers);
    }
    if (index + 1 < config.layers) {
      const weights = new Map(inputs.weights);
      for (const [name, integers] of rounded) {
        if (name.startsWith(`model.layers.${index}.`))
          weights.set(name, dequantizeLazily(integers, encodings.get(name)!));
      }
      await advanceStreams({ ...inputs, weights }, index, window, streams, feeds);
    }
    inputs.onLayer?.(index + 1, config.layers);
  }
  return rounded;
}

type Feeds = ReturnType<typeof layerFeeds>;

interface Moments {
  readonly weights: readonly string[];
  /** Mean of x x^T over all tokens, [K, K]. */
  readonly hessian: Float32Array;
}

async function collectMoments(
  { config, weights, encodings, open }: CompensateDecoderInputs,
  index: number,
  window: number,
  streams: readonly Float32Array[],
  feeds: Feeds,
): Promise<Moments[]> {
  const layer = buildDecoderLayer(config, weights, index, window, true);
  const inputs = layer.inputs
    .map((input) => ({ ...input, weights: input.weights.filter((name) => encodings.get(name)?.dtype === 'i4') }))
    .filter((input) => input.weights.length > 0);
  if (inputs.length === 0) return [];
  const names = inputs.map((input) => momentsOf(input.value));
  const sums = new Map<string, Float64Array>();
  const runner = await openModule(layer.module, open);
  try {
    for (const stream of streams) {
      const results = await runLayer(runner, feeds, stream, window, names);
      for (const name of names) {
        const part = toFloats(results[name]!);
        const sum = sums.get(name) ?? new Float64Array(part.length);
        for (let i = 0; i < part.length; i++) sum[i] = sum[i]! + part[i]!;
        sums.set(name, sum);
      }
    }
  } finally {
    await runner.close();
  }
  const tokens = streams.length * window;
  return inputs.map((input, i) => ({
    weights: input.weights,
    hessian: Float32Array.from(sums.get(names[i]!)!, (sum) => sum / tokens),
  }));
}

async function advanceStreams(
  { config, weights, open }: CompensateDecoderInputs,
  index: number,
  window: number,
  streams: Float32Array[],
  feeds: Feeds,
): Promise<void> {
  const layer = buildDecoderLayer(config, weights, index, window, false);
  const runner = await openModule(layer.module, open);
  try {
    for (const [i, stream] of streams.entries()) {
      streams[i] = toFloats((await runLayer(runner, feeds, stream, window, [layer.output]))[layer.output]!);
    }
  } finally {
    await runner.close();
  }
}

/** Rounds all weights that read one input: they share its factored second moments. */
async function roundWeights(
  { weights, encodings, kernels }: CompensateDecoderInputs,
  names: readonly string[],
  hessian: Float32Array,
): Promise<Map<string, Tensor>> {
  const columns = Math.sqrt(hessian.length);
  const factored = factorMoments(hessian, columns, kernels, names[0]!);
  const rounded = new Map<string, Tensor>();
  for (const name of names) {
    // A large matrix takes seconds: Ctrl-C and the progress line must not wait for all of them.
    await setImmediate();
    const encoding = encodings.get(name)!;
    const rows = weightRows(weights.get(name)!, kernels);
    const outputs = rows.length / columns;
    const { scales, groups } = rowScales(encoding, columns, outputs);
    const integers = roundRows(rows, factored, scales, groups, INT4, kernels, name);
    const target = new Int8Array(integers.length);
    kernels.transposeI8(integers, outputs, columns, target);
    rounded.set(name, Tensor.of('i4', [columns, outputs], target));
  }
  return rounded;
}

/** Scales of a [K, N] weight as rows [N, groups], and the group of each input channel. */
function rowScales(
  encoding: Encoding,
  columns: number,
  outputs: number,
): { readonly scales: Float32Array; readonly groups: Uint32Array } {
  if (encoding.block === undefined) return { scales: encoding.scale, groups: new Uint32Array(columns) };
  const { block } = encoding;
  const all = blockScales(encoding, [columns, outputs]);
  const count = columns / block;
  const scales = Float32Array.from(
    { length: all.length },
    (_, i) => all[(i % count) * outputs + Math.floor(i / count)]!,
  );
  return { scales, groups: Uint32Array.from({ length: columns }, (_, k) => Math.floor(k / block)) };
}

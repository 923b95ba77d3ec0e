import { setImmediate } from 'node:timers/promises';
import { blockScales, dequantizeLazily } from '../compiler/export/quantize-constant.ts';
import type { DecoderConfig } from '../compiler/import/huggingface/config.ts';
import type { DecoderWeights } from '../compiler/import/huggingface/llama.ts';
import type { Encoding } from '../compiler/ir/encoding.ts';
import { Tensor, toFloats } from '../compiler/ir/tensor.ts';
import { INT4, type Kernels } from '../compiler/kernels/kernels.ts';
import { type OpenEngine, openModule } from '../compiler/runtime/engine.ts';
import { buildDecoderLayer, layerFeeds, momentsOf, runLayer } from './decoder-layer.ts';
import { weightRows } from './weights.ts';

/** Added to the diagonal of the second moments, as a share of its mean (GPTQ 2210.17323, section 3.3). */
const DAMPING = 0.01;

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
  const diagonal = Float64Array.from({ length: columns }, (_, k) => hessian[k * columns + k]!);
  const damping = (DAMPING * diagonal.reduce((a, b) => a + b, 0)) / columns;
  // The channels that carry most are rounded first, while there are others left to make up for it.
  const order = Uint32Array.from(diagonal.keys()).sort((a, b) => diagonal[b]! - diagonal[a]! || a - b);
  const permuted = new Float32Array(hessian.length);
  for (let i = 0; i < columns; i++) {
    for (let j = 0; j <= i; j++) permuted[i * columns + j] = hessian[order[i]! * columns + order[j]!]!;
    permuted[i * columns + i] = permuted[i * columns + i]! + damping;
  }
  const factors = kernels.factorHessian(permuted, columns, names[0]);
  const rounded = new Map<string, Tensor>();
  for (const name of names) {
    // A large matrix takes seconds: Ctrl-C and the progress line must not wait for all of them.
    await setImmediate();
    const encoding = encodings.get(name)!;
    const rows = weightRows(weights.get(name)!, kernels);
    const outputs = rows.length / columns;
    const turned = new Float32Array(rows.length);
    for (let n = 0; n < outputs; n++) {
      for (let k = 0; k < columns; k++) turned[n * columns + k] = rows[n * columns + order[k]!]!;
    }
    const { scales, groups } = rowScales(encoding, columns, outputs);
    const { integers } = kernels.roundCompensated(
      turned,
      { rows: outputs, columns, block: columns, name },
      factors,
      scales,
      order.map((k) => groups[k]!),
      INT4,
    );
    const target = new Int8Array(integers.length);
    for (let n = 0; n < outputs; n++) {
      for (let k = 0; k < columns; k++) target[order[k]! * outputs + n] = integers[n * columns + k]!;
    }
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

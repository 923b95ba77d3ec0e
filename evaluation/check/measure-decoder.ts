import { createHash } from 'node:crypto';
import { buildPlainDecoder, collectDecoderStatistics } from '../../calibration/decoder-statistics.ts';
import { type QuantizedDecoder, type QuantizeInputs, quantizeDecoder } from '../../calibration/quantize-decoder.ts';
import type { NumberFormat, Recipe } from '../../calibration/recipe.ts';
import { cacheBits } from '../../calibration/recipe.ts';
import { movementRoot, type Statistics } from '../../calibration/statistics.ts';
import type { StatisticsKey } from '../../calibration/statistics-cache.ts';
import { weightRows } from '../../calibration/weights.ts';
import { buildDecoder } from '../../compiler/import/decoder-model.ts';
import type { DecoderConfig } from '../../compiler/import/huggingface/config.ts';
import type { DecoderWeights } from '../../compiler/import/huggingface/llama.ts';
import { type Encoding, encodingBits } from '../../compiler/ir/encoding.ts';
import type { Module } from '../../compiler/ir/graph.ts';
import { type Tensor, toFloats } from '../../compiler/ir/tensor.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import {
  cosineSimilarity,
  createDifferenceSums,
  type DifferenceSums,
  signalToNoise,
} from '../../compiler/kernels/kernels.ts';
import { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { type OpenEngine, openModule } from '../../compiler/runtime/engine.ts';
import { groupByBytes } from '../../compiler/runtime/taps.ts';
import { type IoContract, plainContract } from '../../passes/io-contract.ts';
import { makeProtocol } from '../../passes/protocol.ts';
import type { TargetName } from '../../targets/target.ts';
import { openTaps } from '../compare-graph-values.ts';
import { comparedNames } from '../compare-model-values.ts';
import { attributeNoise, comparedInputs, type ValueComparison } from '../compare-values.ts';
import { addLogits, emptyLogitSums } from '../logits.ts';
import { compareStages } from './compare-stages.ts';
import type { MeasuredValue, MeasuredWeight, Measurement, MetricKey } from './measurement.ts';
import { type Patch, patchModule } from './patch-module.ts';

/** Tokens of a chunk and of a window: two chunks a window, so that the second one reads the cache. */
export const CHUNK = 64;
export const WINDOW = 128;

/** Windows that the values inside are compared on. */
const VALUE_WINDOWS = 4;

/** What a check runs; a test puts its faults in here. */
export interface DecoderSteps {
  readonly build: typeof buildDecoder;
  readonly lower: typeof buildPlainDecoder;
  readonly collect: typeof collectDecoderStatistics;
  readonly quantize: typeof quantizeDecoder;
}

export const DECODER_STEPS: DecoderSteps = {
  build: buildDecoder,
  lower: buildPlainDecoder,
  collect: collectDecoderStatistics,
  quantize: quantizeDecoder,
};

/** A checkpoint, calibrated: what does not change while culprits are looked for. */
export interface CalibratedInputs {
  readonly name: string;
  readonly digest: string;
  readonly config: DecoderConfig;
  readonly weights: DecoderWeights;
  /** What is quantized where that is not the checkpoint's own decoder: the same function with its outliers tamed. */
  readonly changed?: { readonly config: DecoderConfig; readonly weights: DecoderWeights };
  readonly embed: (ids: readonly number[]) => Float32Array;
  readonly statistics: Statistics;
  readonly windows: readonly (readonly number[])[];
  readonly calibrationDigest: string;
  /** Held-out windows of at most WINDOW tokens, the prefix among them. */
  readonly text: { readonly digest: string; readonly windows: readonly (readonly number[])[]; readonly prefix: number };
  readonly recipe: Recipe;
  readonly target: TargetName;
  readonly format: NumberFormat;
  readonly contract: IoContract;
  readonly npuc: string;
  readonly threads: number;
  readonly open: OpenEngine;
  /** Integers that the checkpoint came with. */
  readonly taken?: QuantizeInputs['taken'];
  readonly requantize?: boolean;
  /** What the statistics depend on, so that chosen integers are found again. */
  readonly cacheKey?: StatisticsKey;
}

/** Means over each window, by metric. */
export type Series = Readonly<Record<Exclude<MetricKey, 'noise'>, readonly number[]>>;

/** A measured decoder that can be measured again with something swapped back. */
export interface DecoderUnderCheck {
  readonly inputs: CalibratedInputs;
  readonly steps: DecoderSteps;
  readonly decoder: QuantizedDecoder;
  readonly measurement: Measurement;
}

/** Quantizes a calibrated checkpoint and measures the target's graph beside the float model, both on ONNX Runtime. */
export async function measureDecoder(
  inputs: CalibratedInputs,
  steps: DecoderSteps = DECODER_STEPS,
): Promise<DecoderUnderCheck> {
  const decoder = await requantize(inputs, inputs.recipe, steps);
  const { text, config } = inputs;
  const series = await runWindows(inputs, steps, decoder, {});
  const values = await measureValues(inputs, decoder, {});
  const measurement: Measurement = {
    kind: 'decoder',
    model: { name: inputs.name, digest: inputs.digest },
    npuc: inputs.npuc,
    engine: series.engine,
    target: inputs.target,
    recipe: decoder.recipe,
    text: {
      digest: text.digest,
      windows: text.windows.length,
      tokens: text.windows.reduce((sum, window) => sum + window.length - text.prefix, 0),
    },
    calibration: { digest: inputs.calibrationDigest, windows: inputs.windows.length },
    bytes: countBytes(decoder, config),
    predictions: series.predictions,
    series: series.series,
    stages: await compareStages(inputs, steps, decoder),
    values,
    weights: measureWeights(inputs, decoder),
  };
  return { inputs, steps, decoder, measurement };
}

/** The decoder under another recipe. */
export async function requantize(
  inputs: CalibratedInputs,
  recipe: Recipe,
  steps: DecoderSteps,
): Promise<QuantizedDecoder> {
  return await steps.quantize({
    ...(inputs.changed ?? { config: inputs.config, weights: inputs.weights }),
    embed: inputs.embed,
    statistics: inputs.statistics,
    windows: inputs.windows,
    recipe,
    format: inputs.format,
    contract: inputs.contract,
    kernels: wasmKernels,
    threads: inputs.threads,
    ...(inputs.taken ? { taken: inputs.taken } : {}),
    ...(inputs.requantize === undefined ? {} : { requantize: inputs.requantize }),
    ...(inputs.cacheKey ? { cacheKey: inputs.cacheKey } : {}),
  });
}

export interface WindowRun {
  readonly engine: string;
  readonly predictions: readonly number[];
  readonly series: Series;
}

/** Opens a graph of the decoder's contract as a session. */
async function openSession(
  inputs: CalibratedInputs,
  module: Module,
  contract: IoContract,
  embed: QuantizedDecoder['embed'],
): Promise<DecoderSession> {
  return new DecoderSession({
    protocol: makeProtocol(inputs.config, contract, WINDOW),
    graphs: new Map([[CHUNK, await openModule(module, inputs.open)]]),
    ...(contract.embedding === 'embeds' ? { embedding: embed } : {}),
  });
}

/**
 * Streams the held-out windows through the float model and through a patched graph.
 * @param module another graph of the same contract in the place of the quantized one
 */
export async function runWindows(
  inputs: CalibratedInputs,
  steps: DecoderSteps,
  decoder: QuantizedDecoder,
  patch: Patch,
  module: Module = patchModule(decoder.stamp(REQUEST), patch),
): Promise<WindowRun> {
  const { windows, prefix } = inputs.text;
  const kept = keptRows.get(windows);
  const known = kept?.weights === inputs.weights && kept.lower === steps.lower ? kept.rows : undefined;
  const float = known ? undefined : await openFloat(inputs, steps);
  const keep = windows.length * WINDOW * inputs.config.vocabSize <= MOST_KEPT;
  const seen: (readonly Float32Array[])[] = [];
  try {
    const other = await openSession(inputs, module, decoder.contract, decoder.embed);
    try {
      const rows = [];
      for (const [index, window] of windows.entries()) {
        float?.reset();
        other.reset();
        const expected = known?.[index] ?? (await float!.feed(window, 'all'));
        if (keep) seen.push(expected);
        const got = await other.feed(window, 'all');
        const sums = emptyLogitSums();
        for (let i = prefix; i + 1 < window.length; i++) addLogits(sums, expected[i]!, got[i]!, window[i + 1]!);
        rows.push(sums);
      }
      if (keep) keptRows.set(windows, { weights: inputs.weights, lower: steps.lower, rows: seen });
      return {
        engine: other.engine,
        predictions: rows.map(({ count }) => count),
        series: {
          divergence: rows.map((sums) => sums.divergence / sums.count),
          agreement: rows.map((sums) => sums.agreement / sums.count),
          loss: rows.map((sums) => sums.loss / sums.count),
          floatLoss: rows.map((sums) => sums.referenceLoss / sums.count),
        },
      };
    } finally {
      await other.close();
    }
  } finally {
    await float?.close();
  }
}

/** Logits of the float model that are kept while a model is looked into: 64 MiB at most, more are computed anew. */
const MOST_KEPT = 2 ** 24;

/** The float model's logits by the windows that they are of. */
const keptRows = new WeakMap<
  CalibratedInputs['text']['windows'],
  {
    readonly weights: DecoderWeights;
    readonly lower: DecoderSteps['lower'];
    readonly rows: readonly (readonly Float32Array[])[];
  }
>();

async function openFloat(inputs: CalibratedInputs, steps: DecoderSteps): Promise<DecoderSession> {
  const module = steps.lower(inputs.config, inputs.weights, CHUNK, WINDOW);
  return await openSession(inputs, module, plainContract, inputs.embed);
}

/** The graph that everything is measured on. */
export const REQUEST = { name: 'check', tokens: CHUNK, cache: WINDOW, logits: 'all' } as const;

/** Every value of the target's graph against its float twin, on the last chunk of a few windows. */
export async function measureValues(
  inputs: CalibratedInputs,
  decoder: QuantizedDecoder,
  patch: Patch,
  only?: ReadonlySet<string>,
): Promise<MeasuredValue[]> {
  const plain = decoder.stamp(REQUEST);
  const quantized = patchModule(decoder.stamp(REQUEST), patch);
  const float = decoder.lowerFloat(REQUEST);
  const graph = float.graph();
  // What a cache holds has an encoding of its own, even where it only moves what was computed before.
  const fresh = new Set([...graph.states.values()].map(({ output }) => output));
  const names = comparedNames({ module: plain, float }).filter((name) => {
    const value = graph.find(name)!;
    return (movementRoot(value) === value || fresh.has(value)) && (!only || only.has(name));
  });
  const reference = await openTaps(decoder, float, names, CHUNK, WINDOW, inputs.open);
  const other = await openTaps(decoder, quantized, names, CHUNK, WINDOW, inputs.open);
  const sums = new Map<string, DifferenceSums>(names.map((name) => [name, createDifferenceSums()]));
  const ranges = new Map<string, [number, number]>(names.map((name) => [name, [Infinity, -Infinity]]));
  try {
    for (const group of groupByBytes(graph, names)) {
      for (const window of inputs.text.windows.slice(0, VALUE_WINDOWS)) {
        const expected = await reference.fetch(window, group);
        const got = await other.fetch(window, group);
        for (const name of group) {
          const real = toFloats(expected[name]!);
          wasmKernels.accumulateDifference(real, toFloats(got[name]!), sums.get(name)!);
          widen(ranges.get(name)!, real);
        }
      }
    }
  } finally {
    await reference.close();
    await other.close();
  }
  const comparisons = names.map((name): ValueComparison => {
    const sum = sums.get(name)!;
    const from = plain.graph().find(name)!.producer?.from ?? [];
    return {
      name,
      from,
      sqnr: signalToNoise(sum),
      cosine: cosineSimilarity(sum),
      maxError: sum.maxDifference,
      maxSteps: undefined,
    };
  });
  const inside = attributeNoise(comparisons, comparedInputs(quantized.graph(), new Set(names)));
  return inside.map(({ name, from, sqnr, cosine, noiseAdded }): MeasuredValue => {
    const encoding = plain.graph().find(name)!.encoding;
    const sum = sums.get(name)!;
    return {
      name,
      from,
      sqnr,
      cosine,
      rms: Math.sqrt(sum.reference2 / sum.count),
      range: ranges.get(name)!,
      ...(noiseAdded === undefined ? {} : { noiseAdded }),
      ...(encoding?.scale.length === 1
        ? { encoding: { dtype: encoding.dtype, scale: encoding.scale[0]!, zero: encoding.zeroPoint?.[0] ?? 0 } }
        : {}),
    };
  });
}

/** Widens a range to hold some numbers. */
export function widen(range: [number, number], data: Float32Array): void {
  for (const element of data) {
    if (element < range[0]) range[0] = element;
    if (element > range[1]) range[1] = element;
  }
}

function measureWeights(inputs: CalibratedInputs, decoder: QuantizedDecoder): MeasuredWeight[] {
  return [...decoder.weightEncodings].map(([name, encoding]) => ({
    name,
    form: describeForm(encoding),
    scale: meanScale(encoding),
    // Weights that calibration made have no source to compare.
    digest: inputs.weights.has(name) ? digestWeight(inputs.weights.get(name)!) : '',
  }));
}

export function digestWeight(tensor: Tensor): string {
  const turned = tensor.storage.kind === 'derived' && tensor.storage.transposeOf !== undefined;
  const floats = turned ? weightRows(tensor, wasmKernels) : tensor.toFloats();
  const bytes = new Uint8Array(floats.buffer, floats.byteOffset, floats.byteLength);
  return createHash('sha256').update(bytes).digest('hex').slice(0, 8);
}

export function describeForm({ dtype, block, axis }: Encoding): string {
  if (block !== undefined) return `${dtype} block ${block}`;
  return axis === undefined ? `${dtype} per tensor` : `${dtype} per channel`;
}

/** Geometric mean of all scales of an encoding: a factor on all of them is a factor on it. */
export function meanScale({ scale, blockScale }: Encoding): number {
  const logs = (values: ArrayLike<number>): number => {
    let sum = 0;
    for (let i = 0; i < values.length; i++) sum += Math.log(Math.max(values[i]!, 1e-30));
    return sum / values.length;
  };
  return Math.exp(logs(scale) + (blockScale ? logs(blockScale) : 0));
}

/** Bytes of weights as they are written, scales included, of the embedding table, and of one token's keys and values. */
function countBytes(decoder: QuantizedDecoder, config: DecoderConfig): Record<string, number> {
  const bytes = { weights: 0, embedding: 0 };
  const graph = decoder.stamp(REQUEST).graph();
  for (const [name, encoding] of decoder.weightEncodings) {
    const elements = graph.find(name)?.data?.size ?? 0;
    const written = Math.ceil((elements * encodingBits(encoding.dtype)) / 8);
    const scales = encoding.scale.length * 4 + (encoding.blockScale?.length ?? 0);
    bytes[name.includes('embed') ? 'embedding' : 'weights'] += written + scales;
  }
  if (decoder.recipe.scheme === 'fp16') {
    for (const { name, data } of graph.values) {
      if (data?.dtype === 'f16') bytes[name.includes('embed') ? 'embedding' : 'weights'] += data.byteLength;
    }
  }
  const bits = decoder.recipe.scheme === 'fp16' ? 32 : cacheBits(decoder.recipe, decoder.format);
  return { ...bytes, cache_per_token: (2 * config.layers * config.keyValueHeads * config.headDim * bits) / 8 };
}

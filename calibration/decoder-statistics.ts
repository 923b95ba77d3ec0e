import { NpucError } from '../compiler/errors.ts';
import { buildDecoder } from '../compiler/import/decoder-model.ts';
import type { DecoderConfig } from '../compiler/import/huggingface/config.ts';
import type { DecoderWeights } from '../compiler/import/huggingface/llama.ts';
import type { Module } from '../compiler/ir/graph.ts';
import { type TensorData, toFloats } from '../compiler/ir/tensor.ts';
import { createHistogram, type Histogram, type Kernels } from '../compiler/kernels/kernels.ts';
import { MASK_VALUE } from '../compiler/runtime/decoder-session.ts';
import { type OpenEngine, openModule } from '../compiler/runtime/engine.ts';
import type { Runner, Tensors } from '../compiler/runtime/runner.ts';
import { applyIoContract } from '../passes/apply-io-contract.ts';
import { type IoContract, plainContract } from '../passes/io-contract.ts';
import { decoderSites } from './migrate-outliers.ts';
import {
  instrumentModule,
  lastAxisWidths,
  ObservingRunner,
  observedValues,
  type Statistics,
  type ValueStatistics,
} from './statistics.ts';
import { streamDecoder } from './stream-decoder.ts';

/** Tokens per chunk and per window of calibration: independent of the shapes that are compiled. */
export interface CalibrationShape {
  readonly tokens: number;
  readonly window: number;
}

/** Chunks of 64 in windows of at most 256 tokens: the shape only sets speed, statistics hold for every shape. */
export function calibrationShape(config: DecoderConfig): CalibrationShape {
  const window = Math.min(256, config.maxPositions);
  return { tokens: Math.max(1, Math.min(64, Math.floor(window / 2))), window };
}

/** The float decoder in the plain contract: calibration, evaluation and the reference of every comparison run on it. */
export function buildPlainDecoder(
  config: DecoderConfig,
  weights: DecoderWeights,
  tokens: number,
  cache: number,
): Module {
  const module = buildDecoder(config, weights, cache, true);
  applyIoContract(module, plainContract, { tokens, cache });
  return module;
}

export interface CollectOptions {
  readonly open?: OpenEngine;
  readonly onProgress?: (done: number, total: number) => void;
  /** Bytes of float weights that are open at a time; a larger decoder runs part by part. */
  readonly weightBytes?: number;
}

/** Values whose channels matter: what linear layers and norms read, and what scale can move out of. */
function channelValues(module: Module, layers: number): Set<string> {
  const names = new Set<string>();
  for (const node of module.graph().nodes) {
    if ((node.op === 'MatMul' && node.inputs[1]?.data) || node.op === 'RMSNormalization') names.add(node.input(0).name);
  }
  for (const site of decoderSites(layers)) {
    if (module.graph().find(site.value)) names.add(site.value);
    const before = site.before.kind === 'linear' ? site.before.values : [];
    for (const name of before) if (module.graph().find(name)) names.add(name);
  }
  return names;
}

/**
 * Streams the calibration windows through the float decoder and keeps reductions of every value.
 * @param windows token ids, each at most the calibration window long and a multiple of its chunk
 * @throws QT010 when the float model itself gives values that are not finite
 */
export async function collectDecoderStatistics(
  config: DecoderConfig,
  weights: DecoderWeights,
  windows: readonly (readonly number[])[],
  options: CollectOptions = {},
): Promise<Map<string, ValueStatistics>> {
  const shape = calibrationShape(config);
  const module = buildPlainDecoder(config, weights, shape.tokens, shape.window);
  const observers: ObservingRunner[] = [];
  const open = async (part: Module): Promise<Runner> => {
    const instrumented = instrumentModule(part, channelValues(part, config.layers));
    const observer = new ObservingRunner(await openModule(instrumented, options.open));
    observers.push(observer);
    return observer;
  };
  await streamDecoder(config, module, open, { ...options, ...shape, windows });
  const widths = lastAxisWidths(module.graph());
  const statistics = new Map(observers.flatMap((observer) => [...observer.statistics(widths)]));
  checkFinite(module, statistics);
  return statistics;
}

/** @throws QT010 naming the first value, in order of computation, that is not finite: behind it all are */
function checkFinite(module: Module, statistics: Statistics): void {
  for (const { name, producer } of observedValues(module.graph())) {
    const seen = statistics.get(name);
    // Inputs are what an earlier chunk left in the cache.
    if (!seen || !producer || (Number.isFinite(seen.min) && Number.isFinite(seen.max))) continue;
    throw new NpucError('QT010', {
      message: `${name} is not finite: ${seen.min} to ${seen.max}`,
      where: producer.from[0] ?? name,
      hint: 'the checkpoint has weights that are no finite numbers, or so large that the model overflows',
    });
  }
}

/**
 * The second pass, for range methods that need the distribution: the named values are fetched chunk by chunk, counted
 * into 2,048 bins over their known range, and dropped.
 */
export async function addHistograms(
  config: DecoderConfig,
  weights: DecoderWeights,
  windows: readonly (readonly number[])[],
  statistics: Statistics,
  kernels: Kernels,
  options: CollectOptions = {},
): Promise<Map<string, ValueStatistics>> {
  const shape = calibrationShape(config);
  const module = buildPlainDecoder(config, weights, shape.tokens, shape.window);
  const histograms = new Map<string, Histogram>();
  const open = async (part: Module): Promise<Runner> => {
    const graph = part.graph();
    const counted: string[] = [];
    for (const value of observedValues(graph)) {
      const seen = statistics.get(value.name);
      if (!seen || !value.producer || seen.min >= seen.max) continue;
      histograms.set(value.name, createHistogram(seen.min, seen.max));
      counted.push(value.name);
      if (!graph.isOutput(value)) graph.outputs.push(value);
    }
    const inner = await openModule(part, options.open);
    return {
      engine: inner.engine,
      inputs: inner.inputs,
      outputs: inner.outputs,
      run: async (feeds: Tensors): Promise<Record<string, TensorData>> => {
        const results = await inner.run(feeds);
        for (const name of counted) kernels.accumulateHistogram(toFloats(results[name]!), histograms.get(name)!);
        return results;
      },
      close: () => inner.close(),
    };
  };
  await streamDecoder(config, module, open, { ...options, ...shape, windows });
  const result = new Map(statistics);
  for (const [name, histogram] of histograms) result.set(name, { ...result.get(name)!, histogram: histogram.counts });
  return result;
}

/** Cuts token ids into calibration windows; each starts with the prefix, and the last incomplete one is dropped. */
export function cutWindows(
  ids: readonly number[],
  shape: CalibrationShape,
  count: number,
  prefix: readonly number[] = [],
): number[][] {
  const length = Math.floor(shape.window / shape.tokens) * shape.tokens;
  const step = length - prefix.length;
  const windows: number[][] = [];
  for (let start = 0; start + step <= ids.length && windows.length < count; start += step) {
    windows.push([...prefix, ...ids.slice(start, start + step)]);
  }
  return windows;
}

/**
 * Statistics of the plain contract under another contract's value names. Layouts do not change ranges; the full rotary
 * form multiplies whole rows where the half form multiplies halves, so its ranges are unions.
 */
export function translateStatistics(
  statistics: Statistics,
  contract: IoContract,
  layers: number,
): Map<string, ValueStatistics> {
  const result = new Map<string, ValueStatistics>();
  for (const [name, seen] of statistics) if (!/^(past|new)_(key|value)_\d+$/.test(name)) result.set(name, seen);
  const fixed = (min: number, max: number): ValueStatistics => ({ min, max, typical: max - min });
  result.set(contract.names.mask, fixed(MASK_VALUE, 0));
  const { cos, sin, rope } = contract.names;
  for (const name of [cos, sin, ...(rope ? [rope, 'rope.cos', 'rope.sin'] : [])])
    if (name) result.set(name, fixed(-1, 1));
  if (contract.embedding === 'embeds') result.set(contract.names.tokens, statistics.get('embedding')!);
  for (let layer = 0; layer < layers; layer++) {
    const at = `layers.${layer}`;
    const key = statistics.get(plainContract.names.newKey(layer))!;
    const value = statistics.get(`${at}.v_proj`)!;
    result.set(contract.names.newKey(layer), key);
    result.set(contract.names.newValue(layer), value);
    result.set(`${at}.k_rope.out`, key);
    if (contract.update === 'in-graph') {
      result.set(`${at}.keys.written`, key);
      result.set(`${at}.values.written`, value);
    }
    if (contract.rotary !== 'full') continue;
    for (const role of [`${at}.q_rope`, `${at}.k_rope`]) {
      result.set(`${role}.cos`, unite(statistics.get(`${role}.a_cos`)!, statistics.get(`${role}.b_cos`)!, false));
      result.set(`${role}.sin`, unite(statistics.get(`${role}.a_sin`)!, statistics.get(`${role}.b_sin`)!, true));
      const source = statistics.get(`${role.replace('_rope', '_proj')}`)!;
      result.set(`${role}.rotated`, source);
      result.set(`${role}.out`, role.endsWith('k_rope') ? key : statistics.get(`${role}.out`)!);
    }
  }
  return result;
}

/** The union of two ranges; `mirrored` when a sign may have moved into the other factor. */
function unite(a: ValueStatistics, b: ValueStatistics, mirrored: boolean): ValueStatistics {
  const min = Math.min(a.min, b.min);
  const max = Math.max(a.max, b.max);
  const reach = Math.max(-min, max);
  const typical = Math.sqrt((a.typical ** 2 + b.typical ** 2) / 2);
  return mirrored ? { min: -reach, max: reach, typical } : { min, max, typical };
}

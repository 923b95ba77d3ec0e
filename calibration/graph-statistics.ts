import { cloneModule } from '../compiler/ir/clone.ts';
import type { Module } from '../compiler/ir/graph.ts';
import { toFloats } from '../compiler/ir/tensor.ts';
import { createHistogram, type Histogram, type Kernels } from '../compiler/kernels/kernels.ts';
import { type OpenEngine, openModule } from '../compiler/runtime/engine.ts';
import type { Tensors } from '../compiler/runtime/runner.ts';
import {
  instrumentModule,
  lastAxisWidths,
  ObservingRunner,
  observedValues,
  type Statistics,
  type ValueStatistics,
} from './statistics.ts';

export interface GraphStatisticsOptions {
  /** Counts the distribution of every value in a second run: range methods other than min-max need it. */
  readonly histograms: boolean;
  readonly kernels: Kernels;
  readonly open?: OpenEngine;
  readonly onProgress?: (done: number, total: number) => void;
}

/** Bytes of activations that are fetched at a time. */
const GROUP_BYTES = 64 << 20;

/**
 * Runs a module's first graph on the samples and keeps reductions of every value of it; values of subgraphs are not seen.
 * The channels of what constant matrices multiply are kept too: the search for their scales weighs errors by them.
 * @param feeds of a frozen graph
 */
export async function collectGraphStatistics(
  module: Module,
  feeds: readonly Tensors[],
  options: GraphStatisticsOptions,
): Promise<Map<string, ValueStatistics>> {
  const graph = module.graph();
  const matrices = graph.nodes.filter((node) => (node.op === 'MatMul' || node.op === 'Gemm') && node.inputs[1]?.data);
  const channels = new Set(
    matrices
      .map((node) => node.input(0))
      .flatMap((input) => (input.data || input.shape.length === 0 ? [] : input.name)),
  );
  const runner = new ObservingRunner(await openModule(instrumentModule(module, channels), options.open));
  let statistics: Map<string, ValueStatistics>;
  try {
    for (const [index, feed] of feeds.entries()) {
      // Only the reductions matter; the outputs themselves are not fetched.
      await runner.run(feed, []);
      options.onProgress?.(index + 1, feeds.length);
    }
    statistics = runner.statistics(lastAxisWidths(graph));
  } finally {
    await runner.close();
  }
  return options.histograms ? await addGraphHistograms(module, feeds, statistics, options) : statistics;
}

/**
 * The second pass: values are fetched in groups of bounded size, counted into 2,048 bins over their known range, and dropped.
 */
async function addGraphHistograms(
  module: Module,
  feeds: readonly Tensors[],
  statistics: Statistics,
  options: GraphStatisticsOptions,
): Promise<Map<string, ValueStatistics>> {
  const copy = cloneModule(module);
  const graph = copy.graph();
  const histograms = new Map<string, Histogram>();
  const groups: string[][] = [];
  let bytes = Number.POSITIVE_INFINITY;
  for (const value of observedValues(graph)) {
    const seen = statistics.get(value.name);
    if (!seen || !value.producer || !(seen.min < seen.max)) continue;
    histograms.set(value.name, createHistogram(seen.min, seen.max));
    if (!graph.isOutput(value)) graph.outputs.push(value);
    const size = 4 * value.dims.reduce((product, dim) => product * dim, 1);
    if (bytes + size > GROUP_BYTES) {
      groups.push([]);
      bytes = 0;
    }
    groups.at(-1)!.push(value.name);
    bytes += size;
  }
  const runner = await openModule(copy, options.open);
  try {
    for (const feed of feeds) {
      for (const group of groups) {
        const results = await runner.run(feed, group);
        for (const name of group) options.kernels.accumulateHistogram(toFloats(results[name]!), histograms.get(name)!);
      }
    }
  } finally {
    await runner.close();
  }
  const result = new Map(statistics);
  for (const [name, histogram] of histograms) result.set(name, { ...result.get(name)!, histogram: histogram.counts });
  return result;
}

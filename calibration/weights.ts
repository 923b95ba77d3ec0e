import type { Encoding } from '../compiler/ir/encoding.ts';
import type { Graph, Value } from '../compiler/ir/graph.ts';
import type { Tensor } from '../compiler/ir/tensor.ts';
import {
  INT4,
  INT8_SYMMETRIC,
  type Kernels,
  type Layout,
  type LpbqSearch,
  type ScaleSearch,
  type SearchOptions,
} from '../compiler/kernels/kernels.ts';
import type { CompensatedWeight } from './compensate-weights.ts';
import type { Plan } from './plan.ts';
import type { WeightPlan } from './plan-weights.ts';
import type { WeightForm } from './recipe.ts';
import type { Statistics } from './statistics.ts';
import { storableScale } from './storable-scale.ts';

/** A linear weight as rows: [N, K] row-major, a row per output channel. `tensor` is [K, N], as MatMul takes it. */
export function weightRows(tensor: Tensor, kernels: Kernels): Float32Array {
  if (tensor.storage.kind === 'derived' && tensor.storage.transposeOf) return tensor.storage.transposeOf.toFloats();
  const [inputs, outputs] = tensor.shape as [number, number];
  const rows = new Float32Array(inputs * outputs);
  kernels.transposeF32(tensor.toFloats(), inputs, outputs, rows);
  return rows;
}

/** Importance of each input channel: its mean square in calibration, so that error counts where the signal is. */
export function channelImportance(statistics: Statistics, input: string): Float32Array | undefined {
  const seen = statistics.get(input)?.channels;
  return seen && Float32Array.from(seen.meanSquare);
}

/** Where scales are searched: in this thread (Kernels) or on several (KernelPool), with the same results. */
export interface ScaleSearcher {
  searchScales(weights: Float32Array, layout: Layout, search: SearchOptions): ScaleSearch | Promise<ScaleSearch>;
  searchLpbq(weights: Float32Array, layout: Layout, search: SearchOptions): LpbqSearch | Promise<LpbqSearch>;
}

/** Scales of one weight, searched against the activations. The encoding is for the [K, N] tensor. */
export async function searchWeight(
  rows: Float32Array,
  outputs: number,
  inputs: number,
  form: WeightForm,
  importance: Float32Array | undefined,
  searcher: ScaleSearcher,
  name: string,
): Promise<{ encoding: Encoding; error: number }> {
  const range = form.bits === 4 ? INT4 : INT8_SYMMETRIC;
  const dtype = form.bits === 4 ? 'i4' : 'i8';
  const layout: Layout = { rows: outputs, columns: inputs, block: form.block || inputs, name };
  const total = (errors: Float64Array): number => errors.reduce((sum, error) => sum + error, 0);
  if (form.block === 0) {
    const found = await searcher.searchScales(rows, layout, { range, importance });
    return { encoding: { dtype, scale: found.scales, axis: 1 }, error: total(found.errors) };
  }
  const blocks = inputs / form.block;
  if (form.scales === 'f16') {
    const found = await searcher.searchScales(rows, layout, { range, importance });
    const scale = new Float32Array(blocks * outputs);
    for (let n = 0; n < outputs; n++)
      for (let b = 0; b < blocks; b++) scale[b * outputs + n] = storableScale(found.scales[n * blocks + b]!);
    return { encoding: { dtype, scale, axis: 0, block: form.block }, error: total(found.errors) };
  }
  const found = await searcher.searchLpbq(rows, layout, { range, importance });
  const blockScale = new Uint8Array(blocks * outputs);
  for (let n = 0; n < outputs; n++)
    for (let b = 0; b < blocks; b++) blockScale[b * outputs + n] = found.blockScales[n * blocks + b]!;
  return {
    encoding: { dtype, scale: found.channelScales, axis: 0, block: form.block, channelAxis: 1, blockScale },
    error: total(found.errors),
  };
}

/**
 * Encodings of every planned weight and embedding table, one tensor in memory at a time.
 * @param onWeight called after each one, for progress
 * @param searcher where the searches run
 * @param chosen weights whose integers are decided already
 */
export async function encodeWeights(
  graph: Graph,
  plan: Plan,
  statistics: Statistics,
  kernels: Kernels,
  onWeight?: (done: number, total: number) => void,
  searcher: ScaleSearcher = kernels,
  chosen: ReadonlyMap<string, CompensatedWeight> = new Map(),
): Promise<Map<string, Encoding>> {
  const encodings = new Map<string, Encoding>();
  const total = plan.weights.size + plan.tables.size;
  const report = (): void => onWeight?.(encodings.size, total);
  for (const weight of plan.weights.values()) {
    const encoding =
      chosen.get(weight.name)?.encoding ??
      (await encodeWeight(graph.find(weight.name)!, weight, statistics, kernels, searcher));
    encodings.set(weight.name, widenForBiases(graph, encoding, weight, plan));
    report();
  }
  for (const name of plan.tables) {
    const [rows, columns] = graph.find(name)!.dims as [number, number];
    const found = await searcher.searchScales(
      graph.find(name)!.data!.toFloats(),
      { rows, columns, block: columns, name },
      { range: INT8_SYMMETRIC },
    );
    encodings.set(name, { dtype: 'i8', scale: found.scales, axis: 0 });
    report();
  }
  return encodings;
}

async function encodeWeight(
  value: Value,
  weight: WeightPlan,
  statistics: Statistics,
  kernels: Kernels,
  searcher: ScaleSearcher,
): Promise<Encoding> {
  if (!weight.matrix) return absmaxEncoding(value, weight.axis);
  const [first, second] = value.dims as [number, number];
  const stored = weight.axis === 0;
  const rows = stored ? value.data!.toFloats() : weightRows(value.data!, kernels);
  const [outputs, inputs] = stored ? [first, second] : [second, first];
  const importance = channelImportance(statistics, weight.input);
  const usable = importance?.length === inputs ? importance : undefined;
  const { encoding } = await searchWeight(rows, outputs, inputs, weight.form, usable, searcher, weight.name);
  if (!stored) return encoding;
  if (encoding.block === undefined) return { ...encoding, axis: 0 };
  const scale = new Float32Array(encoding.scale.length);
  kernels.transposeF32(encoding.scale, inputs / encoding.block, outputs, scale);
  return { ...encoding, axis: 1, scale };
}

/** Steps of an i32 that a bias may take, with room for rounding. */
const BIAS_STEPS = 2 ** 31 - 2 ** 8;

/**
 * A bias is an i32 in steps of input scale times weight scale: a channel whose weights are next to nothing beside its bias
 * needs larger steps, or the bias would be clipped.
 */
function widenForBiases(graph: Graph, encoding: Encoding, weight: WeightPlan, plan: Plan): Encoding {
  if (encoding.block !== undefined || weight.biases.length === 0) return encoding;
  const scale = encoding.scale.slice();
  for (const { name, input } of weight.biases) {
    const step = plan.activations.get(input)?.encoding.scale[0];
    if (step === undefined) continue;
    graph
      .find(name)!
      .data!.toFloats()
      .forEach((bias, n) => {
        const channel = scale.length === 1 ? 0 : n;
        scale[channel] = Math.max(scale[channel]!, Math.abs(bias) / step / BIAS_STEPS);
      });
  }
  return { ...encoding, scale };
}

/** One symmetric i8 scale per output channel over the whole range: a clipped convolution weight is never a safe default. */
function absmaxEncoding(value: Value, axis: number): Encoding {
  const dims = value.dims;
  const channels = dims[axis]!;
  const inner = dims.slice(axis + 1).reduce((a, b) => a * b, 1);
  const absmax = new Float32Array(channels);
  value.data!.toFloats().forEach((weight, i) => {
    const channel = Math.floor(i / inner) % channels;
    if (Math.abs(weight) > absmax[channel]!) absmax[channel] = Math.abs(weight);
  });
  return { dtype: 'i8', scale: absmax.map((max) => (max > 0 ? Math.fround(max / 127) : 1)), axis };
}

import type { DecoderConfig } from '../compiler/import/huggingface/config.ts';
import { Tensor, transposeTensor } from '../compiler/ir/tensor.ts';
import type { DecoderSource } from './rotate-decoder.ts';
import type { Statistics } from './statistics.ts';

/** Channels of a layer whose excess has a path of its own: as many as vendors' vectors hold. */
const COUNT = 64;

/** Largest value of a gated product, as a multiple of its typical one, from which its outliers are taken apart. */
const OUTLIERS = 200;

/** Not worth it where the bound keeps more than this share of the range. */
const REST = 0.5;

/** Bound as a multiple of what the other channels reach: they must not be cut off in text that calibration has not seen. */
const ROOM = 2;

/** Where the gated product of a layer (down_proj's input) has outliers. */
export interface LayerOutliers {
  /** Channels with outliers, in ascending order. */
  readonly channels: readonly number[];
  /** Channels among them whose outliers are negative. */
  readonly negative: ReadonlySet<number>;
  /** Above it lie outliers alone. */
  readonly bound: number;
}

/**
 * Finds the layers whose gated product has a few channels that dwarf the others: one scale of 16 bits then leaves the others
 * few steps. In SmolLM2-135M two channels of layer 11 reach 20,000 times a typical value, the next 108 times. They are what
 * makes attention sinks (2402.17762, section 2).
 */
export function findOutliers(config: DecoderConfig, statistics: Statistics): Map<number, LayerOutliers> {
  const found = new Map<number, LayerOutliers>();
  if (config.intermediateSize < 4 * COUNT) return found;
  for (let layer = 0; layer < config.layers; layer++) {
    const seen = statistics.get(`layers.${layer}.mlp_product`);
    if (!seen?.channels) continue;
    const { min, max } = seen.channels;
    const reach = Float32Array.from(max, (value, channel) => Math.max(-min[channel]!, value));
    const order = Array.from(reach.keys()).sort((a, b) => reach[b]! - reach[a]! || a - b);
    const channels = order.slice(0, COUNT).sort((a, b) => a - b);
    const negative = new Set(channels.filter((channel) => -min[channel]! > max[channel]!));
    // What the channels reach to the other side is not taken apart.
    const others = channels.map((channel) => (negative.has(channel) ? max[channel]! : -min[channel]!));
    const bound = Math.fround(ROOM * Math.max(reach[order[COUNT]!]!, ...others));
    const largest = reach[order[0]!]!;
    if (largest > OUTLIERS * seen.typical && bound < REST * largest) found.set(layer, { channels, negative, bound });
  }
  return found;
}

/**
 * Prepares a decoder for a path of its own for outliers (buildLlama): their channels come last, turned so that they are
 * positive; `down_proj.outliers` is down_proj's matrix for them, with the bound beside it. The function stays the same, but
 * for other channels beyond the bound.
 */
export function separateOutliers(
  { config, weights, embed }: DecoderSource,
  outliers: ReadonlyMap<number, LayerOutliers>,
): DecoderSource {
  const separated = new Map(weights);
  for (const [layer, { channels, negative, bound }] of outliers) {
    const mlp = `model.layers.${layer}.mlp`;
    const apart = new Set(channels);
    const rest = Array.from({ length: config.intermediateSize }, (_, channel) => channel).filter((i) => !apart.has(i));
    const order = [...rest, ...channels];
    const turned = order.map((channel) => (negative.has(channel) ? -1 : 1));
    const reorder = (name: string, signs?: readonly number[]): void => {
      const rows = transposeTensor(weights.get(`${name}.weight`)!);
      separated.set(`${name}.weight`, transposeTensor(takeRows(rows, order, signs)));
      const bias = weights.get(`${name}.bias`);
      if (bias) separated.set(`${name}.bias`, takeRows(bias, order, signs));
    };
    reorder(`${mlp}.gate_proj`);
    reorder(`${mlp}.up_proj`, turned);
    const down = weights.get(`${mlp}.down_proj.weight`)!;
    separated.set(`${mlp}.down_proj.weight`, takeInputs(down, order, turned));
    separated.set(`${mlp}.down_proj.outliers.weight`, takeInputs(down, channels, turned.slice(rest.length)));
    separated.set(`${mlp}.down_proj.outliers.bound`, Tensor.of('f32', [1], [bound]));
  }
  return { config, weights: separated, embed };
}

/** Rows, or single elements of a vector, in the given order, each times its sign. */
function takeRows(source: Tensor, order: readonly number[], signs?: readonly number[]): Tensor {
  const [, width = 1] = source.shape;
  const compute = (): Uint8Array => {
    const floats = source.toFloats();
    const taken = new Float32Array(order.length * width);
    order.forEach((row, i) => {
      const sign = signs?.[i] ?? 1;
      for (let k = 0; k < width; k++) taken[i * width + k] = sign * floats[row * width + k]!;
    });
    return new Uint8Array(taken.buffer);
  };
  return new Tensor('f32', [order.length, ...source.shape.slice(1)], { kind: 'derived', compute });
}

/** A linear weight [K, N] of some of its inputs; stored as rows [N, K] as others are. */
function takeInputs(weight: Tensor, inputs: readonly number[], signs: readonly number[]): Tensor {
  const compute = (): Uint8Array => transposeTensor(takeRows(weight, inputs, signs)).read();
  return transposeTensor(new Tensor('f32', [weight.shape[1]!, inputs.length], { kind: 'derived', compute }));
}

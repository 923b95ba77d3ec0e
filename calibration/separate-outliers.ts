import type { DecoderConfig } from '../compiler/import/huggingface/config.ts';
import { Tensor, transposeTensor } from '../compiler/ir/tensor.ts';
import type { DecoderSource } from './rotate-decoder.ts';
import type { Statistics } from './statistics.ts';

/** Channels of a layer that are taken apart: whole blocks of every block size, and of the vendors' vectors. */
const COUNT = 64;

/** Largest value of a gated product, as a multiple of its typical one, from which its outliers are taken apart. */
const OUTLIERS = 200;

/** A product is not worth taking apart where the rest of it keeps more than this share of the range. */
const REST = 0.5;

/** By layer, the channels of the gated product that have outliers, in ascending order. */
export type OutlierChannels = ReadonlyMap<number, readonly number[]>;

/**
 * Finds the layers whose gated product (down_proj's input) has a few channels that dwarf the others: one scale of 16 bits then
 * leaves the others few steps. In SmolLM2-135M two channels of layer 11 reach 20,000 times a typical value, the next 108 times.
 * They are what makes attention sinks (2402.17762, section 2).
 */
export function findOutlierChannels(config: DecoderConfig, statistics: Statistics): OutlierChannels {
  const found = new Map<number, readonly number[]>();
  if (config.intermediateSize < 4 * COUNT) return found;
  for (let layer = 0; layer < config.layers; layer++) {
    const seen = statistics.get(`layers.${layer}.mlp_product`);
    if (!seen?.channels) continue;
    const { min, max } = seen.channels;
    const reach = Float32Array.from(max, (value, channel) => Math.max(-min[channel]!, value));
    const order = Array.from(reach.keys()).sort((a, b) => reach[b]! - reach[a]! || a - b);
    const [largest, next] = [reach[order[0]!]!, reach[order[COUNT]!]!];
    if (largest > OUTLIERS * seen.typical && next < REST * largest) {
      found.set(
        layer,
        order.slice(0, COUNT).sort((a, b) => a - b),
      );
    }
  }
  return found;
}

/**
 * Moves the outlier channels of gated products behind the others and gives down_proj a matrix of its own for them, named
 * `down_proj.outliers`: the graph then has two products with a scale each, and two matrices whose results are added
 * (buildLlama). The sum is the same one in another order.
 */
export function separateOutliers({ config, weights, embed }: DecoderSource, channels: OutlierChannels): DecoderSource {
  const separated = new Map(weights);
  for (const [layer, outliers] of channels) {
    const mlp = `model.layers.${layer}.mlp`;
    const apart = new Set(outliers);
    const rest = Array.from({ length: config.intermediateSize }, (_, channel) => channel).filter((i) => !apart.has(i));
    const order = [...rest, ...outliers];
    for (const name of [`${mlp}.gate_proj`, `${mlp}.up_proj`]) {
      const rows = transposeTensor(weights.get(`${name}.weight`)!);
      separated.set(`${name}.weight`, transposeTensor(takeRows(rows, order)));
      const bias = weights.get(`${name}.bias`);
      if (bias) separated.set(`${name}.bias`, takeRows(bias, order));
    }
    const down = weights.get(`${mlp}.down_proj.weight`)!;
    separated.set(`${mlp}.down_proj.weight`, takeInputs(down, rest));
    separated.set(`${mlp}.down_proj.outliers.weight`, takeInputs(down, outliers));
  }
  return { config, weights: separated, embed };
}

/** Rows, or single elements of a vector, in the given order. */
function takeRows(source: Tensor, order: readonly number[]): Tensor {
  const [, width = 1] = source.shape;
  const compute = (): Uint8Array => {
    const floats = source.toFloats();
    const taken = new Float32Array(order.length * width);
    order.forEach((row, i) => {
      taken.set(floats.subarray(row * width, (row + 1) * width), i * width);
    });
    return new Uint8Array(taken.buffer);
  };
  return new Tensor('f32', [order.length, ...source.shape.slice(1)], { kind: 'derived', compute });
}

/** A linear weight [K, N] of some of its inputs; stored as rows [N, K] as others are. */
function takeInputs(weight: Tensor, inputs: readonly number[]): Tensor {
  const compute = (): Uint8Array => transposeTensor(takeRows(weight, inputs)).read();
  return transposeTensor(new Tensor('f32', [weight.shape[1]!, inputs.length], { kind: 'derived', compute }));
}

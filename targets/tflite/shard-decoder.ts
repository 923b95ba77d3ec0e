import type { GraphRequest, QuantizedDecoder } from '../../calibration/quantize-decoder.ts';
import { NpucError } from '../../compiler/errors.ts';
import type { Graph } from '../../compiler/ir/graph.ts';
import { decoderStages, splitDecoder } from '../../passes/split-decoder.ts';
import type { SplitRequest } from '../qnn/plan-compile.ts';

/** A stretch of layers, in a file of its own: the graphs of all shapes. */
export interface DecoderShard {
  /** What the file's name says: nothing for a decoder that is whole, else `2of4`. */
  readonly label: string;
  readonly graphs: readonly Graph[];
}

/**
 * Layers of a shard: on Dimensity 9300 MediaTek's public compiler fails on 35 layers in one and compiles 18 (facts
 * edgeinfinite 4.1, reports of users).
 */
const LAYERS_A_SHARD = 18;

/**
 * The graphs of a decoder, one a request, or cut between layers into shards that run one after the other. Only MediaTek's
 * contract is cut: its runtime runs shards.
 * @param split how many shards; `auto` is as few as MediaTek's compiler is known to take
 * @throws QN017 for more shards than layers
 */
export function shardDecoder(
  decoder: QuantizedDecoder,
  requests: readonly GraphRequest[],
  split: SplitRequest['split'],
): DecoderShard[] {
  const modules = requests.map((request) => decoder.stamp(request));
  const { layers } = decoder.config;
  const auto = split === 'auto' ? Math.ceil(layers / LAYERS_A_SHARD) : split;
  const count = decoder.contract.name === 'mediatek' ? auto : 1;
  if (count === 1) return [{ label: '', graphs: modules.map((module) => module.graph()) }];
  if (count > layers) {
    throw new NpucError('QN017', { message: `${layers} layers cannot be cut into ${count} shards` });
  }
  const ends = decoderStages(modules[0]!.graph()).flatMap(({ end }) => (end === undefined ? [] : [end]));
  // The first shards get the layers that are left over.
  const cuts = Array.from({ length: count - 1 }, (_, i) => ends[Math.ceil(((i + 1) * layers) / count) - 1]!);
  const parts = modules.map((module) => splitDecoder(module, cuts));
  return Array.from({ length: count }, (_, shard) => ({
    label: `${shard + 1}of${count}`,
    graphs: parts.map((modulesOfRequest) => modulesOfRequest[shard]!.graph()),
  }));
}

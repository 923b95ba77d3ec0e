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
 * @throws QN017 for more shards than there are places to cut
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
  const cuts = chooseCuts(modules.at(-1)!.graph(), layers, count);
  const parts = modules.map((module) => splitDecoder(module, cuts));
  return Array.from({ length: count }, (_, shard) => ({
    label: `${shard + 1}of${count}`,
    graphs: parts.map((modulesOfRequest) => modulesOfRequest[shard]!.graph()),
  }));
}

/** The ends of layers nearest to equal shards, the first ones larger; the last request, the decode graph, has every stage. */
function chooseCuts(graph: Graph, layers: number, count: number): string[] {
  const ends = decoderStages(graph).flatMap(({ end }) => {
    const layer = /^layers\.(\d+)/.exec(end ?? '');
    return layer && Number(layer[1]) < layers - 1 ? [{ name: end!, behind: Number(layer[1]) + 1 }] : [];
  });
  const cuts: string[] = [];
  let next = 0;
  for (let shard = 1; shard < count; shard++) {
    const wanted = Math.ceil((shard * layers) / count);
    const last = ends.length - (count - 1 - shard);
    let best = next;
    for (let i = next; i < last; i++) {
      if (Math.abs(ends[i]!.behind - wanted) < Math.abs(ends[best]!.behind - wanted)) best = i;
    }
    if (best >= last) {
      throw new NpucError('QN017', {
        message: `${layers} layers cannot be cut into ${count} shards`,
        hint: `there are ${ends.length} places to cut: --split ${ends.length + 1} or less`,
      });
    }
    cuts.push(ends[best]!.name);
    next = best + 1;
  }
  return cuts;
}

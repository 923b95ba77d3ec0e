import type { DecoderConfig } from '../compiler/import/huggingface/config.ts';
import { reachOf, type Statistics } from './statistics.ts';

/** Largest value of the rotated residual stream, as a multiple of a typical one, from which on it is anchored. */
const OUTLIERS = 25;

/** Layers between two anchors. */
const STRIDE = 4;

/**
 * Chooses where the residual stream of a decoder is anchored. Attention sinks make the steps of its integers coarse, and each
 * addition of a layer's small update rounds to them: the errors of all layers add up. Behind an anchor the updates are summed
 * among themselves, in finer steps, and added to the stream of the anchor for each reader anew: one rounding at every anchor is
 * what stays. The sum is the same one in another order. A decoder can be cut at its anchors and before the first of them.
 * @param statistics before the rotation, which spreads a large value over all channels
 */
export function findAnchors(config: DecoderConfig, statistics: Statistics): number[] {
  const layers = Array.from({ length: Math.max(0, config.layers - 1) }, (_, layer) => layer);
  const first = layers.findIndex((layer) => {
    const seen = statistics.get(`layers.${layer}.mlp_residual`);
    return seen !== undefined && reachOf(seen) / Math.sqrt(config.hiddenSize) > OUTLIERS * seen.typical;
  });
  return first < 0 ? [] : layers.filter((layer) => layer >= first && (layer - first) % STRIDE === 0);
}

import type { DecoderConfig } from '../compiler/import/huggingface/config.ts';
import type { Statistics } from './statistics.ts';

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
  const anchors: number[] = [];
  for (let layer = 0; layer + 1 < config.layers; layer++) {
    const seen = statistics.get(`layers.${layer}.mlp_residual`);
    const last = anchors.at(-1);
    if (last !== undefined) {
      if (layer === last + STRIDE) anchors.push(layer);
      continue;
    }
    if (!seen) continue;
    const spread = Math.max(-seen.min, seen.max) / Math.sqrt(config.hiddenSize);
    if (spread > OUTLIERS * seen.typical) anchors.push(layer);
  }
  return anchors;
}

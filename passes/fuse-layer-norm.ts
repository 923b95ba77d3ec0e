import { any, op } from '../compiler/match.ts';
import { rewritePass } from '../compiler/rewrite.ts';
import {
  biasRule,
  buildNorm,
  castRule,
  checkStatistics,
  dividedByRoot,
  meanOf,
  scaleRule,
  squared,
} from './norm-rules.ts';

const x = any('x');
const centred = op('Sub', [x, meanOf(x, 'mean')]);

/**
 *     d = x - mean(x);  d / sqrt(mean(d^2) + eps) * w + b   ->   LayerNormalization(x, w, b) {epsilon eps}
 *
 * Over the last axis; scale and bias may be absent. Exports that compute d twice match after common subexpressions are
 * merged.
 */
export const fuseLayerNorm = rewritePass({
  name: 'fuse-layer-norm',
  about: '(x - mean) / sqrt(variance + eps) * w + b becomes LayerNormalization',
  rules: [
    {
      opset: 17,
      pattern: dividedByRoot(centred, meanOf(squared(centred), 'variance')),
      check: (match) => checkStatistics(match, ['mean', 'variance']),
      rewrite: (match, build) => buildNorm('LayerNormalization', match, build),
    },
    castRule('LayerNormalization'),
    scaleRule('LayerNormalization'),
    biasRule,
  ],
});

import { any } from '../compiler/match.ts';
import { rewritePass } from '../compiler/rewrite.ts';
import { buildNorm, castRule, checkStatistics, dividedByRoot, meanOf, scaleRule, squared } from './norm-rules.ts';

const x = any('x');

/**
 *     x / sqrt(mean(x^2) + eps) * w                      ->   RMSNormalization(x, w) {epsilon eps}
 *     Cast(x, f32) / sqrt(...), cast back to f16, * w    ->   RMSNormalization(x, w), which computes in f32 by itself
 *
 * x * rsqrt is matched in its exported forms (Reciprocal, 1 / sqrt, ^-0.5), the square as Pow or Mul, the last axis only.
 * Three small steps: the norm with a scale of ones, then the casts around it, then the scale.
 */
export const fuseRmsNorm = rewritePass({
  name: 'fuse-rms-norm',
  about: 'x / sqrt(mean(x^2) + eps) * w becomes RMSNormalization',
  rules: [
    {
      opset: 23,
      pattern: dividedByRoot(x, meanOf(squared(x), 'mean')),
      check: (match) => checkStatistics(match, ['mean']),
      rewrite: (match, build) => buildNorm('RMSNormalization', match, build),
    },
    castRule('RMSNormalization'),
    scaleRule('RMSNormalization'),
  ],
});

import { any, op } from '../compiler/match.ts';
import { rewritePass } from '../compiler/rewrite.ts';
import { checkNorm, divideByRoot, stashed } from './decompose-norm.ts';

/**
 *     RMSNormalization(x, w) {epsilon eps}   ->   x / sqrt(mean(x * x) + eps) * w
 *
 * In f32 where stash_type says so (its default), cast back before the scale. HTP computes this form better than the
 * operator with 8-bit activations, and worse with 16-bit ones (facts qnn-htp: 51 against 38 dB, 66 against 86).
 */
export const decomposeRmsNorm = rewritePass({
  name: 'decompose-rms-norm',
  about: 'RMSNormalization becomes Mul, ReduceMean, Add, Sqrt, Div, Mul',
  rules: [
    {
      pattern: op('RMSNormalization', [any('x'), any('w')]),
      check: checkNorm,
      rewrite: ({ root }, build) =>
        build.emit('Mul', [stashed(root, build, (x, dtype) => divideByRoot(x, dtype, root, build)), root.input(1)]),
    },
  ],
});

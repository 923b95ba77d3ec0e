import { any, either, op } from '../compiler/match.ts';
import { rewritePass } from '../compiler/rewrite.ts';
import { checkNorm, divideByRoot, normAxes, reduceMean, stashed } from './decompose-norm.ts';

/**
 *     LayerNormalization(x, w, b) {epsilon eps}   ->   d = x - mean(x);  d / sqrt(mean(d * d) + eps) * w + b
 *
 * In f32 where stash_type says so (its default), cast back before scale and bias.
 */
export const decomposeLayerNorm = rewritePass({
  name: 'decompose-layer-norm',
  about: 'LayerNormalization becomes ReduceMean, Sub, Mul, Add, Sqrt, Div',
  rules: [
    {
      pattern: either(
        op('LayerNormalization', [any('x'), any('w')]),
        op('LayerNormalization', [any('x'), any('w'), any('b')]),
      ),
      check: checkNorm,
      rewrite: ({ root }, build) => {
        const normalized = stashed(root, build, (x, dtype) => {
          const centred = build.emit('Sub', [x, reduceMean(x, normAxes(root)!, build)]);
          return divideByRoot(centred, dtype, root, build);
        });
        const scaled = build.emit('Mul', [normalized, root.input(1)]);
        return root.inputs[2] ? build.emit('Add', [scaled, root.inputs[2]]) : scaled;
      },
    },
  ],
});

import { intAttribute, type Node } from '../compiler/ir/graph.ts';
import { any, op } from '../compiler/match.ts';
import { rewritePass } from '../compiler/rewrite.ts';
import { knownDType } from '../compiler/value-facts.ts';

/** What ONNX adds to the standard deviation, so that nothing is divided by 0. */
const EPSILON = 1e-9;

/**
 *     MeanVarianceNormalization(x)   ->   d / (Sqrt(ReduceMean(d * d)) + 1e-9)      d = x - ReduceMean(x)
 *
 * HTP has no such op.
 */
export const decomposeMeanVariance = rewritePass({
  name: 'decompose-mean-variance',
  about: 'MeanVarianceNormalization becomes ReduceMean and elementwise ops',
  rules: [
    {
      opset: 18,
      pattern: op('MeanVarianceNormalization', [any('x')], { as: 'norm' }),
      check: (match) => knownDType(match.value('x')) === 'f32' || `%${match.value('x').name} is not in f32`,
      rewrite: (match, build) => {
        const x = match.value('x');
        const axes = build.integers('axes', axesOf(match.node('norm')));
        const attributes = { keepdims: intAttribute(1) };
        const centred = build.emit('Sub', [x, build.emit('ReduceMean', [x, axes], { attributes })]);
        const square = build.emit('Mul', [centred, centred]);
        const deviation = build.emit('Sqrt', [build.emit('ReduceMean', [square, axes], { attributes })]);
        return build.emit('Div', [centred, build.emit('Add', [deviation, build.scalar('epsilon', EPSILON, x)])]);
      },
    },
  ],
});

/** Rows and columns of every image over the batch, where it does not say. */
function axesOf(norm: Node): number[] {
  return norm.ints('axes') ?? [0, 2, 3];
}

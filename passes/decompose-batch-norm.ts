import { Tensor } from '../compiler/ir/tensor.ts';
import { any, constant, op } from '../compiler/match.ts';
import { rewritePass } from '../compiler/rewrite.ts';
import { knownDType, knownRank } from '../compiler/value-facts.ts';

const PARTS = ['scale', 'shift', 'mean', 'variance'];

/**
 *     BatchNormalization(x, scale, shift, mean, variance)   ->   x * a + b     a = scale / sqrt(variance + eps)
 *                                                                              b = shift - mean * a
 *
 * What fold-conv-affine leaves: a normalization with no convolution in front. HTP computes the op itself wrongly at 8 bits
 * (facts of the vendor's simulator: 0.5 dB) and refuses it at 16.
 */
export const decomposeBatchNorm = rewritePass({
  name: 'decompose-batch-norm',
  about: 'BatchNormalization with constant statistics becomes Mul and Add',
  rules: [
    {
      pattern: op('BatchNormalization', [any('x'), ...PARTS.map(constant)], { as: 'norm' }),
      check: (match) => {
        const [x, node] = [match.value('x'), match.node('norm')];
        if (knownDType(x) !== 'f32' || PARTS.some((name) => match.value(name).dtype !== 'f32'))
          return `${node.name} is not in f32`;
        if (node.int('training_mode', 0) === 1) return 'it is in training mode';
        return knownRank(x) === undefined ? `the rank of %${x.name} is not known` : true;
      },
      rewrite: (match, build) => {
        const x = match.value('x');
        const [scale, shift, mean, variance] = PARTS.map((name) => match.value(name).data!.toFloats());
        const epsilon = match.node('norm').float('epsilon', 1e-5);
        const factor = scale!.map((value, channel) => value / Math.sqrt(variance![channel]! + epsilon));
        const term = shift!.map((value, channel) => value - mean![channel]! * factor[channel]!);
        const shape = [factor.length, ...new Array<number>(Math.max(0, knownRank(x)! - 2)).fill(1)];
        const spread = (name: string, data: Float32Array) =>
          build.graph.addConstant(name, Tensor.of('f32', shape, data));
        return build.emit('Add', [build.emit('Mul', [x, spread('factor', factor)]), spread('term', term)]);
      },
    },
  ],
});

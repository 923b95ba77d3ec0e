import { floatAttribute } from '../compiler/ir/graph.ts';
import { any, op } from '../compiler/match.ts';
import { rewritePass } from '../compiler/rewrite.ts';
import { checkSameType } from './fuse-gelu.ts';

const x = any('x');

/**
 *     x * Sigmoid(x)          ->   Swish(x)
 *     x * Sigmoid(c * x)      ->   Swish(x) {alpha c}      c = 1.702 is QuickGELU
 */
export const fuseSilu = rewritePass({
  name: 'fuse-silu',
  about: 'x * sigmoid(x) becomes Swish',
  rules: [
    {
      opset: 24,
      pattern: op('Mul', [x, op('Sigmoid', [x])]),
      check: checkSameType,
      rewrite: (match, build) => build.emit('Swish', [match.value('x')]),
    },
    {
      opset: 24,
      pattern: op('Mul', [x, op('Sigmoid', [op('Mul', [x, any('alpha')])])]),
      check: (match) => {
        if (match.number('alpha') === undefined)
          return `the factor %${match.value('alpha').name} is not a constant number`;
        return checkSameType(match);
      },
      rewrite: (match, build) =>
        build.emit('Swish', [match.value('x')], {
          attributes: { alpha: floatAttribute(Math.fround(match.number('alpha')!)) },
        }),
    },
  ],
});

import { any, op } from '../compiler/match.ts';
import { rewritePass } from '../compiler/rewrite.ts';
import { isFloatValue } from '../compiler/value-facts.ts';

/**
 *     Swish(x)             ->   x * Sigmoid(x)
 *     Swish(x) {alpha c}   ->   x * Sigmoid(c * x)
 */
export const decomposeSilu = rewritePass({
  name: 'decompose-silu',
  about: 'Swish becomes x * Sigmoid(alpha * x)',
  rules: [
    {
      pattern: op('Swish', [any('x')]),
      check: (match) => isFloatValue(match.value('x')) || `the type of %${match.value('x').name} is not known`,
      rewrite: (match, build) => {
        const x = match.value('x');
        const alpha = match.root.float('alpha', 1);
        const argument = alpha === 1 ? x : build.emit('Mul', [x, build.scalar('alpha', alpha, x)]);
        return build.emit('Mul', [x, build.emit('Sigmoid', [argument])]);
      },
    },
  ],
});

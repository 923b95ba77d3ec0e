import { any, op } from '../compiler/match.ts';
import { rewritePass } from '../compiler/rewrite.ts';
import { isFloatValue } from '../compiler/value-facts.ts';

/**
 *     CumSum(x, axis) {exclusive 1}   ->   CumSum(x, axis) - x
 *
 * HTP has inclusive sums only.
 */
export const decomposeExclusiveSum = rewritePass({
  name: 'decompose-exclusive-sum',
  about: 'an exclusive CumSum becomes an inclusive one and Sub',
  rules: [
    {
      pattern: op('CumSum', [any('x'), any('axis')], { as: 'sum' }),
      check: (match) => {
        if (!isFloatValue(match.value('x'))) return `%${match.value('x').name} is not a float`;
        return match.node('sum').int('exclusive', 0) === 1 || 'it is inclusive';
      },
      rewrite: (match, build) => {
        const x = match.value('x');
        const attributes = Object.fromEntries(match.node('sum').attributes);
        delete attributes.exclusive;
        return build.emit('Sub', [build.emit('CumSum', [x, match.value('axis')], { attributes }), x]);
      },
    },
  ],
});

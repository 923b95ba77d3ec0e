import type { Value } from '../compiler/ir/graph.ts';
import { any, constant, op } from '../compiler/match.ts';
import { type Builder, rewritePass } from '../compiler/rewrite.ts';
import { isFloatValue } from '../compiler/value-facts.ts';

/**
 *     CumSum(x, axis) {exclusive 1}   ->   CumSum(x, axis) - x
 *     CumSum(x, axis) {reverse 1}     ->   Slice(CumSum(Slice(x)))      both slices turn the axis round
 *
 * HTP has inclusive sums from the beginning only.
 */
export const decomposeCumulativeSum = rewritePass({
  name: 'decompose-cumulative-sum',
  about: 'an exclusive or reverse CumSum becomes a plain one with Sub and Slice',
  rules: [
    {
      opset: 14,
      pattern: op('CumSum', [any('x'), constant('axis')], { as: 'sum' }),
      check: (match) => {
        if (!isFloatValue(match.value('x'))) return `%${match.value('x').name} is not a float`;
        const { attributes } = match.node('sum');
        return [...attributes.values()].some(({ kind, value }) => kind === 'int' && value !== 0) || 'it is a plain one';
      },
      rewrite: (match, build) => {
        const [x, axis, sum] = [match.value('x'), match.value('axis'), match.node('sum')];
        const isReverse = sum.int('reverse', 0) === 1;
        const turn = (value: Value): Value => (isReverse ? turnRound(value, axis.data!.toNumbers()[0]!, build) : value);
        const total = turn(build.emit('CumSum', [turn(x), axis]));
        return sum.int('exclusive', 0) === 1 ? build.emit('Sub', [total, x]) : total;
      },
    },
  ],
});

function turnRound(value: Value, axis: number, build: Builder): Value {
  const [last, beyond] = [build.integers('last', [-1]), build.integers('beyond', [-(2 ** 31)])];
  return build.emit('Slice', [value, last, beyond, build.integers('axes', [axis]), build.integers('step', [-1])]);
}

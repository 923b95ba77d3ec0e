import { intAttribute } from '../compiler/ir/graph.ts';
import { any, op } from '../compiler/match.ts';
import { rewritePass } from '../compiler/rewrite.ts';
import { isFloatValue } from '../compiler/value-facts.ts';

/**
 *     LpNormalization(x) {p 1}   ->   x / ReduceSum(Abs(x))
 *
 * HTP has the op for p = 2 only.
 */
export const decomposeL1Norm = rewritePass({
  name: 'decompose-l1-norm',
  about: 'LpNormalization with p = 1 becomes Abs, ReduceSum and Div',
  rules: [
    {
      opset: 13,
      pattern: op('LpNormalization', [any('x')], { as: 'norm' }),
      check: (match) => {
        if (!isFloatValue(match.value('x'))) return `%${match.value('x').name} is not a float`;
        return match.node('norm').int('p', 2) === 1 || 'p is 2';
      },
      rewrite: (match, build) => {
        const x = match.value('x');
        const axes = build.integers('axes', [match.node('norm').int('axis', -1)]);
        const attributes = { keepdims: intAttribute(1) };
        return build.emit('Div', [x, build.emit('ReduceSum', [build.emit('Abs', [x]), axes], { attributes })]);
      },
    },
  ],
});

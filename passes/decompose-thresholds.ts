import type { Value } from '../compiler/ir/graph.ts';
import { any, type Match, op } from '../compiler/match.ts';
import { type Builder, type Rule, rewritePass } from '../compiler/rewrite.ts';
import { isFloatValue } from '../compiler/value-facts.ts';

/**
 *     Softplus(x)                  ->   Relu(x) + Log(1 + Exp(-Abs(x)))
 *     Elu(x) {alpha}, alpha not 1  ->   Relu(x) + alpha * Elu(Min(x, 0))
 *     Selu(x) {alpha, gamma}       ->   gamma * (Relu(x) + alpha * Elu(Min(x, 0)))
 *     ThresholdedRelu(x) {alpha}   ->   Where(x > alpha, x, 0)
 *     Shrink(x) {lambd, bias}      ->   Where(x < -lambd, x + bias, Where(x > lambd, x - bias, 0))
 *     IsNaN(x)                     ->   Not(Equal(x, x))
 *     Tan(x)                       ->   Sin(x) / Cos(x)
 *     Clip(x, low, high), computed ->   Min(Max(x, low), high)
 */
export const decomposeThresholds = rewritePass({
  name: 'decompose-thresholds',
  about: 'Softplus, Elu with a factor, Selu, ThresholdedRelu, Shrink, IsNaN, Tan and computed Clips become simpler ops',
  rules: [
    rule('Softplus', (x, build) => {
      const fall = build.emit('Exp', [build.emit('Neg', [build.emit('Abs', [x])])]);
      return build.emit('Add', [
        build.emit('Relu', [x]),
        build.emit('Log', [build.emit('Add', [fall, build.scalar('one', 1, x)])]),
      ]);
    }),
    {
      ...rule('Elu', (x, build, { root }) => elu(x, root.float('alpha', 1), build)),
      check: ({ root }) => root.float('alpha', 1) !== 1 || 'its factor is 1',
    },
    rule('Selu', (x, build, { root }) => {
      const sum = elu(x, root.float('alpha', 1.6732632423543772), build);
      return build.emit('Mul', [sum, build.scalar('gamma', root.float('gamma', 1.0507009873554805), x)]);
    }),
    rule('ThresholdedRelu', (x, build, { root }) => {
      const above = build.emit('Greater', [x, build.scalar('alpha', root.float('alpha', 1), x)]);
      return build.emit('Where', [above, x, build.scalar('zero', 0, x)]);
    }),
    rule('Shrink', (x, build, { root }) => {
      const [limit, bias] = [root.float('lambd', 0.5), build.scalar('bias', root.float('bias', 0), x)];
      const below = build.emit('Less', [x, build.scalar('low', -limit, x)]);
      const above = build.emit('Greater', [x, build.scalar('high', limit, x)]);
      const inner = build.emit('Where', [above, build.emit('Sub', [x, bias]), build.scalar('zero', 0, x)]);
      return build.emit('Where', [below, build.emit('Add', [x, bias]), inner]);
    }),
    rule('IsNaN', (x, build) => build.emit('Not', [build.emit('Equal', [x, x])])),
    rule('Tan', (x, build) => build.emit('Div', [build.emit('Sin', [x]), build.emit('Cos', [x])])),
    ...[2, 3].map(
      (inputs): Rule => ({
        pattern: op('Clip', inputs === 2 ? [any('x'), any('low')] : [any('x'), any('low'), any('high')]),
        check: ({ root }) => root.inputs.slice(1).some((bound) => bound && !bound.data) || 'its bounds are constant',
        rewrite: ({ root }, build) => {
          const [, low, high] = root.inputs;
          const raised = low ? build.emit('Max', [root.input(0), low]) : root.input(0);
          return high ? build.emit('Min', [raised, high]) : raised;
        },
      }),
    ),
  ],
});

function rule(name: string, rewrite: (x: Value, build: Builder, match: Match) => Value): Rule {
  return {
    pattern: op(name, [any('x')]),
    check: (match) => isFloatValue(match.value('x')) || `%${match.value('x').name} is not a float`,
    rewrite: (match, build) => rewrite(match.value('x'), build, match),
  };
}

function elu(x: Value, alpha: number, build: Builder): Value {
  const fall = build.emit('Elu', [build.emit('Min', [x, build.scalar('zero', 0, x)])], { type: x.type });
  const scaled = build.emit('Mul', [fall, build.scalar('alpha', alpha, x)]);
  return build.emit('Add', [build.emit('Relu', [x]), scaled]);
}

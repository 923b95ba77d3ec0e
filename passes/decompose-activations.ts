import type { Value } from '../compiler/ir/graph.ts';
import { any, type Match, op } from '../compiler/match.ts';
import { type Builder, type Rule, rewritePass } from '../compiler/rewrite.ts';
import { isFloatValue } from '../compiler/value-facts.ts';

/**
 *     Celu(x) {alpha}    ->   alpha * Elu(x / alpha)
 *     Softsign(x)        ->   x / (1 + Abs(x))
 *     Mish(x)            ->   x * Tanh(Softplus(x))
 *     Swish(x) {alpha}   ->   x * Sigmoid(alpha * x)
 *     Sinh(x), Cosh(x)   ->   (Exp(x) -+ Exp(-x)) / 2
 *     Erf(x)             ->   Sign(x) * (1 - polynomial(t) * Exp(-x * x))      t = 1 / (1 + 0.3275911 * Abs(x))
 *
 * HTP refuses all but Swish, which its compiler takes and computes wrongly from integers (SUPPORT.md).
 */
export const decomposeActivations = rewritePass({
  name: 'decompose-activations',
  about: 'Celu, Softsign, Mish, Swish, Sinh, Cosh and Erf become ops that HTP has',
  rules: [
    activation('Celu', (x, build, { root }) => {
      const alpha = root.float('alpha', 1);
      return scale(build.emit('Elu', [scale(x, 1 / alpha, build)], { type: x.type }), alpha, build);
    }),
    activation('Softsign', (x, build) =>
      build.emit('Div', [x, build.emit('Add', [build.emit('Abs', [x]), build.scalar('one', 1, x)])]),
    ),
    activation('Mish', (x, build) => build.emit('Mul', [x, build.emit('Tanh', [build.emit('Softplus', [x])])])),
    activation('Swish', (x, build, { root }) =>
      build.emit('Mul', [x, build.emit('Sigmoid', [scale(x, root.float('alpha', 1), build)])]),
    ),
    activation('Sinh', (x, build) => halfOfExponentials('Sub', x, build)),
    activation('Cosh', (x, build) => halfOfExponentials('Add', x, build)),
    activation('Erf', approximateErf),
  ],
});

function activation(name: string, rewrite: (x: Value, build: Builder, match: Match) => Value): Rule {
  return {
    pattern: op(name, [any('x')]),
    check: (match) => isFloatValue(match.value('x')) || `%${match.value('x').name} is not a float`,
    rewrite: (match, build) => rewrite(match.value('x'), build, match),
  };
}

function scale(x: Value, factor: number, build: Builder): Value {
  return factor === 1 ? x : build.emit('Mul', [x, build.scalar('factor', factor, x)], { type: x.type });
}

function halfOfExponentials(join: 'Add' | 'Sub', x: Value, build: Builder): Value {
  const [up, down] = [build.emit('Exp', [x]), build.emit('Exp', [build.emit('Neg', [x])])];
  return build.emit('Mul', [build.emit(join, [up, down]), build.scalar('half', 0.5, x)]);
}

/** Abramowitz and Stegun 7.1.26: within 1.5e-7 everywhere. Erf inside a GELU never comes here (fuse-gelu). */
const ERF = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592];

function approximateErf(x: Value, build: Builder): Value {
  const number = (value: number): Value => build.scalar('erf', value, x);
  const size = build.emit('Mul', [build.emit('Abs', [x]), number(0.3275911)]);
  const t = build.emit('Reciprocal', [build.emit('Add', [size, number(1)])]);
  const [first, ...rest] = ERF;
  let polynomial = build.emit('Mul', [t, number(first!)]);
  for (const factor of rest) polynomial = build.emit('Mul', [build.emit('Add', [polynomial, number(factor)]), t]);
  const fall = build.emit('Exp', [build.emit('Neg', [build.emit('Mul', [x, x])])]);
  const rise = build.emit('Sub', [number(1), build.emit('Mul', [polynomial, fall])]);
  return build.emit('Mul', [build.emit('Sign', [x]), rise]);
}

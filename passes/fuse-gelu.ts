import { stringAttribute } from '../compiler/ir/graph.ts';
import { any, either, type Match, number, op, type Pattern } from '../compiler/match.ts';
import { type Rule, rewritePass } from '../compiler/rewrite.ts';
import { isFloatValue, sameKnownType } from '../compiler/value-facts.ts';

const x = any('x');

/** 0.5 * a * b in any order of the products. */
function halfProduct(a: Pattern, b: Pattern): Pattern {
  const half = number(0.5);
  return either(
    op('Mul', [op('Mul', [a, b]), half]),
    op('Mul', [op('Mul', [a, half]), b]),
    op('Mul', [op('Mul', [b, half]), a]),
  );
}

const erfTerm = op('Add', [
  op('Erf', [either(op('Div', [x, number(Math.SQRT2)]), op('Mul', [x, number(Math.SQRT1_2)]))]),
  number(1),
]);

const ROOT_2_OVER_PI = Math.sqrt(2 / Math.PI);
const cube = either(
  op('Pow', [x, number(3)]),
  op('Mul', [op('Mul', [x, x]), x]),
  op('Mul', [op('Pow', [x, number(2)]), x]),
);
const cubeTerm = number(0.044715);

/** sqrt(2 / pi) * (x + 0.044715 * x^3), also with x factored out as in transformers' FastGELU. */
const tanhArgument = either(
  op('Mul', [op('Add', [x, op('Mul', [cube, cubeTerm])]), number(ROOT_2_OVER_PI)]),
  op('Mul', [
    op('Mul', [x, number(ROOT_2_OVER_PI)]),
    op('Add', [either(op('Mul', [op('Mul', [x, cubeTerm]), x]), op('Mul', [op('Mul', [x, x]), cubeTerm])), number(1)]),
  ]),
);

function rule(pattern: Pattern, approximate: 'none' | 'tanh'): Rule {
  return {
    opset: 20,
    pattern,
    check: (match) => checkSameType(match),
    rewrite: (match, build) =>
      build.emit('Gelu', [match.value('x')], { attributes: { approximate: stringAttribute(approximate) } }),
  };
}

/** An activation of x must give x's own shape and type: a constant of higher rank would add dimensions. */
export function checkSameType(match: Match): true | string {
  const input = match.value('x');
  if (!isFloatValue(input)) return `%${input.name} is not known to be a float`;
  return sameKnownType(input, match.root.output()) ? true : `the result has another shape than %${input.name}`;
}

/**
 *     0.5 * x * (1 + erf(x / sqrt(2)))                                ->   Gelu(x) {approximate "none"}
 *     0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))       ->   Gelu(x) {approximate "tanh"}
 */
export const fuseGelu = rewritePass({
  name: 'fuse-gelu',
  about: 'the erf and tanh forms of GELU become Gelu',
  rules: [
    rule(halfProduct(x, erfTerm), 'none'),
    rule(halfProduct(x, op('Add', [op('Tanh', [tanhArgument]), number(1)])), 'tanh'),
  ],
});

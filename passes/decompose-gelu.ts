import type { Value } from '../compiler/ir/graph.ts';
import { any, type Match, op } from '../compiler/match.ts';
import { type Builder, rewritePass } from '../compiler/rewrite.ts';
import { isFloatValue } from '../compiler/value-facts.ts';

/**
 *     Gelu(x) {approximate "none"}   ->   x * 0.5 * (1 + erf(x / sqrt(2)))
 *     Gelu(x) {approximate "tanh"}   ->   x * 0.5 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))
 */
export const decomposeGelu = rewritePass({
  name: 'decompose-gelu',
  about: 'Gelu becomes its erf or tanh form',
  rules: [
    {
      pattern: op('Gelu', [any('x')]),
      check: (match) => isFloatValue(match.value('x')) || `the type of %${match.value('x').name} is not known`,
      rewrite: writeGelu,
    },
  ],
});

function writeGelu(match: Match, build: Builder): Value {
  const x = match.value('x');
  const scalar = (name: string, value: number): Value => build.scalar(name, value, x);
  const curve = match.root.string('approximate', 'none') === 'tanh' ? tanhOf(x, build) : erfOf(x, build);
  const factor = build.emit('Add', [curve, scalar('one', 1)]);
  return build.emit('Mul', [build.emit('Mul', [x, scalar('half', 0.5)]), factor]);
}

function erfOf(x: Value, build: Builder): Value {
  return build.emit('Erf', [build.emit('Div', [x, build.scalar('root_2', Math.SQRT2, x)])]);
}

function tanhOf(x: Value, build: Builder): Value {
  const cube = build.emit('Mul', [build.emit('Mul', [x, x]), x]);
  const sum = build.emit('Add', [x, build.emit('Mul', [cube, build.scalar('cubic', 0.044715, x)])]);
  return build.emit('Tanh', [build.emit('Mul', [sum, build.scalar('root_2_over_pi', Math.sqrt(2 / Math.PI), x)])]);
}

import { any, either, type Match, number, op, type Pattern } from '../compiler/match.ts';
import { rewritePass } from '../compiler/rewrite.ts';
import { checkSameType } from './fuse-gelu.ts';

const x = any('x');
const shifted = op('Clip', [op('Add', [x, number(3)]), number(0), number(6)]);

function sixth(value: Pattern): Pattern {
  return either(op('Div', [value, number(6)]), op('Mul', [value, number(1 / 6)]));
}

/**
 *     x * Clip(x + 3, 0, 6) / 6                       ->   HardSwish(x)
 *     x * HardSigmoid(x) {alpha 1/6, beta 0.5}        ->   HardSwish(x)
 */
export const fuseHardSwish = rewritePass({
  name: 'fuse-hard-swish',
  about: 'x * clip(x + 3, 0, 6) / 6 becomes HardSwish',
  rules: [
    {
      opset: 14,
      pattern: either(
        sixth(op('Mul', [x, shifted])),
        op('Mul', [x, sixth(shifted)]),
        op('Mul', [x, op('HardSigmoid', [x], { as: 'gate' })]),
      ),
      check: (match) => checkGate(match) ?? checkSameType(match),
      rewrite: (match, build) => build.emit('HardSwish', [match.value('x')]),
    },
  ],
});

/** HardSigmoid has a slope and a height of its own. */
function checkGate(match: Match): string | undefined {
  if (!match.has('gate')) return undefined;
  const gate = match.node('gate');
  const [alpha, beta] = [gate.float('alpha', 0.2), gate.float('beta', 0.5)];
  const fits = Math.abs(alpha - 1 / 6) < 1e-6 && Math.abs(beta - 0.5) < 1e-6;
  return fits ? undefined : `${gate.name} has alpha ${alpha} and beta ${beta}, not 1/6 and 0.5`;
}

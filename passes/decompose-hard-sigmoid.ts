import { any, op } from '../compiler/match.ts';
import { rewritePass } from '../compiler/rewrite.ts';
import { isFloatValue } from '../compiler/value-facts.ts';

/**
 *     HardSigmoid(x) {alpha a, beta b}   ->   Clip(x + b/a, 0, 1/a) * a
 *
 * The clamp is the sum's own, so that its integers spend no step on what is cut off.
 */
export const decomposeHardSigmoid = rewritePass({
  name: 'decompose-hard-sigmoid',
  about: 'HardSigmoid becomes Add, Clip and Mul',
  rules: [
    {
      opset: 11,
      pattern: op('HardSigmoid', [any('x')]),
      check: (match) => {
        const { root } = match;
        if (!isFloatValue(match.value('x'))) return `the type of %${match.value('x').name} is not known`;
        return root.float('alpha', 0.2) > 0 || `${root.name} does not rise: its alpha is ${root.float('alpha', 0.2)}`;
      },
      rewrite: (match, build) => {
        const x = match.value('x');
        const [alpha, beta] = [match.root.float('alpha', 0.2), match.root.float('beta', 0.5)];
        const moved = build.emit('Add', [x, build.scalar('offset', beta / alpha, x)]);
        const clamped = build.emit('Clip', [moved, build.scalar('low', 0, x), build.scalar('high', 1 / alpha, x)]);
        return build.emit('Mul', [clamped, build.scalar('slope', alpha, x)]);
      },
    },
  ],
});

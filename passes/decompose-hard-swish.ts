import { any, op } from '../compiler/match.ts';
import { rewritePass } from '../compiler/rewrite.ts';
import { isFloatValue } from '../compiler/value-facts.ts';

/**
 *     HardSwish(x)   ->   x * (Clip(x + 3, 0, 6) * 1/6)
 */
export const decomposeHardSwish = rewritePass({
  name: 'decompose-hard-swish',
  about: 'HardSwish becomes Add, Clip and two Mul',
  rules: [
    {
      opset: 11,
      pattern: op('HardSwish', [any('x')]),
      check: (match) => isFloatValue(match.value('x')) || `the type of %${match.value('x').name} is not known`,
      rewrite: (match, build) => {
        const x = match.value('x');
        const moved = build.emit('Add', [x, build.scalar('offset', 3, x)]);
        const clamped = build.emit('Clip', [moved, build.scalar('low', 0, x), build.scalar('high', 6, x)]);
        return build.emit('Mul', [x, build.emit('Mul', [clamped, build.scalar('sixth', 1 / 6, x)])]);
      },
    },
  ],
});

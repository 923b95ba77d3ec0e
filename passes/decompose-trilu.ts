import { Tensor } from '../compiler/ir/tensor.ts';
import { any, constant, either, op } from '../compiler/match.ts';
import { rewritePass } from '../compiler/rewrite.ts';
import { isFloatValue, knownShape } from '../compiler/value-facts.ts';

/**
 *     Trilu(x, k)   ->   Where(triangle, x, 0)      triangle : bool[rows, columns]
 *
 * HTP has no Trilu. Where, not a product: what is cut off may be infinite.
 */
export const decomposeTrilu = rewritePass({
  name: 'decompose-trilu',
  about: 'Trilu becomes Where with a constant triangle',
  rules: [
    {
      opset: 14,
      pattern: either(
        op('Trilu', [any('x')], { as: 'trilu' }),
        op('Trilu', [any('x'), constant('k')], { as: 'trilu' }),
      ),
      check: (match) => {
        const x = match.value('x');
        if (!isFloatValue(x)) return `%${x.name} is not a float`;
        const sides = knownShape(x)?.slice(-2);
        return sides?.every((dim) => typeof dim === 'number') || `the shape of %${x.name} is not fixed`;
      },
      rewrite: (match, build) => {
        const x = match.value('x');
        const [rows, columns] = x.shape.slice(-2) as [number, number];
        const k = match.has('k') ? match.value('k').data!.toNumbers()[0]! : 0;
        const isUpper = match.node('trilu').int('upper', 1) === 1;
        const keeps = (row: number, column: number): boolean => (isUpper ? column - row >= k : column - row <= k);
        const mask = Uint8Array.from({ length: rows * columns }, (_, i) =>
          keeps(Math.floor(i / columns), i % columns) ? 1 : 0,
        );
        const triangle = build.graph.addConstant('triangle', Tensor.of('bool', [rows, columns], mask));
        return build.emit('Where', [triangle, x, build.scalar('zero', 0, x)]);
      },
    },
  ],
});

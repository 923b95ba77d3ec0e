import type { Shape, Value } from '../compiler/ir/graph.ts';
import { any, op } from '../compiler/match.ts';
import { rewritePass } from '../compiler/rewrite.ts';
import { isFloatValue, knownRank, knownShape } from '../compiler/value-facts.ts';

/**
 *     MatMul(a, b) + c   ->   Gemm(a, b, c)      where a and b are matrices and c spreads over the product only
 *
 * Gemm has no batch dimensions, so a linear layer over [batch, tokens, width] stays MatMul and Add.
 */
export const fuseMatmulAdd = rewritePass({
  name: 'fuse-matmul-add',
  about: 'MatMul of matrices and Add become Gemm',
  rules: [
    {
      pattern: op('Add', [op('MatMul', [any('a'), any('b')], { as: 'product' }), any('c')]),
      check: (match) => {
        for (const name of ['a', 'b']) {
          const value = match.value(name);
          if (knownRank(value) !== 2) return `%${value.name} has rank ${knownRank(value) ?? 'unknown'}, not 2`;
        }
        const c = match.value('c');
        if (!isFloatValue(c)) return `%${c.name} is not a float`;
        return (
          spreadsOver(c, knownShape(match.node('product').output())) || `%${c.name} does not spread over the product`
        );
      },
      rewrite: (match, build) => build.emit('Gemm', [match.value('a'), match.value('b'), match.value('c')]),
    },
  ],
});

/** Whether a value broadcasts to a shape without enlarging it. */
function spreadsOver(value: Value, shape: Shape | undefined): boolean {
  const own = knownShape(value);
  if (!own || shape?.length !== 2 || own.length > 2) return false;
  return own.every((dim, at) => dim === 1 || dim === shape[at + 2 - own.length]);
}

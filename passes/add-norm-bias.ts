import { any, op } from '../compiler/match.ts';
import { rewritePass } from '../compiler/rewrite.ts';
import { filledVector, knownRank, lastLength } from '../compiler/value-facts.ts';

/**
 *     LayerNormalization(x, w)   ->   LayerNormalization(x, w, zeros)
 *
 * HTP refuses the op without a bias at 16 bits.
 */
export const addNormBias = rewritePass({
  name: 'add-norm-bias',
  about: 'LayerNormalization gets a bias of zeros where it has none',
  rules: [
    {
      pattern: op('LayerNormalization', [any('x'), any('w')], { as: 'norm' }),
      check: (match) => {
        const w = match.value('w');
        return knownRank(w) !== 1 || lastLength(w) === undefined ? `%${w.name} is no vector of known length` : true;
      },
      rewrite: (match, build) => {
        const w = match.value('w');
        const bias = build.graph.addConstant('bias', filledVector(w.dtype, lastLength(w)!, 0));
        const attributes = Object.fromEntries(match.node('norm').attributes);
        return build.emit('LayerNormalization', [match.value('x'), w, bias], { attributes });
      },
    },
  ],
});

import { halveLazily } from '../compiler/export/halve-constant.ts';
import { DTYPES } from '../compiler/ir/dtype.ts';
import { intAttribute, tensorType, type Value } from '../compiler/ir/graph.ts';
import type { Pass } from '../compiler/pass.ts';

/** Ops that multiply by a weight, their input 1. */
const PRODUCTS: ReadonlySet<string> = new Set(['Conv', 'ConvTranspose', 'Gemm', 'MatMul']);

/**
 * Weights of products, and the tables named, are stored as half floats, and a Cast widens them where they are read:
 *
 *     y = MatMul(x, w f32[K,N])  ->  w.f32 = Cast(w f16[K,N]);  y = MatMul(x, w.f32)
 *
 * Vectors (norm weights, biases) stay f32: they are few bytes. Graphs that share a constant share its half floats.
 * @param tables names of lookup tables, such as an embedding; others, such as rotary tables, stay as they are
 */
export function storeWeightsF16(tables: ReadonlySet<string> = new Set()): Pass {
  const isWeight = (value: Value): boolean =>
    value.data?.dtype === 'f32' &&
    value.data.shape.length > 1 &&
    !value.encoding &&
    (tables.has(value.name) || [...value.uses].some(({ node, index }) => index === 1 && PRODUCTS.has(node.op)));
  return {
    name: 'store-weights-f16',
    about: 'stores the weights of products and lookup tables as half floats behind a Cast',
    run: (graph) => {
      // A subgraph may read the constant: before the first node it is there for all of them.
      const [first] = graph.nodes;
      const weights = graph.constants.filter(isWeight);
      for (const weight of weights) {
        const { name, type } = weight;
        graph.renameValue(weight, graph.uniqueName(`${name}.wide`));
        const stored = graph.addConstant(name, halveLazily(weight.data!, name));
        const widened = graph.emit('Cast', [stored], {
          name: `${name}.f32`,
          type: type ?? tensorType('f32', weight.data!.shape),
          attributes: { to: intAttribute(DTYPES.f32.code) },
          ...(first ? { before: first } : {}),
        });
        graph.replaceUses(weight, widened);
        graph.removeValue(weight);
      }
      return weights.length > 0;
    },
  };
}

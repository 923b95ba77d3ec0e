import type { Graph, Node, Value } from '../compiler/ir/graph.ts';
import { Tensor } from '../compiler/ir/tensor.ts';
import type { Pass } from '../compiler/pass.ts';

/** Masks hide a position behind a number lower than this; the softmax of it is 0 in any format. */
export const MASK_LIMIT = -1000;
/** What hides a position well enough, e^-50, and leaves steps for the others (facts qnn-htp: 34 dB for -65504, 72 for -30). */
const SENTINEL = -50;

/**
 *     Softmax(Add(scores, const -65504))   ->   Softmax(Add(scores, const -50))      Where alike
 *
 * One step of a 16-bit value that reaches down to -65504 is 1: nothing is left of the scores.
 */
export const clampMask: Pass = {
  name: 'clamp-mask',
  about: 'constant masks in front of Softmax go down to -50 only',
  run: (graph) => {
    let changed = false;
    for (const node of graph.nodes)
      for (const [index, mask] of findMasks(graph, node)) {
        const clamped = Float32Array.from(mask.data!.toFloats(), (number) => Math.max(number, SENTINEL));
        node.setInput(index, graph.addConstant(mask.name, Tensor.of('f32', mask.data!.shape, clamped)));
        if (!graph.isUsed(mask)) graph.removeValue(mask);
        changed = true;
      }
    return changed;
  },
};

/** Constant operands, by their place, that hide positions of a softmax behind very low numbers. */
export function findMasks(graph: Graph, node: Node): [number, Value][] {
  if (node.domain !== '' || (node.op !== 'Add' && node.op !== 'Where')) return [];
  const { consumers } = node.output();
  if (consumers.length === 0 || !consumers.every(({ op }) => op === 'Softmax')) return [];
  if (graph.isOutput(node.output())) return [];
  return node.inputs.flatMap((value, index): [number, Value][] => {
    if (value?.data?.dtype !== 'f32' || value.encoding) return [];
    return value.data.toFloats().some((number) => number < MASK_LIMIT) ? [[index, value]] : [];
  });
}

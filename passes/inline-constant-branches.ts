import { inlineGraph } from '../compiler/ir/inline.ts';
import { soleNumber } from '../compiler/match.ts';
import type { Pass } from '../compiler/pass.ts';
import { replaceByIdentities } from '../compiler/rewrite.ts';

/**
 *     If(const true) {then_branch, else_branch}   ->   the nodes of then_branch
 *
 * Exporters leave such branches where a shape decides (merged decoders, Squeeze of a dimension that may be 1): once shapes
 * are fixed and folded, the condition is a constant.
 */
export const inlineConstantBranches: Pass = {
  name: 'inline-constant-branches',
  about: 'replaces If with a constant condition by the branch it takes',
  run: (graph, context) => {
    let changed = false;
    for (const node of [...graph.nodes]) {
      if (node.op !== 'If' || node.domain !== '') continue;
      const condition = soleNumber(node.inputs[0]);
      const branch = node.attributes.get(condition ? 'then_branch' : 'else_branch');
      if (branch?.kind !== 'graph') continue;
      if (condition === undefined) {
        context.remark(node, `the condition %${node.input(0).name} is not constant`);
        continue;
      }
      const { outputs, values } = inlineGraph(graph, branch.value, node, new Map());
      replaceByIdentities(graph, node, outputs, context.opset());
      // The branch held the names until it went: now they are free for what came out of it.
      for (const [inner, copy] of values) if (!graph.uniqueNameTaken(inner.name)) graph.renameValue(copy, inner.name);
      changed = true;
    }
    return changed;
  },
};

import { NpucError } from '../compiler/errors.ts';
import { constantOf } from '../compiler/ops/constant.ts';
import type { Pass } from '../compiler/pass.ts';
import { replaceByConstants } from '../compiler/rewrite.ts';

/**
 *     %w = Constant() {value tensor f32[2] [1.0, 2.0]}   ->   %w : f32[2] = const [1.0, 2.0]
 *
 * Exporters write weights either way (PaddleOCR's lie in Constant nodes); every later pass knows constants only. The tensor
 * stays where it is: nothing is read.
 */
export const convertConstantNodes: Pass = {
  name: 'convert-constant-nodes',
  about: 'turns Constant nodes into constants',
  run: (graph, context) => {
    let changed = false;
    for (const node of [...graph.nodes]) {
      if (node.op !== 'Constant' || node.domain !== '') continue;
      try {
        replaceByConstants(graph, node, [constantOf(node)]);
        changed = true;
      } catch (error) {
        if (!(error instanceof NpucError) || error.code !== 'IR022') throw error;
        context.remark(node, 'its value is sparse or refers to an attribute of a function');
      }
    }
    return changed;
  },
};

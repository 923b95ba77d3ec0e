import { capturedOutputs, type Node, type Value } from '../compiler/ir/graph.ts';
import type { Pass } from '../compiler/pass.ts';
import { remakeNode } from '../compiler/rewrite.ts';

/**
 *     %a = Relu(%x)                       ->   (nothing)             where nothing reads %a
 *     %y, %mask = Dropout(%x, %ratio)     ->   %y = Dropout(%x, %ratio)   where nothing reads %mask
 *
 * Constants that nothing reads go, too. Inputs stay: they are the graph's interface.
 */
export const eliminateDeadCode: Pass = {
  name: 'eliminate-dead-code',
  about: 'removes nodes, constants and optional outputs that nothing reads',
  run: (graph) => {
    let changed = false;
    const given = capturedOutputs(graph);
    const isRead = (value: Value): boolean => graph.isUsed(value) || given.has(value);
    for (const node of [...graph.nodes].reverse()) {
      const read = node.outputs.map((value) => value !== undefined && isRead(value));
      if (!read.includes(true)) {
        graph.removeNode(node);
        changed = true;
      } else if (dropOutputs(node, read.lastIndexOf(true) + 1)) changed = true;
    }
    for (const value of graph.constants) {
      if (isRead(value) || graph.inputs.includes(value)) continue;
      graph.removeValue(value);
      changed = true;
    }
    return changed;
  },
};

/** Operators whose outputs after the first are optional, so that a node without them means the same. */
const OPTIONAL_OUTPUTS: ReadonlySet<string> = new Set([
  'Attention',
  'BatchNormalization',
  'Dropout',
  'GRU',
  'LSTM',
  'LayerNormalization',
  'MaxPool',
  'RNN',
]);

/** Makes a node anew with its first `count` outputs only. */
function dropOutputs(node: Node, count: number): boolean {
  if (node.outputs.length <= count || node.domain !== '' || !OPTIONAL_OUTPUTS.has(node.op)) return false;
  remakeNode(node, { outputs: node.outputs.slice(0, count) });
  return true;
}

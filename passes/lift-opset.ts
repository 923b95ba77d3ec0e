import type { Graph, Module, Node } from '../compiler/ir/graph.ts';
import type { Pass, PassContext } from '../compiler/pass.ts';
import { Builder, remakeNode, replaceByFresh } from '../compiler/rewrite.ts';
import { ADAPTERS } from './opset-adapters.ts';

/** The IR version that came with an opset (ONNX Versioning.md): older ones may not name it. */
const IR_VERSIONS: readonly (readonly [opset: number, ir: number])[] = [
  [24, 12],
  [23, 11],
  [21, 10],
  [19, 9],
  [15, 8],
];

/**
 *     opset 9:  %y = Clip(%x) {min 0.0, max 6.0}   ->   opset 21:  %y = Clip(%x, const 0.0, const 6.0)
 *
 * Raises the module's opset of the ONNX domain step by step, rewriting the operators whose meaning or form changed
 * (passes/opset-adapters.ts), in every graph at once. Quantization needs 21 (4 and 16 bits, blocks), RMSNormalization 23,
 * Swish 24. Where a node cannot be lifted, the module stays one step below, with a remark.
 */
export function liftOpset(target: number): Pass {
  return {
    name: 'lift-opset',
    about: `raises the opset of the ONNX domain to ${target}`,
    scope: 'top graphs',
    run: (_, context) => {
      const { module } = context;
      let changed = false;
      for (let opset = context.opset() + 1; opset <= target && module.opsets.has(''); opset++) {
        if (!liftTo(module, opset, context)) break;
        module.opsets.set('', opset);
        changed = true;
      }
      const ir = IR_VERSIONS.find(([opset]) => opset <= context.opset())?.[1] ?? 0;
      if (changed) module.irVersion = Math.max(module.irVersion, ir);
      return changed;
    },
  };
}

/** Rewrites what one opset changed; false, with nothing rewritten, when a node refuses. */
function liftTo(module: Module, opset: number, context: PassContext): boolean {
  const adapters = ADAPTERS.get(opset);
  if (!adapters) return true;
  const nodes: Node[] = [];
  const visit = (graph: Graph): void => {
    for (const node of graph.nodes) {
      if (node.domain === '' && Object.hasOwn(adapters, node.op)) nodes.push(node);
      node.subgraphs.forEach(visit);
    }
  };
  module.graphs.forEach(visit);
  const refusals = nodes.flatMap((node) => {
    const refusal = adapters[node.op]!.refuse?.(node);
    return refusal === undefined ? [] : [{ node, refusal }];
  });
  for (const { node, refusal } of refusals) context.remark(node, `opset ${opset}: ${refusal}`);
  if (refusals.length > 0) return false;
  for (const node of nodes) {
    const build = new Builder(node.graph!, node, node.from, opset);
    const adapted = adapters[node.op]!.adapt(node, build);
    if (adapted === undefined) continue;
    if ('value' in adapted) replaceByFresh(node.graph!, node.output(), adapted.value);
    else remakeNode(node, adapted);
  }
  return true;
}

import type { Graph, Node, Value } from '../compiler/ir/graph.ts';
import type { Pass } from '../compiler/pass.ts';
import { Builder, replaceByFresh } from '../compiler/rewrite.ts';
import { isFloatValue } from '../compiler/value-facts.ts';

/** The binary op that an op of any number of inputs is made of. */
const STEPS: Readonly<Record<string, string>> = { Sum: 'Add', Mean: 'Add', Max: 'Max', Min: 'Min' };

/**
 *     Sum(a, b, c)    ->   Add(Add(a, b), c)
 *     Mean(a, b, c)   ->   Add(Add(a, b), c) * 1/3
 *     Max(a, b, c)    ->   Max(Max(a, b), c)        Min likewise
 *
 * For runtimes whose operators take two.
 */
export const decomposeVariadic: Pass = {
  name: 'decompose-variadic',
  about: 'Sum, Mean, Max and Min of any number of inputs become operators of two',
  run(graph, context) {
    let changed = false;
    for (const node of [...graph.nodes]) {
      if (node.domain !== '' || STEPS[node.op] === undefined) continue;
      if (node.op === STEPS[node.op] && node.inputs.length === 2) continue;
      if (node.op === 'Mean' && !isFloatValue(node.input(0))) {
        context.remark(node, `the type of %${node.input(0).name} is not known`);
        continue;
      }
      unfold(graph, node, context.opset());
      changed = true;
    }
    return changed;
  },
};

function unfold(graph: Graph, node: Node, opset: number): void {
  const build = new Builder(graph, node, node.from, opset);
  const [first, ...others] = node.inputs as readonly Value[];
  const step = STEPS[node.op]!;
  let value = others.reduce((sum, other) => build.emit(step, [sum, other]), first!);
  if (node.op === 'Mean' && others.length > 0) {
    value = build.emit('Mul', [value, build.scalar('share', 1 / node.inputs.length, first!)]);
  }
  replaceByFresh(graph, node.output(), value === first ? build.emit('Identity', [value]) : value);
}

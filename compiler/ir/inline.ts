import { copyAttributes } from './clone.ts';
import type { Graph, Node, Value } from './graph.ts';

/** What stands for an input of the inlined graph: undefined for one that the caller leaves out. */
export type Bindings = ReadonlyMap<Value, Value | undefined>;

export interface Inlined {
  /** The copied nodes, in order. */
  readonly nodes: readonly Node[];
  /** The copy of each of the source's own values. */
  readonly values: ReadonlyMap<Value, Value>;
  /** What stands for the source's outputs. */
  readonly outputs: readonly (Value | undefined)[];
}

/**
 * Copies the nodes of one graph (a branch of an If, the body of a function) into another one, in front of a node.
 * Constants and computed values come along under their own names, with a suffix where one is taken; values that neither are
 * in `bindings` nor belong to the source, such as captures, stay as they are.
 */
export function inlineGraph(target: Graph, source: Graph, before: Node, bindings: Bindings): Inlined {
  const map = new Map<Value, Value>();
  const values = new Map<Value, Value>();
  for (const [inner, outer] of bindings) if (outer) map.set(inner, outer);
  for (const value of source.values) {
    if (bindings.has(value)) continue;
    const fresh = target.addValue(value.name, value.type, value.data);
    fresh.encoding = value.encoding;
    fresh.payload = value.payload;
    map.set(value, fresh);
    values.set(value, fresh);
  }
  const own = (value: Value | undefined): Value | undefined => {
    if (value === undefined) return undefined;
    return map.get(value) ?? (bindings.has(value) ? undefined : value);
  };
  const nodes = source.nodes.map((node) =>
    target.addNode(
      {
        op: node.op,
        domain: node.domain,
        overload: node.overload,
        name: node.name,
        inputs: node.inputs.map(own),
        outputs: node.outputs.map(own),
        attributes: copyAttributes(node, target, map),
        from: node.from.length > 0 ? node.from : before.from,
        extras: node.extras,
      },
      before,
    ),
  );
  return { nodes, values, outputs: source.outputs.map(own) };
}

import { NpucError } from '../compiler/errors.ts';
import { readAttributeBytes } from '../compiler/import/onnx-attribute-bytes.ts';
import type { Attribute, Graph, LocalFunction, Module, Node } from '../compiler/ir/graph.ts';
import { inlineGraph } from '../compiler/ir/inline.ts';
import type { Pass, PassContext } from '../compiler/pass.ts';
import { replaceByIdentities } from '../compiler/rewrite.ts';

/**
 *     %y = custom::Block(%x) {alpha 0.5}   ->   the nodes of custom::Block's body
 *
 * Attributes of the body that refer to the function's take the call's value, the function's default, or go. A function whose
 * operator sets have other versions than the module's stays: its nodes would mean something else.
 */
export const inlineLocalFunctions: Pass = {
  name: 'inline-local-functions',
  about: 'replaces calls of local functions by their bodies',
  scope: 'top graphs',
  run: (graph, context) => {
    let changed = false;
    // Bodies may call functions in turn; ONNX forbids recursion, and a cycle would never end.
    for (let depth = 0; inlineCalls(graph, context); depth++) {
      changed = true;
      if (depth > context.module.functions.length)
        throw new NpucError('PS120', { message: 'local functions call each other in a circle', where: graph.name });
    }
    if (changed) dropUnused(context.module);
    return changed;
  },
};

function inlineCalls(graph: Graph, context: PassContext): boolean {
  let changed = false;
  for (const node of [...graph.nodes]) {
    for (const inner of node.subgraphs) if (inlineCalls(inner, context)) changed = true;
    const local = functionOf(node, context.module);
    if (!local) continue;
    const refusal = refuse(local, context);
    if (refusal !== undefined) {
      context.remark(node, refusal);
      continue;
    }
    const bindings = new Map(local.body.inputs.map((input, index) => [input, node.inputs[index]]));
    const { nodes, outputs } = inlineGraph(graph, local.body, node, bindings);
    for (const copy of nodes) {
      resolveReferences(copy, node, local);
      copy.name = `${node.name}/${copy.name}`;
    }
    replaceByIdentities(graph, node, outputs, context.opset());
    changed = true;
  }
  return changed;
}

function functionOf(node: Node, module: Module): LocalFunction | undefined {
  return module.functions.find(
    ({ domain, name, overload }) => domain === node.domain && name === node.op && overload === node.overload,
  );
}

function refuse(local: LocalFunction, context: PassContext): string | undefined {
  const isLocal = (domain: string): boolean => context.module.functions.some((other) => other.domain === domain);
  for (const [domain, version] of local.opsets) {
    const own = context.opset(domain);
    if (own !== 0 && own !== version && !isLocal(domain))
      return `${local.name} is written for opset ${version} of ${JSON.stringify(domain)}, the module has ${own}`;
    if (own === 0 && !isLocal(domain)) context.module.opsets.set(domain, version);
  }
  return undefined;
}

/** Gives the nodes of an inlined body, those of its subgraphs included, the attributes of the call. */
function resolveReferences(node: Node, call: Node, local: LocalFunction): void {
  for (const [name, attribute] of [...node.attributes]) {
    if (attribute.kind !== 'raw') continue;
    const { reference } = readAttributeBytes(attribute.value, node.name);
    if (reference === undefined) continue;
    const value = call.attributes.get(reference) ?? defaultOf(local, reference);
    if (value) node.attributes.set(name, value);
    else node.attributes.delete(name);
  }
  for (const inner of node.subgraphs) for (const nested of inner.nodes) resolveReferences(nested, call, local);
}

function defaultOf(local: LocalFunction, name: string): Attribute | undefined {
  for (const bytes of local.defaults) {
    const read = readAttributeBytes(bytes, local.name);
    if (read.name === name) return read.attribute;
  }
  return undefined;
}

/** Functions that no graph calls any more leave the module. */
function dropUnused(module: Module): void {
  const called = new Set<LocalFunction>();
  const visit = (graph: Graph): void => {
    for (const node of graph.nodes) {
      node.subgraphs.forEach(visit);
      const local = functionOf(node, module);
      if (!local || called.has(local)) continue;
      called.add(local);
      visit(local.body);
    }
  };
  module.graphs.forEach(visit);
  module.functions.splice(0, module.functions.length, ...module.functions.filter((local) => called.has(local)));
}

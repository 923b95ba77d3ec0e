import type { Encoding } from '../compiler/ir/encoding.ts';
import type { Attribute, Graph, Node, Value } from '../compiler/ir/graph.ts';
import type { Tensor } from '../compiler/ir/tensor.ts';
import type { Pass, PassContext } from '../compiler/pass.ts';
import { bypass, isRead } from '../compiler/rewrite.ts';

/**
 *     %a = Neg(%x)   %b = Neg(%x)   Add(%a, %b)     ->   %a = Neg(%x)   Add(%a, %a)
 *
 * Equal constants are merged first: the same tensor, or small ones of equal bytes (digests of large ones would read whole
 * weight files). Values with different encodings or payloads are different. Nodes with subgraphs, random operators and
 * operators of domains that ONNX does not define are left alone.
 */
export const eliminateCommonSubexpressions: Pass = {
  name: 'eliminate-common-subexpressions',
  about: 'computes equal values once',
  run: (graph, context) => {
    const constants = mergeConstants(graph, context);
    return mergeNodes(graph, context) || constants;
  },
};

const DIGEST_BYTES = 4096;

const IMPURE: ReadonlySet<string> = new Set([
  'RandomNormal',
  'RandomUniform',
  'RandomNormalLike',
  'RandomUniformLike',
  'Multinomial',
  'Bernoulli',
  'Dropout',
  // A sequence or a print-like operator is never worth the risk.
  'SequenceInsert',
  'SequenceErase',
]);

/** Numbers for objects, so that they can stand in a key. */
class Identities {
  readonly #numbers = new Map<object, number>();

  of(object: object): number {
    let number = this.#numbers.get(object);
    if (number === undefined) {
      number = this.#numbers.size;
      this.#numbers.set(object, number);
    }
    return number;
  }

  tensor(tensor: Tensor): string {
    return tensor.byteLength <= DIGEST_BYTES ? `${tensor.dtype}:${tensor.digest}` : `tensor ${this.of(tensor)}`;
  }
}

function mergeConstants(graph: Graph, context: PassContext): boolean {
  const identities = new Identities();
  const seen = new Map<string, Value>();
  let changed = false;
  for (const value of graph.constants) {
    if (graph.inputs.includes(value)) continue;
    const payload = value.payload === undefined ? '' : identities.tensor(value.payload);
    const key = JSON.stringify([identities.tensor(value.data!), payload, encodingKey(value.encoding)]);
    const first = seen.get(key);
    if (!first) seen.set(key, value);
    else if (isRead(graph, value) && bypass(graph, value, first, context) === true) {
      if (!isRead(graph, value)) graph.removeValue(value);
      changed = true;
    }
  }
  return changed;
}

function encodingKey(encoding: Encoding | undefined): unknown {
  if (!encoding) return null;
  const { dtype, axis, block, channelAxis, scale, zeroPoint, blockScale } = encoding;
  const list = (array: ArrayLike<number> | undefined): number[] => Array.from(array ?? []);
  return [dtype, axis ?? -1, block ?? -1, channelAxis ?? -1, list(scale), list(zeroPoint), list(blockScale)];
}

function mergeNodes(graph: Graph, context: PassContext): boolean {
  const identities = new Identities();
  const seen = new Map<string, Node>();
  let changed = false;
  for (const node of [...graph.nodes]) {
    const key = nodeKey(node, identities);
    if (key === undefined) continue;
    const first = seen.get(key);
    if (!first) seen.set(key, node);
    else if (mergeNode(graph, node, first, context)) changed = true;
  }
  return changed;
}

/** What makes two nodes equal; undefined for nodes that must not be merged. */
function nodeKey(node: Node, identities: Identities): string | undefined {
  if (node.domain !== '' || IMPURE.has(node.op) || node.subgraphs.length > 0) return undefined;
  const attributes = [...node.attributes]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, attribute]) => [name, attribute.kind, attributeKey(attribute, identities)]);
  return JSON.stringify([
    node.op,
    node.inputs.map((value) => (value ? identities.of(value) : -1)),
    attributes,
    node.outputs.map((value) => value && [encodingKey(value.encoding)]),
  ]);
}

function attributeKey(attribute: Attribute, identities: Identities): unknown {
  switch (attribute.kind) {
    case 'tensor':
      return identities.tensor(attribute.value);
    case 'tensors':
      return attribute.value.map((tensor) => identities.tensor(tensor));
    case 'raw':
      return Array.from(attribute.value);
    case 'int':
      return String(attribute.value);
    case 'ints':
      return attribute.value.map(String);
    case 'float':
    case 'floats':
      // JSON writes -0, nan and inf as other numbers.
      return [attribute.value].flat().map((value) => (Object.is(value, -0) ? '-0' : String(value)));
    default:
      return attribute.value;
  }
}

function mergeNode(graph: Graph, node: Node, first: Node, context: PassContext): boolean {
  let changed = false;
  node.outputs.forEach((output, index) => {
    const same = first.outputs[index];
    if (!output || !same || !isRead(graph, output)) return;
    const outcome = bypass(graph, output, same, context);
    if (outcome === true) changed = true;
    else context.remark(node, outcome);
  });
  if (changed) first.from = [...new Set([...first.from, ...node.from])];
  return changed;
}

import { dequantizeLazily } from '../compiler/export/quantize-constant.ts';
import { type Encoding, sameEncoding } from '../compiler/ir/encoding.ts';
import { type Graph, type Node, tensorType, type Value } from '../compiler/ir/graph.ts';
import type { Pass, PassContext } from '../compiler/pass.ts';
import { bondOf, bypass, isRead, removeDeadNodes, replaceByFresh } from '../compiler/rewrite.ts';
import { isDequantize, isQuantize, readEncoding } from './read-encoding.ts';

/**
 * QuantizeLinear and DequantizeLinear become encodings of values, where that is exact:
 *
 *     w = DequantizeLinear(const i8)                     ->  w = const f32, with payload and encoding
 *     y = DequantizeLinear(QuantizeLinear(x))            ->  x, with encoding
 *     the same, where x is read as float or with another encoding, too  ->  y = Identity(x), y with encoding
 *     y = DequantizeLinear(integer input i)              ->  i, a quantized port with encoding
 *     integer output q = QuantizeLinear(x)               ->  x, a quantized port with encoding
 *
 * What stays gets a remark with the reason: scales that are computed, integers that something else reads or makes, a pair
 * whose sides disagree, number formats that no encoding has. `materializeQdq` is the inverse.
 */
export const foldQdq: Pass = {
  name: 'fold-qdq',
  about: 'turns QuantizeLinear / DequantizeLinear into encodings of values',
  // Integer ports become float values with an encoding.
  changesInterface: true,
  run: (graph, context) => new Folding(graph, context).run(),
};

class Folding {
  readonly #graph: Graph;
  readonly #context: PassContext;
  /** One object for equal parameters, so that values which shared them still do. */
  readonly #encodings: Encoding[] = [];
  /** Constants by their integers: several DequantizeLinear of one tensor become one constant. */
  readonly #constants: Map<Value, Value[]> = new Map();
  #changed = false;

  constructor(graph: Graph, context: PassContext) {
    this.#graph = graph;
    this.#context = context;
  }

  run(): boolean {
    const nodes = [...this.#graph.nodes];
    // Scales of two-level weights are themselves dequantized: they go with the weight that reads them.
    const dequantizers = nodes.filter((node) => isDequantize(node) && !isScaleOnly(this.#graph, node.output()));
    for (const node of dequantizers) if (node.input(0).data) this.#foldConstant(node);
    for (const input of [...this.#graph.inputs]) this.#foldInput(input);
    for (const node of nodes) if (isQuantize(node)) this.#foldPair(node);
    for (const node of dequantizers) {
      const maker = node.graph && node.input(0).producer;
      if (maker && !isQuantize(maker)) this.#context.remark(node, `${maker.op} ${maker.name} computes its integers`);
    }
    removeDeadNodes(
      this.#graph,
      nodes.filter((node) => isDequantize(node)),
    );
    return this.#changed;
  }

  /** The encoding of a node, one object for equal ones; undefined after a remark. */
  #encoding(node: Node): Encoding | undefined {
    const found = readEncoding(node);
    if (typeof found === 'string') {
      this.#context.remark(node, found);
      return undefined;
    }
    const known = this.#encodings.find((encoding) => sameEncoding(encoding, found));
    if (!known) this.#encodings.push(found);
    return known ?? found;
  }

  #foldConstant(node: Node): void {
    const encoding = this.#encoding(node);
    if (!encoding) return;
    const integers = node.input(0);
    const output = node.output();
    const parameters = [...node.inputs];
    const known = this.#constants.get(integers) ?? [];
    const twin = known.find((value) => value.encoding === encoding);
    if (twin && this.#replace(output, twin)) return;
    const constant = this.#graph.addConstant(output.name, dequantizeLazily(integers.data!, encoding));
    replaceByFresh(this.#graph, output, constant);
    constant.encoding = encoding;
    constant.payload = integers.data;
    this.#removeUnread(parameters);
    const name = stemOf(integers.name);
    if (name && !this.#graph.isOutput(constant) && !this.#graph.uniqueNameTaken(name)) {
      this.#graph.renameValue(constant, name);
    }
    this.#constants.set(integers, [...known, constant]);
    this.#changed = true;
  }

  /** An integer input that is only dequantized becomes a float one with an encoding, integer at the boundary. */
  #foldInput(input: Value): void {
    const readers = input.consumers;
    if (!readers.some(isDequantize)) return;
    const encoding = this.#commonEncoding(readers);
    if (!encoding) return;
    const refusal = this.#refuseInput(input, readers);
    if (refusal) {
      for (const node of readers) if (isDequantize(node)) this.#context.remark(node, refusal);
      return;
    }
    const { type } = input;
    input.type = readers[0]!.output().type ?? tensorType('f32', type?.kind === 'tensor' ? type.shape : undefined);
    input.encoding = encoding;
    this.#graph.quantizedPorts.add(input);
    for (const node of readers) this.#takeOver(node, input);
    this.#changed = true;
  }

  #refuseInput(input: Value, readers: readonly Node[]): string | undefined {
    if (this.#graph.parent) return `the subgraph's input ${input.name} must stay an integer`;
    if (this.#graph.isOutput(input)) return `${input.name} is an output, too`;
    return this.#refuseReaders(input, readers);
  }

  /** Why not all readers of integers are DequantizeLinear of this graph; undefined when they are. */
  #refuseReaders(integers: Value, readers: readonly Node[]): string | undefined {
    if (readers.some((node) => node.graph !== this.#graph)) return `a subgraph reads the integers ${integers.name}`;
    const stranger = readers.find((node) => !isDequantize(node) || node.input(0) !== integers);
    return stranger && `${stranger.op} ${stranger.name} reads the integers ${integers.name}`;
  }

  /** The encoding that Q/DQ nodes agree on; undefined after a remark. */
  #commonEncoding(nodes: readonly Node[]): Encoding | undefined {
    let common: Encoding | undefined;
    for (const node of nodes) {
      if (!isQuantize(node) && !isDequantize(node)) continue;
      const encoding = this.#encoding(node);
      if (!encoding) return undefined;
      if (common && encoding !== common) {
        this.#context.remark(node, `its scale or zero point is not that of ${nodes[0]!.name}`);
        return undefined;
      }
      common = encoding;
    }
    return common;
  }

  /** A QuantizeLinear with everything that reads its integers. */
  #foldPair(node: Node): void {
    const readers = node.output().consumers;
    const encoding = this.#commonEncoding([node, ...readers]);
    if (!encoding) return;
    const refusal = this.#refusePair(node, readers);
    if (refusal) {
      this.#context.remark(node, refusal);
      return;
    }
    const parameters = [...node.inputs];
    const carrier = this.#carrierOf(node, encoding);
    carrier.encoding = encoding;
    for (const reader of readers) this.#takeOver(reader, carrier);
    if (this.#graph.isOutput(node.output())) this.#takePort(node, carrier);
    else this.#graph.removeNode(node);
    this.#removeUnread(parameters);
    this.#changed = true;
  }

  #refusePair(node: Node, readers: readonly Node[]): string | undefined {
    const { type, name } = node.input(0);
    const integers = node.output();
    if (type?.kind === 'tensor' && type.dtype !== 'f32') return `${name} is ${type.dtype}`;
    if (this.#graph.isOutput(integers)) {
      if (this.#graph.parent) return `the subgraph's output ${integers.name} must stay an integer`;
    } else if (readers.length === 0) return 'nothing reads its integers';
    return this.#refuseReaders(integers, readers);
  }

  /** The value that gets the encoding: what is quantized, or a copy of it where other readers must not see the rounding. */
  #carrierOf(node: Node, encoding: Encoding): Value {
    const float = node.input(0);
    if (float.encoding && sameEncoding(float.encoding, encoding)) return float;
    const isOwn = this.#graph.find(float.name) === float && !float.data;
    if (isOwn && float.uses.size === 1 && bondOf(this.#graph, float, this.#context.module) === undefined) return float;
    const copy = this.#graph.emit('Identity', [float], {
      name: `${float.name}_as_${encoding.dtype}`,
      before: node,
      from: node.from,
    });
    if (float.type) copy.type = float.type;
    return copy;
  }

  /** The integer output becomes a quantized port under its name. */
  #takePort(node: Node, carrier: Value): void {
    const graph = this.#graph;
    const integers = node.output();
    let port = carrier;
    if (graph.isOutput(carrier) || !carrier.producer || graph.find(carrier.name) !== carrier) {
      port = graph.emit('Identity', [carrier], { before: node, from: node.from });
      if (carrier.type) port.type = carrier.type;
      port.encoding = carrier.encoding;
    }
    const { name } = integers;
    graph.replaceUses(integers, port);
    graph.quantizedPorts.add(port);
    graph.removeNode(node);
    graph.renameValue(port, name);
  }

  /** Readers of a DequantizeLinear read the encoded value. Where its output must keep its name, an Identity gives it. */
  #takeOver(node: Node, by: Value): void {
    const output = node.output();
    const parameters = [...node.inputs];
    if (!this.#replace(output, by)) {
      const fresh = this.#graph.emit('Identity', [by], { before: node, from: node.from });
      replaceByFresh(this.#graph, output, fresh);
    }
    this.#removeUnread(parameters);
  }

  /** Readers of a value read an encoded one; false when the value's name, as an output, stands in the way. */
  #replace(output: Value, by: Value): boolean {
    output.encoding = by.encoding;
    const done = bypass(this.#graph, output, by, this.#context) === true;
    if (!done) output.encoding = undefined;
    return done;
  }

  /** Forgets integers, scales and zero points that were only read by a node which is gone. */
  #removeUnread(values: readonly (Value | undefined)[]): void {
    const graph = this.#graph;
    for (const value of values) {
      if (!value?.data || graph.find(value.name) !== value || graph.inputs.includes(value)) continue;
      if (!isRead(graph, value)) graph.removeValue(value);
    }
  }
}

/** Whether a value is nothing but the scale of other Q/DQ nodes. */
function isScaleOnly(graph: Graph, value: Value): boolean {
  const uses = [...value.uses];
  return (
    uses.length > 0 &&
    !graph.isOutput(value) &&
    uses.every(({ node, index }) => index === 1 && (isQuantize(node) || isDequantize(node)))
  );
}

/** `w` of `w_q` or `w_quantized`: the names that exporters give to a weight's integers. */
function stemOf(name: string): string | undefined {
  return /^(.+)_(?:q|quantized)$/.exec(name)?.[1];
}

import { NpucError } from '../errors.ts';
import type { Encoding } from '../ir/encoding.ts';
import { encodingForm } from '../ir/encoding.ts';
import { type Attribute, Graph, intAttribute, type Node, tensorType, type Value, type ValueType } from '../ir/graph.ts';
import { Tensor } from '../ir/tensor.ts';
import { nestedGraphs } from './onnx-messages.ts';
import { quantizeLazily } from './quantize-constant.ts';

const MICROSOFT = 'com.microsoft';

/** Whether any value of a graph or its subgraphs carries an encoding. */
export function hasEncodings(graph: Graph): boolean {
  for (const inner of nestedGraphs(graph)) for (const value of inner.values) if (value.encoding) return true;
  return false;
}

/**
 * A graph with its encodings written out as QuantizeLinear and DequantizeLinear; the source stays untouched.
 *
 *     x, q(u16)  = Op(..)      ->  x = Op(..);  x_q = QuantizeLinear(x);  x_dq = DequantizeLinear(x_q)
 *     w, q(i8)   = const       ->  w_q = const i8;  w_dq = DequantizeLinear(w_q, w_scale, w_zp)
 *     w, q(lpbq) = const       ->  w_bscale = DequantizeLinear(w_bs, w_scale, w_bs_zp)
 *                                  w_dq = DequantizeLinear(w_q, w_bscale, w_zp) block_size
 *     quantized input x        ->  x is an integer input;  x_dq = DequantizeLinear(x)
 *     output y                 ->  y_float = Op(..);  y_q = QuantizeLinear(y_float);  y = DequantizeLinear(y_q)
 *     quantized output y       ->  y_float = Op(..);  y = QuantizeLinear(y_float)
 *     y, q(b) = Identity(x, q(a))  ->  y_q = QuantizeLinear(x_dq): a change of format, no node of its own
 *
 * All readers of a value share one DequantizeLinear, all values with one Encoding object share scale and zero point. Integers
 * are the value's payload, or are rounded when they are read. Names depend on value names only, so graphs that share a
 * constant get the same initializer names and bytes. Types before opset 21 (4 and 16 bits) use ONNX Runtime's domain.
 * @param opset version of the ONNX domain that the graph is for
 * @throws TG101 for an encoding that cannot be written: blocks before opset 21, values that are not f32
 */
export function materializeQdq(graph: Graph, opset = 21): Graph {
  return new Materializer(graph, opset).copy(graph, undefined);
}

/** Scale and zero point of an encoding as values of the fresh graph. */
interface Parameters {
  readonly scale: Value;
  readonly zero: Value;
}

class Materializer {
  readonly #opset: number;
  /** Values that a node reads, or that a subgraph gives out as they are: only these need a DequantizeLinear. */
  readonly #read: Set<Value> = new Set();
  /** Names of the model's nodes: some exporters name a node as the value that it gives, and runtimes take no name twice. */
  readonly #nodeNames: Set<string> = new Set();
  /** A source value in the fresh graph under its own name. */
  readonly #copies: Map<Value, Value> = new Map();
  /** What readers of a source value read instead. */
  readonly #readings: Map<Value, Value> = new Map();
  readonly #owners: Map<Value, Graph> = new Map();
  readonly #parameters: Map<Encoding, Parameters> = new Map();
  /** The fresh outermost graph: it holds scales and zero points, which every subgraph can see. */
  #root!: Graph;

  constructor(source: Graph, opset: number) {
    this.#opset = opset;
    for (const graph of nestedGraphs(source)) {
      for (const node of graph.nodes) {
        this.#nodeNames.add(node.name);
        for (const value of node.inputs) if (value) this.#read.add(value);
      }
      for (const value of graph.outputs) if (graph.find(value.name) !== value) this.#read.add(value);
    }
  }

  copy(source: Graph, parent: Graph | undefined): Graph {
    const graph = new Graph(source.name, parent);
    if (!parent) this.#root = graph;
    graph.doc = source.doc;
    graph.unknown = source.unknown;
    for (const [key, value] of source.metadata) graph.metadata.set(key, value);
    for (const [key, value] of source.properties) graph.properties.set(key, value);
    // All names first: what is added for QDQ must never push a value of the model out of its name.
    for (const value of source.values) {
      this.#owners.set(value, graph);
      if (value.data && value.encoding) continue;
      const copy = graph.addValue(value.name, value.type, value.data);
      copy.extras = value.extras;
      this.#copies.set(value, copy);
    }
    for (const input of source.inputs) this.#copyInput(source, graph, input);
    for (const node of source.nodes) this.#copyNode(source, graph, node);
    for (const output of source.outputs) graph.outputs.push(this.#output(source, graph, output));
    for (const [name, { input, output }] of source.states) {
      graph.states.set(name, { input: this.#copies.get(input)!, output: this.#copies.get(output)! });
    }
    return graph;
  }

  #copyInput(source: Graph, graph: Graph, value: Value): void {
    const input = this.#copies.get(value)!;
    graph.inputs.push(input);
    if (!value.encoding) return;
    if (source.quantizedPorts.has(value)) {
      input.type = integerType(value.encoding, value.type);
      if (this.#read.has(value)) this.#dequantize(graph, value, input);
    } else if (this.#read.has(value)) {
      this.#dequantize(graph, value, this.#quantize(graph, value, input, `${value.name}_q`));
    }
  }

  #copyNode(source: Graph, graph: Graph, node: Node): void {
    const inputs = node.inputs.map((value) => value && this.#reading(value));
    const [first] = node.outputs;
    if (node.op === 'Identity' && node.domain === '' && node.inputs[0]?.encoding && first?.encoding) {
      this.#encodeOutput(source, graph, first, inputs[0]!);
      return;
    }
    const attributes = new Map<string, Attribute>();
    for (const [name, attribute] of node.attributes) attributes.set(name, this.#copyAttribute(graph, attribute));
    // An encoded output keeps its name for what leaves the graph; the float before it needs another one.
    const outputs = node.outputs.map((value) => {
      if (!value) return undefined;
      if (!value.encoding || !source.isOutput(value)) return this.#copies.get(value)!;
      return graph.addValue(`${value.name}_float`, value.type);
    });
    const { op, domain, overload, name, from, extras } = node;
    graph.addNode({ op, domain, overload, name, inputs, outputs, attributes, from, extras });
    node.outputs.forEach((value, index) => {
      if (value?.encoding) this.#encodeOutput(source, graph, value, outputs[index]!);
    });
  }

  #copyAttribute(graph: Graph, attribute: Attribute): Attribute {
    if (attribute.kind === 'graph') return { kind: 'graph', value: this.copy(attribute.value, graph) };
    if (attribute.kind !== 'graphs') return attribute;
    return { kind: 'graphs', value: attribute.value.map((inner) => this.copy(inner, graph)) };
  }

  /** QuantizeLinear and DequantizeLinear after `float`, which holds the real numbers of a node's output. */
  #encodeOutput(source: Graph, graph: Graph, value: Value, float: Value): void {
    const copy = this.#copies.get(value)!;
    if (!source.isOutput(value)) {
      if (!this.#read.has(value)) return;
      const integers = this.#quantize(graph, value, float, `${value.name}_q`);
      // A change of format writes nothing under the value's own name.
      if (!copy.producer && copy !== float) graph.removeValue(copy);
      this.#dequantize(graph, value, integers);
    } else if (source.quantizedPorts.has(value)) {
      copy.type = integerType(value.encoding!, value.type);
      this.#quantize(graph, value, float, copy);
      if (this.#read.has(value)) this.#dequantize(graph, value, copy);
    } else {
      this.#dequantize(graph, value, this.#quantize(graph, value, float, `${value.name}_q`), copy);
    }
  }

  #quantize(graph: Graph, value: Value, float: Value, to: Value | string): Value {
    const encoding = value.encoding!;
    if (encoding.dtype === 'i32' || encoding.blockScale) {
      throw new NpucError('TG101', {
        message: `${value.name} is computed and cannot be ${encodingForm(encoding)} ${encoding.dtype}`,
        where: value.name,
      });
    }
    const output = typeof to === 'string' ? graph.addValue(to, integerType(encoding, value.type)) : to;
    this.#addNode(graph, 'QuantizeLinear', value, float, output);
    return output;
  }

  #dequantize(graph: Graph, value: Value, integers: Value, to?: Value): void {
    const output = to ?? graph.addValue(`${value.name}_dq`, value.type);
    this.#addNode(graph, 'DequantizeLinear', value, integers, output);
    this.#readings.set(value, output);
  }

  #addNode(graph: Graph, op: string, value: Value, input: Value, output: Value): void {
    const encoding = value.encoding!;
    if (value.type?.kind === 'tensor' && value.type.dtype !== 'f32') {
      throw new NpucError('TG101', {
        message: `${value.name} is ${value.type.dtype}: only f32 values can be quantized`,
        where: value.name,
      });
    }
    const { scale, zero } = this.#parametersOf(encoding, value);
    graph.addNode({
      op,
      domain: this.#domain(encoding, value),
      name: this.#nodeNames.has(output.name) ? `${output.name}/${op}` : output.name,
      inputs: [input, scale, zero],
      outputs: [output],
      attributes: layoutAttributes(encoding),
      from: value.producer?.from ?? [],
    });
  }

  /** What a reader of a source value reads; a constant gets its integers and its DequantizeLinear here. */
  #reading(value: Value): Value {
    const known = this.#readings.get(value);
    if (known) return known;
    if (!value.data || !value.encoding) return this.#copies.get(value)!;
    const graph = this.#owners.get(value)!;
    const { encoding, payload, data } = value;
    const tensor = payload ?? quantizeLazily(data, encoding, value.name);
    this.#dequantize(graph, value, graph.addConstant(`${value.name}_q`, tensor));
    return this.#readings.get(value)!;
  }

  /** The value that leaves a graph: it has the source's name, unless an outer graph or a constant owns that. */
  #output(source: Graph, graph: Graph, value: Value): Value {
    const copy = source.find(value.name) === value ? this.#copies.get(value) : undefined;
    if (copy) return copy;
    const reading = this.#reading(value);
    if (source.parent) return reading;
    const output = graph.addValue(value.name, value.type);
    graph.addNode({ op: 'Identity', name: value.name, inputs: [reading], outputs: [output] });
    return output;
  }

  #parametersOf(encoding: Encoding, value: Value): Parameters {
    const known = this.#parameters.get(encoding);
    if (known) return known;
    const { name } = value;
    const { dtype, scale, zeroPoint, blockScale, block, axis } = encoding;
    const form = encodingForm(encoding);
    const dims = form === 'tensor' ? [] : form === 'channel' ? [scale.length] : blockShape(value, axis!, block!);
    let scales: Value;
    if (blockScale) {
      const channels = this.#root.addConstant(`${name}_scale`, Tensor.of('f32', [scale.length], scale));
      const factors = this.#root.addConstant(`${name}_bs`, Tensor.of('u8', dims, blockScale));
      const zeros = this.#root.addConstant(
        `${name}_bs_zp`,
        Tensor.of('u8', [scale.length], new Uint8Array(scale.length)),
      );
      scales = this.#root.emit('DequantizeLinear', [factors, channels, zeros], {
        name: `${name}_bscale`,
        type: tensorType('f32', dims),
        attributes: { axis: intAttribute(encoding.channelAxis!) },
      });
    } else scales = this.#root.addConstant(`${name}_scale`, Tensor.of('f32', dims, scale));
    const count = dims.reduce((product, dim) => product * dim, 1);
    const zeros = new Array<number>(count).fill(zeroPoint?.length === 1 ? zeroPoint[0]! : 0);
    if (zeroPoint && zeroPoint.length > 1) zeroPoint.forEach((zero, index) => (zeros[index] = zero));
    const zero = this.#root.addConstant(`${name}_zp`, Tensor.of(dtype, dims, zeros));
    const parameters = { scale: scales, zero };
    this.#parameters.set(encoding, parameters);
    return parameters;
  }

  /** Where the op of an encoding is defined: ONNX from opset 10, per channel from 13, 4 and 16 bits and blocks from 21. */
  #domain({ dtype, axis, block }: Encoding, value: Value): string {
    const wide = dtype !== 'i8' && dtype !== 'u8' && dtype !== 'i32';
    const needed = wide || block !== undefined ? 21 : axis !== undefined ? 13 : 10;
    if (this.#opset >= needed) return '';
    if (block === undefined) return MICROSOFT;
    throw new NpucError('TG101', {
      message: `the encoding of ${value.name} has blocks, which need opset 21; the model has ${this.#opset}`,
      where: value.name,
    });
  }
}

function layoutAttributes({ axis, block }: Encoding): Record<string, Attribute> {
  return {
    ...(axis === undefined ? {} : { axis: intAttribute(axis) }),
    ...(block === undefined ? {} : { block_size: intAttribute(block) }),
  };
}

function blockShape(value: Value, axis: number, block: number): number[] {
  return value.dims.map((dim, at) => (at === axis ? Math.ceil(dim / block) : dim));
}

function integerType(encoding: Encoding, type: ValueType | undefined): ValueType {
  return tensorType(encoding.dtype, type?.kind === 'tensor' ? type.shape : undefined);
}

import { type DType, isFloat } from '../../compiler/ir/dtype.ts';
import type { Encoding } from '../../compiler/ir/encoding.ts';
import { type Attribute, type Dim, Graph, Module, type Value, type ValueType } from '../../compiler/ir/graph.ts';
import { Tensor } from '../../compiler/ir/tensor.ts';
import { randomTensor, seededUniform } from '../../compiler/ir/text-data.ts';

const NAMES = ['x', '/model/layers.0/Add_output_0', 'a b', 'q"uote', 'x:0', '日本', '_', 'in', 'const', '0', ''];
const DTYPES: readonly DType[] = ['f32', 'f64', 'f16', 'bf16', 'i8', 'u8', 'i16', 'i32', 'u32', 'i4', 'u2', 'f8e5m2'];

/**
 * Modules with every construct of the IR, valid by `verify` but with meaningless operators: for print / parse, for the
 * verifier and for ONNX read / write.
 */
export function randomModule(seed: number): Module {
  return new ModuleMaker(seed).module();
}

class ModuleMaker {
  readonly #draw: () => number;

  constructor(seed: number) {
    this.#draw = seededUniform(seed);
  }

  #below(count: number): number {
    return Math.floor(this.#draw() * count);
  }

  #pick<T>(items: readonly T[]): T {
    return items[this.#below(items.length)]!;
  }

  #many<T>(most: number, make: () => T): T[] {
    return Array.from({ length: this.#below(most + 1) }, make);
  }

  module(): Module {
    const module = new Module();
    module.irVersion = 8 + this.#below(4);
    module.opsets.set('', 17 + this.#below(8));
    module.opsets.set('com.example', 1);
    module.doc = this.#pick(['', 'two\nlines', '// no comment']);
    module.producerName = this.#pick(['', 'pytorch']);
    for (const name of ['main', 'decode'].slice(0, 1 + this.#below(2))) {
      const graph = new Graph(name);
      module.graphs.push(graph);
      this.#fill(graph, [], 0);
      for (let i = 0; i < this.#below(3); i++)
        graph.properties.set(this.#pick(['tokens', 'cache', 'inf']), this.#below(99));
      for (const port of [...graph.inputs, ...graph.outputs])
        if (port.encoding && this.#below(2)) graph.quantizedPorts.add(port);
    }
    return module;
  }

  #fill(graph: Graph, captures: readonly Value[], depth: number): void {
    const visible = [...captures];
    for (let i = 0; i < 2; i++) visible.push(this.#describe(graph.addInput(this.#pick(NAMES)), graph));
    for (let i = 0; i < this.#below(4); i++) {
      const data = this.#tensor();
      const value = graph.addConstant(this.#pick(NAMES), data);
      if (isFloat(data.dtype) && this.#below(2) === 0) value.encoding = this.#encoding(data.shape);
      visible.push(value);
    }
    for (let i = 0; i < 1 + this.#below(6); i++) {
      // Outputs first: a subgraph may not take a name of the graph around it.
      const outputs = Array.from({ length: 1 + this.#below(2) }, (_, at) =>
        at > 0 && this.#below(3) === 0 ? undefined : this.#describe(graph.addValue(this.#pick(NAMES)), graph),
      );
      const names = ['axis', 'inf', 'a b'].slice(this.#below(4));
      const attributes = new Map(names.map((name) => [name, this.#attribute(graph, visible, depth)]));
      graph.addNode({
        op: this.#pick(['Concat', 'const', 'My.Op']),
        domain: this.#pick(['', 'com.example']),
        name: this.#pick(['', 'node', outputs[0]!.name]),
        inputs: [this.#pick(visible), ...this.#many(2, () => (this.#below(4) === 0 ? undefined : this.#pick(visible)))],
        outputs,
        attributes,
        from: this.#many(2, () => this.#pick(['Mul_1', '/a/b', 'from'])),
      });
      visible.push(...outputs.filter((value) => value !== undefined));
    }
    const own = visible.filter((value) => graph.find(value.name) === value);
    for (let i = 0; i < 1 + this.#below(2); i++) graph.outputs.push(this.#pick(own));
  }

  #describe(value: Value, graph: Graph): Value {
    if (this.#below(6) === 0) return value;
    value.type = this.#type();
    if (value.type.kind === 'tensor' && isFloat(value.type.dtype) && this.#below(2) === 0 && graph.parent === undefined)
      value.encoding = {
        dtype: 'u16',
        scale: Float32Array.of(this.#draw()),
        zeroPoint: Int32Array.of(this.#below(65536)),
      };
    return value;
  }

  #type(): ValueType {
    const which = this.#below(12);
    if (which === 0) return { kind: 'sequence', element: this.#type() };
    if (which === 1) return { kind: 'optional', element: undefined };
    if (which === 2) return { kind: 'map', key: 'i64', element: this.#type() };
    const dtype = this.#pick(DTYPES);
    if (which === 3) return { kind: 'tensor', dtype };
    const dim = (): Dim =>
      this.#pick([1, 4, this.#below(1000), 'batch', 'past + tokens', 'max(a, b) / 2', '12', 'odd ] dim', '', 'a//b']);
    return { kind: 'tensor', dtype, shape: this.#many(4, dim) };
  }

  #tensor(): Tensor {
    const shape = this.#many(3, () => this.#pick([1, 2, 4, 8]));
    if (this.#below(3) === 0) {
      const made = randomTensor('f32', shape, this.#below(1000), { kind: 'normal', deviation: 1 });
      if ('problem' in made) throw new Error(made.problem);
      return made;
    }
    const dtype = this.#pick(DTYPES);
    const size = shape.reduce((product, dim) => product * dim, 1);
    const low = dtype.startsWith('i') || dtype.startsWith('f') ? -2 : 0;
    const integers = Array.from({ length: size }, () => Math.max(low, this.#below(4) - 2));
    return Tensor.of(dtype, shape, dtype.startsWith('u') || dtype === 'f8e5m2' ? integers.map(Math.abs) : integers);
  }

  #encoding(shape: readonly number[]): Encoding {
    const scales = (count: number): Float32Array => Float32Array.from({ length: count }, () => 0.001 + this.#draw());
    const size = shape.reduce((product, dim) => product * dim, 1);
    const last = shape.length - 1;
    const form = shape.length < 2 ? 0 : this.#below(4);
    if (form === 1) return { dtype: 'i8', axis: 0, scale: scales(shape[0]!) };
    if (form === 2)
      return { dtype: 'u4', axis: last, block: 1, scale: scales(size), zeroPoint: new Int32Array(size).fill(8) };
    if (form === 3)
      return {
        dtype: 'i4',
        axis: last,
        block: 1,
        channelAxis: 0,
        scale: scales(shape[0]!),
        blockScale: Uint8Array.from({ length: size }, () => 1 + this.#below(15)),
      };
    return { dtype: 'i16', scale: scales(1) };
  }

  #attribute(graph: Graph, visible: readonly Value[], depth: number): Attribute {
    const which = this.#below(depth < 2 ? 13 : 11);
    const float = (): number => this.#pick([0, -0, 1, 0.1, Math.fround(0.1), 1e300, Number.NaN, -Infinity, 3e-45]);
    switch (which) {
      case 0:
        return { kind: 'int', value: this.#pick<number | bigint>([0, -5, 2n ** 60n]) };
      case 1:
        return { kind: 'float', value: float() };
      case 2:
        return { kind: 'string', value: this.#pick(['', 'a "b"\n', '; from']) };
      case 3:
        return { kind: 'ints', value: this.#many(3, () => this.#below(9)) };
      case 4:
        return { kind: 'floats', value: this.#many(3, float) };
      case 5:
        return { kind: 'strings', value: this.#many(2, () => 'text') };
      case 6:
        return { kind: 'tensor', value: this.#tensor() };
      case 7:
        return { kind: 'tensors', value: this.#many(2, () => this.#tensor()) };
      case 8:
        return { kind: 'graphs', value: [] };
      case 9:
        return { kind: 'type', value: this.#type() };
      case 10:
        return { kind: 'raw', value: Uint8Array.of(0, 255) };
      case 11:
        return { kind: 'graph', value: this.#subgraph(graph, visible, depth) };
      default:
        return {
          kind: 'graphs',
          value: [this.#subgraph(graph, visible, depth), this.#subgraph(graph, visible, depth)],
        };
    }
  }

  #subgraph(parent: Graph, captures: readonly Value[], depth: number): Graph {
    const graph = new Graph('body', parent);
    this.#fill(graph, captures, depth + 1);
    return graph;
  }
}

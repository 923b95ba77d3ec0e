import type { Graph, Node, Value } from '../../compiler/ir/graph.ts';
import type { TflitePort, TfliteSubgraph } from './model.ts';
import { type BufferPool, type OperatorOptions, quantizationOf, SubgraphBuilder, typeOf } from './subgraph-builder.ts';
import type { KernelName } from './versions.ts';

/** Whether encoded inputs and outputs are floats, converted inside the graph, or the integers themselves. */
export type PortForm = 'float' | 'quantized';

/**
 * As LiteRT-LM wants it: floats, but caches are what the graph computes with, and go out under the name that they came in by.
 */
export type DecoderPortForm = PortForm | 'litert-lm';

/** What the subgraphs of one model share. */
export interface ModelParts {
  readonly pool: BufferPool;
  /** Adds the body of a composite; returns its subgraph index. */
  addBody(body: TfliteSubgraph): number;
}

/** The lowering of one graph: its builder, and what lowerings of several nodes have to agree on. */
export class Lowering {
  readonly builder: SubgraphBuilder;
  readonly parts: ModelParts;
  /** Nodes that became part of another one's operator. */
  readonly absorbed: Set<Node> = new Set();
  /** Vectors of start indices, by what they are made of. */
  readonly starts: Map<string, number> = new Map();
  /** The input of each cache, by its input and its output. */
  readonly #caches: ReadonlyMap<Value, Value>;

  readonly form: DecoderPortForm;

  constructor(graph: Graph, parts: ModelParts, form: DecoderPortForm) {
    this.form = form;
    this.builder = new SubgraphBuilder(graph.name, parts.pool);
    this.parts = parts;
    this.#caches = new Map(
      [...graph.states.values()].flatMap(({ input, output }) => [
        [input, input],
        [output, input],
      ]),
    );
  }

  #areIntegers(value: Value, form: DecoderPortForm): boolean {
    return form === 'quantized' || (form === 'litert-lm' && this.#caches.has(value));
  }

  addInput(value: Value, form: DecoderPortForm): TflitePort {
    const { builder } = this;
    if (!value.encoding || this.#areIntegers(value, form)) return { name: value.name, tensor: builder.tensorOf(value) };
    const port = builder.addFloats(value.name, value.dims);
    const integers = builder.addTensor(
      `${value.name}.quantized`,
      typeOf(value),
      value.dims,
      quantizationOf(value.encoding, value.name),
    );
    builder.addQuantize(port, integers);
    builder.bind(value, integers);
    return { name: value.name, tensor: port };
  }

  addOutput(value: Value, form: DecoderPortForm): TflitePort {
    const tensor = this.builder.tensorOf(value);
    const name = (form === 'litert-lm' && this.#caches.get(value)?.name) || value.name;
    if (!value.encoding || this.#areIntegers(value, form)) return { name, tensor };
    return { name: value.name, tensor: this.builder.addDequantize(tensor, `${value.name}.float`) };
  }

  /** One operator for a node with one output. */
  emit(name: KernelName, node: Node, inputs: readonly number[], options?: OperatorOptions): void {
    this.builder.addOperator(name, inputs, [this.builder.tensorOf(node.output())], options);
  }

  /** TRANSPOSE of a value into a tensor made by hand or by `tensorOf`. */
  addTranspose(from: Value, to: number, permutation: readonly number[]): void {
    const { builder } = this;
    const axes = builder.addInts(`perm.${permutation.join('')}`, permutation);
    builder.addOperator('TRANSPOSE', [builder.tensorOf(from), axes], [to], { options: { kind: 'TransposeOptions' } });
  }
}

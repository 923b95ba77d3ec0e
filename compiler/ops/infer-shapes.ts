import { NpucError } from '../errors.ts';
import { Graph, type Module, type Node, tensorType, type Value } from '../ir/graph.ts';
import { elementCount, Tensor, type TensorData } from '../ir/tensor.ts';
import { constantOf } from './constant.ts';
import { isInteger, newArray, packTensor } from './elements.ts';
import { findOp } from './index.ts';
import { CONTENT_LIMIT, type Content, inferContent } from './infer-content.ts';
import { inferControl } from './infer-control.ts';
import type { InferContext } from './op.ts';
import { isUnknownDim } from './shape-rules.ts';
import { mergeTypes } from './type-merge.ts';

/** Results of at most this many elements are computed while shapes are inferred. */
const FOLD_LIMIT = 1024;

/**
 * Gives every value of the graphs a type where it can be known, in place. Contents of small integer tensors are carried
 * through shape arithmetic, symbolic ones as expressions. What is inferred replaces what was declared; a declared type
 * stays where nothing can be inferred. Local functions keep unknown types.
 * @throws IR020, IR021, IR022 when an op's inputs cannot fit
 */
export function inferShapes(target: Module | Graph, opsets?: ReadonlyMap<string, number>): void {
  const graphs = target instanceof Graph ? [target] : target.graphs;
  const versions = opsets ?? (target instanceof Graph ? new Map([['', 21]]) : target.opsets);
  for (const graph of graphs) new Inference(versions).run(graph);
}

/** One inference over a graph and its subgraphs. */
export class Inference {
  readonly #opsets: ReadonlyMap<string, number>;
  readonly #contents: Map<Value, Content> = new Map();
  /** Small tensors computed from constants on the way. */
  readonly #folded: Map<Value, Tensor> = new Map();

  constructor(opsets: ReadonlyMap<string, number>) {
    this.#opsets = opsets;
  }

  run(graph: Graph): void {
    for (const value of graph.constants) value.type = tensorType(value.data!.dtype, value.data!.shape);
    for (const node of graph.nodes) this.#runNode(node);
  }

  /** The tensor of a value that is constant, or small and computed from constants. */
  constantOf(value: Value): Tensor | undefined {
    const node = value.producer;
    if (node?.op === 'Constant' && node.domain === '') return constantOf(node);
    return value.data ?? this.#folded.get(value) ?? this.#fromContent(value);
  }

  /** Forgets what a loop's body was told about a value, before it is inferred again. */
  forget(value: Value): void {
    this.#contents.delete(value);
    this.#folded.delete(value);
  }

  #runNode(node: Node): void {
    const opset = this.#opsets.get(node.domain) ?? 1;
    const context = this.#contextOf(node, opset);
    const controlled = inferControl(node, this);
    const op = controlled ? undefined : findOp(node.domain, node.op, opset);
    const types = controlled ?? op?.infer?.(context) ?? [];
    node.outputs.forEach((output, index) => {
      if (output) output.type = mergeTypes(types[index], output.type);
    });
    if (controlled) return;
    this.#fold(node, opset, context);
    inferContent({ node, opset, content: context.content, shape: context.shape }).forEach((content, index) => {
      const output = node.outputs[index];
      if (!output || !content || content.length > CONTENT_LIMIT || this.#folded.has(output)) return;
      if (output.type?.kind === 'tensor' && (output.type.shape?.length ?? 0) <= 1) this.#contents.set(output, content);
    });
  }

  /** Computes a small result whose inputs are all known. */
  #fold(node: Node, opset: number, context: InferContext): void {
    const op = findOp(node.domain, node.op, opset);
    if (!op?.evaluate || node.op === 'Constant' || node.subgraphs.length > 0) return;
    // Dimensions that only the run decides (NonZero, Compress) are bounded by the inputs.
    const small = node.outputs.every((output) => {
      const type = output?.type;
      if (output === undefined) return true;
      if (type?.kind !== 'tensor' || !type.shape) return false;
      const sizes = type.shape.filter((dim) => !isUnknownDim(dim));
      return (
        sizes.every((dim): dim is number => typeof dim === 'number') && elementCount(sizes as number[]) <= FOLD_LIMIT
      );
    });
    if (!small) return;
    const inputs: (TensorData | undefined)[] = [];
    for (let index = 0; index < node.inputs.length; index++) {
      if (!node.inputs[index]) {
        inputs.push(undefined);
        continue;
      }
      const tensor = context.constant(index);
      // Shape and Size read no data: a shape that is known is enough.
      const shape = node.op === 'Shape' || node.op === 'Size' ? context.shape(index) : undefined;
      if (tensor && tensor.size <= FOLD_LIMIT) inputs.push(tensor.toData());
      else if (shape?.every((dim): dim is number => typeof dim === 'number'))
        inputs.push({ dtype: 'u8', shape, data: new Uint8Array(0) });
      else return;
    }
    let results: readonly (TensorData | undefined)[];
    try {
      results = op.evaluate(inputs, { node, opset });
    } catch (error) {
      // A form of the op without reference semantics (Dropout in training mode) is simply not known here.
      if (error instanceof NpucError && error.code === 'RT010') return;
      throw error;
    }
    node.outputs.forEach((output, index) => {
      const result = results[index];
      if (!output || !result) return;
      output.type = tensorType(result.dtype, result.shape);
      this.#folded.set(output, packTensor(result));
    });
  }

  #contextOf(node: Node, opset: number): InferContext {
    const input = (index: number): Value | undefined => node.inputs[index];
    const constant = (index: number): Tensor | undefined => {
      const value = input(index);
      return value && this.constantOf(value);
    };
    return {
      node,
      opset,
      type: (index) => input(index)?.type,
      shape: (index) => {
        const type = input(index)?.type;
        return type?.kind === 'tensor' ? type.shape : undefined;
      },
      constant,
      content: (index) => {
        const value = input(index);
        if (!value) return undefined;
        const known = this.#contents.get(value);
        if (known) return known;
        const tensor = this.constantOf(value);
        const small = tensor && tensor.shape.length <= 1 && tensor.size <= CONTENT_LIMIT;
        return small && (isInteger(tensor.dtype) || tensor.dtype === 'bool') ? tensor.toNumbers() : undefined;
      },
    };
  }

  /** A content of plain numbers as a tensor. */
  #fromContent(value: Value): Tensor | undefined {
    const content = this.#contents.get(value);
    const type = value.type;
    if (type?.kind !== 'tensor' || !type.shape || !content?.every((dim): dim is number => typeof dim === 'number'))
      return undefined;
    const shape = type.shape.length === 0 ? [] : [content.length];
    const data = newArray(type.dtype, content.length);
    content.forEach((dim, index) => {
      data[index] = data instanceof BigInt64Array || data instanceof BigUint64Array ? BigInt(dim) : dim;
    });
    return Tensor.of(type.dtype, shape, data);
  }
}

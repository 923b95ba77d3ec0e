import { NpucError } from '../compiler/errors.ts';
import { byteLengthOf, DTYPES } from '../compiler/ir/dtype.ts';
import { Graph, type Node, type ValueType } from '../compiler/ir/graph.ts';
import { elementCount, encodeStrings, Tensor, type TensorData, transposeTensor } from '../compiler/ir/tensor.ts';
import { shapeContent } from '../compiler/ops/constant.ts';
import { findOp } from '../compiler/ops/index.ts';
import type { Pass, PassContext } from '../compiler/pass.ts';
import { replaceByConstants } from '../compiler/rewrite.ts';

/**
 *     %a = Add(const, const)                    ->   %a = const
 *     %s = Shape(%x)                            ->   %s = const [1, 64]   where the shape of %x is fixed
 *     %n = Gather(Shape(%x), const 1)           ->   %n = const 64        where that dimension is fixed
 *
 * A large result is a promise that computes itself from its inputs when it is read, so that folding a weight's transpose
 * costs no memory. Left alone: outputs of the graph, quantization nodes (fold-qdq makes them encodings), random numbers,
 * and results much larger than what they come from.
 */
export const foldConstants: Pass = {
  name: 'fold-constants',
  about: 'computes what depends on constants and fixed shapes only',
  run: (graph, context) => {
    let changed = false;
    for (const node of [...graph.nodes]) if (foldNode(graph, node, context)) changed = true;
    return changed;
  },
};

const NEVER: ReadonlySet<string> = new Set([
  'Constant',
  'QuantizeLinear',
  'DequantizeLinear',
  'DynamicQuantizeLinear',
  'RandomNormal',
  'RandomUniform',
  'RandomNormalLike',
  'RandomUniformLike',
  'Multinomial',
  'Bernoulli',
]);

/** Results of more bytes are computed when they are read. */
const EAGER_BYTES = 4 << 20;
/** What a result may take although its inputs are small. */
const GROWTH_BYTES = 1 << 20;

function foldNode(graph: Graph, node: Node, context: PassContext): boolean {
  if (NEVER.has(node.op) || node.subgraphs.length > 0) return false;
  const opset = context.opset(node.domain);
  const evaluate = findOp(node.domain, node.op, opset)?.evaluate;
  if (!evaluate) return false;
  const inputs = knownInputs(node);
  if (!inputs) return false;
  const refusal = refuse(graph, node, inputs);
  if (refusal !== undefined) {
    context.remark(node, refusal);
    return false;
  }
  const detached = detach(node, inputs);
  const compute = (): readonly (TensorData | undefined)[] =>
    evaluate(
      inputs.map((tensor) => tensor?.toData()),
      { node: detached, opset },
    );
  try {
    replaceByConstants(graph, node, resultsOf(node, inputs, compute));
  } catch (error) {
    if (!(error instanceof NpucError) || error.code !== 'RT010') throw error;
    context.remark(node, error.message);
    return false;
  }
  return true;
}

/** The tensors behind all inputs; a Shape node needs only the shape of its input. Undefined when one is not known. */
function knownInputs(node: Node): (Tensor | undefined)[] | undefined {
  if (node.inputs.length === 0) return undefined;
  const picked = pickedDims(node);
  if (picked) return [Tensor.of('i64', [picked.length], picked), node.inputs[1]?.data];
  if (node.op === 'Shape' || node.op === 'Size') {
    const dims = fixedDims(node.inputs[0]?.type);
    return dims && [shapeOnly(dims)];
  }
  const inputs: (Tensor | undefined)[] = [];
  for (const value of node.inputs) {
    if (value && !value.data) return undefined;
    inputs.push(value?.data);
  }
  return inputs;
}

/**
 * For Gather over the shape of something, with constant indices: that shape, unknown dimensions as 0, when no index picks
 * an unknown one.
 */
function pickedDims(node: Node): number[] | undefined {
  const source = node.inputs[0]?.producer;
  const indices = node.inputs[1]?.data;
  if (node.op !== 'Gather' || source?.op !== 'Shape' || !indices) return undefined;
  const type = source.inputs[0]?.type;
  if (type?.kind !== 'tensor' || !type.shape) return undefined;
  const dims = shapeContent(source, type.shape);
  const picked = indices.toNumbers().map((index) => dims[index < 0 ? index + dims.length : index]);
  if (!picked.every((dim) => typeof dim === 'number')) return undefined;
  return dims.map((dim) => (typeof dim === 'number' ? dim : 0));
}

function fixedDims(type: ValueType | undefined): readonly number[] | undefined {
  if (type?.kind !== 'tensor' || !type.shape?.every((dim) => typeof dim === 'number')) return undefined;
  return type.shape as readonly number[];
}

/** A tensor for operators that look at a shape only. */
function shapeOnly(dims: readonly number[]): Tensor {
  return new Tensor('u8', dims, { kind: 'derived', compute: () => new Uint8Array(0) });
}

function refuse(graph: Graph, node: Node, inputs: readonly (Tensor | undefined)[]): string | undefined {
  for (const output of node.outputs)
    if (output && graph.isOutput(output)) return `%${output.name} is an output of the graph`;
  for (const value of node.inputs)
    if (value?.data && value.encoding) return `the encoding of its constant %${value.name} would be lost`;
  const before = inputs.reduce((sum, tensor) => sum + (tensor?.byteLength ?? 0), 0);
  for (const output of node.outputs) {
    const after = bytesOf(output?.type);
    if (after !== undefined && after > GROWTH_BYTES && after > 2 * before)
      return `its result of ${after} bytes is much larger than its inputs`;
  }
  return undefined;
}

function bytesOf(type: ValueType | undefined): number | undefined {
  const dims = fixedDims(type);
  return dims && type?.kind === 'tensor' ? byteLengthOf(type.dtype, elementCount(dims)) : undefined;
}

/** A copy of a node over constants: what a promised result computes from after the node itself is gone. */
function detach(node: Node, inputs: readonly (Tensor | undefined)[]): Node {
  const graph = new Graph('folded');
  return graph.addNode({
    op: node.op,
    domain: node.domain,
    name: node.name,
    inputs: inputs.map((tensor, index) => tensor && graph.addConstant(`input_${index}`, tensor)),
    outputs: node.outputs.map((output) => output && graph.addValue(output.name, output.type)),
    attributes: node.attributes,
  });
}

/** The node's results, computed now when they are small, else promised. */
function resultsOf(
  node: Node,
  inputs: readonly (Tensor | undefined)[],
  compute: () => readonly (TensorData | undefined)[],
): (Tensor | undefined)[] {
  const [source] = inputs;
  const bytes = [...node.outputs.map((output) => bytesOf(output?.type)), ...inputs.map((tensor) => tensor?.byteLength)];
  if (bytes.every((count) => (count ?? 0) <= EAGER_BYTES)) return compute().map((data) => data && tensorOf(data));
  if (node.op === 'Transpose' && source?.shape.length === 2 && DTYPES[source.dtype].bits >= 8 && isSwap(node))
    return [transposeTensor(source)];
  return node.outputs.map((output, index) => {
    const dims = fixedDims(output?.type);
    if (!output || !dims) return output && tensorOf(compute()[index]!);
    return new Tensor(output.dtype, dims, { kind: 'derived', compute: () => tensorOf(compute()[index]!).read() });
  });
}

function isSwap(node: Node): boolean {
  return String(node.ints('perm') ?? [1, 0]) === '1,0';
}

function tensorOf({ dtype, shape, data, strings }: TensorData): Tensor {
  if (strings) return new Tensor('string', shape, { kind: 'memory', bytes: encodeStrings(strings) });
  return Tensor.of(dtype, shape, data);
}

import { numberToBfloat, numberToHalf, type TypedArray } from '../compiler/ir/dtype.ts';
import { floatAttribute, type Graph, type Node, type Value } from '../compiler/ir/graph.ts';
import { Tensor, type TensorData, toFloats } from '../compiler/ir/tensor.ts';
import { soleNumber } from '../compiler/match.ts';
import type { Pass, PassContext } from '../compiler/pass.ts';
import { bondOf, bypass, isRead } from '../compiler/rewrite.ts';
import { knownRank, knownShape, sameKnownShape } from '../compiler/value-facts.ts';

/**
 *     MatMul(q, k) * s, MatMul(q * s, k), Attention(q, k, v) {scale s}   ->   the same without s, q's weights times s
 *
 * The scale goes up from q through operators that are linear in it (Transpose, Reshape, RotaryEmbedding, bias Add) into the
 * first constant: a projection's weight and bias, or the scale of a norm. On the way everything must be read once only.
 * A power of two is exact in every type; another factor rounds each weight once more, which f32 takes and f16 does not.
 */
export const foldAttentionScale: Pass = {
  name: 'fold-attention-scale',
  about: "the scale of attention scores goes into the query's weights",
  run: (graph, context) => {
    let changed = false;
    for (const node of [...graph.nodes]) {
      if (node.graph !== graph || node.domain !== '') continue;
      const place = findScale(node);
      // Dead code is left to its own pass: removing its scale would remove the weights as well.
      if (place && isRead(graph, node.output()) && fold(graph, place, context)) changed = true;
    }
    return changed;
  },
};

/** A scale that could go: the factor, the value that takes it over, and how its present form is removed. */
interface Scale {
  readonly node: Node;
  readonly factor: number;
  readonly start: Value;
  /** What reads `start`. */
  readonly reader: Node;
  readonly remove: (graph: Graph, context: PassContext) => true | string;
}

function findScale(node: Node): Scale | undefined {
  if (node.op === 'Attention') {
    const width = headWidth(node);
    const factor = node.float('scale', width === undefined ? 1 : 1 / Math.sqrt(width));
    if (factor === 1 || (width === undefined && !node.attributes.has('scale'))) return undefined;
    const remove = (): true => {
      node.attributes.set('scale', floatAttribute(1));
      return true;
    };
    return { node, factor, start: node.input(0), reader: node, remove };
  }
  const scaled = scaledByNumber(node);
  if (!scaled) return undefined;
  const { factor, value } = scaled;
  const remove = (graph: Graph, context: PassContext): true | string => bypass(graph, node.output(), value, context);
  const product = value.producer;
  if (product && isScores(product)) return { node, factor, start: product.input(0), reader: product, remove };
  const [reader] = node.output().consumers;
  const isRead = node.output().uses.size === 1 && reader !== undefined && isScores(reader);
  return isRead ? { node, factor, start: value, reader: node, remove } : undefined;
}

/** The width of a head of the query: an attribute says the number of heads when the query is [batch, tokens, width]. */
function headWidth(node: Node): number | undefined {
  const shape = knownShape(node.inputs[0]);
  const last = shape?.at(-1);
  if (typeof last !== 'number') return undefined;
  return shape!.length === 4 ? last : last / node.int('q_num_heads', 1);
}

/** A product of two computed values: attention scores, or weights times values. */
function isScores(node: Node): boolean {
  return node.op === 'MatMul' && node.domain === '' && !node.input(0).data && !node.input(1).data;
}

function scaledByNumber(node: Node): { factor: number; value: Value } | undefined {
  if (node.op !== 'Mul' && node.op !== 'Div') return undefined;
  const [left, right] = [node.input(0), node.input(1)];
  const pick = (value: Value, scalar: Value): { factor: number; value: Value } | undefined => {
    const number = scalar.encoding ? undefined : soleNumber(scalar);
    if (number === undefined || number === 0 || value.data || !sameKnownShape(value, node.output())) return undefined;
    return { factor: node.op === 'Div' ? 1 / number : number, value };
  };
  return pick(left, right) ?? (node.op === 'Mul' ? pick(right, left) : undefined);
}

function fold(graph: Graph, scale: Scale, context: PassContext): boolean {
  const targets: Target[] = [];
  const refusal = collect(graph, scale.start, scale.reader, targets, context) ?? inexact(targets, scale.factor);
  const outcome = refusal ?? scale.remove(graph, context);
  if (outcome !== true) {
    context.remark(scale.node, outcome);
    return false;
  }
  for (const { node, index } of targets) {
    const constant = node.input(index);
    const fresh = graph.addConstant(constant.name, scaledTensor(constant.data!, scale.factor));
    node.setInput(index, fresh);
    if (!graph.isUsed(constant)) {
      const { name } = constant;
      graph.removeValue(constant);
      graph.renameValue(fresh, name);
    }
    node.from = [...new Set([...node.from, ...scale.node.from])];
  }
  return true;
}

/** A constant input that takes the factor over. */
interface Target {
  readonly node: Node;
  readonly index: number;
}

/** Operators that are linear in input 0 whatever their other inputs are. */
const LINEAR: ReadonlySet<string> = new Set([
  'Transpose',
  'Reshape',
  'Squeeze',
  'Unsqueeze',
  'Identity',
  'Flatten',
  'RotaryEmbedding',
]);

/** Finds the constants behind a value that scale it; returns why there are none. */
function collect(
  graph: Graph,
  value: Value,
  reader: Node,
  targets: Target[],
  context: PassContext,
): string | undefined {
  const other = value.consumers.find((consumer) => consumer !== reader);
  if (other) return `%${value.name} is also read by ${other.name || other.op}`;
  const bond = bondOf(graph, value, context.module);
  if (bond) return `%${value.name} ${bond}`;
  const node = value.producer;
  if (!node || node.graph !== graph || node.domain !== '') return `no weights are found behind %${value.name}`;
  const side = node.outputs.find((output, index) => index > 0 && output && graph.isUsed(output));
  if (side) return `%${side.name} of ${node.name} would be scaled, too`;
  if (LINEAR.has(node.op)) return collect(graph, node.input(0), node, targets, context);
  const constants = scalingInputs(node);
  if (!constants) return `${node.op} ${node.name} is not linear in a constant`;
  for (const index of constants) {
    const constant = node.input(index);
    if (!constant.data) return `%${constant.name} of ${node.name} is not constant`;
    if (constant.encoding) return `%${constant.name} has an encoding already`;
    targets.push({ node, index });
  }
  const rest = node.op === 'Add' ? node.inputs.find((input) => !input?.data) : undefined;
  return rest ? collect(graph, rest, node, targets, context) : undefined;
}

/** The inputs to scale so that the node's output is scaled; undefined when no constant does it. */
function scalingInputs(node: Node): number[] | undefined {
  switch (node.op) {
    case 'MatMul':
      return node.input(1).data && knownRank(node.input(1)) === 2 ? [1] : undefined;
    case 'Gemm':
    case 'Conv':
    case 'LayerNormalization':
      return node.inputs[2] ? [1, 2] : [1];
    case 'RMSNormalization':
      return [1];
    case 'Add':
    case 'Mul': {
      const index = node.inputs.findIndex((input) => input?.data);
      return index >= 0 && node.inputs.some((input) => !input?.data) ? [index] : undefined;
    }
    default:
      return undefined;
  }
}

/** Why a factor cannot be multiplied into weights without losing precision. */
function inexact(targets: readonly Target[], factor: number): string | undefined {
  if (Number.isInteger(Math.log2(Math.abs(factor)))) return undefined;
  const narrow = targets.find(({ node, index }) => !['f32', 'f64'].includes(node.input(index).dtype));
  if (!narrow) return undefined;
  const constant = narrow.node.input(narrow.index);
  return `${factor} is no power of two, and %${constant.name} is ${constant.dtype}`;
}

/** One tensor for one source and factor: graphs that share a weight go on sharing it. */
const SCALED = new WeakMap<Tensor, Map<number, Tensor>>();

function scaledTensor(source: Tensor, factor: number): Tensor {
  const known = SCALED.get(source) ?? new Map<number, Tensor>();
  SCALED.set(source, known);
  let tensor = known.get(factor);
  if (!tensor) {
    const compute = (): Uint8Array => scaleData(source.toData(), factor);
    tensor = new Tensor(source.dtype, source.shape, { kind: 'derived', compute });
    known.set(factor, tensor);
  }
  return tensor;
}

function scaleData(source: TensorData, factor: number): Uint8Array {
  const { dtype, data } = source;
  const out = new (data.constructor as new (length: number) => TypedArray)(data.length);
  const reals = dtype === 'f64' ? (data as Float64Array) : toFloats(source);
  for (let i = 0; i < reals.length; i++) {
    const value = reals[i]! * factor;
    if (dtype === 'f16') out[i] = numberToHalf(value);
    else if (dtype === 'bf16') out[i] = numberToBfloat(value);
    else out[i] = value;
  }
  return new Uint8Array(out.buffer, out.byteOffset, out.byteLength);
}

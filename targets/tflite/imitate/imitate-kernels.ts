import { dequantizeLazily, quantizeLazily } from '../../../compiler/export/quantize-constant.ts';
import { cloneModule } from '../../../compiler/ir/clone.ts';
import type { Graph, Module, Node, Value } from '../../../compiler/ir/graph.ts';
import { Tensor } from '../../../compiler/ir/tensor.ts';
import { isDynamicConv } from '../graph/lower-windows.ts';
import { followingBias, isDynamicProduct, weightOf } from '../lower-matmul.ts';
import { Arithmetic } from './arithmetic.ts';
import {
  imitateAdd,
  imitateMatMul,
  imitateMul,
  imitateNarrowAdd,
  imitateNarrowMatMul,
  imitateNarrowMul,
  imitateNarrowProduct,
  imitateQuantize,
  imitateRequantize,
  imitateWideProduct,
} from './fixed-point.ts';
import { imitateRmsNorm } from './norm.ts';
import { quantizeRows } from './rows.ts';
import { imitateLogistic, imitateSoftmax } from './tables.ts';

/**
 * A copy of a decoder's graph in which ONNX Runtime computes what LiteRT's kernels compute: their tables, their fixed-point
 * multipliers and roundings, and the rows that dynamic products quantize. Without this two exact runtimes part at the first
 * integer that they round in another way, and from there on differ by as much as quantization itself.
 * Other kernels of 8 bits need none of it: they agree with the real numbers to the last integer.
 */
export function imitateKernels(module: Module): Module {
  const copy = cloneModule(module);
  for (const graph of copy.graphs) {
    for (const input of graph.inputs) if (input.encoding) imitateInput(graph, input);
    for (const node of [...graph.nodes]) imitateNode(graph, node);
  }
  return copy;
}

/** QUANTIZE of an input's floats: readers get the integers that it makes, as the real numbers that they stand for. */
function imitateInput(graph: Graph, input: Value): void {
  const [first] = graph.nodes;
  if (!first) return;
  const { encoding } = input;
  delete input.encoding;
  const uses = [...input.uses];
  const result = imitateQuantize(input, encoding!, new Arithmetic(graph, first));
  if (input.type) result.type = input.type;
  result.encoding = encoding;
  for (const { node, index } of uses) node.setInput(index, result);
}

/** Puts the kernel's arithmetic into the place of a node; its output keeps name, encoding and readers. */
function imitateNode(graph: Graph, node: Node): void {
  const result = imitate(node, new Arithmetic(graph, node));
  if (!result) return;
  const output = node.output();
  const { name } = output;
  if (output.type) result.type = output.type;
  if (output.encoding) result.encoding = output.encoding;
  graph.replaceUses(output, result);
  graph.removeNode(node);
  graph.renameValue(result, name);
}

function imitate(node: Node, math: Arithmetic): Value | undefined {
  if (node.op === 'RMSNormalization') return imitateRmsNorm(node, math);
  if (node.op === 'Conv' || node.op === 'Gemm') {
    imitateRows(node, math);
    return undefined;
  }
  if (node.op === 'MatMul') {
    const weight = weightOf(node.input(1));
    if (weight) return imitateFullyConnected(node, weight, math);
  }
  const [from, to] = [node.inputs[0]?.encoding?.dtype, node.output().encoding?.dtype];
  if (!from || !to) return undefined;
  return (from === 'i16' ? WIDE : NARROW)[node.op]?.(node, math);
}

const NARROW: Readonly<Record<string, (node: Node, math: Arithmetic) => Value>> = {
  Add: imitateNarrowAdd,
  Sub: imitateNarrowAdd,
  Mul: imitateNarrowMul,
  MatMul: imitateNarrowMatMul,
  Identity: imitateRequantize,
};

const WIDE: Readonly<Record<string, (node: Node, math: Arithmetic) => Value>> = {
  Add: imitateAdd,
  Sub: imitateAdd,
  Mul: imitateMul,
  MatMul: imitateMatMul,
  Softmax: imitateSoftmax,
  Sigmoid: imitateLogistic,
  Identity: imitateRequantize,
};

/**
 * FULLY_CONNECTED of floats and integer weights has one scale for every row. CONV_2D has one for every sample, and where its
 * kernel is a single place, which the delegate makes a product of, one for every place.
 */
function imitateRows(node: Node, math: Arithmetic): void {
  const x = node.input(0);
  if (node.op === 'Conv' ? !isDynamicConv(node) : !isDynamicProduct(node, node.input(1))) return;
  const axes = x.dims.map((_, axis) => axis).slice(1);
  const { integers, scale } = quantizeRows(x, node.op === 'Conv' && isPointwise(node) ? [1] : axes, math);
  node.setInput(0, math.op('Mul', [integers, scale]));
}

function isPointwise(node: Node): boolean {
  const ones = (values: readonly number[]): boolean => values.every((each) => each === 1);
  const padded = (node.ints('pads') ?? []).some((each) => each !== 0);
  return ones(node.input(1).dims.slice(2)) && ones(node.ints('strides') ?? []) && !padded;
}

function imitateFullyConnected(node: Node, weight: Value, math: Arithmetic): Value | undefined {
  if (isDynamicProduct(node, weight)) return imitateDynamic(node, weight, math);
  const encoding = weight.encoding;
  const type = node.input(0).encoding?.dtype;
  if (!type || !encoding || followingBias(node)) return undefined;
  const product = type === 'i16' ? imitateWideProduct : imitateNarrowProduct;
  return product(node, integersOf(weight, math), encoding.scale, math);
}

function integersIn(weight: Value): Tensor {
  return weight.payload ?? quantizeLazily(weight.data!, weight.encoding!, weight.name);
}

/** The integers of a weight, as floats. */
function integersOf(weight: Value, math: Arithmetic): Value {
  return math.tensor(integersAsFloats(integersIn(weight)));
}

/**
 * FULLY_CONNECTED of floats and integer weights. With a scale a channel the sums are those of integers, which 32-bit floats
 * hold up to 2^24, then both scales in the kernel's order; blocks are summed as real numbers.
 */
function imitateDynamic(node: Node, weight: Value, math: Arithmetic): Value {
  const { integers, scale } = quantizeRows(node.input(0), [-1], math);
  const encoding = weight.encoding!;
  if (encoding.block !== undefined) {
    const numbers = dequantizeLazily(integersIn(weight), encoding);
    return math.op('MatMul', [math.op('Mul', [integers, scale]), math.tensor(numbers)]);
  }
  const sums = math.op('MatMul', [integers, integersOf(weight, math)]);
  const scaled = math.op('Mul', [sums, scale]);
  return math.op('Mul', [scaled, math.constant('f32', [encoding.scale.length], [...encoding.scale])]);
}

const floats = new WeakMap<Tensor, Tensor>();

/** Integers of a weight as floats, read when they are asked for; graphs that share the weight share them. */
function integersAsFloats(integers: Tensor): Tensor {
  let tensor = floats.get(integers);
  if (!tensor) {
    const compute = (): Uint8Array => new Uint8Array(Float32Array.from(integers.toData().data as Int8Array).buffer);
    tensor = new Tensor('f32', integers.shape, { kind: 'derived', compute });
    floats.set(integers, tensor);
  }
  return tensor;
}

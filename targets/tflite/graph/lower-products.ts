import type { Node, Value } from '../../../compiler/ir/graph.ts';
import { isDynamicProduct } from '../lower-matmul.ts';
import { type GraphLowering, isConstant } from './graph-lowering.ts';
import type { GraphOps } from './graph-op.ts';
import { biasOf, isInteger } from './lower-windows.ts';
import { isIdentity, orderOf } from './order.ts';

/**
 * Whether a node only flattens [N, C, H, W] to [N, C * H * W] for products with constant weights: then the rows of the weights
 * take the order that the elements are in, and nothing is moved at run time.
 */
export function isFlattenOfWeights(node: Node): boolean {
  const [input, output] = [node.input(0), node.output()];
  if (input.dims.length < 3 || output.dims.length !== 2 || output.uses.size === 0) return false;
  if (input.dims[0] !== output.dims[0] || isConstant(input) || node.graph!.isOutput(output)) return false;
  // Blocks follow the model's own order of the elements.
  return [...output.uses].every(
    ({ node: reader, index }) =>
      index === 0 && weightOf(reader) !== undefined && weightOf(reader)!.encoding?.block === undefined,
  );
}

/** The constant [K, N] or [N, K] matrix of a product. */
function weightOf(node: Node): Value | undefined {
  if (node.domain !== '' || (node.op !== 'MatMul' && node.op !== 'Gemm')) return undefined;
  const weight = node.inputs[1];
  return weight && isConstant(weight) && weight.dims.length === 2 && node.int('transA', 0) === 0 ? weight : undefined;
}

/** FULLY_CONNECTED with weights [N, K]. */
function lowerFullyConnected(node: Node, weight: Value, lowering: GraphLowering): void {
  const turned = node.op === 'Gemm' && node.int('transB', 0) === 1;
  const [inputs, outputs] = turned ? [weight.dims[1]!, weight.dims[0]!] : (weight.dims as [number, number]);
  const left = node.input(0);
  const flat = left.producer && isFlattenOfWeights(left.producer) ? left.producer.input(0) : undefined;
  let x: number;
  let w: number;
  const order = flat && lowering.homeOrder(flat);
  if (flat && order && !isIdentity(order)) {
    // The elements of a row lie in the order of the flattened value's tensor: [C, H, W] becomes [H, W, C].
    const axes = flat.dims.slice(1);
    const inner = order.slice(1).map((axis) => axis - 1);
    x = lowering.reshape(lowering.view(flat, order), left.dims, left.name);
    const rows = { axis: 0, shape: [outputs, inputs] };
    w = turned
      ? lowering.constant(weight, [outputs, ...axes], [0, ...inner.map((axis) => axis + 1)], rows)
      : lowering.constant(weight, [...axes, outputs], [axes.length, ...inner], rows);
  } else {
    x = flat
      ? lowering.reshape(lowering.view(flat, orderOf('plain', flat.dims.length)), left.dims, left.name)
      : lowering.input(node, 0);
    w = lowering.constant(weight, weight.dims, turned ? [0, 1] : [1, 0], { axis: 0 });
  }
  const options = {
    kind: 'FullyConnectedOptions',
    fusedActivationFunction: 0,
    weightsFormat: 0,
    keepNumDims: true,
    // Rows of floats become integers with a zero point, as the delegate does it in any case.
    asymmetricQuantizeInputs: isDynamicProduct(node, weight),
  } as const;
  const addend = node.inputs[2];
  if (addend && addend.data?.size !== outputs) {
    // No bias, but another matrix: a sum of its own.
    const product = lowering.builder.addFloats(`${node.output().name}.product`, node.output().dims);
    const floats = [lowering.toFloat(x), lowering.toFloat(w)];
    lowering.builder.addOperator('FULLY_CONNECTED', [...floats, -1], [product], { options });
    lowering.emit('ADD', node, [product, lowering.operand(node, addend, 2)], {
      options: { kind: 'AddOptions', fusedActivationFunction: 0, potScaleInt16: false },
    });
    return;
  }
  const integer = isInteger(node);
  const bias = node.op === 'Gemm' || integer ? biasOf(node, outputs, lowering) : -1;
  const operands = integer || isDynamicProduct(node, weight) ? [x, w] : [lowering.toFloat(x), lowering.toFloat(w)];
  lowering.emit('FULLY_CONNECTED', node, [...operands, bias], { activations: [0], options });
}

function lowerMatMul(node: Node, lowering: GraphLowering): void {
  const weight = weightOf(node);
  if (weight && node.input(0).dims.length > 1) {
    lowerFullyConnected(node, weight, lowering);
    return;
  }
  const [left, right] = [node.input(0), node.input(1)];
  // A vector is a matrix of one row, or of one column on the right.
  const row = left.dims.length === 1 ? [1, ...left.dims] : left.dims;
  const column = right.dims.length === 1 ? [...right.dims, 1] : right.dims;
  const rank = Math.max(row.length, column.length);
  const wide = (dims: readonly number[]): number[] => [...new Array<number>(rank - dims.length).fill(1), ...dims];
  const plain = orderOf('plain', right.dims.length);
  const swapped = [...plain.slice(0, -2), plain.at(-1)!, plain.at(-2)!];
  const adjY = right.dims.length > 1 && !lowering.isFree(right, plain) && lowering.isFree(right, swapped);
  const columns = adjY ? [...column.slice(0, -2), column.at(-1)!, column.at(-2)!] : column;
  const a = lowering.reshape(lowering.view(left, orderOf('plain', left.dims.length)), wide(row), left.name);
  const b = lowering.reshape(lowering.view(right, adjY ? swapped : plain), wide(columns), right.name);
  const dims = [
    ...wide(row)
      .slice(0, -2)
      .map((dim, i) => Math.max(dim, wide(column)[i]!)),
    row.at(-2)!,
    column.at(-1)!,
  ];
  lowering.emit('BATCH_MATMUL', node, [a, b], {
    dims,
    options: { kind: 'BatchMatMulOptions', adjX: false, adjY, asymmetricQuantizeInputs: false },
  });
}

function refuseGemm(node: Node): string | undefined {
  if (!weightOf(node)) return 'Gemm with a computed weight';
  if (node.float('alpha', 1) !== 1 || node.float('beta', 1) !== 1) return 'Gemm with factors';
  return undefined;
}

export const PRODUCTS: GraphOps = {
  MatMul: { layout: 'plain', lower: lowerMatMul },
  Gemm: {
    layout: 'plain',
    refuse: refuseGemm,
    lower: (node, lowering) => lowerFullyConnected(node, weightOf(node)!, lowering),
  },
};

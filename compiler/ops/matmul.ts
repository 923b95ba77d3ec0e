import { NpucError } from '../errors.ts';
import { sameDim } from '../ir/dims.ts';
import type { DType } from '../ir/dtype.ts';
import type { Shape } from '../ir/graph.ts';
import { elementCount, type TensorData } from '../ir/tensor.ts';
import { combineElements } from './broadcast.ts';
import { encodeReals, need, newReals, readFloats } from './elements.ts';
import { broadcastDims, broadcastStrides, stridedOffsets } from './indexing.ts';
import { multiplyMatrices } from './matrix.ts';
import { transposeData } from './movement.ts';
import { defineOp, type InferContext, type OpDefinition } from './op.ts';
import { broadcastShapes, inputDtype, nodeName, typeOrUnknown } from './shape-rules.ts';

/** Shape of numpy's matmul. @throws IR020 when the inner dimensions differ */
export function matmulShape(a: Shape | undefined, b: Shape | undefined, where: string): Shape | undefined {
  if (!a || !b) return undefined;
  if (a.length === 0 || b.length === 0)
    throw new NpucError('IR020', { message: `MatMul of a scalar: [${a}] and [${b}]`, where });
  const left = a.length === 1 ? [1, a[0]!] : a;
  const right = b.length === 1 ? [b[0]!, 1] : b;
  const inner = left[left.length - 1]!;
  const other = right[right.length - 2]!;
  if (typeof inner === 'number' && typeof other === 'number' && !sameDim(inner, other))
    throw new NpucError('IR020', { message: `[${a}] and [${b}] do not multiply: ${inner} is not ${other}`, where });
  const batch = broadcastShapes([left.slice(0, -2), right.slice(0, -2)], where)!;
  return [
    ...batch,
    ...(a.length === 1 ? [] : [left[left.length - 2]!]),
    ...(b.length === 1 ? [] : [right[right.length - 1]!]),
  ];
}

/** numpy's matmul with 1-D and batch rules; `shiftA`, `shiftB` are subtracted first (zero points). */
export function matmulData(a: TensorData, b: TensorData, dtype: DType, where: string): TensorData {
  const shape = matmulShape(a.shape, b.shape, where) as number[];
  const left = a.shape.length === 1 ? [1, a.shape[0]!] : a.shape;
  const right = b.shape.length === 1 ? [b.shape[0]!, 1] : b.shape;
  const rows = left[left.length - 2]!;
  const depth = left[left.length - 1]!;
  const columns = right[right.length - 1]!;
  const batch = broadcastDims([left.slice(0, -2), right.slice(0, -2)], where);
  const aAt = stridedOffsets(batch, broadcastStrides(left.slice(0, -2), batch));
  const bAt = stridedOffsets(batch, broadcastStrides(right.slice(0, -2), batch));
  const x = readFloats(a);
  const y = readFloats(b);
  const out = newReals(dtype, elementCount(shape));
  for (let i = 0; i < aAt.length; i++)
    multiplyMatrices(
      { data: x, at: aAt[i]! * rows * depth },
      { data: y, at: bAt[i]! * depth * columns },
      { data: out, at: i * rows * columns },
      rows,
      depth,
      columns,
    );
  return encodeReals(dtype, shape, out);
}

const matmul = defineOp({
  name: 'MatMul',
  since: 1,
  quantization: 'weighted',
  infer: (context) => [
    typeOrUnknown(
      inputDtype(context, 0) ?? inputDtype(context, 1),
      matmulShape(context.shape(0), context.shape(1), nodeName(context.node)),
    ),
  ],
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const a = need(inputs, 0, where);
    return [matmulData(a, need(inputs, 1, where), a.dtype, where)];
  },
});

function gemmShape(context: InferContext): Shape | undefined {
  const a = context.shape(0);
  const b = context.shape(1);
  if (a?.length !== 2 || b?.length !== 2) return undefined;
  const inner = a[context.node.int('transA', 0) ? 0 : 1]!;
  const other = b[context.node.int('transB', 0) ? 1 : 0]!;
  if (typeof inner === 'number' && typeof other === 'number' && inner !== other)
    throw new NpucError('IR020', { message: `[${a}] and [${b}] do not multiply`, where: nodeName(context.node) });
  return [a[context.node.int('transA', 0) ? 1 : 0]!, b[context.node.int('transB', 0) ? 0 : 1]!];
}

const gemm = defineOp({
  name: 'Gemm',
  since: 1,
  quantization: 'weighted',
  infer: (context) => [typeOrUnknown(inputDtype(context, 0) ?? inputDtype(context, 1), gemmShape(context))],
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const given = need(inputs, 0, where);
    const a = node.int('transA', 0) ? transposeData(given, [1, 0]) : given;
    const b = node.int('transB', 0) ? transposeData(need(inputs, 1, where), [1, 0]) : need(inputs, 1, where);
    const alpha = node.float('alpha', 1);
    const beta = node.float('beta', 1);
    // Kept in double precision until the bias is in.
    const product = matmulData(a, b, 'f64', where);
    const scaled = product.data as Float64Array;
    if (alpha !== 1) for (let i = 0; i < scaled.length; i++) scaled[i] = scaled[i]! * alpha;
    const c = inputs[2];
    const sum = c ? combineElements(product, c, { real: (x, y) => x + beta * y }, 'f64', where) : product;
    return [encodeReals(given.dtype, sum.shape, Array.from(sum.data as Float64Array))];
  },
});

/** com.microsoft FusedMatMul: MatMul of optionally transposed inputs times alpha. */
const fusedMatmul = defineOp({
  name: 'FusedMatMul',
  domain: 'com.microsoft',
  since: 1,
  quantization: 'weighted',
  infer: (context) => {
    const swap = (shape: Shape | undefined, name: string): Shape | undefined =>
      shape && context.node.int(name, 0) && shape.length > 1
        ? [...shape.slice(0, -2), shape[shape.length - 1]!, shape[shape.length - 2]!]
        : shape;
    return [
      typeOrUnknown(
        inputDtype(context, 0),
        matmulShape(swap(context.shape(0), 'transA'), swap(context.shape(1), 'transB'), nodeName(context.node)),
      ),
    ];
  },
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    if (node.int('transBatchA', 0) || node.int('transBatchB', 0))
      throw new NpucError('RT010', { message: 'FusedMatMul with transposed batch axes', where });
    const side = (index: number, name: string): TensorData => {
      const x = need(inputs, index, where);
      if (!node.int(name, 0) || x.shape.length < 2) return x;
      const order = x.shape.map((_, axis) => axis);
      order.push(...order.splice(-2).reverse());
      return transposeData(x, order);
    };
    const a = side(0, 'transA');
    const product = matmulData(a, side(1, 'transB'), 'f64', where);
    const alpha = node.float('alpha', 1);
    const scaled = (product.data as Float64Array).map((value) => value * alpha);
    return [encodeReals(a.dtype, product.shape, a.dtype === 'f64' ? scaled : Float32Array.from(scaled))];
  },
});

export const MATMUL_OPS: readonly OpDefinition[] = [matmul, gemm, fusedMatmul];

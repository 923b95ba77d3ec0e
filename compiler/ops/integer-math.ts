import type { DType } from '../ir/dtype.ts';
import { DTYPES } from '../ir/dtype.ts';
import { roundEven } from '../ir/encoding.ts';
import { elementCount, type TensorData } from '../ir/tensor.ts';
import { convolve, convShape } from './conv.ts';
import { encodeReals, need, newReals, readReals } from './elements.ts';
import { broadcastOffsets } from './indexing.ts';
import { matmulData, matmulShape } from './matmul.ts';
import { defineOp, type OpDefinition } from './op.ts';
import { inputDtype, nodeName, typeOrUnknown } from './shape-rules.ts';
import { windowPlan } from './window.ts';

/** Ops on integers with zero points: MatMulInteger, ConvInteger and the QLinear ops. */

/**
 * x - zeroPoint as doubles, exact for 8- and 16-bit integers. A vector of zero points belongs to `axis`; one with as many
 * axes as x broadcasts.
 */
function shifted(x: TensorData, zero: TensorData | undefined, axis: number): TensorData {
  const source = readReals(x);
  const out = new Float64Array(source.length);
  const at = zero && perAxisOffsets(zero.shape, x.shape, axis);
  const zeros = zero && readReals(zero);
  for (let i = 0; i < out.length; i++) out[i] = source[i]! - (zeros && at ? zeros[at[i]!]! : 0);
  return { dtype: 'f64', shape: x.shape, data: out };
}

function perAxisOffsets(own: readonly number[], shape: readonly number[], axis: number): Int32Array {
  if (own.length !== 1 || own[0] === 1) return broadcastOffsets(elementCount(own) === 1 ? [] : own, shape);
  return broadcastOffsets(
    shape.map((_, index) => (index === axis ? own[0]! : 1)),
    shape,
  );
}

/** saturate(roundEven(real / scale) + zeroPoint) with scales along `axis` of the real tensor or one for all. */
function requantize(
  real: TensorData,
  scale: (index: number) => number,
  zero: TensorData | undefined,
  dtype: DType,
): TensorData {
  const { bits } = DTYPES[dtype];
  const signed = dtype.startsWith('i');
  const [low, high] = signed ? [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] : [0, 2 ** bits - 1];
  const shift = zero ? readReals(zero)[0]! : 0;
  const source = real.data as Float64Array;
  const out = newReals(dtype, source.length);
  for (let i = 0; i < out.length; i++)
    out[i] = Math.min(high, Math.max(low, roundEven(Math.fround(source[i]! * scale(i))) + shift));
  return encodeReals(dtype, real.shape, out);
}

const matMulInteger = defineOp({
  name: 'MatMulInteger',
  since: 10,
  quantization: 'never',
  infer: (context) => [typeOrUnknown('i32', matmulShape(context.shape(0), context.shape(1), nodeName(context.node)))],
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const a = need(inputs, 0, where);
    const b = need(inputs, 1, where);
    // Zero points of a go by row, those of b by column.
    const left = shifted(a, inputs[2], a.shape.length - 2);
    const right = shifted(b, inputs[3], b.shape.length - 1);
    return [matmulData(left, right, 'i32', where)];
  },
});

const convInteger = defineOp({
  name: 'ConvInteger',
  since: 10,
  quantization: 'never',
  infer: (context) => [typeOrUnknown('i32', convShape(context, 0, 1))],
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const x = shifted(need(inputs, 0, where), inputs[2], 0);
    const w = shifted(need(inputs, 1, where), inputs[3], 0);
    const plan = windowPlan(node, node.ints('kernel_shape') ?? w.shape.slice(2));
    return [
      convolve(
        { shape: x.shape, data: x.data as Float64Array },
        { shape: w.shape, data: w.data as Float64Array },
        undefined,
        plan,
        node.int('group', 1),
        'i32',
      ),
    ];
  },
});

/** Inputs: a, its scale and zero point, b, its scale and zero point, y's scale and zero point. */
const qLinearMatMul = defineOp({
  name: 'QLinearMatMul',
  since: 10,
  quantization: 'never',
  infer: (context) => [
    typeOrUnknown(inputDtype(context, 7), matmulShape(context.shape(0), context.shape(3), nodeName(context.node))),
  ],
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const a = need(inputs, 0, where);
    const b = need(inputs, 3, where);
    const scaled = (x: TensorData, scale: TensorData, zero: TensorData | undefined, axis: number): TensorData => {
      const centred = shifted(x, zero, axis);
      const data = centred.data as Float64Array;
      const factors = readReals(scale);
      const at = perAxisOffsets(scale.shape, x.shape, axis);
      for (let i = 0; i < data.length; i++) data[i] = data[i]! * factors[at[i]!]!;
      return centred;
    };
    const left = scaled(a, need(inputs, 1, where), inputs[2], a.shape.length - 2);
    const right = scaled(b, need(inputs, 4, where), inputs[5], b.shape.length - 1);
    const product = matmulData(left, right, 'f64', where);
    const scale = readReals(need(inputs, 6, where))[0]!;
    const zero = need(inputs, 7, where);
    return [requantize(product, () => 1 / scale, zero, zero.dtype)];
  },
});

/** Inputs: x, its scale and zero point, w, its scale (one or per feature) and zero point, y's, and an i32 bias. */
const qLinearConv = defineOp({
  name: 'QLinearConv',
  since: 10,
  quantization: 'never',
  infer: (context) => [typeOrUnknown(inputDtype(context, 7), convShape(context, 0, 3))],
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const x = shifted(need(inputs, 0, where), inputs[2], 0);
    const w = shifted(need(inputs, 3, where), inputs[5], 0);
    const plan = windowPlan(node, node.ints('kernel_shape') ?? w.shape.slice(2));
    const sums = convolve(
      { shape: x.shape, data: x.data as Float64Array },
      { shape: w.shape, data: w.data as Float64Array },
      inputs[8] && readReals(inputs[8]),
      plan,
      node.int('group', 1),
      'f64',
    );
    const xScale = readReals(need(inputs, 1, where))[0]!;
    const wScale = readReals(need(inputs, 4, where));
    const yScale = readReals(need(inputs, 6, where))[0]!;
    const zero = need(inputs, 7, where);
    const area = elementCount(sums.shape.slice(2));
    const factor = (index: number): number =>
      (xScale * wScale[wScale.length === 1 ? 0 : Math.floor(index / area) % sums.shape[1]!]!) / yScale;
    return [requantize(sums, factor, zero, zero.dtype)];
  },
});

export const INTEGER_MATH_OPS: readonly OpDefinition[] = [matMulInteger, convInteger, qLinearMatMul, qLinearConv];

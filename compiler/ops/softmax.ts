import { elementCount, type TensorData } from '../ir/tensor.ts';
import { encodeReals, need, newReals, readFloats } from './elements.ts';
import { normalizeAxis, splitAtAxis } from './indexing.ts';
import { defineOp, type EvaluateContext, type OpDefinition, type QuantizationRule } from './op.ts';
import { likeInput, nodeName } from './shape-rules.ts';

/**
 * Softmax, LogSoftmax and Hardmax. Up to opset 12 the input is seen as the matrix [axes before, axes from `axis` on] and
 * axis is 1 by default; from 13 on it is one axis, the last by default.
 */
function softmaxLike(
  name: string,
  quantization: QuantizationRule,
  apply: (
    x: Float32Array | Float64Array,
    start: number,
    size: number,
    stride: number,
    out: { [index: number]: number },
  ) => void,
): OpDefinition {
  return defineOp({
    name,
    since: 1,
    quantization,
    infer: likeInput(),
    evaluate: (inputs, context) => {
      const tensor = need(inputs, 0, nodeName(context.node));
      const { outer, size, inner } = axisSpan(tensor, context);
      const x = readFloats(tensor);
      const out = newReals(tensor.dtype, x.length);
      for (let o = 0; o < outer; o++) for (let i = 0; i < inner; i++) apply(x, o * size * inner + i, size, inner, out);
      return [encodeReals(tensor.dtype, tensor.shape, out)];
    },
  });
}

function axisSpan(
  tensor: TensorData,
  { node, opset }: EvaluateContext,
): { outer: number; size: number; inner: number } {
  const rank = tensor.shape.length;
  const where = nodeName(node);
  if (opset >= 13) return splitAtAxis(tensor.shape, normalizeAxis(node.int('axis', -1), rank, where));
  const named = node.int('axis', 1);
  // In the old form the axis may equal the rank: every row then has one element.
  const axis = named === rank ? rank : normalizeAxis(named, rank, where);
  return { outer: elementCount(tensor.shape.slice(0, axis)), size: elementCount(tensor.shape.slice(axis)), inner: 1 };
}

/** Largest of a strided run. */
function maximum(x: ArrayLike<number>, start: number, size: number, stride: number): number {
  let max = Number.NEGATIVE_INFINITY;
  for (let k = 0, at = start; k < size; k++, at += stride) if (x[at]! > max) max = x[at]!;
  return max;
}

export const SOFTMAX_OPS: readonly OpDefinition[] = [
  softmaxLike('Softmax', { fixed: [0, 1] }, (x, start, size, stride, out) => {
    const max = maximum(x, start, size, stride);
    let sum = 0;
    for (let k = 0, at = start; k < size; k++, at += stride) sum += Math.exp(x[at]! - max);
    for (let k = 0, at = start; k < size; k++, at += stride) out[at] = Math.exp(x[at]! - max) / sum;
  }),
  softmaxLike('LogSoftmax', 'independent', (x, start, size, stride, out) => {
    const max = maximum(x, start, size, stride);
    let sum = 0;
    for (let k = 0, at = start; k < size; k++, at += stride) sum += Math.exp(x[at]! - max);
    const log = Math.log(sum);
    for (let k = 0, at = start; k < size; k++, at += stride) out[at] = x[at]! - max - log;
  }),
  softmaxLike('Hardmax', { fixed: [0, 1] }, (x, start, size, stride, out) => {
    let best = start;
    for (let k = 0, at = start; k < size; k++, at += stride) if (x[at]! > x[best]!) best = at;
    out[best] = 1;
  }),
];

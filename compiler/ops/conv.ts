import { NpucError } from '../errors.ts';
import type { DType } from '../ir/dtype.ts';
import type { Dim, Shape } from '../ir/graph.ts';
import { elementCount, type TensorData } from '../ir/tensor.ts';
import { encodeReals, need, newReals, readFloats } from './elements.ts';
import { multiplyMatrices } from './matrix.ts';
import { defineOp, type InferContext, type OpDefinition } from './op.ts';
import { inputDtype, nodeName, typeOrUnknown, unknownDim } from './shape-rules.ts';
import { type WindowPlan, windowOffsets, windowPlan, windowShape } from './window.ts';

/** Output positions handled at once: bounds the memory of the unrolled windows. */
const STRIPE = 1024;

/** Output shape of a convolution; undefined while a rank or the kernel is not known. */
export function convShape(context: InferContext, x: number, w: number): Shape | undefined {
  const input = context.shape(x);
  const weight = context.shape(w);
  const kernel = context.node.ints('kernel_shape') ?? weight?.slice(2);
  if (!input || !kernel) return undefined;
  const spatial = kernel.every((size): size is number => typeof size === 'number')
    ? windowShape(input.slice(2), windowPlan(context.node, kernel))
    : input.slice(2).map((_, axis) => unknownDim(context.node, 0, axis + 2));
  const group = context.node.int('group', 1);
  const channels = input[1];
  if (weight && typeof channels === 'number' && typeof weight[1] === 'number' && channels !== weight[1] * group)
    throw new NpucError('IR020', {
      message: `${channels} input channels, but the weight [${weight}] in ${group} groups takes ${weight[1] * group}`,
      where: nodeName(context.node),
    });
  const out: Dim = weight?.[0] ?? unknownDim(context.node, 0, 1);
  return [input[0]!, out, ...spatial];
}

/**
 * Convolution of [N, C, spatial...] with [M, C / group, kernel...]: windows are unrolled stripe by stripe and multiplied
 * by the weight matrix. Padding reads as 0. `bias` has M entries.
 */
export function convolve(
  x: { readonly shape: readonly number[]; readonly data: Float32Array | Float64Array },
  w: { readonly shape: readonly number[]; readonly data: Float32Array | Float64Array },
  bias: ArrayLike<number> | undefined,
  plan: WindowPlan,
  group: number,
  dtype: DType,
): TensorData {
  const [batch, channels] = x.shape as [number, number];
  const spatial = x.shape.slice(2);
  const out = windowShape(spatial, plan) as number[];
  const offsets = windowOffsets(spatial, out, plan);
  const positions = elementCount(out);
  const area = elementCount(spatial);
  const taps = elementCount(plan.kernel);
  const features = w.shape[0]!;
  const perGroup = channels / group;
  const rows = features / group;
  const depth = perGroup * taps;
  const result = newReals(dtype, batch * features * positions);
  const stripe = Math.min(STRIPE, positions);
  const unrolled = new Float64Array(depth * stripe);
  const product = new Float64Array(rows * stripe);
  for (let n = 0; n < batch; n++) {
    for (let g = 0; g < group; g++) {
      for (let from = 0; from < positions; from += stripe) {
        const width = Math.min(stripe, positions - from);
        for (let c = 0; c < perGroup; c++) {
          const plane = (n * channels + g * perGroup + c) * area;
          for (let tap = 0; tap < taps; tap++) {
            const row = (c * taps + tap) * width;
            const at = tap * positions + from;
            for (let p = 0; p < width; p++) {
              const offset = offsets[at + p]!;
              unrolled[row + p] = offset < 0 ? 0 : x.data[plane + offset]!;
            }
          }
        }
        multiplyMatrices(
          { data: w.data, at: g * rows * depth },
          { data: unrolled, at: 0 },
          { data: product, at: 0 },
          rows,
          depth,
          width,
        );
        for (let m = 0; m < rows; m++) {
          const feature = g * rows + m;
          const shift = bias ? bias[feature]! : 0;
          const to = (n * features + feature) * positions + from;
          for (let p = 0; p < width; p++) result[to + p] = product[m * width + p]! + shift;
        }
      }
    }
  }
  return encodeReals(dtype, [batch, features, ...out], result);
}

const conv = defineOp({
  name: 'Conv',
  since: 1,
  quantization: 'weighted',
  infer: (context) => [typeOrUnknown(inputDtype(context, 0), convShape(context, 0, 1))],
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const w = need(inputs, 1, nodeName(node));
    const plan = windowPlan(node, node.ints('kernel_shape') ?? w.shape.slice(2));
    return [
      convolve(
        { shape: x.shape, data: readFloats(x) },
        { shape: w.shape, data: readFloats(w) },
        inputs[2] && readFloats(inputs[2]),
        plan,
        node.int('group', 1),
        x.dtype,
      ),
    ];
  },
});

export const CONV_OPS: readonly OpDefinition[] = [conv];

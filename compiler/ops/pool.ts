import type { Shape } from '../ir/graph.ts';
import { elementCount, type TensorData } from '../ir/tensor.ts';
import { encodeReals, need, newReals, readReals } from './elements.ts';
import { defineOp, type InferContext, type OpDefinition } from './op.ts';
import { inputDtype, nodeName, typeOrUnknown } from './shape-rules.ts';
import { BEYOND, PADDED, type WindowPlan, windowOffsets, windowPlan, windowShape } from './window.ts';

function poolShape(context: InferContext): Shape | undefined {
  const shape = context.shape(0);
  const kernel = context.node.ints('kernel_shape');
  if (!shape || !kernel) return undefined;
  return [shape[0]!, shape[1]!, ...windowShape(shape.slice(2), windowPlan(context.node, kernel))];
}

/** Folds every window; `finish` sees how many elements and how many pads (inside the padded area) were there. */
interface WindowFold {
  readonly start: number;
  readonly step: (sum: number, x: number) => number;
  readonly finish: (sum: number, elements: number, pads: number) => number;
}

function foldWindows(x: TensorData, plan: WindowPlan, fold: WindowFold): TensorData {
  const [batch, channels] = x.shape as [number, number];
  const spatial = x.shape.slice(2);
  const out = windowShape(spatial, plan) as number[];
  const offsets = windowOffsets(spatial, out, plan);
  const positions = elementCount(out);
  const area = elementCount(spatial);
  const taps = elementCount(plan.kernel);
  const source = readReals(x);
  const result = newReals(x.dtype, batch * channels * positions);
  for (let plane = 0; plane < batch * channels; plane++) {
    for (let p = 0; p < positions; p++) {
      let sum = fold.start;
      let elements = 0;
      let pads = 0;
      for (let tap = 0; tap < taps; tap++) {
        const offset = offsets[tap * positions + p]!;
        if (offset === PADDED) pads++;
        else if (offset !== BEYOND) {
          elements++;
          sum = fold.step(sum, source[plane * area + offset]!);
        }
      }
      result[plane * positions + p] = fold.finish(sum, elements, pads);
    }
  }
  return encodeReals(x.dtype, [batch, channels, ...out], result);
}

const averagePool = defineOp({
  name: 'AveragePool',
  since: 1,
  quantization: 'independent',
  infer: (context) => [typeOrUnknown(inputDtype(context, 0), poolShape(context))],
  evaluate: (inputs, { node }) => {
    const withPads = node.int('count_include_pad', 0) === 1;
    const fold: WindowFold = {
      start: 0,
      step: (sum, x) => sum + x,
      finish: (sum, elements, pads) => sum / (withPads ? elements + pads : elements),
    };
    return [foldWindows(need(inputs, 0, nodeName(node)), windowPlan(node, node.ints('kernel_shape')!), fold)];
  },
});

const lpPool = defineOp({
  name: 'LpPool',
  since: 2,
  quantization: 'independent',
  infer: (context) => [typeOrUnknown(inputDtype(context, 0), poolShape(context))],
  evaluate: (inputs, { node }) => {
    const p = node.int('p', 2);
    const fold: WindowFold = {
      start: 0,
      step: (sum, x) => sum + Math.abs(x) ** p,
      finish: (sum) => sum ** (1 / p),
    };
    return [foldWindows(need(inputs, 0, nodeName(node)), windowPlan(node, node.ints('kernel_shape')!), fold)];
  },
});

/** The second output has the flat index of each maximum in the whole input; storage_order 1 counts columns first. */
const maxPool = defineOp({
  name: 'MaxPool',
  since: 1,
  quantization: 'passthrough',
  infer: (context) => {
    const shape = poolShape(context);
    return [typeOrUnknown(inputDtype(context, 0), shape), typeOrUnknown('i64', shape)];
  },
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const plan = windowPlan(node, node.ints('kernel_shape')!);
    const [batch, channels] = x.shape as [number, number];
    const spatial = x.shape.slice(2);
    const out = windowShape(spatial, plan) as number[];
    const offsets = windowOffsets(spatial, out, plan);
    const positions = elementCount(out);
    const area = elementCount(spatial);
    const taps = elementCount(plan.kernel);
    const source = readReals(x);
    const result = newReals(x.dtype, batch * channels * positions);
    const indices = new BigInt64Array(node.outputs.length > 1 ? result.length : 0);
    const columnFirst = node.int('storage_order', 0) === 1;
    for (let plane = 0; plane < batch * channels; plane++) {
      for (let p = 0; p < positions; p++) {
        let best = -1;
        for (let tap = 0; tap < taps; tap++) {
          const offset = offsets[tap * positions + p]!;
          if (offset < 0) continue;
          const at = plane * area + offset;
          if (best < 0 || source[at]! > source[best]! || Number.isNaN(source[at]!)) best = at;
        }
        const to = plane * positions + p;
        result[to] = best < 0 ? Number.NEGATIVE_INFINITY : source[best]!;
        if (indices.length > 0)
          indices[to] = BigInt(
            plane * area + (columnFirst ? columnMajor(best - plane * area, spatial) : best - plane * area),
          );
      }
    }
    const shape = [batch, channels, ...out];
    return [
      encodeReals(x.dtype, shape, result),
      indices.length > 0 ? { dtype: 'i64', shape, data: indices } : undefined,
    ];
  },
});

/** A row-major spatial offset counted with the first axis running fastest. */
function columnMajor(offset: number, spatial: readonly number[]): number {
  let rest = offset;
  let out = 0;
  for (let axis = spatial.length - 1; axis >= 0; axis--) {
    const stride = elementCount(spatial.slice(0, axis));
    out += (rest % spatial[axis]!) * stride;
    rest = Math.floor(rest / spatial[axis]!);
  }
  return out;
}

/** Pooling over all spatial axes at once. */
function globalPool(
  name: string,
  pool: (values: ArrayLike<number>, from: number, count: number, p: number) => number,
): OpDefinition {
  return defineOp({
    name,
    since: 1,
    quantization: name === 'GlobalMaxPool' ? 'passthrough' : 'independent',
    infer: (context) => [
      typeOrUnknown(
        inputDtype(context, 0),
        context.shape(0)?.map((dim, axis) => (axis < 2 ? dim : 1)),
      ),
    ],
    evaluate: (inputs, { node }) => {
      const x = need(inputs, 0, nodeName(node));
      const source = readReals(x);
      const planes = x.shape[0]! * x.shape[1]!;
      const area = elementCount(x.shape.slice(2));
      const result = newReals(x.dtype, planes);
      for (let plane = 0; plane < planes; plane++) result[plane] = pool(source, plane * area, area, node.int('p', 2));
      return [
        encodeReals(
          x.dtype,
          x.shape.map((dim, axis) => (axis < 2 ? dim : 1)),
          result,
        ),
      ];
    },
  });
}

export const POOL_OPS: readonly OpDefinition[] = [
  averagePool,
  maxPool,
  lpPool,
  globalPool('GlobalAveragePool', (values, from, count) => {
    let sum = 0;
    for (let i = 0; i < count; i++) sum += values[from + i]!;
    return sum / count;
  }),
  globalPool('GlobalMaxPool', (values, from, count) => {
    let max = values[from]!;
    for (let i = 1; i < count; i++) max = Math.max(max, values[from + i]!);
    return max;
  }),
  globalPool('GlobalLpPool', (values, from, count, p) => {
    let sum = 0;
    for (let i = 0; i < count; i++) sum += Math.abs(values[from + i]!) ** p;
    return sum ** (1 / p);
  }),
];

import type { Dim } from '../ir/graph.ts';
import { elementCount, type TensorData } from '../ir/tensor.ts';
import { combineElements } from './broadcast.ts';
import { encodeReals, need, newReals, readFloats } from './elements.ts';
import { broadcastOffsets, normalizeAxis } from './indexing.ts';
import { defineOp, type InferContext, type OpDefinition } from './op.ts';
import { inputDtype, nodeName, typeOrUnknown } from './shape-rules.ts';

/** Attributes are f32: the default epsilon must be the f32 next to 1e-5. */
const EPSILON = Math.fround(1e-5);

interface Normalized {
  readonly y: TensorData;
  readonly mean: TensorData;
  readonly inverse: TensorData;
}

/**
 * Normalizes rows of `axis` and behind: (x - mean) / sqrt(variance + epsilon) * scale + bias, or x / rms * scale when
 * `centred` is false. Scale and bias broadcast to x.
 */
export function normalizeRows(
  x: TensorData,
  scale: TensorData,
  bias: TensorData | undefined,
  axis: number,
  epsilon: number,
  centred: boolean,
): Normalized {
  const rows = elementCount(x.shape.slice(0, axis));
  const width = elementCount(x.shape.slice(axis));
  const source = readFloats(x);
  const factor = readFloats(scale);
  const shift = bias && readFloats(bias);
  const factorAt = broadcastOffsets(scale.shape, x.shape);
  const shiftAt = bias && broadcastOffsets(bias.shape, x.shape);
  const out = newReals(x.dtype, source.length);
  const means = new Float64Array(rows);
  const inverses = new Float64Array(rows);
  for (let row = 0; row < rows; row++) {
    const from = row * width;
    let mean = 0;
    if (centred) {
      for (let i = 0; i < width; i++) mean += source[from + i]!;
      mean /= width;
    }
    let square = 0;
    for (let i = 0; i < width; i++) square += (source[from + i]! - mean) ** 2;
    const inverse = 1 / Math.sqrt(square / width + epsilon);
    means[row] = mean;
    inverses[row] = inverse;
    for (let i = 0; i < width; i++) {
      const at = from + i;
      const value = (source[at]! - mean) * inverse * factor[factorAt[at]!]!;
      out[at] = shift && shiftAt ? value + shift[shiftAt[at]!]! : value;
    }
  }
  const statistics = x.shape.map((dim, at) => (at < axis ? dim : 1));
  // Statistics are f32 whatever the type of x is (stash_type 1), f64 for f64.
  const dtype = x.dtype === 'f64' ? 'f64' : 'f32';
  return {
    y: encodeReals(x.dtype, x.shape, out),
    mean: encodeReals(dtype, statistics, dtype === 'f64' ? means : Float32Array.from(means)),
    inverse: encodeReals(dtype, statistics, dtype === 'f64' ? inverses : Float32Array.from(inverses)),
  };
}

function statisticsShape(context: InferContext, axis: number): Dim[] | undefined {
  const shape = context.shape(0);
  const from = shape && normalizeAxis(axis, shape.length, nodeName(context.node));
  return shape?.map((dim, at) => (at < from! ? dim : 1));
}

function inferNorm(context: InferContext): ReturnType<NonNullable<OpDefinition['infer']>> {
  const dtype = inputDtype(context, 0);
  const statistics = typeOrUnknown(
    dtype === 'f64' ? 'f64' : 'f32',
    statisticsShape(context, context.node.int('axis', -1)),
  );
  return [typeOrUnknown(dtype, context.shape(0)), statistics, statistics].slice(
    0,
    Math.max(1, context.node.outputs.length),
  );
}

const layerNormalization = defineOp({
  name: 'LayerNormalization',
  since: 1,
  quantization: 'independent',
  infer: inferNorm,
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const axis = normalizeAxis(node.int('axis', -1), x.shape.length, where);
    const result = normalizeRows(x, need(inputs, 1, where), inputs[2], axis, node.float('epsilon', EPSILON), true);
    return [result.y, result.mean, result.inverse];
  },
});

/** RMSNormalization (opset 23) and ONNX Runtime's older SimplifiedLayerNormalization: the same arithmetic. */
function rmsNormalization(name: string, domain: string, since: number): OpDefinition {
  return defineOp({
    name,
    domain,
    since,
    quantization: 'independent',
    infer: (context) => inferNorm(context).slice(0, context.node.outputs.length),
    evaluate: (inputs, { node }) => {
      const where = nodeName(node);
      const x = need(inputs, 0, where);
      const axis = normalizeAxis(node.int('axis', -1), x.shape.length, where);
      const result = normalizeRows(x, need(inputs, 1, where), undefined, axis, node.float('epsilon', EPSILON), false);
      return [result.y, result.inverse];
    },
  });
}

/** com.microsoft: RMS norm (or layer norm) of input + skip + bias; output 3 is that sum. */
function skipNormalization(name: string, centred: boolean): OpDefinition {
  return defineOp({
    name,
    domain: 'com.microsoft',
    since: 1,
    quantization: 'independent',
    infer: (context) => {
      const y = typeOrUnknown(inputDtype(context, 0), context.shape(0));
      const statistics = typeOrUnknown('f32', statisticsShape(context, -1));
      return [y, statistics, statistics, y].slice(0, context.node.outputs.length);
    },
    evaluate: (inputs, { node }) => {
      const where = nodeName(node);
      const x = need(inputs, 0, where);
      const add = (a: TensorData, b: TensorData): TensorData =>
        combineElements(a, b, { real: (p, q) => p + q }, x.dtype, where);
      const bias = inputs[centred ? 4 : 3];
      const joined = add(x, need(inputs, 1, where));
      const sum = bias ? add(joined, bias) : joined;
      const result = normalizeRows(
        sum,
        need(inputs, 2, where),
        centred ? inputs[3] : undefined,
        x.shape.length - 1,
        node.float('epsilon', Math.fround(1e-12)),
        centred,
      );
      return [result.y, result.mean, result.inverse, sum];
    },
  });
}

export const NORM_OPS: readonly OpDefinition[] = [
  layerNormalization,
  rmsNormalization('RMSNormalization', '', 23),
  rmsNormalization('SimplifiedLayerNormalization', '', 1),
  rmsNormalization('SimplifiedLayerNormalization', 'com.microsoft', 1),
  skipNormalization('SkipSimplifiedLayerNormalization', false),
  skipNormalization('SkipLayerNormalization', true),
];

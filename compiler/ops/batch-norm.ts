import { elementCount, type TensorData } from '../ir/tensor.ts';
import { encodeReals, need, newReals, readFloats } from './elements.ts';
import { normalizeAxes, normalizeAxis, splitAtAxis, stridedOffsets, stridesOf } from './indexing.ts';
import { defineOp, type OpDefinition } from './op.ts';
import { inputDtype, likeInput, nodeName, typeOrUnknown } from './shape-rules.ts';

/** Normalizations whose statistics run over channels, groups or the batch. */

const EPSILON = Math.fround(1e-5);

interface Statistics {
  readonly mean: number;
  readonly variance: number;
}

/** Mean and population variance of the elements at `start + steps`. */
function statisticsOf(x: ArrayLike<number>, start: number, steps: Int32Array): Statistics {
  let mean = 0;
  for (let i = 0; i < steps.length; i++) mean += x[start + steps[i]!]!;
  mean /= steps.length;
  let variance = 0;
  for (let i = 0; i < steps.length; i++) variance += (x[start + steps[i]!]! - mean) ** 2;
  return { mean, variance: variance / steps.length };
}

function pick(list: readonly number[], axes: readonly number[]): number[] {
  return axes.map((axis) => list[axis]!);
}

/**
 * BatchNormalization over axis 1. Training mode (opset 14) takes the batch's own statistics and gives running ones.
 * Up to opset 8 `spatial` 0 keeps statistics per element.
 */
const batchNormalization = defineOp({
  name: 'BatchNormalization',
  since: 1,
  quantization: 'independent',
  infer: (context) => {
    const y = typeOrUnknown(inputDtype(context, 0), context.shape(0));
    const running = typeOrUnknown(inputDtype(context, 3), context.shape(3));
    return context.node.outputs.map((_, index) => (index === 0 ? y : running));
  },
  evaluate: (inputs, { node, opset }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const source = readFloats(x);
    const [scale, bias, mean, variance] = [1, 2, 3, 4].map((index) => readFloats(need(inputs, index, where))) as [
      Float32Array,
      Float32Array,
      Float32Array,
      Float32Array,
    ];
    const epsilon = node.float('epsilon', EPSILON);
    const training = opset >= 14 && node.int('training_mode', 0) === 1;
    const perElement = opset < 9 && node.int('spatial', 1) === 0;
    const channels = perElement ? elementCount(x.shape.slice(1)) : (x.shape[1] ?? 1);
    const area = perElement ? 1 : elementCount(x.shape.slice(2));
    const batch = x.shape[0] ?? 1;
    const steps = stridedOffsets([batch, area], [channels * area, 1]);
    const out = newReals(x.dtype, source.length);
    const momentum = node.float('momentum', Math.fround(0.9));
    const running: [Float64Array, Float64Array] = [new Float64Array(channels), new Float64Array(channels)];
    for (let c = 0; c < channels; c++) {
      const used = training ? statisticsOf(source, c * area, steps) : { mean: mean[c]!, variance: variance[c]! };
      running[0][c] = mean[c]! * momentum + used.mean * (1 - momentum);
      running[1][c] = variance[c]! * momentum + used.variance * (1 - momentum);
      const factor = scale[c]! / Math.sqrt(used.variance + epsilon);
      for (let i = 0; i < steps.length; i++) {
        const at = c * area + steps[i]!;
        out[at] = (source[at]! - used.mean) * factor + bias[c]!;
      }
    }
    const y = encodeReals(x.dtype, x.shape, out);
    if (!training) return [y];
    const give = (values: Float64Array): TensorData =>
      encodeReals(need(inputs, 3, where).dtype, [channels], Array.from(values));
    return [y, give(running[0]), give(running[1])];
  },
});

/** Normalizes each of `groups` groups of channels of each sample, then scales and shifts per channel. */
function normalizeGroups(
  x: TensorData,
  groups: number,
  epsilon: number,
  scaleOf: (channel: number) => number,
  shiftOf: (channel: number) => number,
): TensorData {
  const [batch, channels] = x.shape as [number, number];
  const area = elementCount(x.shape.slice(2));
  const perGroup = channels / groups;
  const source = readFloats(x);
  const out = newReals(x.dtype, source.length);
  const steps = stridedOffsets([perGroup * area], [1]);
  for (let g = 0; g < batch * groups; g++) {
    const start = g * perGroup * area;
    const { mean, variance } = statisticsOf(source, start, steps);
    const inverse = 1 / Math.sqrt(variance + epsilon);
    for (let i = 0; i < steps.length; i++) {
      const channel = (g % groups) * perGroup + Math.floor(i / area);
      out[start + i] = (source[start + i]! - mean) * inverse * scaleOf(channel) + shiftOf(channel);
    }
  }
  return encodeReals(x.dtype, x.shape, out);
}

const instanceNormalization = defineOp({
  name: 'InstanceNormalization',
  since: 1,
  quantization: 'independent',
  infer: likeInput(),
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const scale = readFloats(need(inputs, 1, where));
    const bias = readFloats(need(inputs, 2, where));
    return [
      normalizeGroups(
        x,
        x.shape[1]!,
        node.float('epsilon', EPSILON),
        (c) => scale[c]!,
        (c) => bias[c]!,
      ),
    ];
  },
});

/** Scale and bias have one entry per group in opset 18 and one per channel since 21. */
const groupNormalization = defineOp({
  name: 'GroupNormalization',
  since: 18,
  quantization: 'independent',
  infer: likeInput(),
  evaluate: (inputs, { node, opset }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const groups = node.int('num_groups', 1);
    const perGroup = opset < 21 ? x.shape[1]! / groups : 1;
    const scale = readFloats(need(inputs, 1, where));
    const bias = readFloats(need(inputs, 2, where));
    return [
      normalizeGroups(
        x,
        groups,
        node.float('epsilon', EPSILON),
        (c) => scale[Math.floor(c / perGroup)]!,
        (c) => bias[Math.floor(c / perGroup)]!,
      ),
    ];
  },
});

const meanVarianceNormalization = defineOp({
  name: 'MeanVarianceNormalization',
  since: 9,
  quantization: 'independent',
  infer: likeInput(),
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const axes = normalizeAxes(node.ints('axes') ?? [0, 2, 3], x.shape.length, nodeName(node));
    const kept = x.shape.map((_, axis) => axis).filter((axis) => !axes.includes(axis));
    const strides = stridesOf(x.shape);
    const starts = stridedOffsets(pick(x.shape, kept), pick(strides, kept));
    const steps = stridedOffsets(pick(x.shape, axes), pick(strides, axes));
    const source = readFloats(x);
    const out = newReals(x.dtype, source.length);
    for (const start of starts) {
      const { mean, variance } = statisticsOf(source, start, steps);
      for (const step of steps) out[start + step] = (source[start + step]! - mean) / (Math.sqrt(variance) + 1e-9);
    }
    return [encodeReals(x.dtype, x.shape, out)];
  },
});

/** x / norm along an axis; a zero vector stays zero. */
const lpNormalization = defineOp({
  name: 'LpNormalization',
  since: 1,
  quantization: 'independent',
  infer: likeInput(),
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const { outer, size, inner } = splitAtAxis(
      x.shape,
      normalizeAxis(node.int('axis', -1), x.shape.length, nodeName(node)),
    );
    const p = node.int('p', 2);
    const source = readFloats(x);
    const out = newReals(x.dtype, source.length);
    for (let o = 0; o < outer; o++) {
      for (let i = 0; i < inner; i++) {
        const start = o * size * inner + i;
        let norm = 0;
        for (let k = 0; k < size; k++) norm += Math.abs(source[start + k * inner]!) ** p;
        norm **= 1 / p;
        for (let k = 0; k < size; k++) out[start + k * inner] = norm === 0 ? 0 : source[start + k * inner]! / norm;
      }
    }
    return [encodeReals(x.dtype, x.shape, out)];
  },
});

/** Local response normalization across channels. */
const lrn = defineOp({
  name: 'LRN',
  since: 1,
  quantization: 'independent',
  infer: likeInput(),
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const [batch, channels] = x.shape as [number, number];
    const area = elementCount(x.shape.slice(2));
    const size = node.int('size', 1);
    const alpha = node.float('alpha', Math.fround(1e-4));
    const beta = node.float('beta', 0.75);
    const bias = node.float('bias', 1);
    const source = readFloats(x);
    const out = newReals(x.dtype, source.length);
    for (let n = 0; n < batch; n++) {
      for (let c = 0; c < channels; c++) {
        const from = Math.max(0, c - Math.floor((size - 1) / 2));
        const to = Math.min(channels - 1, c + Math.ceil((size - 1) / 2));
        for (let i = 0; i < area; i++) {
          let sum = 0;
          for (let k = from; k <= to; k++) sum += source[(n * channels + k) * area + i]! ** 2;
          const at = (n * channels + c) * area + i;
          out[at] = source[at]! / (bias + (alpha / size) * sum) ** beta;
        }
      }
    }
    return [encodeReals(x.dtype, x.shape, out)];
  },
});

export const BATCH_NORM_OPS: readonly OpDefinition[] = [
  batchNormalization,
  instanceNormalization,
  groupNormalization,
  meanVarianceNormalization,
  lpNormalization,
  lrn,
];

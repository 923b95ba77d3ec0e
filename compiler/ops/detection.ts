import { NpucError } from '../errors.ts';
import { elementCount } from '../ir/tensor.ts';
import { convShape } from './conv.ts';
import { encodeReals, int64s, need, newReals, readFloats, readReals } from './elements.ts';
import { stridesOf } from './indexing.ts';
import { defineOp, type OpDefinition } from './op.ts';
import { inputDtype, nodeName, typeOrUnknown, unknownDim } from './shape-rules.ts';
import { windowPlan, windowShape } from './window.ts';

/** Ops of detection models: NonMaxSuppression and DeformConv. */

type Box = readonly [low: readonly [number, number], high: readonly [number, number]];

function boxOf(data: ArrayLike<number>, at: number, centred: boolean): Box {
  const [a, b, c, d] = [data[at]!, data[at + 1]!, data[at + 2]!, data[at + 3]!];
  if (centred)
    return [
      [a - c / 2, b - d / 2],
      [a + c / 2, b + d / 2],
    ];
  return [
    [Math.min(a, c), Math.min(b, d)],
    [Math.max(a, c), Math.max(b, d)],
  ];
}

/** Intersection over union of two boxes; 0 when either is empty. */
function overlap([lowA, highA]: Box, [lowB, highB]: Box): number {
  const width = Math.min(highA[0], highB[0]) - Math.max(lowA[0], lowB[0]);
  const height = Math.min(highA[1], highB[1]) - Math.max(lowA[1], lowB[1]);
  if (width <= 0 || height <= 0) return 0;
  const common = width * height;
  const area = ([low, high]: Box): number => (high[0] - low[0]) * (high[1] - low[1]);
  const union = area([lowA, highA]) + area([lowB, highB]) - common;
  return union <= 0 ? 0 : common / union;
}

/** boxes [N, B, 4], scores [N, C, B]: per class the best boxes that do not overlap a better one, [chosen, 3]. */
const nonMaxSuppression = defineOp({
  name: 'NonMaxSuppression',
  since: 10,
  quantization: 'never',
  infer: (context) => [typeOrUnknown('i64', [unknownDim(context.node, 0, 0), 3])],
  evaluate: (inputs, { node }) => {
    const boxes = need(inputs, 0, nodeName(node));
    const scores = need(inputs, 1, nodeName(node));
    const scalar = (index: number): number | undefined => {
      const input = inputs[index];
      return input && elementCount(input.shape) > 0 ? readReals(input)[0] : undefined;
    };
    const limit = scalar(2) ?? 0;
    const threshold = scalar(3) ?? 0;
    const least = scalar(4) ?? Number.NEGATIVE_INFINITY;
    const centred = node.int('center_point_box', 0) === 1;
    const [batch, count] = boxes.shape as [number, number];
    const classes = scores.shape[1]!;
    const places = readReals(boxes);
    const values = readReals(scores);
    const chosen: number[] = [];
    for (let n = 0; n < batch; n++) {
      for (let c = 0; c < classes; c++) {
        const score = (k: number): number => values[(n * classes + c) * count + k]!;
        const order = Array.from({ length: count }, (_, k) => k)
          .filter((k) => score(k) > least)
          .sort((a, b) => score(b) - score(a) || a - b);
        const kept: Box[] = [];
        for (const k of order) {
          if (kept.length >= limit) break;
          const box = boxOf(places, (n * count + k) * 4, centred);
          if (kept.some((other) => overlap(box, other) > threshold)) continue;
          kept.push(box);
          chosen.push(n, c, k);
        }
      }
    }
    return [int64s([chosen.length / 3, 3], chosen)];
  },
});

/**
 * Convolution of a 2-D image whose taps are moved by `offset` [N, groups * taps * 2, out...] and weighted by `mask`; the
 * moved taps are read bilinearly, zero outside.
 */
const deformConv = defineOp({
  name: 'DeformConv',
  since: 19,
  quantization: 'independent',
  infer: (context) => [typeOrUnknown(inputDtype(context, 0), convShape(context, 0, 1))],
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const w = need(inputs, 1, where);
    const plan = windowPlan(node, node.ints('kernel_shape') ?? w.shape.slice(2));
    if (x.shape.length !== 4) throw new NpucError('RT010', { message: 'DeformConv of other than 2-D images', where });
    const [batch, channels, height, width] = x.shape as [number, number, number, number];
    const [rows, columns] = windowShape([height, width], plan) as [number, number];
    const [source, weight, offsets] = [x, w, need(inputs, 2, where)].map(readFloats) as [
      Float32Array,
      Float32Array,
      Float32Array,
    ];
    const bias = inputs[3] && readFloats(inputs[3]);
    const mask = inputs[4] && readFloats(inputs[4]);
    const group = node.int('group', 1);
    const offsetGroups = node.int('offset_group', 1);
    const features = w.shape[0]!;
    const perGroup = channels / group;
    const taps = elementCount(plan.kernel);
    const tapStrides = stridesOf(plan.kernel);
    const area = rows * columns;
    const out = newReals(x.dtype, batch * features * area);
    const read = (plane: number, y: number, px: number): number => {
      const y0 = Math.floor(y);
      const x0 = Math.floor(px);
      let sum = 0;
      for (const [row, wy] of [
        [y0, 1 - (y - y0)],
        [y0 + 1, y - y0],
      ] as const)
        for (const [column, wx] of [
          [x0, 1 - (px - x0)],
          [x0 + 1, px - x0],
        ] as const)
          if (row >= 0 && row < height && column >= 0 && column < width)
            sum += wy * wx * source[plane + row * width + column]!;
      return sum;
    };
    for (let n = 0; n < batch; n++) {
      for (let m = 0; m < features; m++) {
        const first = Math.floor(m / (features / group)) * perGroup;
        for (let p = 0; p < area; p++) {
          let sum = bias ? bias[m]! : 0;
          for (let c = 0; c < perGroup; c++) {
            const channel = first + c;
            const offsetGroup = Math.floor(channel / (channels / offsetGroups));
            for (let tap = 0; tap < taps; tap++) {
              const at = (n * offsetGroups + offsetGroup) * taps + tap;
              const ky = Math.floor(tap / tapStrides[0]!);
              const kx = tap % plan.kernel[1]!;
              const y =
                Math.floor(p / columns) * plan.strides[0]! -
                plan.before[0]! +
                ky * plan.dilations[0]! +
                offsets[2 * at * area + p]!;
              const px =
                (p % columns) * plan.strides[1]! -
                plan.before[1]! +
                kx * plan.dilations[1]! +
                offsets[(2 * at + 1) * area + p]!;
              const scale = mask ? mask[at * area + p]! : 1;
              sum +=
                scale *
                weight[(m * perGroup + c) * taps + tap]! *
                read((n * channels + channel) * height * width, y, px);
            }
          }
          out[(n * features + m) * area + p] = sum;
        }
      }
    }
    return [encodeReals(x.dtype, [batch, features, rows, columns], out)];
  },
});

export const DETECTION_OPS: readonly OpDefinition[] = [nonMaxSuppression, deformConv];

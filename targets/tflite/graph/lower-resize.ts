import type { Node } from '../../../compiler/ir/graph.ts';
import { elementCount, Tensor } from '../../../compiler/ir/tensor.ts';
import { type ResizedAxis, resizedAxes, type Taps } from '../../../compiler/ops/resize.ts';
import { quantizationOf, typeOf } from '../subgraph-builder.ts';
import type { GraphLowering } from './graph-lowering.ts';
import type { GraphOps } from './graph-op.ts';
import { placeOf } from './order.ts';

/** Opset that models are lifted to before they are lowered. */
const OPSET = 21;

/** How TFLite's resizes find the place of an output in the input. */
interface Mode {
  readonly alignCorners: boolean;
  readonly halfPixelCenters: boolean;
}

const MODES: readonly Mode[] = [
  { alignCorners: false, halfPixelCenters: true },
  { alignCorners: true, halfPixelCenters: false },
  { alignCorners: false, halfPixelCenters: false },
];

function scaleOf({ alignCorners }: Mode, from: number, to: number): number {
  return Math.fround(alignCorners && to > 1 ? (from - 1) / (to - 1) : from / to);
}

/** The input that an output is copied from (LiteRT kernels/internal/reference/resize_nearest_neighbor.h). */
function nearestOf(mode: Mode, at: number, from: number, to: number): number {
  const place = Math.fround((at + (mode.halfPixelCenters ? 0.5 : 0)) * scaleOf(mode, from, to));
  const index = mode.alignCorners ? Math.floor(place + 0.5) : Math.floor(place);
  return Math.max(0, Math.min(index, from - 1));
}

/** Weights of the inputs for an output (LiteRT kernels/internal/reference/resize_bilinear.h). */
function linearOf(mode: Mode, at: number, from: number, to: number): Map<number, number> {
  const scale = scaleOf(mode, from, to);
  const place = mode.halfPixelCenters ? (at + 0.5) * scale - 0.5 : at * scale;
  const low = Math.max(0, Math.floor(place));
  const high = Math.min(from - 1, Math.ceil(place));
  const share = Math.max(0, place - low);
  return mergeWeights([low, high], [1 - share, share]);
}

function mergeWeights(indices: readonly number[], weights: readonly number[]): Map<number, number> {
  const merged = new Map<number, number>();
  indices.forEach((index, i) => {
    merged.set(index, (merged.get(index) ?? 0) + weights[i]!);
  });
  return merged;
}

/** Difference of weights that is rounding of coordinates. */
const TOLERANCE = 1e-5;

function sameTaps(taps: Taps, expected: ReadonlyMap<number, number>): boolean {
  const own = mergeWeights(taps.indices, taps.weights);
  for (const index of new Set([...own.keys(), ...expected.keys()]))
    if (Math.abs((own.get(index) ?? 0) - (expected.get(index) ?? 0)) > TOLERANCE) return false;
  return !taps.outside;
}

/** The operator's mode that computes what the model asks for at these very sizes; modes differ in name, tables do not lie. */
function modeFor(axes: readonly ResizedAxis[], nearest: boolean): Mode | undefined {
  return MODES.find((mode) =>
    axes.every(({ from, taps }) =>
      taps.every((tap, at) => {
        const { length } = taps;
        return nearest
          ? !tap.outside && tap.indices[0] === nearestOf(mode, at, from, length)
          : sameTaps(tap, linearOf(mode, at, from, length));
      }),
    ),
  );
}

/** Whether places are whole multiples of 1/1024, as the integer kernel has them: otherwise they drift over an axis. */
function isExact(axes: readonly ResizedAxis[], { alignCorners, halfPixelCenters }: Mode): boolean {
  return axes.every(({ from, taps: { length: to } }) => {
    const [above, below] = alignCorners && to > 1 ? [from - 1, to - 1] : [from, to];
    return Number.isInteger((1024 * above) / below / (halfPixelCenters ? 2 : 1));
  });
}

function isNearest(node: Node): boolean {
  return node.string('mode', 'nearest') === 'nearest';
}

function isImage(node: Node, axes: readonly ResizedAxis[]): boolean {
  const rank = node.input(0).dims.length;
  return (rank === 3 || rank === 4) && axes.every(({ axis }) => axis >= 2);
}

function refuseResize(node: Node): string | undefined {
  if (node.input(0).dtype !== 'f32') return `Resize of ${node.input(0).dtype}`;
  const axes = resizedAxes(node, OPSET);
  if (!axes) return 'Resize to a computed size';
  if (axes.some(({ taps }) => taps.some(({ outside }) => outside))) return 'Resize that reaches outside of the input';
  if (isNearest(node)) return undefined;
  if (isImage(node, axes) && modeFor(axes, false)) return undefined;
  // What no operator computes is a product with the table of weights.
  return undefined;
}

function lowerResize(node: Node, lowering: GraphLowering): void {
  const axes = resizedAxes(node, OPSET)!;
  const nearest = isNearest(node);
  const mode = isImage(node, axes) ? modeFor(axes, nearest) : undefined;
  if (axes.length === 0) {
    const output = node.output();
    lowering.define(output, lowering.input(node, 0), lowering.orderIn(node, output));
    return;
  }
  if (!mode) {
    (nearest ? gatherAxes : multiplyAxes)(node, axes, lowering);
    return;
  }
  const image = (dims: readonly number[]): number[] => {
    const [batch, channels, ...spatial] = dims as [number, number, ...number[]];
    return [batch, ...(spatial.length === 1 ? [1] : []), ...spatial, channels];
  };
  const { builder } = lowering;
  const dims = image(node.output().dims);
  const x = lowering.reshape(lowering.input(node, 0), image(node.input(0).dims), node.input(0).name);
  const size = builder.addInts('size', dims.slice(1, 3));
  if (nearest) {
    const options = { kind: 'ResizeNearestNeighborOptions', ...mode } as const;
    lowering.emit('RESIZE_NEAREST_NEIGHBOR', node, [x, size], { options, dims });
    return;
  }
  const wide = node.output().encoding?.dtype === 'i16';
  const onFloats = wide && !isExact(axes, mode) ? 'the 16-bit kernel has places of 1/1024 of a pixel only' : undefined;
  const options = { kind: 'ResizeBilinearOptions', ...mode } as const;
  lowering.emit('RESIZE_BILINEAR', node, [x, size], { options, dims, onFloats });
}

/** Rounding that no operator knows: every output is gathered from its place, axis by axis. */
function gatherAxes(node: Node, axes: readonly ResizedAxis[], lowering: GraphLowering): void {
  const { builder } = lowering;
  const output = node.output();
  const order = lowering.orderIn(node, output);
  let tensor = lowering.input(node, 0);
  axes.forEach(({ axis, taps }, i) => {
    const place = placeOf(axis, order);
    const places = builder.addInts(
      `${output.name}.places`,
      taps.map(({ indices }) => indices[0]!),
    );
    const options = { kind: 'GatherOptions', axis: place, batchDims: 0 } as const;
    if (i === axes.length - 1) {
      lowering.emit('GATHER', node, [tensor, places], { options, activations: [0] });
      return;
    }
    const dims = builder.tensor(tensor).shape.map((dim, at) => (at === place ? taps.length : dim));
    const quantization = quantizationOf(output.encoding, output.name);
    const next = builder.addTensor(`${output.name}.rows`, typeOf(output), dims, quantization);
    lowering.run('GATHER', node, [tensor, places], next, { options, activations: [0] });
    tensor = next;
  });
}

/**
 * Weights that no operator knows, cubic ones among them: BATCH_MATMUL of the weights [to, from] and of [from, all behind it],
 * axis by axis, on floats.
 */
function multiplyAxes(node: Node, axes: readonly ResizedAxis[], lowering: GraphLowering): void {
  const { builder } = lowering;
  const output = node.output();
  const order = lowering.orderIn(node, output);
  let tensor = lowering.toFloat(lowering.input(node, 0));
  axes.forEach(({ axis, from, taps }, i) => {
    const { shape } = builder.tensor(tensor);
    const place = placeOf(axis, order);
    const [outer, inner] = [elementCount(shape.slice(0, place)), elementCount(shape.slice(place + 1))];
    const table = new Float32Array(taps.length * from);
    taps.forEach(({ indices, weights }, to) => {
      indices.forEach((index, k) => {
        table[to * from + index] = table[to * from + index]! + weights[k]!;
      });
    });
    const matrix = builder.addConstant(`${output.name}.weights`, Tensor.of('f32', [1, taps.length, from], table));
    const rows = lowering.reshape(tensor, [outer, from, inner], output.name);
    const dims = shape.map((dim, at) => (at === place ? taps.length : dim));
    const options = { kind: 'BatchMatMulOptions', adjX: false, adjY: false, asymmetricQuantizeInputs: false } as const;
    const product = builder.addFloats(`${output.name}.product`, [outer, taps.length, inner]);
    builder.addOperator('BATCH_MATMUL', [matrix, rows], [product], { options });
    tensor = lowering.reshape(product, dims, output.name);
    if (i < axes.length - 1 || !output.encoding) return;
    const integers = builder.addTensor(output.name, typeOf(output), dims, quantizationOf(output.encoding, output.name));
    builder.addQuantize(tensor, integers);
    tensor = integers;
  });
  lowering.define(output, tensor, order);
}

export const RESIZES: GraphOps = {
  Resize: {
    layout: (node) => (node.input(0).dims.length === 3 || node.input(0).dims.length === 4 ? 'last' : 'any'),
    refuse: refuseResize,
    lower: lowerResize,
  },
};

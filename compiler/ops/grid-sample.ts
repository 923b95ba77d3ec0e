import { roundEven } from '../ir/encoding.ts';
import type { Dim } from '../ir/graph.ts';
import { elementCount } from '../ir/tensor.ts';
import { encodeReals, need, newReals, readFloats, readInts } from './elements.ts';
import { stridesOf } from './indexing.ts';
import { defineOp, type OpDefinition } from './op.ts';
import { cubicWeight } from './resize.ts';
import { inputDtype, knownContent, nodeName, typeOrUnknown } from './shape-rules.ts';

/** Sampling at given places: GridSample, AffineGrid, RoiAlign. */

/** A coordinate walked back into [low, high] as by mirrors at both ends. */
function reflect(x: number, low: number, high: number): number {
  const span = high - low;
  if (span === 0) return low;
  const period = 2 * span;
  const place = (((x - low) % period) + period) % period;
  return low + (place <= span ? place : period - place);
}

interface SampleMode {
  readonly mode: string;
  readonly padding: string;
  readonly align: boolean;
}

/** Input indices (-1 for a zero) and weights along one axis for a normalized coordinate in -1..1. */
function sampleTaps(coordinate: number, size: number, { mode, padding, align }: SampleMode): [number, number][] {
  const low = align ? 0 : -0.5;
  const high = align ? size - 1 : size - 0.5;
  let x = align ? ((coordinate + 1) / 2) * (size - 1) : ((coordinate + 1) * size - 1) / 2;
  if (mode === 'nearest') x = roundEven(x);
  if (x < low || x > high) {
    if (padding === 'border') x = Math.min(size - 1, Math.max(0, x));
    else if (padding === 'reflection') x = reflect(x, low, high);
  }
  const place = (index: number): number => {
    if (index >= 0 && index < size) return index;
    if (padding === 'zeros') return -1;
    if (padding === 'border') return Math.min(size - 1, Math.max(0, index));
    return Math.trunc(reflect(index, low, high));
  };
  if (mode === 'nearest') return [[place(roundEven(x)), 1]];
  const floor = Math.floor(x);
  const offsets = mode === 'cubic' ? [-1, 0, 1, 2] : [0, 1];
  return offsets.map((offset) => {
    const distance = floor + offset - x;
    return [place(floor + offset), mode === 'cubic' ? cubicWeight(distance, -0.75) : 1 - Math.abs(distance)];
  });
}

/** x [N, C, spatial...], grid [N, out..., rank] with the last axis' coordinate first. */
const gridSample = defineOp({
  name: 'GridSample',
  since: 16,
  quantization: 'passthrough',
  infer: (context) => {
    const x = context.shape(0);
    const grid = context.shape(1);
    const out: Dim[] | undefined = x && grid && [x[0]!, x[1]!, ...grid.slice(1, -1)];
    return [typeOrUnknown(inputDtype(context, 0), out)];
  },
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const grid = need(inputs, 1, nodeName(node));
    const named = node.string('mode', 'linear');
    const mode: SampleMode = {
      mode: named === 'bilinear' ? 'linear' : named === 'bicubic' ? 'cubic' : named,
      padding: node.string('padding_mode', 'zeros'),
      align: node.int('align_corners', 0) === 1,
    };
    const [batch, channels] = x.shape as [number, number];
    const spatial = x.shape.slice(2);
    const rank = spatial.length;
    const strides = stridesOf(spatial);
    const area = elementCount(spatial);
    const places = elementCount(grid.shape.slice(1, -1));
    const source = readFloats(x);
    const coordinates = readFloats(grid);
    const out = newReals(x.dtype, batch * channels * places);
    for (let n = 0; n < batch; n++) {
      for (let p = 0; p < places; p++) {
        // The product of the taps of all axes; a tap in the padding carries offset -1.
        let taps: [number, number][] = [[0, 1]];
        for (let axis = 0; axis < rank; axis++) {
          const own = sampleTaps(coordinates[(n * places + p) * rank + rank - 1 - axis]!, spatial[axis]!, mode);
          taps = taps.flatMap(([offset, weight]) =>
            own.map(([index, factor]): [number, number] => [
              offset < 0 || index < 0 ? -1 : offset + index * strides[axis]!,
              weight * factor,
            ]),
          );
        }
        for (let c = 0; c < channels; c++) {
          const plane = (n * channels + c) * area;
          let sum = 0;
          for (const [offset, weight] of taps) if (offset >= 0) sum += weight * source[plane + offset]!;
          out[(n * channels + c) * places + p] = sum;
        }
      }
    }
    return [encodeReals(x.dtype, [batch, channels, ...grid.shape.slice(1, -1)], out)];
  },
});

/** theta [N, 2, 3] or [N, 3, 4] to a grid of normalized coordinates [N, H, W, 2] or [N, D, H, W, 3]. */
const affineGrid = defineOp({
  name: 'AffineGrid',
  since: 20,
  quantization: 'independent',
  infer: (context) => {
    const size = knownContent(context, 1);
    const out = size && [size[0]!, ...size.slice(2), size.length - 2];
    return [typeOrUnknown(inputDtype(context, 0), out)];
  },
  evaluate: (inputs, { node }) => {
    const theta = need(inputs, 0, nodeName(node));
    const size = readInts(need(inputs, 1, nodeName(node)));
    const align = node.int('align_corners', 0) === 1;
    const spatial = size.slice(2);
    const rank = spatial.length;
    const batch = size[0]!;
    const area = elementCount(spatial);
    const strides = stridesOf(spatial);
    const factors = readFloats(theta);
    const out = newReals(theta.dtype, batch * area * rank);
    const coordinate = (index: number, length: number): number =>
      align ? (length === 1 ? 0 : -1 + (2 * index) / (length - 1)) : (2 * index + 1) / length - 1;
    for (let n = 0; n < batch; n++) {
      for (let p = 0; p < area; p++) {
        // x first: the last spatial axis.
        const point = spatial
          .map((length, axis) => coordinate(Math.floor(p / strides[axis]!) % length, length))
          .reverse();
        for (let row = 0; row < rank; row++) {
          const at = (n * rank + row) * (rank + 1);
          let sum = factors[at + rank]!;
          for (let k = 0; k < rank; k++) sum += factors[at + k]! * point[k]!;
          out[(n * area + p) * rank + row] = sum;
        }
      }
    }
    return [encodeReals(theta.dtype, [batch, ...spatial, rank], out)];
  },
});

/** Regions [R, 4] of x [N, C, H, W], each cut into output_height by output_width bins that are sampled bilinearly. */
const roiAlign = defineOp({
  name: 'RoiAlign',
  since: 10,
  quantization: 'independent',
  infer: (context) => {
    const x = context.shape(0);
    const rois = context.shape(1);
    const out: Dim[] | undefined = x &&
      rois && [rois[0]!, x[1]!, context.node.int('output_height', 1), context.node.int('output_width', 1)];
    return [typeOrUnknown(inputDtype(context, 0), out)];
  },
  evaluate: (inputs, { node, opset }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const rois = need(inputs, 1, where);
    const batches = readInts(need(inputs, 2, where));
    const [, channels, height, width] = x.shape as [number, number, number, number];
    const rows = node.int('output_height', 1);
    const columns = node.int('output_width', 1);
    const scale = node.float('spatial_scale', 1);
    const ratio = node.int('sampling_ratio', 0);
    const takeMax = node.string('mode', 'avg') === 'max';
    const halfPixel =
      node.string('coordinate_transformation_mode', opset < 16 ? 'output_half_pixel' : 'half_pixel') === 'half_pixel';
    const shift = halfPixel ? 0.5 : 0;
    const source = readFloats(x);
    const boxes = readFloats(rois);
    const count = rois.shape[0]!;
    const out = newReals(x.dtype, count * channels * rows * columns);
    for (let r = 0; r < count; r++) {
      const [x1, y1, x2, y2] = [0, 1, 2, 3].map((k) => boxes[r * 4 + k]! * scale - shift) as [
        number,
        number,
        number,
        number,
      ];
      // Without half pixels a region is at least one pixel large.
      const spanX = halfPixel ? x2 - x1 : Math.max(1, x2 - x1);
      const spanY = halfPixel ? y2 - y1 : Math.max(1, y2 - y1);
      const stepX = spanX / columns;
      const stepY = spanY / rows;
      const gridX = ratio > 0 ? ratio : Math.ceil(stepX);
      const gridY = ratio > 0 ? ratio : Math.ceil(stepY);
      for (let c = 0; c < channels; c++) {
        const plane = (batches[r]! * channels + c) * height * width;
        for (let row = 0; row < rows; row++) {
          for (let column = 0; column < columns; column++) {
            let best = Number.NEGATIVE_INFINITY;
            let sum = 0;
            for (let iy = 0; iy < gridY; iy++) {
              for (let ix = 0; ix < gridX; ix++) {
                const y = y1 + row * stepY + ((iy + 0.5) * stepY) / gridY;
                const px = x1 + column * stepX + ((ix + 0.5) * stepX) / gridX;
                const corners = bilinear(source, plane, height, width, y, px);
                for (const value of corners) {
                  sum += value;
                  if (value > best) best = value;
                }
              }
            }
            out[((r * channels + c) * rows + row) * columns + column] = takeMax
              ? best
              : sum / Math.max(1, gridX * gridY);
          }
        }
      }
    }
    return [encodeReals(x.dtype, [count, channels, rows, columns], out)];
  },
});

/** The four weighted corners around a point; zeros outside the image by more than one pixel. */
function bilinear(
  source: ArrayLike<number>,
  plane: number,
  height: number,
  width: number,
  y: number,
  x: number,
): number[] {
  if (y < -1 || y > height || x < -1 || x > width) return [0, 0, 0, 0];
  const top = Math.max(0, y);
  const left = Math.max(0, x);
  const y0 = Math.min(height - 1, Math.floor(top));
  const x0 = Math.min(width - 1, Math.floor(left));
  const y1 = Math.min(height - 1, y0 + 1);
  const x1 = Math.min(width - 1, x0 + 1);
  const dy = y0 === height - 1 ? 0 : top - y0;
  const dx = x0 === width - 1 ? 0 : left - x0;
  const at = (row: number, column: number): number => source[plane + row * width + column]!;
  return [
    (1 - dy) * (1 - dx) * at(y0, x0),
    (1 - dy) * dx * at(y0, x1),
    dy * (1 - dx) * at(y1, x0),
    dy * dx * at(y1, x1),
  ];
}

export const GRID_SAMPLE_OPS: readonly OpDefinition[] = [gridSample, affineGrid, roiAlign];

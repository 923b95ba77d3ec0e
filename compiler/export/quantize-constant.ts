import { NpucError } from '../errors.ts';
import { DTYPES } from '../ir/dtype.ts';
import { type Encoding, encodingForm, integerRange, roundEven } from '../ir/encoding.ts';
import { elementCount, packSubByte, Tensor } from '../ir/tensor.ts';
import { wasmKernels } from '../kernels/index.ts';

/** One tensor of integers per constant and encoding, so that graphs which share both share the bytes they write. */
const quantized = new WeakMap<Tensor, WeakMap<Encoding, Tensor>>();

/** The integers of a constant under an encoding, as bytes are computed when they are asked for. */
export function quantizeLazily(data: Tensor, encoding: Encoding, name: string): Tensor {
  let byEncoding = quantized.get(data);
  if (!byEncoding) {
    byEncoding = new WeakMap();
    quantized.set(data, byEncoding);
  }
  let tensor = byEncoding.get(encoding);
  if (!tensor) {
    const compute = (): Uint8Array => quantizeConstant(data, encoding, name);
    tensor = new Tensor(encoding.dtype, data.shape, { kind: 'derived', compute });
    byEncoding.set(encoding, tensor);
  }
  return tensor;
}

/**
 * Rounds a constant to nearest, ties to even, in f32 as QuantizeLinear does: q = clip(roundEven(x / scale) + zero). The range
 * is that of the type, but -127..127 for i8 without zero points: symmetric targets have no -128.
 * @returns tensor bytes (4-bit integers packed), row-major in the shape of `data`
 * @throws QT010 when an element is not finite
 */
export function quantizeConstant(data: Tensor, encoding: Encoding, name: string): Uint8Array {
  return quantizeRows(data, encoding, name) ?? quantizeElements(data, encoding, name);
}

/**
 * The common weights go through the kernels: symmetric i8 and i4 with one scale a row, or one a block of a row. A weight that
 * is the transpose of a stored matrix is quantized as it is stored, and its integers are transposed instead of its floats.
 */
function quantizeRows(data: Tensor, encoding: Encoding, name: string): Uint8Array | undefined {
  const { dtype, axis, block } = encoding;
  if (data.shape.length !== 2 || (dtype !== 'i8' && dtype !== 'i4') || encoding.zeroPoint?.some((zero) => zero !== 0)) {
    return undefined;
  }
  const source = data.storage.kind === 'derived' ? data.storage.transposeOf : undefined;
  const form = encodingForm(encoding);
  // The axis of `data` that lies along the rows of what is stored.
  const rowAxis = source ? 0 : 1;
  if (form === 'channel' ? axis === rowAxis : form !== 'tensor' && axis !== rowAxis) return undefined;
  const [rows, columns] = (source ?? data).shape as [number, number];
  const size = form === 'block' || form === 'lpbq' ? block! : columns;
  if (columns % size !== 0) return undefined;

  const blocks = columns / size;
  const scales = new Float32Array(rows * blocks);
  if (form === 'tensor') scales.fill(encoding.scale[0]!);
  else if (form === 'channel') scales.set(encoding.scale);
  else {
    const expanded = blockScales(encoding, data.shape);
    if (source) wasmKernels.transposeF32(expanded, blocks, rows, scales);
    else scales.set(expanded);
  }
  const weights = (source ?? data).toFloats();
  const layout = { rows, columns, block: size, name };
  const [low, max] = integerRange(dtype);
  const range = { min: dtype === 'i8' ? -127 : low, max };
  if (dtype === 'i8') {
    const integers = new Int8Array(rows * columns);
    wasmKernels.quantizeI8(weights, layout, scales, range, integers);
    if (!source) return new Uint8Array(integers.buffer);
    const turned = new Int8Array(integers.length);
    wasmKernels.transposeI8(integers, rows, columns, turned);
    return new Uint8Array(turned.buffer);
  }
  const packed = new Uint8Array(Math.ceil((rows * columns) / 2));
  wasmKernels.quantizeI4(weights, layout, scales, range, packed);
  if (!source) return packed;
  const turned = new Uint8Array(packed.length);
  wasmKernels.transposeI4(packed, rows, columns, turned);
  return turned;
}

/** Any shape, type and zero point, element by element. */
function quantizeElements(data: Tensor, encoding: Encoding, name: string): Uint8Array {
  const { dtype } = encoding;
  const [low, high] = integerRange(dtype);
  const floor = dtype === 'i8' && !encoding.zeroPoint?.some((zero) => zero !== 0) ? -127 : low;
  const source = data.toFloats();
  const integers = new DTYPES[dtype].array(
    new ArrayBuffer(source.length * DTYPES[dtype].array.prototype.BYTES_PER_ELEMENT),
    0,
    source.length,
  ) as Int32Array;
  forEachScale(encoding, data.shape, (scale, zero, start, end, step) => {
    for (let i = start; i < end; i += step) {
      const ratio = Math.fround(source[i]! / scale);
      if (Number.isNaN(ratio) || !Number.isFinite(source[i]!)) {
        throw new NpucError('QT010', { message: `element ${i} of ${name} is ${source[i]}`, where: name });
      }
      const whole = Number.isFinite(ratio) ? roundEven(ratio) : ratio;
      integers[i] = Math.min(high, Math.max(floor, whole + zero));
    }
  });
  const { bits } = DTYPES[dtype];
  if (bits < 8) return packSubByte(integers as unknown as Int8Array, bits);
  return new Uint8Array(integers.buffer);
}

/** The real numbers that integers stand for, in f32 as DequantizeLinear computes them: float(q - zero) * scale. */
export function dequantizeConstant(integers: Tensor, encoding: Encoding): Float32Array {
  const source = integers.toData().data as Int32Array;
  const out = new Float32Array(source.length);
  forEachScale(encoding, integers.shape, (scale, zero, start, end, step) => {
    for (let i = start; i < end; i += step) out[i] = Math.fround(source[i]! - zero) * scale;
  });
  return out;
}

/** Real numbers of a payload, computed when asked for. */
export function dequantizeLazily(integers: Tensor, encoding: Encoding): Tensor {
  const compute = (): Uint8Array => new Uint8Array(dequantizeConstant(integers, encoding).buffer);
  return new Tensor('f32', integers.shape, { kind: 'derived', compute });
}

/** Visits runs of elements (`start` to `end` in steps) that share one scale and zero point. */
function forEachScale(
  encoding: Encoding,
  shape: readonly number[],
  visit: (scale: number, zero: number, start: number, end: number, step: number) => void,
): void {
  const { axis, block, zeroPoint } = encoding;
  const zeroAt = (index: number): number => zeroPoint?.[zeroPoint.length === 1 ? 0 : index] ?? 0;
  const size = elementCount(shape);
  if (axis === undefined) {
    visit(encoding.scale[0]!, zeroAt(0), 0, size, 1);
    return;
  }
  const extent = shape[axis]!;
  const inner = elementCount(shape.slice(axis + 1));
  const outer = elementCount(shape.slice(0, axis));
  if (block === undefined) {
    for (let at = 0; at < outer * extent; at++) {
      const channel = at % extent;
      visit(encoding.scale[channel]!, zeroAt(channel), at * inner, (at + 1) * inner, 1);
    }
    return;
  }
  const scales = blockScales(encoding, shape);
  const blocks = Math.ceil(extent / block);
  for (let index = 0; index < outer * blocks * inner; index++) {
    const row = Math.floor(index / inner);
    const first = Math.floor(row / blocks) * extent;
    const from = (row % blocks) * block;
    const start = (first + from) * inner + (index % inner);
    const end = (first + Math.min(from + block, extent)) * inner;
    visit(scales[index]!, zeroAt(index), start, end, inner);
  }
}

/** One f32 scale a block, in the shape with `axis` cut into blocks. LPBQ's two levels are multiplied in f32. */
export function blockScales(encoding: Encoding, shape: readonly number[]): Float32Array {
  const { blockScale, scale, axis, block } = encoding;
  if (!blockScale) return encoding.scale;
  const channelAxis = encoding.channelAxis!;
  const reduced = shape.map((dim, at) => (at === axis ? Math.ceil(dim / block!) : dim));
  const channels = reduced[channelAxis]!;
  const inner = elementCount(reduced.slice(channelAxis + 1));
  return Float32Array.from(blockScale, (factor, index) => factor * scale[Math.floor(index / inner) % channels]!);
}

import type { DType } from '../compiler/ir/dtype.ts';
import { type Encoding, isEncodingDType } from '../compiler/ir/encoding.ts';
import type { Node, Value } from '../compiler/ir/graph.ts';
import type { Tensor } from '../compiler/ir/tensor.ts';

const DOMAINS = new Set(['', 'com.microsoft']);
const LARGEST_BLOCK_SCALE = 15;

export function isQuantize(node: Node | undefined): boolean {
  return node?.op === 'QuantizeLinear' && DOMAINS.has(node.domain);
}

export function isDequantize(node: Node | undefined): boolean {
  return node?.op === 'DequantizeLinear' && DOMAINS.has(node.domain);
}

/** The encoding that a QuantizeLinear or DequantizeLinear with constant parameters stands for, or why there is none. */
export function readEncoding(node: Node): Encoding | string {
  for (const name of ['precision', 'output_dtype'] as const) {
    // 1 is f32; an output type of QuantizeLinear only matters without a zero point.
    const code = node.int(name, 0);
    if (code > 1 && (name === 'precision' || isDequantize(node))) return `${name} ${code} is not f32`;
  }
  const zero = node.inputs[2];
  if (zero && !zero.data) return `the zero point ${zero.name} is computed`;
  const dtype = integerType(node, zero?.data);
  if (dtype === undefined) return 'the integer type is not known';
  if (!isEncodingDType(dtype)) return `${dtype} is not a number format of encodings`;
  const zeros = zero?.data?.toNumbers() ?? [];
  const zeroPoint = zeros.some((entry) => entry !== 0) ? Int32Array.from(zeros) : undefined;
  const common = { dtype, ...(zeroPoint ? { zeroPoint } : {}) };

  const scale = node.input(1);
  const block = node.int('block_size', 0);
  if (!scale.data) return readTwoLevels(node, scale, block, dtype, zeroPoint);
  if (scale.data.dtype !== 'f32') return `the scale is ${scale.data.dtype}`;
  const scales = scale.data.toFloats();
  if (!scales.every((entry) => Number.isFinite(entry) && entry > 0)) return 'a scale is not a positive number';
  if (zeroPoint && zeroPoint.length !== scales.length) return 'there are not as many zero points as scales';
  if (scales.length === 1 && block === 0) return { ...common, scale: scales };
  const axis = axisOf(node);
  if (axis === undefined) return 'the axis counts from the end of an unknown shape';
  if (block === 0) return { ...common, scale: scales, axis };
  const mismatch = checkBlocks(node, scale.data.shape, axis, block);
  return mismatch ?? { ...common, scale: scales, axis, block };
}

function integerType(node: Node, zero: Tensor | undefined): DType | undefined {
  if (zero) return zero.dtype;
  if (isQuantize(node)) {
    const { type } = node.output();
    if (node.int('output_dtype', 0) === 0) return 'u8';
    return type?.kind === 'tensor' ? type.dtype : undefined;
  }
  const { data, type, producer } = node.input(0);
  if (data) return data.dtype;
  if (type?.kind === 'tensor') return type.dtype;
  return producer && isQuantize(producer) ? integerType(producer, producer.inputs[2]?.data) : undefined;
}

/** DequantizeLinear's default axis is 1; negative ones count from the end. */
function axisOf(node: Node): number | undefined {
  const axis = node.int('axis', 1);
  if (axis >= 0) return axis;
  const rank = rankOf(node.inputs[0]) ?? rankOf(node.outputs[0]);
  return rank === undefined ? undefined : axis + rank;
}

function rankOf(value: Value | undefined): number | undefined {
  return value?.type?.kind === 'tensor' ? value.type.shape?.length : undefined;
}

/** Why the scales do not lie as whole blocks along an axis, or undefined when they do. */
function checkBlocks(node: Node, scales: readonly number[], axis: number, block: number): string | undefined {
  const { type } = node.input(0);
  const shape = type?.kind === 'tensor' ? type.shape : undefined;
  if (!shape) return 'blocks of an unknown shape';
  const expected = shape.map((dim, at) => (at === axis && typeof dim === 'number' ? dim / block : dim));
  return String(expected) === String(scales)
    ? undefined
    : `scales [${scales}] are not blocks of ${block} of [${shape}]`;
}

/** Scales that are themselves dequantized integers of constants: two levels (LPBQ) when these are 1..15 per channel. */
function readTwoLevels(
  node: Node,
  scale: Value,
  block: number,
  dtype: Encoding['dtype'],
  zeroPoint: Int32Array | undefined,
): Encoding | string {
  const inner = scale.producer;
  const computed = `the scale ${scale.name} is computed`;
  if (!inner || !isDequantize(inner) || block === 0) return computed;
  const factors = inner.input(0).data;
  const channels = inner.input(1).data;
  if (factors?.dtype !== 'u8' || channels?.dtype !== 'f32') return computed;
  if (inner.inputs[2] && !inner.inputs[2].data?.toNumbers().every((zero) => zero === 0)) return computed;
  const blockScale = Uint8Array.from(factors.toNumbers());
  const axis = axisOf(node);
  const channelAxis = axisOf(inner);
  if (axis === undefined || channelAxis === undefined || axis === channelAxis) return computed;
  if (zeroPoint || blockScale.some((factor) => factor < 1 || factor > LARGEST_BLOCK_SCALE)) {
    return `the two-level scale ${scale.name} has zero points, or factors outside 1..${LARGEST_BLOCK_SCALE}`;
  }
  if (channels.size !== factors.shape[channelAxis]) return computed;
  const mismatch = checkBlocks(node, factors.shape, axis, block);
  return mismatch ?? { dtype, scale: channels.toFloats(), axis, block, channelAxis, blockScale };
}

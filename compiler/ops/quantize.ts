import { NpucError } from '../errors.ts';
import { DTYPES, type DType } from '../ir/dtype.ts';
import { roundEven } from '../ir/encoding.ts';
import type { Node } from '../ir/graph.ts';
import { elementCount } from '../ir/tensor.ts';
import { castTarget } from './constant.ts';
import { encodeReals, isMiniFloat, need, newArray, newReals, readReals } from './elements.ts';
import { encodeMiniFloat } from './float8.ts';
import { normalizeAxis, stridedOffsets, stridesOf } from './indexing.ts';
import { defineOp, type InferContext, type OpDefinition } from './op.ts';
import { inputDtype, nodeName, typeOrUnknown } from './shape-rules.ts';

/** The smallest and largest integer of a type that a QuantizeLinear can give. */
function limitsOf(dtype: DType): readonly [number, number] {
  const { bits } = DTYPES[dtype];
  return dtype.startsWith('u') ? [0, 2 ** bits - 1] : [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1];
}

/**
 * For every element of `shape`, the index of its scale: one scale (per tensor), a vector along `axis` (per axis), or a
 * tensor whose `axis` is cut into blocks (blocked; the last block may be short). @throws IR020 when the scale does not fit
 */
export function scaleOffsets(
  shape: readonly number[],
  scale: readonly number[],
  axis: number,
  block: number,
  where: string,
): Int32Array {
  const misfit = (): NpucError =>
    new NpucError('IR020', { message: `a scale of shape [${scale}] does not fit [${shape}] at axis ${axis}`, where });
  if (elementCount(scale) === 1) return new Int32Array(elementCount(shape));
  const at = normalizeAxis(axis, shape.length, where);
  if (block === 0) {
    if (scale.length !== 1 || scale[0] !== shape[at]) throw misfit();
    return stridedOffsets(
      shape,
      shape.map((_, index) => (index === at ? 1 : 0)),
    );
  }
  const blocks = Math.ceil(shape[at]! / block);
  if (scale.length !== shape.length || scale.some((dim, index) => dim !== (index === at ? blocks : shape[index])))
    throw misfit();
  const strides = stridesOf(scale);
  const offsets = stridedOffsets(
    shape,
    strides.map((stride, index) => (index === at ? 0 : stride)),
  );
  const step = stridesOf(shape)[at]!;
  for (let i = 0; i < offsets.length; i++)
    offsets[i] = offsets[i]! + Math.floor((Math.floor(i / step) % shape[at]!) / block) * strides[at]!;
  return offsets;
}

/** Type of the quantized output: that of the zero point, else the attribute, else u8. */
function quantizedDtype(node: Node, zeroPoint: DType | undefined): DType {
  return zeroPoint ?? (node.int('output_dtype', 0) === 0 ? 'u8' : castTarget(node, 'output_dtype')!);
}

/** y = saturate(roundEven(x / scale) + zeroPoint), the division in f32 as ONNX Runtime does it. */
const quantizeLinear = defineOp({
  name: 'QuantizeLinear',
  since: 10,
  quantization: 'never',
  infer: (context) => [typeOrUnknown(quantizedType(context), context.shape(0))],
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const scale = need(inputs, 1, where);
    const zero = inputs[2];
    const dtype = quantizedDtype(node, zero?.dtype);
    const at = scaleOffsets(x.shape, scale.shape, node.int('axis', 1), node.int('block_size', 0), where);
    const source = readReals(x);
    const scales = readReals(scale);
    const zeros = zero && readReals(zero);
    const divide = divisionFor(node, x.dtype);
    if (isMiniFloat(dtype)) {
      const saturate = node.int('saturate', 1) === 1;
      const data = Uint8Array.from(source, (value, i) =>
        encodeMiniFloat(dtype, divide(value, scales[at[i]!]!) + (zeros ? zeros[at[i]!]! : 0), saturate),
      );
      return [{ dtype, shape: x.shape, data }];
    }
    const [low, high] = limitsOf(dtype);
    const out = newArray(dtype, source.length) as Int32Array;
    for (let i = 0; i < out.length; i++) {
      const ratio = divide(source[i]!, scales[at[i]!]!);
      const whole = (Number.isFinite(ratio) ? roundEven(ratio) : ratio) + (zeros ? zeros[at[i]!]! : 0);
      out[i] = Math.min(high, Math.max(low, whole));
    }
    return [{ dtype, shape: x.shape, data: out }];
  },
});

/** Division rounded to the precision of the op: f32, or f16 where `precision` asks for it; f64 stays. */
function divisionFor(node: Node, dtype: DType): (x: number, y: number) => number {
  const precision = node.int('precision', 0) === 0 ? undefined : castTarget(node, 'precision');
  const kind = precision ?? (dtype === 'f64' ? 'f64' : 'f32');
  if (kind === 'f64') return (x, y) => x / y;
  if (kind === 'f32') return (x, y) => Math.fround(x / y);
  return (x, y) => readReals(encodeReals(kind, [1], [x / y]))[0]!;
}

function quantizedType(context: InferContext): DType | undefined {
  if (context.node.inputs[2]) return inputDtype(context, 2);
  return quantizedDtype(context.node, undefined);
}

/** y = (x - zeroPoint) * scale, of the scale's type unless `output_dtype` names another. */
const dequantizeLinear = defineOp({
  name: 'DequantizeLinear',
  since: 10,
  quantization: 'never',
  infer: (context) => {
    const named = context.node.int('output_dtype', 0) === 0 ? undefined : castTarget(context.node, 'output_dtype');
    return [typeOrUnknown(named ?? inputDtype(context, 1), context.shape(0))];
  },
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const scale = need(inputs, 1, where);
    const at = scaleOffsets(x.shape, scale.shape, node.int('axis', 1), node.int('block_size', 0), where);
    const source = readReals(x);
    const scales = readReals(scale);
    const zeros = inputs[2] && readReals(inputs[2]);
    const dtype = node.int('output_dtype', 0) === 0 ? scale.dtype : castTarget(node, 'output_dtype')!;
    const out = newReals(dtype, source.length);
    for (let i = 0; i < out.length; i++) {
      const k = at[i]!;
      out[i] = (source[i]! - (zeros ? zeros[k]! : 0)) * scales[k]!;
    }
    return [encodeReals(dtype, x.shape, out)];
  },
});

/** u8 with the scale and zero point of the tensor's own range, 0 included. */
const dynamicQuantizeLinear = defineOp({
  name: 'DynamicQuantizeLinear',
  since: 11,
  quantization: 'never',
  infer: (context) => [typeOrUnknown('u8', context.shape(0)), typeOrUnknown('f32', []), typeOrUnknown('u8', [])],
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const source = readReals(x);
    let low = 0;
    let high = 0;
    for (let i = 0; i < source.length; i++) {
      low = Math.min(low, source[i]!);
      high = Math.max(high, source[i]!);
    }
    const scale = Math.fround(Math.fround(high - low) / 255);
    const zero = scale === 0 ? 0 : Math.min(255, Math.max(0, roundEven(Math.fround(-low / scale))));
    const data = Uint8Array.from(source, (value) =>
      scale === 0 ? 0 : Math.min(255, Math.max(0, roundEven(Math.fround(value / scale)) + zero)),
    );
    return [
      { dtype: 'u8', shape: x.shape, data },
      { dtype: 'f32', shape: [], data: Float32Array.of(scale) },
      { dtype: 'u8', shape: [], data: Uint8Array.of(zero) },
    ];
  },
});

export const QUANTIZE_OPS: readonly OpDefinition[] = [quantizeLinear, dequantizeLinear, dynamicQuantizeLinear];

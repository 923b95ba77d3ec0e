import { describe, test } from 'vitest';
import type { TensorData } from '../../../compiler/ir/tensor.ts';
import { expectAgreement, float, int, integers, ints, type NodeCase, noise, text } from './node-case.ts';

/** Ops that the backend suite does not cover, or covers thinly, against ONNX Runtime. */

const boolean = (shape: readonly number[], hold: (index: number) => boolean): TensorData => ({
  dtype: 'bool',
  shape,
  data: Uint8Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => (hold(i) ? 1 : 0)),
});

const i64 = (...values: number[]): TensorData => ({
  dtype: 'i64',
  shape: [values.length],
  data: BigInt64Array.from(values, BigInt),
});

const i32 = (shape: readonly number[], ...values: number[]): TensorData => ({
  dtype: 'i32',
  shape,
  data: Int32Array.from(values),
});

function run(title: string, cases: Readonly<Record<string, NodeCase>>): void {
  describe(title, () => {
    for (const [name, entry] of Object.entries(cases)) test(name, () => expectAgreement(entry));
  });
}

const attention = (extra: Partial<NodeCase> & Pick<NodeCase, 'inputs'>): NodeCase => ({
  op: 'Attention',
  opset: 23,
  ...extra,
});

const [q, k, v] = [noise([2, 4, 3, 8], 1), noise([2, 4, 5, 8], 2), noise([2, 4, 5, 6], 3)];
const [kGrouped, vGrouped] = [noise([2, 2, 3, 8], 4), noise([2, 2, 3, 8], 5)];
const [pastK, pastV] = [noise([2, 2, 4, 8], 6), noise([2, 2, 4, 8], 7)];

run('Attention', {
  'four axes, value size of its own': attention({ inputs: [q, k, v] }),
  'three axes': attention({
    inputs: [noise([2, 3, 32], 1), noise([2, 5, 32], 2), noise([2, 5, 24], 3)],
    attributes: { q_num_heads: int(4), kv_num_heads: int(4) },
  }),
  'grouped heads with past and present': attention({
    inputs: [q, kGrouped, vGrouped, undefined, pastK, pastV],
    outputs: 3,
  }),
  'causal without past': attention({
    inputs: [q, noise([2, 4, 3, 8], 8), noise([2, 4, 3, 8], 9)],
    attributes: { is_causal: int(1) },
  }),
  'grouped heads, past, additive mask': attention({
    inputs: [q, kGrouped, vGrouped, noise([3, 7], 10), pastK, pastV],
    outputs: 3,
  }),
  'boolean mask per batch': attention({ inputs: [q, k, v, boolean([2, 1, 3, 5], (i) => i % 3 !== 1)] }),
  'a row that is masked from end to end': attention({
    inputs: [q, k, v, boolean([3, 5], (i) => i >= 5)],
  }),
  'scale and softcap': attention({ inputs: [q, k, v], attributes: { scale: float(0.7), softcap: float(2) } }),
  'scores after softmax': attention({
    inputs: [q, k, v, noise([3, 5], 11)],
    outputs: 4,
    attributes: { qk_matmul_output_mode: int(3) },
  }),
});

const [cos, sin] = [noise([16, 4], 20), noise([16, 4], 21)];

run('RotaryEmbedding', {
  'position ids, four axes': {
    op: 'RotaryEmbedding',
    opset: 23,
    inputs: [q, cos, sin, { ...i64(0, 1, 2, 7, 8, 15), shape: [2, 3] }],
  },
  'tables per token, three axes': {
    op: 'RotaryEmbedding',
    opset: 23,
    inputs: [noise([2, 3, 32], 1), noise([2, 3, 4], 20), noise([2, 3, 4], 21)],
    attributes: { num_heads: int(4) },
  },
  interleaved: {
    op: 'RotaryEmbedding',
    opset: 23,
    inputs: [q, cos, sin, { ...i64(0, 1, 2, 3, 4, 5), shape: [2, 3] }],
    attributes: { interleaved: int(1) },
  },
  'part of the head': {
    op: 'RotaryEmbedding',
    opset: 23,
    inputs: [q, noise([16, 2], 20), noise([16, 2], 21), { ...i64(0, 1, 2, 3, 4, 5), shape: [2, 3] }],
    attributes: { rotary_embedding_dim: int(4) },
  },
  'com.microsoft, one first position': {
    op: 'RotaryEmbedding',
    domain: 'com.microsoft',
    inputs: [noise([2, 3, 32], 1), i64(5), cos, sin],
  },
  'com.microsoft, position ids': {
    op: 'RotaryEmbedding',
    domain: 'com.microsoft',
    inputs: [q, { ...i64(3, 4, 5, 1, 2, 3), shape: [2, 3] }, cos, sin],
  },
});

const [x, gain, shift] = [noise([2, 3, 16], 30), noise([16], 31), noise([16], 32)];

run('normalizations', {
  RMSNormalization: { op: 'RMSNormalization', opset: 23, inputs: [x, gain] },
  'RMSNormalization over two axes': {
    op: 'RMSNormalization',
    opset: 23,
    inputs: [x, noise([3, 16], 33)],
    attributes: { axis: int(1) },
  },
  SimplifiedLayerNormalization: {
    op: 'SimplifiedLayerNormalization',
    inputs: [x, gain],
    attributes: { epsilon: float(1e-6) },
  },
  SkipSimplifiedLayerNormalization: {
    op: 'SkipSimplifiedLayerNormalization',
    domain: 'com.microsoft',
    inputs: [x, noise([2, 3, 16], 34), gain],
    attributes: { epsilon: float(1e-5) },
  },
  'SkipLayerNormalization with bias': {
    op: 'SkipLayerNormalization',
    domain: 'com.microsoft',
    inputs: [x, noise([2, 3, 16], 34), gain, shift, noise([16], 35)],
    attributes: { epsilon: float(1e-5) },
  },
  'LayerNormalization with statistics': { op: 'LayerNormalization', opset: 17, inputs: [x, gain, shift], outputs: 3 },
  LRN: {
    op: 'LRN',
    opset: 13,
    inputs: [noise([2, 6, 4, 4], 36)],
    attributes: { size: int(5), bias: float(1.5), alpha: float(0.3) },
  },
  MeanVarianceNormalization: { op: 'MeanVarianceNormalization', opset: 13, inputs: [noise([2, 3, 4, 4], 37)] },
});

const packed: TensorData = { dtype: 'u8', shape: [6, 2, 16], data: integers('u8', [6, 2, 16], 0, 255).data };

run('com.microsoft', {
  FusedMatMul: {
    op: 'FusedMatMul',
    domain: 'com.microsoft',
    inputs: [noise([2, 5, 3], 40), noise([2, 4, 5], 41)],
    attributes: { transA: int(1), transB: int(1), alpha: float(0.5) },
  },
  Gelu: { op: 'Gelu', domain: 'com.microsoft', inputs: [x] },
  BiasGelu: { op: 'BiasGelu', domain: 'com.microsoft', inputs: [x, shift] },
  FastGelu: { op: 'FastGelu', domain: 'com.microsoft', inputs: [x, shift] },
  QuickGelu: { op: 'QuickGelu', domain: 'com.microsoft', inputs: [x] },
  MatMulNBits: {
    op: 'MatMulNBits',
    domain: 'com.microsoft',
    inputs: [noise([3, 64], 42), packed, noise([12], 43)],
    attributes: { K: int(64), N: int(6), bits: int(4), block_size: int(32) },
    tolerance: { relative: 1e-4, absolute: 1e-4 },
  },
  'MatMulNBits with zero points': {
    op: 'MatMulNBits',
    domain: 'com.microsoft',
    inputs: [noise([3, 64], 42), packed, noise([12], 43), integers('u8', [6], 0, 255)],
    attributes: { K: int(64), N: int(6), bits: int(4), block_size: int(32) },
    tolerance: { relative: 1e-4, absolute: 1e-4 },
  },
  'QuantizeLinear to 16 bits': {
    op: 'QuantizeLinear',
    domain: 'com.microsoft',
    inputs: [
      x,
      { dtype: 'f32', shape: [], data: Float32Array.of(3e-5) },
      { dtype: 'u16', shape: [], data: Uint16Array.of(32768) },
    ],
  },
});

const grouped = (extra: Partial<NodeCase> & Pick<NodeCase, 'inputs'>): NodeCase => ({
  op: 'GroupQueryAttention',
  domain: 'com.microsoft',
  outputs: 3,
  ...extra,
  attributes: { num_heads: int(4), kv_num_heads: int(2), ...extra.attributes },
});

run('GroupQueryAttention', {
  prompt: grouped({
    inputs: [
      noise([2, 3, 32], 50),
      noise([2, 3, 16], 51),
      noise([2, 3, 16], 52),
      undefined,
      undefined,
      i32([2], 2, 2),
      i32([], 3),
    ],
  }),
  'one token behind a past': grouped({
    inputs: [
      noise([2, 1, 32], 50),
      noise([2, 1, 16], 51),
      noise([2, 1, 16], 52),
      pastK,
      pastV,
      i32([2], 4, 4),
      i32([], 5),
    ],
  }),
  'packed, with rotary embedding': grouped({
    inputs: [
      noise([1, 3, 128], 50),
      undefined,
      undefined,
      undefined,
      undefined,
      i32([1], 2),
      i32([], 3),
      noise([16, 8], 20),
      noise([16, 8], 21),
    ],
    attributes: { do_rotary: int(1) },
  }),
  window: grouped({
    inputs: [
      noise([1, 6, 32], 50),
      noise([1, 6, 16], 51),
      noise([1, 6, 16], 52),
      undefined,
      undefined,
      i32([1], 5),
      i32([], 6),
    ],
    attributes: { local_window_size: int(2) },
  }),
});

run('other ops', {
  MatMulInteger: {
    op: 'MatMulInteger',
    opset: 13,
    inputs: [
      integers('u8', [3, 5], 0, 255),
      integers('i8', [5, 4], -128, 127),
      { dtype: 'u8', shape: [], data: Uint8Array.of(120) },
    ],
  },
  NonZero: { op: 'NonZero', opset: 13, inputs: [integers('i32', [3, 4], -1, 1)] },
  Sign: { op: 'Sign', opset: 13, inputs: [integers('i32', [3, 4], -3, 3)] },
  GlobalLpPool: { op: 'GlobalLpPool', opset: 13, inputs: [noise([2, 3, 4, 4], 60)], attributes: { p: int(3) } },
  BlackmanWindow: {
    op: 'BlackmanWindow',
    opset: 17,
    inputs: [{ dtype: 'i64', shape: [], data: BigInt64Array.of(9n) }],
  },
  'Gemm, both transposed': {
    op: 'Gemm',
    opset: 13,
    inputs: [noise([5, 3], 61), noise([4, 5], 62), noise([4], 63)],
    attributes: { transA: int(1), transB: int(1), alpha: float(0.5), beta: float(2) },
  },
  'Conv, groups and dilation': {
    op: 'Conv',
    opset: 11,
    inputs: [noise([2, 4, 9, 8], 64), noise([6, 2, 3, 2], 65), noise([6], 66)],
    attributes: { group: int(2), dilations: ints(2, 1), strides: ints(1, 2), pads: ints(1, 0, 2, 1) },
  },
  'Conv, SAME_LOWER': {
    op: 'Conv',
    opset: 11,
    inputs: [noise([1, 3, 7, 6], 67), noise([4, 3, 4, 3], 68)],
    attributes: { auto_pad: text('SAME_LOWER'), strides: ints(2, 2) },
  },
  'ConvTranspose, groups and output padding': {
    op: 'ConvTranspose',
    opset: 11,
    inputs: [noise([1, 4, 5, 4], 69), noise([4, 3, 3, 2], 70), noise([6], 71)],
    attributes: { group: int(2), strides: ints(2, 3), pads: ints(1, 0, 1, 1), output_padding: ints(1, 0) },
  },
  'AveragePool, ceil mode with pads': {
    op: 'AveragePool',
    opset: 19,
    inputs: [noise([1, 2, 7, 6], 72)],
    attributes: {
      kernel_shape: ints(3, 2),
      strides: ints(2, 2),
      pads: ints(1, 0, 1, 1),
      ceil_mode: int(1),
      count_include_pad: int(1),
    },
  },
  'LSTM, bidirectional with peepholes': {
    op: 'LSTM',
    opset: 14,
    outputs: 3,
    inputs: [
      noise([4, 2, 3], 80),
      noise([2, 20, 3], 81),
      noise([2, 20, 5], 82),
      noise([2, 40], 83),
      i32([2], 4, 3),
      noise([2, 2, 5], 84),
      noise([2, 2, 5], 85),
      noise([2, 15], 86),
    ],
    attributes: { hidden_size: int(5), direction: text('bidirectional') },
  },
  'GRU, reset after the product': {
    op: 'GRU',
    opset: 14,
    outputs: 2,
    inputs: [noise([4, 2, 3], 87), noise([1, 15, 3], 88), noise([1, 15, 5], 89), noise([1, 30], 90)],
    attributes: { hidden_size: int(5), linear_before_reset: int(1), direction: text('reverse') },
  },
  'Resize, cubic with antialias': {
    op: 'Resize',
    opset: 18,
    inputs: [noise([1, 2, 9, 7], 91), undefined, undefined, i64(1, 2, 4, 5)],
    attributes: { mode: text('cubic'), antialias: int(1) },
  },
  'Resize, linear up': {
    op: 'Resize',
    opset: 13,
    inputs: [noise([1, 2, 3, 4], 92), undefined, { dtype: 'f32', shape: [4], data: Float32Array.of(1, 1, 2, 2.5) }],
    attributes: { mode: text('linear'), coordinate_transformation_mode: text('pytorch_half_pixel') },
  },
});

import type { TfliteModel, TfliteOperator, TfliteQuantization, TfliteSubgraph } from '../../../targets/tflite/model.ts';
import type { BufferBytes } from '../../../targets/tflite/schema.ts';
import { BuiltinOperator, TensorType, type TensorTypeCode } from '../../../targets/tflite/schema-enums.ts';

/** Input channels, output channels and the two token counts of the models below. */
export const K = 8;
export const N = 4;
export const TOKENS = { prefill_4: 4, decode: 1 } as const;

/** The scales of the quantized models; powers of two, so that the fixed-point arithmetic of the kernels is exact. */
export const SCALES = { input: 2 ** -12, weight: 2 ** -6, output: 2 ** -10 } as const;

/** Numbers in [-1, 1) from a seed; the same on every machine. */
export function seededNumbers(seed: number, count: number): number[] {
  let state = seed >>> 0;
  return Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

/** Weights as integers of the given width, row-major [N, K]. */
export function integerWeights(bits: 4 | 8): number[] {
  const limit = 2 ** (bits - 1) - 1;
  return seededNumbers(7, N * K).map((value) => Math.trunc(value * limit));
}

/** Two int4 a byte, the first in the low nibble. */
export function packInt4(values: readonly number[]): Uint8Array {
  const packed = new Uint8Array(Math.ceil(values.length / 2));
  values.forEach((value, i) => {
    packed[i >> 1]! |= (value & 15) << (4 * (i & 1));
  });
  return packed;
}

export type TinyKind = 'f32' | 'a16w8' | 'a16w4' | 'a16w8-io';

/**
 * y = x W^T + b as two signatures, `prefill_4` on [4, K] and `decode` on [1, K], whose weight tensors name the same
 * buffers. The a16 kinds have int16 activations between float ports; `a16w8-io` has int16 ports.
 */
export function twoSignatures(kind: TinyKind): TfliteModel {
  const float = kind === 'f32';
  const bits = kind === 'a16w4' ? 4 : 8;
  const weights = integerWeights(bits);
  const bias = seededNumbers(9, N).map((value) => Math.trunc(value * 1000));
  const buffers: (BufferBytes | undefined)[] = [undefined];
  const buffer = (data: ArrayBufferView): number =>
    buffers.push(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)) - 1;
  const constants = float
    ? { weight: buffer(Float32Array.from(weights)), bias: buffer(Float32Array.from(bias)) }
    : {
        weight: buffer(bits === 4 ? packInt4(weights) : Int8Array.from(weights)),
        bias: buffer(BigInt64Array.from(bias, BigInt)),
      };
  const subgraphs = Object.entries(TOKENS).map(([name, tokens]) => subgraph(name, tokens, kind, constants));
  const min = buffer(new TextEncoder().encode('1.14.0'));
  return {
    version: 3,
    description: `tiny ${kind}`,
    subgraphs,
    buffers,
    signatures: subgraphs.map((graph, i) => ({
      key: graph.name!,
      subgraph: i,
      inputs: [{ name: 'x', tensor: graph.inputs[0]! }],
      outputs: [{ name: 'y', tensor: graph.outputs[0]! }],
    })),
    metadata: [{ name: 'min_runtime_version', buffer: min }],
  };
}

function subgraph(
  name: string,
  tokens: number,
  kind: TinyKind,
  constants: { weight: number; bias: number },
): TfliteSubgraph {
  const graph: TfliteSubgraph = { name, tensors: [], inputs: [], outputs: [], operators: [] };
  const tensor = (
    label: string,
    type: TensorTypeCode,
    shape: readonly number[],
    buffer = 0,
    quantization?: TfliteQuantization,
  ): number =>
    graph.tensors.push({ name: `${name}/${label}`, type, shape, buffer, ...(quantization && { quantization }) }) - 1;
  const operator = (code: number, version: number, inputs: number[], output: number, rest: Partial<TfliteOperator>) => {
    graph.operators.push({ code, version, inputs, outputs: [output], ...rest });
  };
  const fullyConnected = { options: { kind: 'FullyConnectedOptions', keepNumDims: true } } as const;
  const { FLOAT32, INT16, INT8, INT4, INT64 } = TensorType;
  if (kind === 'f32') {
    const x = tensor('x', FLOAT32, [tokens, K]);
    const w = tensor('w', FLOAT32, [N, K], constants.weight);
    const b = tensor('b', FLOAT32, [N], constants.bias);
    const y = tensor('y', FLOAT32, [tokens, N]);
    operator(BuiltinOperator.FULLY_CONNECTED, 1, [x, w, b], y, fullyConnected);
    return { ...graph, inputs: [x], outputs: [y] };
  }
  const one = (scale: number): TfliteQuantization => ({ scale: [scale], zeroPoint: [0] });
  const perChannel = (scale: number): TfliteQuantization => ({
    scale: new Float32Array(N).fill(scale),
    zeroPoint: new Float64Array(N),
  });
  const xq = tensor('xq', INT16, [tokens, K], 0, one(SCALES.input));
  const w = tensor('w', kind === 'a16w4' ? INT4 : INT8, [N, K], constants.weight, perChannel(SCALES.weight));
  const b = tensor('b', INT64, [N], constants.bias, perChannel(SCALES.input * SCALES.weight));
  const yq = tensor('yq', INT16, [tokens, N], 0, one(SCALES.output));
  if (kind === 'a16w8-io') {
    operator(BuiltinOperator.FULLY_CONNECTED, 9, [xq, w, b], yq, fullyConnected);
    return { ...graph, inputs: [xq], outputs: [yq] };
  }
  const x = tensor('x', FLOAT32, [tokens, K]);
  const y = tensor('y', FLOAT32, [tokens, N]);
  operator(BuiltinOperator.QUANTIZE, 2, [x], xq, { options: { kind: 'QuantizeOptions' } });
  operator(BuiltinOperator.FULLY_CONNECTED, kind === 'a16w4' ? 13 : 9, [xq, w, b], yq, fullyConnected);
  operator(BuiltinOperator.DEQUANTIZE, 3, [yq], y, { options: { kind: 'DequantizeOptions' } });
  return { ...graph, inputs: [x], outputs: [y] };
}

/** What the model must compute, in plain loops: integers for `x` and the result of the a16 kinds. */
export function expected(kind: TinyKind, x: ArrayLike<number>, tokens: number): number[] {
  const weights = integerWeights(kind === 'a16w4' ? 4 : 8);
  const bias = seededNumbers(9, N).map((value) => Math.trunc(value * 1000));
  const result: number[] = [];
  for (let t = 0; t < tokens; t++) {
    for (let n = 0; n < N; n++) {
      let sum = bias[n]!;
      for (let k = 0; k < K; k++) sum += x[t * K + k]! * weights[n * K + k]!;
      const scaled = kind === 'f32' ? sum : (sum * SCALES.input * SCALES.weight) / SCALES.output;
      result.push(scaled);
    }
  }
  return result;
}

import { writeFileSync } from 'node:fs';
import protobuf from 'protobufjs/minimal.js';
import { DTYPES, type DType } from '../../../compiler/ir/dtype.ts';
import { packSubByte } from '../../../compiler/ir/tensor.ts';

/**
 * Writes small ONNX models for tests of the native runtime, independent of the project's own exporter. Field numbers are
 * those of onnx.proto.
 */
export interface TinyTensor {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** One element an entry, 4-bit types too. */
  readonly data: ArrayLike<number>;
  /** The file, relative to the model's folder, that holds the bytes; the caller writes `rawBytes` there, from byte 0. */
  readonly external?: string;
}

export interface TinyNode {
  readonly op: string;
  readonly name?: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly ints?: Readonly<Record<string, number>>;
}

export interface TinyPort {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
}

export interface TinyModel {
  readonly inputs: readonly TinyPort[];
  readonly outputs: readonly TinyPort[];
  readonly nodes: readonly TinyNode[];
  readonly weights: readonly TinyTensor[];
}

const IR_VERSION = 10;
const OPSET = 21;
const INT_ATTRIBUTE = 2;
const EXTERNAL = 1;

type Write = (writer: protobuf.Writer) => void;

function message(writer: protobuf.Writer, field: number, write: Write): void {
  writer.uint32((field << 3) | 2).fork();
  write(writer);
  writer.ldelim();
}

const integer = (writer: protobuf.Writer, field: number, value: number) => writer.uint32(field << 3).int64(value);
const text = (writer: protobuf.Writer, field: number, value: string) => writer.uint32((field << 3) | 2).string(value);

/** Elements as ONNX stores them. */
export function rawBytes(tensor: TinyTensor): Uint8Array {
  const { bits, array } = DTYPES[tensor.dtype];
  const width = Math.max(bits, 8) / 8;
  const elements = new array(new ArrayBuffer(tensor.data.length * width), 0, tensor.data.length) as Float32Array;
  const wide = bits === 64 && tensor.dtype !== 'f64';
  for (let i = 0; i < tensor.data.length; i++)
    elements[i] = (wide ? BigInt(tensor.data[i]!) : tensor.data[i]!) as number;
  if (bits < 8) return packSubByte(elements as unknown as Int8Array, bits);
  return new Uint8Array(elements.buffer as ArrayBuffer);
}

function writePort(port: TinyPort): Write {
  return (writer) => {
    text(writer, 1, port.name);
    message(writer, 2, (type) =>
      message(type, 1, (tensor) => {
        integer(tensor, 1, DTYPES[port.dtype].code);
        message(tensor, 2, (shape) => {
          for (const dim of port.shape)
            message(shape, 1, (entry) => (dim < 0 ? text(entry, 2, 'n') : integer(entry, 1, dim)));
        });
      }),
    );
  };
}

/** The model's bytes. */
export function encodeModel(model: TinyModel): Uint8Array {
  const writer = protobuf.Writer.create();
  integer(writer, 1, IR_VERSION);
  message(writer, 7, (graph) => {
    for (const node of model.nodes)
      message(graph, 1, (entry) => {
        for (const input of node.inputs) text(entry, 1, input);
        for (const output of node.outputs) text(entry, 2, output);
        text(entry, 3, node.name ?? '');
        text(entry, 4, node.op);
        for (const [name, value] of Object.entries(node.ints ?? {}))
          message(entry, 5, (attribute) => {
            text(attribute, 1, name);
            integer(attribute, 3, value);
            integer(attribute, 20, INT_ATTRIBUTE);
          });
      });
    text(graph, 2, 'tiny');
    for (const weight of model.weights)
      message(graph, 5, (entry) => {
        for (const dim of weight.shape) integer(entry, 1, dim);
        integer(entry, 2, DTYPES[weight.dtype].code);
        text(entry, 8, weight.name);
        if (weight.external === undefined) {
          entry.uint32((9 << 3) | 2).bytes(rawBytes(weight));
          return;
        }
        const file = weight.external;
        const place = { location: file, offset: '0', length: String(rawBytes(weight).length) };
        for (const [key, value] of Object.entries(place))
          message(entry, 13, (pair) => {
            text(pair, 1, key);
            text(pair, 2, value);
          });
        integer(entry, 14, EXTERNAL);
      });
    for (const port of model.inputs) message(graph, 11, writePort(port));
    for (const port of model.outputs) message(graph, 12, writePort(port));
  });
  message(writer, 8, (opset) => {
    text(opset, 1, '');
    integer(opset, 2, OPSET);
  });
  return writer.finish();
}

export function writeModel(path: string, model: TinyModel): string {
  writeFileSync(path, encodeModel(model));
  return path;
}

/** Numbers in [-1, 1) from a seed, the same everywhere (mulberry32). */
export function noise(count: number, seed: number): Float32Array {
  let state = seed;
  return Float32Array.from({ length: count }, () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 31 - 1;
  });
}

/** QuantizeLinear and DequantizeLinear around a value: `x` -> `x_dq`. */
export function qdq(value: string, dtype: DType, scale: number, zero: number): Pick<TinyModel, 'nodes' | 'weights'> {
  const parameters = [`${value}_scale`, `${value}_zero`];
  return {
    nodes: [
      { op: 'QuantizeLinear', name: `${value}_Q`, inputs: [value, ...parameters], outputs: [`${value}_q`] },
      { op: 'DequantizeLinear', name: `${value}_DQ`, inputs: [`${value}_q`, ...parameters], outputs: [`${value}_dq`] },
    ],
    weights: [
      { name: parameters[0]!, dtype: 'f32', shape: [], data: [scale] },
      { name: parameters[1]!, dtype, shape: [], data: [zero] },
    ],
  };
}

const ACTIVATION = { scale: 4 / 65535, zero: 32768 };

/** A 16-bit MatMul [1, rows, K] x [K, N] whose weight comes from `dequantize`, output range +-8. */
function matmul(rows: number, k: number, n: number, dequantize: Pick<TinyModel, 'nodes' | 'weights'>): TinyModel {
  const input = qdq('x', 'u16', ACTIVATION.scale, ACTIVATION.zero);
  const output = qdq('y', 'u16', 4 * ACTIVATION.scale, ACTIVATION.zero);
  return {
    inputs: [{ name: 'x', dtype: 'f32', shape: [1, rows, k] }],
    outputs: [{ name: 'y_dq', dtype: 'f32', shape: [1, rows, n] }],
    nodes: [
      ...input.nodes,
      ...dequantize.nodes,
      { op: 'MatMul', name: 'the_matmul', inputs: ['x_dq', 'w_dq'], outputs: ['y'] },
      ...output.nodes,
    ],
    weights: [...input.weights, ...output.weights, ...dequantize.weights],
  };
}

/**
 * LPBQ in the form that HTP runs as a native integer MatMul: int4 weights, integer block scales 1..15 times a float
 * scale per channel. `rows` is the token count; the weights depend on the seed alone.
 */
export function lpbqMatmul(rows: number, k = 128, n = 64, block = 32, seed = 1): TinyModel {
  const blocks = k / block;
  const weight = Array.from(noise(k * n, seed), (value) => Math.max(-8, Math.min(7, Math.floor(value * 8))));
  const blockScale = Array.from(noise(blocks * n, seed + 1), (value) => 8 + Math.floor(value * 7.9));
  return matmul(rows, k, n, {
    nodes: [
      {
        op: 'DequantizeLinear',
        name: 'scale_DQ',
        inputs: ['block_scale', 'channel_scale', 'scale_zero'],
        outputs: ['scale'],
        ints: { axis: 1 },
      },
      {
        op: 'DequantizeLinear',
        name: 'w_DQ',
        inputs: ['w', 'scale', 'w_zero'],
        outputs: ['w_dq'],
        ints: { axis: 0, block_size: block },
      },
    ],
    weights: [
      { name: 'w', dtype: 'i4', shape: [k, n], data: weight },
      { name: 'block_scale', dtype: 'u8', shape: [blocks, n], data: blockScale },
      {
        name: 'channel_scale',
        dtype: 'f32',
        shape: [n],
        data: Array.from(noise(n, seed + 2), (v) => 0.002 + v / 1000),
      },
      { name: 'scale_zero', dtype: 'u8', shape: [n], data: new Uint8Array(n) },
      { name: 'w_zero', dtype: 'i4', shape: [blocks, n], data: new Int8Array(blocks * n) },
    ],
  });
}

/** int4 or int8 weights with one float scale per output channel. */
export function perChannelMatmul(rows: number, dtype: 'i4' | 'i8', k = 128, n = 64): TinyModel {
  const top = dtype === 'i4' ? 8 : 128;
  return matmul(rows, k, n, {
    nodes: [
      {
        op: 'DequantizeLinear',
        name: 'w_DQ',
        inputs: ['w', 'w_scale', 'w_zero'],
        outputs: ['w_dq'],
        ints: { axis: 1 },
      },
    ],
    weights: [
      { name: 'w', dtype, shape: [k, n], data: Array.from(noise(k * n, 3), (v) => Math.floor(v * top)) },
      { name: 'w_scale', dtype: 'f32', shape: [n], data: Array.from(noise(n, 4), (v) => (0.15 + v / 20) / top) },
      { name: 'w_zero', dtype, shape: [n], data: new Int8Array(n) },
    ],
  });
}

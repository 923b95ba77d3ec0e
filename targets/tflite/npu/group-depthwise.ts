import type { TfliteModel, TfliteOperator, TfliteSubgraph } from '../model.ts';
import type { BufferBytes } from '../schema.ts';
import { BuiltinOperator, TensorType } from '../schema-enums.ts';
import { readBuffer } from './read-buffer.ts';

/** The version of CONV_2D that has groups (LiteRT's op_version.cc). */
const GROUPED = 6;

/**
 * Depthwise convolutions of 16-bit activations as convolutions with a group a channel: Qualcomm's plugin takes no 16-bit
 * DEPTHWISE_CONV_2D, whose bias has 64 bits, and narrows that of CONV_2D (measured: ultraface at w8a16 had 19 partitions, and
 * has one).
 *
 *     DEPTHWISE_CONV_2D(x, [1,h,w,n]) -> CONV_2D(x, [n,h,w,1])
 *
 * The arithmetic is the same, integer by integer. One with a bias that 32 bits do not hold stays as it is: the plugin would
 * claim it, and fail.
 */
export function groupDepthwise(model: TfliteModel): TfliteModel {
  const buffers = [...model.buffers];
  const subgraphs = model.subgraphs.map((graph): TfliteSubgraph => {
    const tensors = [...graph.tensors];
    const regroup = (operator: TfliteOperator): TfliteOperator => {
      const [input, weight, ...bias] = operator.inputs;
      const filter = tensors[weight ?? -1];
      if (operator.code !== BuiltinOperator.DEPTHWISE_CONV_2D || tensors[input!]?.type !== TensorType.INT16)
        return operator;
      const { options } = operator;
      const bytes = filter && buffers[filter.buffer];
      if (!filter || !bytes || filter.type !== TensorType.INT8 || options?.kind !== 'DepthwiseConv2DOptions')
        return operator;
      const sums = buffers[tensors[bias[0] ?? -1]?.buffer ?? 0];
      if (sums && !fitsNarrowBias(sums)) return operator;
      const [, height, width, channels] = filter.shape as [number, number, number, number];
      const turned = buffers.push(byChannel(bytes, height * width, channels)) - 1;
      const grouped =
        tensors.push({
          ...filter,
          name: `${filter.name}.grouped`,
          shape: [channels, height, width, 1],
          buffer: turned,
          ...(filter.quantization ? { quantization: { ...filter.quantization, quantizedDimension: 0 } } : {}),
        }) - 1;
      const { padding, strideW, strideH, dilationWFactor, dilationHFactor, fusedActivationFunction } = options;
      return {
        ...operator,
        code: BuiltinOperator.CONV_2D,
        version: Math.max(GROUPED, operator.version),
        inputs: [input!, grouped, ...bias],
        options: {
          kind: 'Conv2DOptions',
          padding,
          strideW,
          strideH,
          dilationWFactor,
          dilationHFactor,
          fusedActivationFunction,
        },
      };
    };
    const operators = graph.operators.map(regroup);
    return { ...graph, tensors, operators };
  });
  return { ...model, subgraphs, buffers };
}

/** The transpose of [taps, channels] bytes, made when it is written. */
function byChannel(source: BufferBytes, taps: number, channels: number): BufferBytes {
  return {
    byteLength: source.byteLength,
    write: (sink) => {
      const bytes = readBuffer(source);
      sink(Uint8Array.from(bytes, (_, i) => bytes[(i % taps) * channels + Math.floor(i / taps)]!));
    },
  };
}

/** Whether 32 bits hold every one of some 64-bit integers. */
function fitsNarrowBias(source: BufferBytes): boolean {
  const bytes = readBuffer(source);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Array.from({ length: bytes.byteLength / 8 }, (_, i) => Number(view.getBigInt64(8 * i, true))).every(
    (sum) => sum === Math.max(-(2 ** 31), Math.min(2 ** 31 - 1, sum)),
  );
}

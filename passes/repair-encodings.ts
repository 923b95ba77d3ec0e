import { type Encoding, encodingForm, integerRange, symmetricEncoding } from '../compiler/ir/encoding.ts';
import type { Graph, Node, Value } from '../compiler/ir/graph.ts';
import type { Pass } from '../compiler/pass.ts';
import { insertConversion } from './insert-conversions.ts';

/**
 *     w : q(i4, scale s)                          ->   w : q(i4, axis, scale [s, s, ..])
 *     MatMul(a : q(u16), b : q(u16))              ->   MatMul(a, Identity(b) : q(i16))
 *
 * The same integers, or as many steps, in the form that HTP computes rightly (facts qnn-htp): 4-bit weights with one scale
 * for all come out at -10 dB, and of two unsigned 16-bit operands it rounds the right one to 8 bits.
 */
export const repairEncodings: Pass = {
  name: 'repair-encodings',
  about: '4-bit weights get a scale per channel, right operands of 16-bit products become signed',
  run: (graph) => {
    let changed = false;
    for (const node of [...graph.nodes]) {
      if (spreadScale(node)) changed = true;
      if (signRightOperand(graph, node)) changed = true;
    }
    return changed;
  },
};

/** Output channels of a weight by its reader. */
function channelAxis(node: Node, weight: Value): number | undefined {
  if (node.op === 'MatMul') return weight.shape.length - 1;
  if (node.op === 'Gemm') return node.int('transB', 0) === 1 ? 0 : 1;
  return node.op === 'Conv' ? 0 : undefined;
}

function spreadScale(node: Node): boolean {
  const weight = node.inputs[1];
  const { encoding } = weight ?? {};
  if (!weight?.data || !encoding || !/4/.test(encoding.dtype) || encodingForm(encoding) !== 'tensor') return false;
  const axis = channelAxis(node, weight);
  if (axis === undefined) return false;
  const count = weight.dims[axis]!;
  const spread = (array: ArrayLike<number>): number[] => new Array<number>(count).fill(array[0]!);
  weight.encoding = {
    dtype: encoding.dtype,
    axis,
    scale: Float32Array.from(spread(encoding.scale)),
    ...(encoding.zeroPoint ? { zeroPoint: Int32Array.from(spread(encoding.zeroPoint)) } : {}),
  };
  return true;
}

function signRightOperand(graph: Graph, node: Node): boolean {
  if (node.op !== 'MatMul') return false;
  const right = node.input(1);
  if (right.data || node.input(0).encoding?.dtype !== 'u16' || right.encoding?.dtype !== 'u16') return false;
  const converted = insertConversion(graph, right, 'right', [{ node, index: 1 }]);
  converted.encoding = symmetricEncoding('i16', largest(right.encoding));
  return true;
}

/** The largest magnitude that an encoding reaches. */
function largest({ dtype, scale, zeroPoint }: Encoding): number {
  const zero = zeroPoint?.[0] ?? 0;
  return Math.max(...integerRange(dtype).map((integer) => Math.abs(integer - zero))) * scale[0]!;
}

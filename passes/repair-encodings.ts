import { type Encoding, integerRange, symmetricEncoding } from '../compiler/ir/encoding.ts';
import type { Graph, Node } from '../compiler/ir/graph.ts';
import type { Pass } from '../compiler/pass.ts';
import { insertConversion } from './insert-conversions.ts';

/**
 *     MatMul(a : q(u16), b : q(u16))   ->   MatMul(a, Identity(b) : q(i16))
 *
 * Of two unsigned 16-bit operands HTP rounds the right one to 8 bits; a signed symmetric one it takes as it is.
 */
export const repairEncodings: Pass = {
  name: 'repair-encodings',
  about: 'right operands of 16-bit products become signed',
  run: (graph) => {
    let changed = false;
    for (const node of [...graph.nodes]) if (signRightOperand(graph, node)) changed = true;
    return changed;
  },
};

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

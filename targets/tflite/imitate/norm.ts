import { intAttribute, type Node, type Value } from '../../../compiler/ir/graph.ts';
import type { Arithmetic } from './arithmetic.ts';

/**
 * The body of the composite `odml.rms_norm` (lower-norm.ts), step by step. Of integers the mean is taken in 64 bits, nearer to
 * any order of sums that a kernel may have than another order of 32-bit ones.
 */
export function imitateRmsNorm(node: Node, math: Arithmetic): Value {
  const [x, gain] = [node.input(0), node.input(1)];
  const squares = math.op('Mul', [x, x]);
  const axes = math.constant('i64', [1], [-1]);
  const meanOf = (value: Value): Value => math.op('ReduceMean', [value, axes], { keepdims: intAttribute(1) });
  const mean = x.encoding ? math.cast(meanOf(math.cast(squares, 'f64')), 'f32') : meanOf(squares);
  const epsilon = math.constant('f32', [], [node.float('epsilon', 1e-5)]);
  const root = math.op('Reciprocal', [math.op('Sqrt', [math.op('Add', [mean, epsilon])])]);
  return math.op('Mul', [math.op('Mul', [x, root]), gain]);
}

import { intAttribute, type Node, type Value } from '../../../compiler/ir/graph.ts';
import type { Arithmetic } from './arithmetic.ts';
import { imitateQuantize } from './fixed-point.ts';

/** Elements that the delegate sums at a time: four vectors of four. */
const [VECTORS, LANES] = [4, 4];

/** The body of the composite `odml.rms_norm` (lower-norm.ts), step by step. */
export function imitateRmsNorm(node: Node, math: Arithmetic): Value {
  const [x, gain] = [node.input(0), node.input(1)];
  const squares = math.op('Mul', [x, x]);
  const mean = x.encoding && x.dims.at(-1)! % (VECTORS * LANES) === 0 ? meanInOrder(squares, x.dims, math) : mean32();
  const epsilon = math.constant('f32', [], [node.float('epsilon', 1e-5)]);
  const root = math.op('Reciprocal', [math.op('Sqrt', [math.op('Add', [mean, epsilon])])]);
  const normed = math.op('Mul', [math.op('Mul', [x, root]), gain]);
  const { encoding } = node.output();
  return encoding ? imitateQuantize(normed, encoding, math) : normed;

  function mean32(): Value {
    return math.op('ReduceMean', [squares, math.constant('i64', [1], [-1])], { keepdims: intAttribute(1) });
  }
}

/**
 * The mean of the last axis with the roundings of XNNPACK's f32-rsum for WebAssembly: four sums of vectors, then those in
 * pairs with the next but one, then the lanes likewise, times 1 / count (measured: no other order gives all the bits).
 */
function meanInOrder(values: Value, dims: readonly number[], math: Arithmetic): Value {
  const count = dims.at(-1)!;
  const steps = count / (VECTORS * LANES);
  const rows = dims.slice(0, -1);
  const shape = (...tail: number[]): Value => math.constant('i64', [rows.length + tail.length], [...rows, ...tail]);
  const axis = intAttribute(-1);
  const pick = (value: Value, index: number, at = axis): Value =>
    math.op('Gather', [value, math.constant('i64', [], [index])], { axis: at });
  // A running sum adds in order.
  const running = math.op('CumSum', [
    math.op('Reshape', [values, shape(steps, VECTORS, LANES)]),
    math.constant('i64', [], [rows.length]),
  ]);
  const vectors = pick(running, steps - 1, intAttribute(rows.length));
  const vector = (index: number): Value => pick(vectors, index, intAttribute(rows.length));
  const lanes = math.op('Add', [math.op('Add', [vector(0), vector(2)]), math.op('Add', [vector(1), vector(3)])]);
  const sum = math.op('Add', [
    math.op('Add', [pick(lanes, 0), pick(lanes, 2)]),
    math.op('Add', [pick(lanes, 1), pick(lanes, 3)]),
  ]);
  return math.op('Mul', [math.op('Reshape', [sum, shape(1)]), math.constant('f32', [], [1 / count])]);
}

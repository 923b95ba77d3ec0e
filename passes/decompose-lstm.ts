import type { Node, Value } from '../compiler/ir/graph.ts';
import type { Pass } from '../compiler/pass.ts';
import type { Builder } from '../compiler/rewrite.ts';
import {
  biasesOf,
  type Direction,
  hasActivations,
  initialState,
  multiplyInputs,
  operandOf,
  split,
  unrollPass,
} from './unroll-recurrent.ts';

/**
 *     LSTM(x [T,B,I], w, r, b, h, c)   ->   for every step t and direction
 *         g = x_t W^T + h R^T + b
 *         i, o, f = Sigmoid(g[0..3]);  c = f * c + i * Tanh(g[3]);  h = o * Tanh(c)
 *
 * For runtimes and NPUs without the cell as one operator. The products with the input are one for all steps. A later pass
 * may still fold what a first step without a state leaves out.
 */
export const decomposeLstm: Pass = unrollPass(
  'decompose-lstm',
  'LSTM of a fixed number of steps becomes products, Sigmoid and Tanh, step by step',
  { op: 'LSTM', refuse, run },
);

function refuse(node: Node): string | undefined {
  if (node.inputs[7]) return 'it has peepholes';
  if (node.int('input_forget', 0) === 1) return 'its input and forget gates are coupled';
  return hasActivations(node, ['Sigmoid', 'Tanh', 'Tanh']) ? undefined : 'its activations are not Sigmoid, Tanh, Tanh';
}

function run(node: Node, direction: number, reverse: boolean, build: Builder): Direction {
  const [length] = node.input(0).dims as [number, number, number];
  const width = node.input(2).dims[2]!;
  const [first, second] = biasesOf(node, direction, 4 * width);
  const bias = first.map((each, i) => each + second[i]!);
  const perStep = multiplyInputs(node, direction, bias, () => operandOf(node.input(1), direction, build), build);
  const recurrence = operandOf(node.input(2), direction, build);
  let [hidden, cell] = [5, 6].map((index) => initialState(node, index, direction, build));
  const steps: Value[] = [];
  for (let step = 0; step < length; step++) {
    const t = reverse ? length - 1 - step : step;
    const fed = perStep[t]!;
    const gates = hidden ? build.emit('Add', [fed, build.emit('MatMul', [hidden, recurrence])]) : fed;
    // ONNX orders the gates i, o, f, c.
    const [switches, candidate] = split(gates, [3 * width, width], 1, build) as [Value, Value];
    const [input, output, forget] = split(build.emit('Sigmoid', [switches]), [width, width, width], 1, build);
    const added = build.emit('Mul', [input, build.emit('Tanh', [candidate])]);
    cell = cell ? build.emit('Add', [build.emit('Mul', [forget, cell]), added]) : added;
    hidden = build.emit('Mul', [output, build.emit('Tanh', [cell])]);
    steps[t] = hidden;
  }
  return { steps, last: [hidden!, cell!] };
}

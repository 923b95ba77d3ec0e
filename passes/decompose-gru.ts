import type { Node, Value } from '../compiler/ir/graph.ts';
import { Tensor, transposeTensor } from '../compiler/ir/tensor.ts';
import type { Pass } from '../compiler/pass.ts';
import type { Builder } from '../compiler/rewrite.ts';
import {
  biasesOf,
  type Direction,
  directionOf,
  hasActivations,
  initialState,
  multiplyInputs,
  operandOf,
  split,
  unrollPass,
} from './unroll-recurrent.ts';

/**
 *     GRU(x [T,B,I], w, r, b, h)   ->   for every step t and direction
 *         z, r = Sigmoid((x_t W^T + h R^T + b)[0..2])
 *         n = Tanh(x_t W_n^T + (r * h) R_n^T + b_n),   or with linear_before_reset   r * (h R_n^T + b_n)
 *         h = n + z * (h - n)
 */
export const decomposeGru: Pass = unrollPass(
  'decompose-gru',
  'GRU of a fixed number of steps becomes products, Sigmoid and Tanh, step by step',
  {
    op: 'GRU',
    refuse: (node) => (hasActivations(node, ['Sigmoid', 'Tanh']) ? undefined : 'its activations are not Sigmoid, Tanh'),
    run: runGru,
  },
);

function runGru(node: Node, direction: number, reverse: boolean, build: Builder): Direction {
  const [length] = node.input(0).dims as [number, number, number];
  const width = node.input(2).dims[2]!;
  const after = node.int('linear_before_reset', 0) !== 0;
  const [first, second] = biasesOf(node, direction, 3 * width);
  // The recurrent bias of the candidate stays inside of its reset where that comes last.
  const bias = first.map((each, i) => each + (after && i >= 2 * width ? 0 : second[i]!));
  const inner = build.graph.addConstant(
    `${node.name}.recurrent_bias.${direction}`,
    Tensor.of('f32', [width], second.slice(2 * width)),
  );
  const perStep = multiplyInputs(node, direction, bias, () => operandOf(node.input(1), direction, build), build);
  const [gateWeights, candidateWeights] = splitRecurrence(node, direction, width, build);
  let hidden = initialState(node, 5, direction, build);
  const steps: Value[] = [];
  for (let step = 0; step < length; step++) {
    const t = reverse ? length - 1 - step : step;
    const [fedGates, fedCandidate] = split(perStep[t]!, [2 * width, width], 1, build) as [Value, Value];
    const gates = hidden ? build.emit('Add', [fedGates, build.emit('MatMul', [hidden, gateWeights])]) : fedGates;
    const [update, reset] = split(build.emit('Sigmoid', [gates]), [width, width], 1, build) as [Value, Value];
    let recurrent: Value | undefined;
    if (after) {
      const product = hidden && build.emit('MatMul', [hidden, candidateWeights]);
      recurrent = build.emit('Mul', [reset, product ? build.emit('Add', [product, inner]) : inner]);
    } else if (hidden) recurrent = build.emit('MatMul', [build.emit('Mul', [reset, hidden]), candidateWeights]);
    const candidate = build.emit('Tanh', [recurrent ? build.emit('Add', [fedCandidate, recurrent]) : fedCandidate]);
    const back = hidden ? build.emit('Sub', [hidden, candidate]) : build.emit('Neg', [candidate]);
    hidden = build.emit('Add', [candidate, build.emit('Mul', [update, back])]);
    steps[t] = hidden;
  }
  return { steps, last: [hidden!] };
}

/** The recurrent weights of both gates [H, 2H] and of the candidate [H, H]. */
function splitRecurrence(node: Node, direction: number, width: number, build: Builder): readonly [Value, Value] {
  const { data, name } = node.input(2);
  const rows = directionOf(data!, direction).toFloats();
  const part = (from: number, to: number, what: string): Value => {
    const tensor = Tensor.of('f32', [to - from, width], rows.slice(from * width, to * width));
    return build.graph.addConstant(`${name}.${what}.${direction}`, transposeTensor(tensor));
  };
  return [part(0, 2 * width, 'gates'), part(2 * width, 3 * width, 'candidate')];
}

/**
 *     RNN(x [T,B,I], w, r, b, h)   ->   for every step t and direction   h = f(x_t W^T + h R^T + b),   f Tanh or Relu
 */
export const decomposeRnn: Pass = unrollPass(
  'decompose-rnn',
  'RNN of a fixed number of steps becomes products and Tanh or Relu, step by step',
  {
    op: 'RNN',
    refuse: (node) => (activationOf(node) ? undefined : 'its activation is not Tanh or Relu'),
    run: runRnn,
  },
);

function activationOf(node: Node): string | undefined {
  return ['Tanh', 'Relu'].find((name) => hasActivations(node, [name]));
}

function runRnn(node: Node, direction: number, reverse: boolean, build: Builder): Direction {
  const [length] = node.input(0).dims as [number, number, number];
  const width = node.input(2).dims[2]!;
  const [first, second] = biasesOf(node, direction, width);
  const bias = first.map((each, i) => each + second[i]!);
  const perStep = multiplyInputs(node, direction, bias, () => operandOf(node.input(1), direction, build), build);
  const recurrence = operandOf(node.input(2), direction, build);
  const activation = activationOf(node)!;
  let hidden = initialState(node, 5, direction, build);
  const steps: Value[] = [];
  for (let step = 0; step < length; step++) {
    const t = reverse ? length - 1 - step : step;
    const fed = perStep[t]!;
    const sum = hidden ? build.emit('Add', [fed, build.emit('MatMul', [hidden, recurrence])]) : fed;
    hidden = build.emit(activation, [sum]);
    steps[t] = hidden;
  }
  return { steps, last: [hidden!] };
}

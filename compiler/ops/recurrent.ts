import { NpucError } from '../errors.ts';
import type { Dim, Node, ValueType } from '../ir/graph.ts';
import type { TensorData } from '../ir/tensor.ts';
import { sigmoid, softplus } from './activation.ts';
import { encodeReals, need, readFloats, readInts } from './elements.ts';
import { defineOp, type InferContext, type OpDefinition } from './op.ts';
import { inputDtype, nodeName, typeOrUnknown } from './shape-rules.ts';

/** RNN, GRU and LSTM: X [T, B, I] ([B, T, I] with layout 1), W [D, gates * H, I], R [D, gates * H, H], B [D, 2 * gates * H]. */

type Activation = (x: number) => number;

/** The activations that ONNX names, with their alpha and beta. @throws IR022 for another name */
function activationOf(name: string, alpha: number | undefined, beta: number | undefined, where: string): Activation {
  switch (name.toLowerCase()) {
    case 'sigmoid':
      return sigmoid;
    case 'tanh':
      return Math.tanh;
    case 'relu':
      return (x) => Math.max(0, x);
    case 'affine':
      return (x) => (alpha ?? 1) * x + (beta ?? 0);
    case 'leakyrelu':
      return (x) => (x < 0 ? (alpha ?? 0.01) * x : x);
    case 'thresholdedrelu':
      return (x) => (x > (alpha ?? 1) ? x : 0);
    case 'scaledtanh':
      return (x) => (alpha ?? 1) * Math.tanh((beta ?? 1) * x);
    case 'hardsigmoid':
      return (x) => Math.min(1, Math.max(0, (alpha ?? 0.2) * x + (beta ?? 0.5)));
    case 'elu':
      return (x) => (x < 0 ? (alpha ?? 1) * Math.expm1(x) : x);
    case 'softsign':
      return (x) => x / (1 + Math.abs(x));
    case 'softplus':
      return softplus;
    default:
      throw new NpucError('IR022', { message: `activation ${name} is not known`, where });
  }
}

/** What one step of a cell sees: products with the input and with the state, per gate. */
interface Cell {
  readonly gates: number;
  /** Activation names when the node names none. */
  readonly defaults: readonly string[];
}

const CELLS: Readonly<Record<string, Cell>> = {
  RNN: { gates: 1, defaults: ['Tanh'] },
  GRU: { gates: 3, defaults: ['Sigmoid', 'Tanh'] },
  LSTM: { gates: 4, defaults: ['Sigmoid', 'Tanh', 'Tanh'] },
};

function directionsOf(node: Node): readonly ('forward' | 'reverse')[] {
  const named = node.string('direction', 'forward');
  if (named === 'bidirectional') return ['forward', 'reverse'];
  return [named === 'reverse' ? 'reverse' : 'forward'];
}

function inferRecurrent(context: InferContext): readonly (ValueType | undefined)[] {
  const { node } = context;
  const dtype = inputDtype(context, 0);
  const x = context.shape(0);
  const recurrence = context.shape(2);
  const hidden: Dim | undefined = node.int('hidden_size') ?? recurrence?.[2];
  if (!x || hidden === undefined) return node.outputs.map(() => typeOrUnknown(dtype, undefined));
  const batchFirst = node.int('layout', 0) === 1;
  const [tokens, batch] = batchFirst ? [x[1]!, x[0]!] : [x[0]!, x[1]!];
  const directions = directionsOf(node).length;
  const all: Dim[] = batchFirst ? [batch, tokens, directions, hidden] : [tokens, directions, batch, hidden];
  const last: Dim[] = batchFirst ? [batch, directions, hidden] : [directions, batch, hidden];
  return [typeOrUnknown(dtype, all), typeOrUnknown(dtype, last), typeOrUnknown(dtype, last)].slice(
    0,
    node.outputs.length,
  );
}

function recurrent(name: 'RNN' | 'GRU' | 'LSTM'): OpDefinition {
  return defineOp({
    name,
    since: 1,
    quantization: 'independent',
    infer: inferRecurrent,
    evaluate: (inputs, { node }) => runRecurrent(name, inputs, node),
  });
}

function runRecurrent(
  name: 'RNN' | 'GRU' | 'LSTM',
  inputs: readonly (TensorData | undefined)[],
  node: Node,
): readonly (TensorData | undefined)[] {
  const where = nodeName(node);
  const { gates, defaults } = CELLS[name]!;
  const x = need(inputs, 0, where);
  const [source, w, r] = [0, 1, 2].map((index) => readFloats(need(inputs, index, where))) as [
    Float32Array,
    Float32Array,
    Float32Array,
  ];
  const batchFirst = node.int('layout', 0) === 1;
  const [tokens, batch] = batchFirst ? [x.shape[1]!, x.shape[0]!] : [x.shape[0]!, x.shape[1]!];
  const width = x.shape[2]!;
  const hidden = need(inputs, 2, where).shape[2]!;
  const directions = directionsOf(node);
  const names = activationNames(node, defaults, directions.length);
  const lengths = inputs[4] && readInts(inputs[4]);
  const initial = (index: number): Float32Array | Float64Array | undefined =>
    inputs[index] && readFloats(inputs[index]);
  const [bias, startH, startC, peephole] = [initial(3), initial(5), initial(6), initial(7)];
  const clip = node.float('clip', 0);
  const clamp = (value: number): number => (clip > 0 ? Math.min(clip, Math.max(-clip, value)) : value);
  const y = new Float64Array(tokens * directions.length * batch * hidden);
  const lastH = new Float64Array(directions.length * batch * hidden);
  const lastC = new Float64Array(lastH.length);
  /** Offset of [direction, batch] in a state tensor, whose batch comes first with layout 1. */
  const stateAt = (d: number, b: number): number => (batchFirst ? b * directions.length + d : d * batch + b) * hidden;

  directions.forEach((direction, d) => {
    const activations = names
      .slice(d * defaults.length, (d + 1) * defaults.length)
      .map((entry) => activationOf(entry.name, entry.alpha, entry.beta, where));
    const rows = gates * hidden;
    const wAt = d * rows * width;
    const rAt = d * rows * hidden;
    const biasAt = d * 2 * rows;
    for (let b = 0; b < batch; b++) {
      const h = new Float64Array(hidden);
      const c = new Float64Array(hidden);
      for (let k = 0; k < hidden; k++) {
        h[k] = startH ? startH[stateAt(d, b) + k]! : 0;
        c[k] = startC ? startC[stateAt(d, b) + k]! : 0;
      }
      const length = lengths?.[b] ?? tokens;
      const fromInput = new Float64Array(rows);
      const fromState = new Float64Array(rows);
      for (let step = 0; step < length; step++) {
        const t = direction === 'reverse' ? length - 1 - step : step;
        const xAt = (batchFirst ? b * tokens + t : t * batch + b) * width;
        for (let row = 0; row < rows; row++) {
          let sum = bias ? bias[biasAt + row]! : 0;
          for (let k = 0; k < width; k++) sum += w[wAt + row * width + k]! * source[xAt + k]!;
          fromInput[row] = sum;
          fromState[row] = product(r, rAt + row * hidden, h) + (bias ? bias[biasAt + rows + row]! : 0);
        }
        const cell = { hidden, h, c, fromInput, fromState, clamp, activations };
        if (name === 'RNN') stepRnn(cell);
        else if (name === 'GRU') stepGru(cell, node.int('linear_before_reset', 0) === 1, r, rAt, bias, biasAt + rows);
        else stepLstm(cell, peephole, d * 3 * hidden, node.int('input_forget', 0) === 1);
        const to =
          (batchFirst ? (b * tokens + t) * directions.length + d : (t * directions.length + d) * batch + b) * hidden;
        y.set(h, to);
      }
      lastH.set(h, stateAt(d, b));
      lastC.set(c, stateAt(d, b));
    }
  });
  const give = (shape: readonly number[], values: Float64Array): TensorData =>
    encodeReals(x.dtype, shape, x.dtype === 'f64' ? values : Float32Array.from(values));
  const all = batchFirst ? [batch, tokens, directions.length, hidden] : [tokens, directions.length, batch, hidden];
  const last = batchFirst ? [batch, directions.length, hidden] : [directions.length, batch, hidden];
  return [give(all, y), give(last, lastH), name === 'LSTM' ? give(last, lastC) : undefined];
}

function product(matrix: ArrayLike<number>, at: number, vector: Float64Array): number {
  let sum = 0;
  for (let k = 0; k < vector.length; k++) sum += matrix[at + k]! * vector[k]!;
  return sum;
}

interface ActivationEntry {
  readonly name: string;
  readonly alpha: number | undefined;
  readonly beta: number | undefined;
}

/** Activation functions of all directions; alphas and betas are listed in the order of the names that take them. */
function activationNames(node: Node, defaults: readonly string[], directions: number): ActivationEntry[] {
  const attribute = node.attributes.get('activations');
  const names =
    attribute?.kind === 'strings' ? attribute.value : Array.from({ length: directions }, () => defaults).flat();
  const alphas = [...(node.floats('activation_alpha') ?? [])];
  const betas = [...(node.floats('activation_beta') ?? [])];
  const takesAlpha = /^(affine|leakyrelu|thresholdedrelu|scaledtanh|hardsigmoid|elu)$/i;
  const takesBeta = /^(affine|scaledtanh|hardsigmoid)$/i;
  return names.map((name) => ({
    name,
    alpha: takesAlpha.test(name) ? alphas.shift() : undefined,
    beta: takesBeta.test(name) ? betas.shift() : undefined,
  }));
}

interface CellStep {
  readonly hidden: number;
  readonly h: Float64Array;
  readonly c: Float64Array;
  readonly fromInput: Float64Array;
  readonly fromState: Float64Array;
  readonly clamp: (value: number) => number;
  readonly activations: readonly Activation[];
}

function stepRnn({ hidden, h, fromInput, fromState, clamp, activations }: CellStep): void {
  for (let k = 0; k < hidden; k++) h[k] = activations[0]!(clamp(fromInput[k]! + fromState[k]!));
}

/** Gates z, r, h. Without linear_before_reset the reset gate scales the state before the recurrent product. */
function stepGru(
  { hidden, h, fromInput, fromState, clamp, activations }: CellStep,
  linearBeforeReset: boolean,
  r: ArrayLike<number>,
  rAt: number,
  bias: ArrayLike<number> | undefined,
  biasAt: number,
): void {
  const [f, g] = activations as [Activation, Activation];
  const update = new Float64Array(hidden);
  const reset = new Float64Array(hidden);
  for (let k = 0; k < hidden; k++) {
    update[k] = f(clamp(fromInput[k]! + fromState[k]!));
    reset[k] = f(clamp(fromInput[hidden + k]! + fromState[hidden + k]!));
  }
  const scaled = h.map((value, k) => value * reset[k]!);
  const next = new Float64Array(hidden);
  for (let k = 0; k < hidden; k++) {
    const row = 2 * hidden + k;
    const recurrent = linearBeforeReset
      ? reset[k]! * fromState[row]!
      : product(r, rAt + row * hidden, scaled) + (bias ? bias[biasAt + row]! : 0);
    const candidate = g(clamp(fromInput[row]! + recurrent));
    next[k] = (1 - update[k]!) * candidate + update[k]! * h[k]!;
  }
  h.set(next);
}

/** Gates i, o, f, c; peepholes P [i, o, f]. */
function stepLstm(
  { hidden, h, c, fromInput, fromState, clamp, activations }: CellStep,
  peephole: ArrayLike<number> | undefined,
  peepholeAt: number,
  inputForget: boolean,
): void {
  const [f, g, final] = activations as [Activation, Activation, Activation];
  const peep = (gate: number, k: number, state: number): number =>
    peephole ? peephole[peepholeAt + gate * hidden + k]! * state : 0;
  for (let k = 0; k < hidden; k++) {
    const gate = (index: number): number => fromInput[index * hidden + k]! + fromState[index * hidden + k]!;
    const before = c[k]!;
    const input = f(clamp(gate(0) + peep(0, k, before)));
    const forget = inputForget ? 1 - input : f(clamp(gate(2) + peep(2, k, before)));
    const state = forget * before + input * g(clamp(gate(3)));
    const output = f(clamp(gate(1) + peep(1, k, state)));
    c[k] = state;
    h[k] = output * final(state);
  }
}

export const RECURRENT_OPS: readonly OpDefinition[] = [recurrent('RNN'), recurrent('GRU'), recurrent('LSTM')];

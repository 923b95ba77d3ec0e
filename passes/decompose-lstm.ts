import { type Graph, intAttribute, type Node, type Value } from '../compiler/ir/graph.ts';
import { Tensor, transposeTensor } from '../compiler/ir/tensor.ts';
import type { Pass } from '../compiler/pass.ts';
import { Builder, replaceByIdentities } from '../compiler/rewrite.ts';
import { knownShape, reshapeTensor } from '../compiler/value-facts.ts';

/**
 *     LSTM(x [T,B,I], w, r, b, h, c)   ->   for every step t and direction
 *         g = x_t W^T + h R^T + b
 *         i, o, f = Sigmoid(g[0..3]);  c = f * c + i * Tanh(g[3]);  h = o * Tanh(c)
 *
 * For runtimes and NPUs without the cell as one operator. The products with the input are one for all steps. A later pass
 * may still fold what a first step without a state leaves out.
 */
export const decomposeLstm: Pass = {
  name: 'decompose-lstm',
  about: 'LSTM of a fixed number of steps becomes products, Sigmoid and Tanh, step by step',
  run(graph, context) {
    let changed = false;
    for (const node of [...graph.nodes]) {
      if (node.op !== 'LSTM' || node.domain !== '') continue;
      const refusal = refuse(node);
      if (refusal) {
        context.remark(node, refusal);
        continue;
      }
      unroll(graph, node, context.opset());
      changed = true;
    }
    return changed;
  },
};

/** Steps above which the graph would be larger than any NPU compiler takes. */
const MOST_STEPS = 512;

function refuse(node: Node): string | undefined {
  const shape = knownShape(node.inputs[0]);
  if (shape?.length !== 3 || !shape.every((dim) => typeof dim === 'number'))
    return 'the shape of its input is not fixed';
  if (node.int('layout', 0) === 1) return 'its batch comes first';
  if ((shape[0] as number) > MOST_STEPS) return `${shape[0]} steps are more than ${MOST_STEPS}`;
  if (![1, 2].every((index) => node.inputs[index]?.data?.dtype === 'f32')) return 'its weights are not constant floats';
  if (node.inputs[3] && !node.inputs[3].data) return 'its bias is not constant';
  if (node.inputs[4]) return 'it has a length for every sequence';
  if (node.inputs[7]) return 'it has peepholes';
  if (node.int('input_forget', 0) === 1) return 'its input and forget gates are coupled';
  if (node.attributes.has('clip')) return 'it clips its gates';
  const names = node.attributes.get('activations');
  const usual =
    names?.kind !== 'strings' || names.value.every((name, i) => name === (i % 3 === 0 ? 'Sigmoid' : 'Tanh'));
  return usual ? undefined : 'its activations are not Sigmoid, Tanh, Tanh';
}

/** A matrix of one direction of a stacked constant, as a promise. */
function directionOf(stack: Tensor, direction: number): Tensor {
  const shape = stack.shape.slice(1);
  const length = stack.byteLength / stack.shape[0]!;
  const compute = (): Uint8Array => stack.readRange(direction * length, length);
  return new Tensor(stack.dtype, shape, { kind: 'derived', compute });
}

interface Direction {
  /** State behind every step, in the order of time, [B, H]. */
  readonly steps: readonly Value[];
  readonly hidden: Value;
  readonly cell: Value;
}

function unroll(graph: Graph, node: Node, opset: number): void {
  const build = new Builder(graph, node, node.from, opset);
  const named = node.string('direction', 'forward');
  const directions = named === 'bidirectional' ? ['forward', 'reverse'] : [named];
  const runs = directions.map((direction, index) => runDirection(node, index, direction === 'reverse', build));
  const [length, batch] = node.input(0).dims as [number, number, number];
  const width = node.input(2).dims[2]!;
  const states = (values: readonly Value[]): Value =>
    join(
      values.map((value) => reshape(value, [1, batch, width], build)),
      0,
      build,
    );
  const all = Array.from({ length }, (_, t) =>
    join(
      runs.map(({ steps }) => reshape(steps[t]!, [1, 1, batch, width], build)),
      1,
      build,
    ),
  );
  const outputs = [
    node.outputs[0] && join(all, 0, build),
    node.outputs[1] && states(runs.map(({ hidden }) => hidden)),
    node.outputs[2] && states(runs.map(({ cell }) => cell)),
  ];
  replaceByIdentities(graph, node, outputs.slice(0, node.outputs.length), opset);
}

function runDirection(node: Node, direction: number, reverse: boolean, build: Builder): Direction {
  const x = node.input(0);
  const [length, batch, inputs] = x.dims as [number, number, number];
  const width = node.input(2).dims[2]!;
  const { graph } = build;
  const weight = (index: number): Value => {
    const value = node.input(index);
    const data = transposeTensor(directionOf(value.data!, direction));
    return graph.addConstant(`${value.name}.${direction}`, data);
  };
  const rows = reshape(x, [length * batch, inputs], build);
  const bias = graph.addConstant(`${node.name}.bias.${direction}`, sumOfBiases(node, direction, width));
  const products = build.emit('Gemm', [rows, weight(1), bias]);
  const perStep = split(products, new Array<number>(length).fill(batch), 0, build);
  const recurrence = weight(2);
  let [hidden, cell] = [5, 6].map((index) => initialState(node, index, direction, [batch, width], build));
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
  return { steps, hidden: hidden!, cell: cell! };
}

function sumOfBiases(node: Node, direction: number, width: number): Tensor {
  const rows = 4 * width;
  const both = node.inputs[3]?.data?.toFloats();
  const at = direction * 2 * rows;
  return Tensor.of(
    'f32',
    [rows],
    Float32Array.from({ length: rows }, (_, i) => (both ? both[at + i]! + both[at + rows + i]! : 0)),
  );
}

/** The state that a direction begins with, [B, H]; undefined for zeros. */
function initialState(
  node: Node,
  index: number,
  direction: number,
  shape: readonly number[],
  build: Builder,
): Value | undefined {
  const state = node.inputs[index];
  if (!state) return undefined;
  if (state.data) {
    const data = reshapeTensor(directionOf(state.data, direction), shape);
    return build.graph.addConstant(`${state.name}.${direction}`, data);
  }
  const directions = state.dims[0]!;
  return reshape(split(state, new Array<number>(directions).fill(1), 0, build)[direction]!, shape, build);
}

function reshape(value: Value, shape: readonly number[], build: Builder): Value {
  return build.emit('Reshape', [value, build.integers('shape', shape)]);
}

function join(values: readonly Value[], axis: number, build: Builder): Value {
  return values.length === 1 ? values[0]! : build.emit('Concat', values, { attributes: { axis: intAttribute(axis) } });
}

/** The parts of a value along an axis; one part is the value itself. */
function split(value: Value, lengths: readonly number[], axis: number, build: Builder): Value[] {
  if (lengths.length === 1) return [value];
  const outputs = lengths.map(() => build.graph.addValue('part'));
  build.node('Split', [value, build.integers('lengths', lengths)], outputs, { axis: intAttribute(axis) });
  return outputs;
}

import { type Graph, intAttribute, type Node, type Value } from '../compiler/ir/graph.ts';
import { Tensor, transposeTensor } from '../compiler/ir/tensor.ts';
import type { Pass } from '../compiler/pass.ts';
import { Builder, replaceByIdentities } from '../compiler/rewrite.ts';
import { knownShape, reshapeTensor } from '../compiler/value-facts.ts';

/** Steps above which the graph would be larger than any NPU compiler takes. */
const MOST_STEPS = 512;

/** What one direction of a recurrent layer gives. */
export interface Direction {
  /** State behind every step, in the order of time, [B, H]. */
  readonly steps: readonly Value[];
  /** The last states, [B, H], in the order of the node's outputs. */
  readonly last: readonly Value[];
}

/** A kind of recurrent layer. */
export interface Cell {
  readonly op: string;
  /** Why a node of that kind cannot be written out, beyond what holds for all. */
  readonly refuse: (node: Node) => string | undefined;
  readonly run: (node: Node, direction: number, reverse: boolean, build: Builder) => Direction;
}

/** The pass that writes every node of a kind out, step by step. */
export function unrollPass(name: string, about: string, cell: Cell): Pass {
  return {
    name,
    about,
    run(graph, context) {
      let changed = false;
      for (const node of [...graph.nodes]) {
        if (node.op !== cell.op || node.domain !== '') continue;
        const refusal = refuse(node) ?? cell.refuse(node);
        if (refusal) {
          context.remark(node, refusal);
          continue;
        }
        unroll(graph, node, context.opset(), cell);
        changed = true;
      }
      return changed;
    },
  };
}

function refuse(node: Node): string | undefined {
  const shape = knownShape(node.inputs[0]);
  if (shape?.length !== 3 || !shape.every((dim) => typeof dim === 'number'))
    return 'the shape of its input is not fixed';
  if (node.int('layout', 0) === 1) return 'its batch comes first';
  if ((shape[0] as number) > MOST_STEPS) return `${shape[0]} steps are more than ${MOST_STEPS}`;
  if (![1, 2].every((index) => node.inputs[index]?.data?.dtype === 'f32')) return 'its weights are not constant floats';
  if (node.inputs[3] && !node.inputs[3].data) return 'its bias is not constant';
  if (node.inputs[4]) return 'it has a length for every sequence';
  if (node.attributes.has('clip')) return 'it clips its gates';
  return undefined;
}

/** Whether a layer's activations, given for every direction, are those named. */
export function hasActivations(node: Node, usual: readonly string[]): boolean {
  const names = node.attributes.get('activations');
  return names?.kind !== 'strings' || names.value.every((name, i) => name === usual[i % usual.length]);
}

/** A matrix of one direction of a stacked constant, as a promise. */
export function directionOf(stack: Tensor, direction: number): Tensor {
  const shape = stack.shape.slice(1);
  const length = stack.byteLength / stack.shape[0]!;
  const compute = (): Uint8Array => stack.readRange(direction * length, length);
  return new Tensor(stack.dtype, shape, { kind: 'derived', compute });
}

function unroll(graph: Graph, node: Node, opset: number, { run }: Cell): void {
  const build = new Builder(graph, node, node.from, opset);
  const named = node.string('direction', 'forward');
  const directions = named === 'bidirectional' ? ['forward', 'reverse'] : [named];
  const runs = directions.map((direction, index) => run(node, index, direction === 'reverse', build));
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
  const outputs = node.outputs.map((output, index) => {
    if (!output) return undefined;
    return index === 0 ? join(all, 0, build) : states(runs.map(({ last }) => last[index - 1]!));
  });
  replaceByIdentities(graph, node, outputs, opset);
}

/** A stacked constant [D, R, K] as the right operand [K, R] of one direction's products. */
export function operandOf({ name, data }: Value, direction: number, build: Builder): Value {
  return build.graph.addConstant(`${name}.${direction}`, transposeTensor(directionOf(data!, direction)));
}

/** Both biases of a direction [gates * H] and [gates * H]; zeros where there is none. */
export function biasesOf(node: Node, direction: number, rows: number): readonly [Float32Array, Float32Array] {
  const both = node.inputs[3]?.data?.toFloats();
  const at = direction * 2 * rows;
  if (!both) return [new Float32Array(rows), new Float32Array(rows)];
  return [both.slice(at, at + rows), both.slice(at + rows, at + 2 * rows)];
}

/** Products of every step's input with the weights of all gates, a bias added, [B, gates * H] each. */
export function multiplyInputs(
  node: Node,
  direction: number,
  bias: Float32Array,
  weight: () => Value,
  build: Builder,
): Value[] {
  const [length, batch, inputs] = node.input(0).dims as [number, number, number];
  const rows = reshape(node.input(0), [length * batch, inputs], build);
  const vector = build.graph.addConstant(`${node.name}.bias.${direction}`, Tensor.of('f32', [bias.length], bias));
  const products = build.emit('Gemm', [rows, weight(), vector]);
  return split(products, new Array<number>(length).fill(batch), 0, build);
}

/** The state that a direction begins with, [B, H]; undefined for zeros. */
export function initialState(node: Node, index: number, direction: number, build: Builder): Value | undefined {
  const shape = [node.input(0).dims[1]!, node.input(2).dims[2]!];
  const state = node.inputs[index];
  if (!state) return undefined;
  if (state.data) {
    const data = reshapeTensor(directionOf(state.data, direction), shape);
    return build.graph.addConstant(`${state.name}.${direction}`, data);
  }
  const directions = state.dims[0]!;
  return reshape(split(state, new Array<number>(directions).fill(1), 0, build)[direction]!, shape, build);
}

export function reshape(value: Value, shape: readonly number[], build: Builder): Value {
  return build.emit('Reshape', [value, build.integers('shape', shape)]);
}

function join(values: readonly Value[], axis: number, build: Builder): Value {
  return values.length === 1 ? values[0]! : build.emit('Concat', values, { attributes: { axis: intAttribute(axis) } });
}

/** The parts of a value along an axis; one part is the value itself. */
export function split(value: Value, lengths: readonly number[], axis: number, build: Builder): Value[] {
  if (lengths.length === 1) return [value];
  const outputs = lengths.map(() => build.graph.addValue('part'));
  build.node('Split', [value, build.integers('lengths', lengths)], outputs, { axis: intAttribute(axis) });
  return outputs;
}

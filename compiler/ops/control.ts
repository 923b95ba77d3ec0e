import { NpucError } from '../errors.ts';
import type { Graph, Node } from '../ir/graph.ts';
import type { TensorData } from '../ir/tensor.ts';
import { encodeReals, int64s, readReals, withShape } from './elements.ts';
import type { Evaluation } from './evaluate-graph.ts';
import { concatData, sliceAxis } from './movement.ts';
import { needSequence, needTensor, type RuntimeValue, sequenceOf } from './runtime-value.ts';
import { nodeName } from './shape-rules.ts';

/** Ops that run subgraphs. Undefined for every other op. */
export function evaluateControl(
  node: Node,
  inputs: readonly (RuntimeValue | undefined)[],
  evaluation: Evaluation,
): readonly (RuntimeValue | undefined)[] | undefined {
  if (node.domain !== '') return undefined;
  if (node.op === 'If') return runIf(node, inputs, evaluation);
  if (node.op === 'Loop') return runLoop(node, inputs, evaluation);
  if (node.op === 'Scan') return runScan(node, inputs, evaluation);
  if (node.op === 'SequenceMap') return runSequenceMap(node, inputs, evaluation);
  return undefined;
}

/** @throws IR022 when the attribute is no graph */
export function subgraphOf(node: Node, name: string): Graph {
  const attribute = node.attributes.get(name);
  if (attribute?.kind === 'graph') return attribute.value;
  throw new NpucError('IR022', { message: `${node.op} has no subgraph ${name}`, where: nodeName(node) });
}

function runBody(body: Graph, inputs: readonly RuntimeValue[], evaluation: Evaluation): RuntimeValue[] {
  body.inputs.forEach((input, index) => {
    const value = inputs[index];
    if (value !== undefined) evaluation.set(input, value);
  });
  evaluation.run(body, body.outputs);
  return body.outputs.map((output) => evaluation.get(output));
}

function runIf(node: Node, inputs: readonly (RuntimeValue | undefined)[], evaluation: Evaluation): RuntimeValue[] {
  const condition = readReals(needTensor(inputs, 0, node))[0] !== 0;
  return runBody(subgraphOf(node, condition ? 'then_branch' : 'else_branch'), [], evaluation);
}

function boolean(value: boolean): TensorData {
  return encodeReals('bool', [], Uint8Array.of(value ? 1 : 0));
}

/** Loop: an absent trip count or condition does not end it; scan outputs are stacked along a new axis 0. */
function runLoop(node: Node, inputs: readonly (RuntimeValue | undefined)[], evaluation: Evaluation): RuntimeValue[] {
  const body = subgraphOf(node, 'body');
  const trips = inputs[0] ? readReals(needTensor(inputs, 0, node))[0]! : Number.POSITIVE_INFINITY;
  let go = inputs[1] ? readReals(needTensor(inputs, 1, node))[0] !== 0 : true;
  let carried = inputs.slice(2) as RuntimeValue[];
  const stacks: TensorData[][] = body.outputs.slice(1 + carried.length).map(() => []);
  for (let trip = 0; trip < trips && go; trip++) {
    const results = runBody(body, [int64s([], [trip]), boolean(go), ...carried], evaluation);
    go = readReals(needTensor(results, 0, node))[0] !== 0;
    carried = results.slice(1, 1 + carried.length);
    stacks.forEach((stack, index) => stack.push(needTensor(results, 1 + carried.length + index, node)));
  }
  return [...carried, ...stacks.map((stack, index) => stackParts(stack, 0, body, 1 + carried.length + index, node))];
}

/** Joins parts along a new axis. Without parts the shape comes from the body's declared output. */
function stackParts(parts: readonly TensorData[], axis: number, body: Graph, output: number, node: Node): TensorData {
  if (parts.length === 0) {
    const type = body.outputs[output]?.type;
    if (type?.kind !== 'tensor' || !type.shape)
      throw new NpucError('RT010', {
        message: 'a loop without rounds whose output shape is not known',
        where: nodeName(node),
      });
    const shape = type.shape.map((dim) => (typeof dim === 'number' ? dim : 0));
    return encodeReals(type.dtype, [0, ...shape], new Float64Array(0));
  }
  const at = axis < 0 ? axis + parts[0]!.shape.length + 1 : axis;
  const unsqueezed = parts.map((part) => withShape(part, [...part.shape.slice(0, at), 1, ...part.shape.slice(at)]));
  return concatData(unsqueezed, at, nodeName(node));
}

/** Scan 9 and later: states are carried, scan inputs are cut along their axes, outputs stacked, either way round. */
function runScan(node: Node, inputs: readonly (RuntimeValue | undefined)[], evaluation: Evaluation): RuntimeValue[] {
  if ((evaluation.opsets.get('') ?? 1) < 9)
    throw new NpucError('RT010', { message: 'Scan of opset 8 has no reference semantics', where: nodeName(node) });
  const body = subgraphOf(node, 'body');
  const scans = node.int('num_scan_inputs', 1);
  const states = inputs.length - scans;
  const outputs = body.outputs.length - states;
  const listed = (name: string, length: number): number[] => node.ints(name) ?? new Array<number>(length).fill(0);
  const axes = listed('scan_input_axes', scans);
  const reversed = listed('scan_input_directions', scans);
  const outputAxes = listed('scan_output_axes', outputs);
  const outputReversed = listed('scan_output_directions', outputs);
  const sources = Array.from({ length: scans }, (_, index) => needTensor(inputs, states + index, node));
  const cut = sources.map((source, index) => {
    const axis = axes[index]! < 0 ? axes[index]! + source.shape.length : axes[index]!;
    const length = source.shape[axis]!;
    return { source, axis, length, backward: reversed[index] === 1 };
  });
  let carried = inputs.slice(0, states) as RuntimeValue[];
  const stacks: TensorData[][] = Array.from({ length: outputs }, () => []);
  const rounds = cut[0]?.length ?? 0;
  for (let round = 0; round < rounds; round++) {
    const slices = cut.map(({ source, axis, length, backward }) => {
      const at = backward ? length - 1 - round : round;
      return withShape(
        sliceAxis(source, axis, at, at + 1),
        source.shape.filter((_, k) => k !== axis),
      );
    });
    const results = runBody(body, [...carried, ...slices], evaluation);
    carried = results.slice(0, states);
    stacks.forEach((stack, index) => stack.push(needTensor(results, states + index, node)));
  }
  return [
    ...carried,
    ...stacks.map((stack, index) =>
      stackParts(outputReversed[index] === 1 ? stack.reverse() : stack, outputAxes[index]!, body, states + index, node),
    ),
  ];
}

/** SequenceMap: the body runs once per element of the first sequence; other inputs are sequences alongside or fixed tensors. */
function runSequenceMap(
  node: Node,
  inputs: readonly (RuntimeValue | undefined)[],
  evaluation: Evaluation,
): RuntimeValue[] {
  const body = subgraphOf(node, 'body');
  const lead = needSequence(inputs, 0, node);
  const columns: RuntimeValue[][] = body.outputs.map(() => []);
  lead.items.forEach((_, index) => {
    const round = inputs.map((input) =>
      input !== undefined && 'kind' in input && input.kind === 'sequence' ? input.items[index]! : input!,
    );
    runBody(body, round, evaluation).forEach((result, column) => columns[column]!.push(result));
  });
  return columns.map(sequenceOf);
}

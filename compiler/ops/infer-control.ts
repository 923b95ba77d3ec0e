import { NpucError } from '../errors.ts';
import type { Graph, Node, ValueType } from '../ir/graph.ts';
import { tensorType } from '../ir/graph.ts';
import { subgraphOf } from './control.ts';
import type { Inference } from './infer-shapes.ts';
import { unknownDim } from './shape-rules.ts';
import { commonType, mergeTypes } from './type-merge.ts';

type Types = readonly (ValueType | undefined)[];

/** Output types of ops with subgraphs, whose values are inferred on the way. Undefined for every other op. */
export function inferControl(node: Node, inference: Inference): Types | undefined {
  if (node.domain !== '') return undefined;
  if (node.op === 'If') return inferIf(node, inference);
  if (node.op === 'Loop') return inferLoop(node, inference);
  if (node.op === 'Scan') return inferScan(node, inference);
  if (node.op === 'SequenceMap') return inferSequenceMap(node, inference);
  return undefined;
}

/** A condition that is known decides: the other branch need not even fit the shapes, as it never runs. */
function inferIf(node: Node, inference: Inference): Types {
  const yes = subgraphOf(node, 'then_branch');
  const no = subgraphOf(node, 'else_branch');
  const condition = node.inputs[0] && inference.constantOf(node.inputs[0]);
  if (!condition) {
    inference.run(yes);
    inference.run(no);
    return node.outputs.map((_, index) => commonType(yes.outputs[index]?.type, no.outputs[index]?.type, node, index));
  }
  const [taken, other] = condition.toNumbers()[0] !== 0 ? [yes, no] : [no, yes];
  inference.run(taken);
  try {
    inference.run(other);
  } catch (error) {
    if (!(error instanceof NpucError) || !error.code.startsWith('IR')) throw error;
  }
  return node.outputs.map((_, index) => taken.outputs[index]?.type);
}

/** Without its axis 0, or with a new one. */
function dropAxis(type: ValueType | undefined, axis: number): ValueType | undefined {
  if (type?.kind !== 'tensor') return type;
  const at = type.shape && axis < 0 ? axis + type.shape.length : axis;
  return tensorType(
    type.dtype,
    type.shape?.filter((_, index) => index !== at),
  );
}

function addAxis(
  type: ValueType | undefined,
  axis: number,
  node: Node,
  output: number,
  length?: number | string,
): ValueType | undefined {
  if (type?.kind !== 'tensor') return undefined;
  if (!type.shape) return type;
  const at = axis < 0 ? axis + type.shape.length + 1 : axis;
  const dim = length ?? unknownDim(node, output, at);
  return tensorType(type.dtype, [...type.shape.slice(0, at), dim, ...type.shape.slice(at)]);
}

/**
 * Types of carried values: what the body is given and what it gives back must agree, so dimensions that change from
 * round to round become unknown and the body is inferred again with that.
 */
function settleCarried(
  node: Node,
  body: Graph,
  first: number,
  initial: Types,
  outputFrom: number,
  inference: Inference,
): ValueType[] {
  let types = [...initial];
  // Every round can only lose knowledge: a dimension, a rank, a type. Four rounds reach the end.
  for (let round = 0; round < 4; round++) {
    body.inputs.slice(first, first + types.length).forEach((input, index) => {
      inference.forget(input);
      input.type = round === 0 ? mergeTypes(types[index], input.type) : (types[index] ?? input.type);
    });
    inference.run(body);
    const settled = types.map((type, index) => commonType(type, body.outputs[outputFrom + index]?.type, node, index));
    const same = settled.every((type, index) => JSON.stringify(type) === JSON.stringify(types[index]));
    types = settled;
    if (same) break;
  }
  return types as ValueType[];
}

function inferLoop(node: Node, inference: Inference): Types {
  const body = subgraphOf(node, 'body');
  const carried = node.inputs.length - 2;
  const [trip, go] = body.inputs;
  if (trip) trip.type = mergeTypes(trip.type, tensorType('i64', []));
  if (go) go.type = mergeTypes(go.type, tensorType('bool', []));
  const initial = node.inputs.slice(2).map((value) => value?.type);
  const types = settleCarried(node, body, 2, initial, 1, inference);
  const scans = body.outputs.slice(1 + carried).map((output, index) => addAxis(output.type, 0, node, carried + index));
  return [...types, ...scans];
}

function inferScan(node: Node, inference: Inference): Types {
  const body = subgraphOf(node, 'body');
  const scans = node.int('num_scan_inputs', 1);
  const states = node.inputs.length - scans;
  const axes = node.ints('scan_input_axes') ?? new Array<number>(scans).fill(0);
  let length: number | string | undefined;
  for (let index = 0; index < scans; index++) {
    const type = node.inputs[states + index]?.type;
    const input = body.inputs[states + index];
    if (input) input.type = dropAxis(type, axes[index]!) ?? input.type;
    if (type?.kind === 'tensor' && type.shape) {
      const axis = axes[index]! < 0 ? axes[index]! + type.shape.length : axes[index]!;
      length ??= type.shape[axis];
    }
  }
  const initial = node.inputs.slice(0, states).map((value) => value?.type);
  const types = settleCarried(node, body, 0, initial, 0, inference);
  const outputs = body.outputs.slice(states);
  const outputAxes = node.ints('scan_output_axes') ?? outputs.map(() => 0);
  return [
    ...types,
    ...outputs.map((output, index) => addAxis(output.type, outputAxes[index]!, node, states + index, length)),
  ];
}

function inferSequenceMap(node: Node, inference: Inference): Types {
  const body = subgraphOf(node, 'body');
  body.inputs.forEach((input, index) => {
    const type = node.inputs[index]?.type;
    input.type = (type?.kind === 'sequence' ? type.element : type) ?? input.type;
  });
  inference.run(body);
  return body.outputs.map((output) => ({ kind: 'sequence', element: output.type }));
}

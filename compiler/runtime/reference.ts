import { NpucError } from '../errors.ts';
import type { Graph, Value } from '../ir/graph.ts';
import type { TensorData } from '../ir/tensor.ts';
import { evaluateGraph } from '../ops/evaluate-graph.ts';
import type { PortInfo, Runner, Tensors } from './runner.ts';

/**
 * Runs a graph, whose shapes are inferred, with the reference semantics of its ops: slow, and the same numbers on every
 * machine. @throws RT011 when an input or output is no tensor, or of unknown type
 */
export function createReferenceRunner(graph: Graph, opsets: ReadonlyMap<string, number>): Runner {
  return {
    engine: 'npuc reference',
    // An input with a constant of its own is a default, not something that must be fed.
    inputs: graph.inputs.filter((input) => input.data === undefined).map(portOf),
    outputs: graph.outputs.map(portOf),
    run: async (feeds: Tensors, outputs?: readonly string[]): Promise<Record<string, TensorData>> =>
      evaluateGraph(graph, opsets, feeds, outputs === undefined ? {} : { outputs }),
    close: async () => {},
  };
}

function portOf(value: Value): PortInfo {
  const type = value.type;
  if (type?.kind !== 'tensor')
    throw new NpucError('RT011', { message: `${value.name} is no tensor`, where: value.name });
  return {
    name: value.name,
    dtype: type.dtype,
    shape: (type.shape ?? []).map((dim) => (typeof dim === 'number' ? dim : -1)),
  };
}

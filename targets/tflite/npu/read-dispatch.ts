import { NpucError } from '../../../compiler/errors.ts';
import type { TfliteModel, TfliteOperator, TfliteSubgraph } from '../model.ts';
import { operatorName } from '../schema-enums.ts';
import { readFlexMap } from './read-flex-map.ts';

/** A part of a graph that a vendor's plugin compiled. */
export interface DispatchPartition {
  /** The graph's name in the byte code. */
  readonly name: string;
  /** Where the byte code lies in the file; several partitions can lie in one. 0 bytes where nothing was compiled. */
  readonly offset: number;
  readonly size: number;
  /** Tensors as the file names them, in the order of the byte code's own ports. */
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
}

/** An operator that the plugin left to the CPU. */
export interface LeftOperator {
  readonly op: string;
  /** Its first output, which is a name of the source file too. */
  readonly output: string;
}

/** What became of one signature. */
export interface DispatchedSignature {
  readonly name: string;
  readonly partitions: readonly DispatchPartition[];
  readonly left: readonly LeftOperator[];
}

/** Name of the operator that stands for a partition. */
export const DISPATCH = 'DISPATCH_OP';

/**
 * What a vendor's plugin made of each signature: LiteRT writes a custom operator for each partition, whose options say where
 * in the file the byte code lies (facts litert 5).
 * @param fileBytes length of the file, to check the places against
 * @throws IO003 where an operator's options cannot be read or point out of the file
 */
export function readDispatch(model: TfliteModel, fileBytes: number): DispatchedSignature[] {
  return model.signatures.map(({ key, subgraph }) => {
    const graph = model.subgraphs[subgraph]!;
    const isPartition = (operator: TfliteOperator): boolean => operator.customCode === DISPATCH;
    return {
      name: key,
      partitions: graph.operators.filter(isPartition).map((operator) => readPartition(operator, graph, fileBytes)),
      left: graph.operators
        .filter((operator) => !isPartition(operator))
        .map((operator) => ({ op: operatorName(operator.code), output: nameOf(graph, operator.outputs[0]) })),
    };
  });
}

function readPartition(operator: TfliteOperator, graph: TfliteSubgraph, fileBytes: number): DispatchPartition {
  const ports = {
    inputs: operator.inputs.map((tensor) => nameOf(graph, tensor)),
    outputs: operator.outputs.map((tensor) => nameOf(graph, tensor)),
  };
  const options = readFlexMap(Uint8Array.from(operator.customOptions ?? []));
  // A file that was only partitioned has options that say nothing.
  if (options.size === 0) return { name: '', offset: 0, size: 0, ...ports };
  const [name, offset, size] = ['name', 'bytecode_offset', 'bytecode_size'].map((key) => options.get(key));
  if (typeof name !== 'string' || typeof offset !== 'number' || typeof size !== 'number' || offset + size > fileBytes) {
    throw new NpucError('IO003', { message: `${DISPATCH} ${String(name)} has no byte code in the file` });
  }
  return { name, offset, size, ...ports };
}

const nameOf = (graph: TfliteSubgraph, tensor: number | undefined): string => graph.tensors[tensor ?? -1]?.name ?? '';

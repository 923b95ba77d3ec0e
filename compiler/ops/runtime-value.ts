import { NpucError } from '../errors.ts';
import type { Node } from '../ir/graph.ts';
import type { TensorData } from '../ir/tensor.ts';
import { nodeName } from './shape-rules.ts';

/** A sequence of values. */
export interface SequenceData {
  readonly kind: 'sequence';
  readonly items: readonly RuntimeValue[];
}

/** An optional that holds nothing; one that holds a value is that value. */
export interface EmptyOptional {
  readonly kind: 'empty';
}

/** What a value of a graph is while the graph is evaluated. */
export type RuntimeValue = TensorData | SequenceData | EmptyOptional;

export const EMPTY: EmptyOptional = { kind: 'empty' };

export function isTensorData(value: RuntimeValue | undefined): value is TensorData {
  return value !== undefined && !('kind' in value);
}

export function sequenceOf(items: readonly RuntimeValue[]): SequenceData {
  return { kind: 'sequence', items };
}

/** An input that must be a tensor. @throws IR021 */
export function needTensor(inputs: readonly (RuntimeValue | undefined)[], index: number, node: Node): TensorData {
  const value = inputs[index];
  if (!isTensorData(value))
    throw new NpucError('IR021', { message: `${node.op} needs a tensor as input ${index}`, where: nodeName(node) });
  return value;
}

/** An input that must be a sequence. @throws IR021 */
export function needSequence(inputs: readonly (RuntimeValue | undefined)[], index: number, node: Node): SequenceData {
  const value = inputs[index];
  if (value === undefined || !('kind' in value) || value.kind !== 'sequence')
    throw new NpucError('IR021', { message: `${node.op} needs a sequence as input ${index}`, where: nodeName(node) });
  return value;
}

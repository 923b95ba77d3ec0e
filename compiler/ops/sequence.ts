import { NpucError } from '../errors.ts';
import type { Node } from '../ir/graph.ts';
import type { TensorData } from '../ir/tensor.ts';
import { encodeReals, int64s, readInts, readReals, withShape } from './elements.ts';
import { normalizeAxis } from './indexing.ts';
import { concatData, sliceAxis } from './movement.ts';
import { EMPTY, needSequence, needTensor, type RuntimeValue, sequenceOf } from './runtime-value.ts';
import { nodeName } from './shape-rules.ts';

type Inputs = readonly (RuntimeValue | undefined)[];

/** Semantics of the ops on sequences and optionals. */
const SEMANTICS: Readonly<Record<string, (node: Node, inputs: Inputs) => readonly RuntimeValue[]>> = {
  SequenceEmpty: () => [sequenceOf([])],
  SequenceConstruct: (_, inputs) => [sequenceOf(inputs as readonly RuntimeValue[])],
  SequenceLength: (node, inputs) => [int64s([], [needSequence(inputs, 0, node).items.length])],
  SequenceAt: (node, inputs) => {
    const { items } = needSequence(inputs, 0, node);
    return [items[position(node, needTensor(inputs, 1, node), items.length - 1)]!];
  },
  SequenceInsert: (node, inputs) => {
    const items = [...needSequence(inputs, 0, node).items];
    const at = inputs[2] ? position(node, needTensor(inputs, 2, node), items.length) : items.length;
    items.splice(at, 0, inputs[1]!);
    return [sequenceOf(items)];
  },
  SequenceErase: (node, inputs) => {
    const items = [...needSequence(inputs, 0, node).items];
    items.splice(inputs[1] ? position(node, needTensor(inputs, 1, node), items.length - 1) : items.length - 1, 1);
    return [sequenceOf(items)];
  },
  ConcatFromSequence: (node, inputs) => {
    const parts = needSequence(inputs, 0, node).items.map((_, index, items) => needTensor(items, index, node));
    const stack = node.int('new_axis', 0) === 1;
    const rank = (parts[0]?.shape.length ?? 0) + (stack ? 1 : 0);
    const axis = normalizeAxis(node.int('axis', 0), rank, nodeName(node));
    const shaped = stack
      ? parts.map((part) => withShape(part, [...part.shape.slice(0, axis), 1, ...part.shape.slice(axis)]))
      : parts;
    return [concatData(shaped, axis, nodeName(node))];
  },
  SplitToSequence: splitToSequence,
  Optional: (_, inputs) => [inputs[0] ?? EMPTY],
  OptionalHasElement: (_, inputs) => {
    const value = inputs[0];
    const present = value !== undefined && !('kind' in value && value.kind === 'empty');
    return [encodeReals('bool', [], Uint8Array.of(present ? 1 : 0))];
  },
  OptionalGetElement: (node, inputs) => {
    const value = inputs[0];
    if (value === undefined || ('kind' in value && value.kind === 'empty'))
      throw new NpucError('IR021', { message: 'the optional is empty', where: nodeName(node) });
    return [value];
  },
};

/** The names of the ops that have semantics here. */
export const SEQUENCE_OP_NAMES: readonly string[] = Object.keys(SEMANTICS);

/** Evaluates an op on sequences or optionals; undefined for every other op. */
export function evaluateSequence(node: Node, inputs: Inputs): readonly RuntimeValue[] | undefined {
  if (node.domain !== '' || !Object.hasOwn(SEMANTICS, node.op)) return undefined;
  return SEMANTICS[node.op]!(node, inputs);
}

/** A position counted from the front. @throws IR020 when it lies outside 0..last */
function position(node: Node, tensor: TensorData, last: number): number {
  const given = readReals(tensor)[0]!;
  // For insertion `last` is the length; a negative position counts from the length either way.
  const length = node.op === 'SequenceInsert' ? last : last + 1;
  const at = given < 0 ? given + length : given;
  if (at < 0 || at > last)
    throw new NpucError('IR020', {
      message: `position ${given} lies outside a sequence of ${length}`,
      where: nodeName(node),
    });
  return at;
}

/** Without `split` every slice is an element, its axis dropped unless keepdims; with it, parts of that size or those sizes. */
function splitToSequence(node: Node, inputs: Inputs): readonly RuntimeValue[] {
  const x = needTensor(inputs, 0, node);
  const axis = normalizeAxis(node.int('axis', 0), x.shape.length, nodeName(node));
  const total = x.shape[axis]!;
  const split = inputs[1] && needTensor(inputs, 1, node);
  let sizes: number[];
  if (!split) sizes = new Array<number>(total).fill(1);
  else if (split.shape.length > 0) sizes = readInts(split);
  else {
    const size = readInts(split)[0]!;
    sizes = Array.from({ length: Math.ceil(total / size) }, (_, index) => Math.min(size, total - index * size));
  }
  const drop = !split && node.int('keepdims', 1) === 0;
  let from = 0;
  const parts = sizes.map((size) => {
    const part = sliceAxis(x, axis, from, from + size);
    from += size;
    return drop
      ? withShape(
          part,
          part.shape.filter((_, k) => k !== axis),
        )
      : part;
  });
  return [sequenceOf(parts)];
}

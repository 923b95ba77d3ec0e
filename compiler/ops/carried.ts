import { type Dim, type Shape, tensorType, type ValueType } from '../ir/graph.ts';
import { castTarget } from './constant.ts';
import { normalizeAxis } from './indexing.ts';
import { defineOp, type InferContext, type OpDefinition } from './op.ts';
import { inputDtype, nodeName, typeOrUnknown, unknownDim } from './shape-rules.ts';

/**
 * Ops on sequences, optionals and subgraphs. Their semantics need more than tensors: compiler/ops/sequence.ts and
 * compiler/ops/control.ts have them, compiler/ops/infer-control.ts the shapes of those with subgraphs. Here are their types.
 */
function carried(
  name: string,
  since: number,
  infer: (context: InferContext) => readonly (ValueType | undefined)[] = () => [],
): OpDefinition {
  return defineOp({ name, since, quantization: 'never', infer });
}

function elementOf(type: ValueType | undefined): ValueType | undefined {
  return type?.kind === 'sequence' || type?.kind === 'optional' ? type.element : undefined;
}

/** Elements of a sequence may differ in shape: only what they share is known. */
function sequenceType(types: readonly (ValueType | undefined)[]): ValueType {
  const [first] = types;
  if (first?.kind !== 'tensor') return { kind: 'sequence', element: first };
  const same = types.every(
    (type) => type?.kind === 'tensor' && JSON.stringify(type.shape) === JSON.stringify(first.shape),
  );
  return { kind: 'sequence', element: same ? first : tensorType(first.dtype) };
}

function concatSequence(context: InferContext): readonly (ValueType | undefined)[] {
  const element = elementOf(context.type(0));
  if (element?.kind !== 'tensor' || !element.shape) return [element];
  const stack = context.node.int('new_axis', 0) === 1;
  const rank = element.shape.length + (stack ? 1 : 0);
  const axis = normalizeAxis(context.node.int('axis', 0), rank, nodeName(context.node));
  const unknown: Dim = unknownDim(context.node, 0, axis);
  const out: Shape = stack
    ? [...element.shape.slice(0, axis), unknown, ...element.shape.slice(axis)]
    : element.shape.map((dim, at) => (at === axis ? unknown : dim));
  return [tensorType(element.dtype, out)];
}

function splitSequence(context: InferContext): readonly (ValueType | undefined)[] {
  const dtype = inputDtype(context, 0);
  const shape = context.shape(0);
  if (!shape) return [{ kind: 'sequence', element: typeOrUnknown(dtype, undefined) }];
  const axis = normalizeAxis(context.node.int('axis', 0), shape.length, nodeName(context.node));
  // Parts of given sizes may differ, so no one name can stand for them.
  if (context.node.inputs[1]) return [{ kind: 'sequence', element: typeOrUnknown(dtype, undefined) }];
  const drop = context.node.int('keepdims', 1) === 0;
  const out = drop ? shape.filter((_, at) => at !== axis) : shape.map((dim, at): Dim => (at === axis ? 1 : dim));
  return [{ kind: 'sequence', element: typeOrUnknown(dtype, out) }];
}

export const CARRIED_OPS: readonly OpDefinition[] = [
  carried('If', 1),
  carried('Loop', 1),
  carried('Scan', 8),
  carried('SequenceMap', 17),
  carried('SequenceEmpty', 11, (context) => [
    { kind: 'sequence', element: tensorType(castTarget(context.node) ?? 'f32') },
  ]),
  carried('SequenceConstruct', 11, (context) => [
    sequenceType(context.node.inputs.map((_, index) => context.type(index))),
  ]),
  carried('SequenceLength', 11, () => [tensorType('i64', [])]),
  carried('SequenceAt', 11, (context) => [elementOf(context.type(0))]),
  carried('SequenceInsert', 11, (context) => [sequenceType([elementOf(context.type(0)), context.type(1)])]),
  carried('SequenceErase', 11, (context) => [context.type(0)]),
  carried('ConcatFromSequence', 11, concatSequence),
  carried('SplitToSequence', 11, splitSequence),
  carried('Optional', 15, (context) => {
    const given = context.node.attributes.get('type');
    return [{ kind: 'optional', element: context.type(0) ?? (given?.kind === 'type' ? given.value : undefined) }];
  }),
  carried('OptionalHasElement', 15, () => [tensorType('bool', [])]),
  // Since opset 18 a tensor or sequence is taken for an optional that holds it.
  carried('OptionalGetElement', 15, (context) => {
    const type = context.type(0);
    return [type?.kind === 'optional' ? type.element : type];
  }),
];

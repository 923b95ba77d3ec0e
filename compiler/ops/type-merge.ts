import { sameDim } from '../ir/dims.ts';
import { type Node, type Shape, tensorType, type ValueType } from '../ir/graph.ts';
import { isUnknownDim, unknownDim } from './shape-rules.ts';

/** What is inferred, completed by what was declared. */
export function mergeTypes(inferred: ValueType | undefined, declared: ValueType | undefined): ValueType | undefined {
  if (!inferred) return declared;
  if (inferred.kind !== 'tensor' || declared?.kind !== 'tensor' || !declared.shape) return inferred;
  if (!inferred.shape) return tensorType(inferred.dtype, declared.shape);
  if (inferred.shape.length !== declared.shape.length) return inferred;
  // A dimension that inference could only name anew is better known by its declaration.
  const shape = inferred.shape.map((dim, axis) => (isUnknownDim(dim) ? declared.shape![axis]! : dim));
  return tensorType(inferred.dtype, shape);
}

/** The shape that two alternatives share; axes where they differ get a name from `unknown`. */
function commonShape(a: Shape | undefined, b: Shape | undefined, unknown: (axis: number) => string): Shape | undefined {
  if (!a || !b || a.length !== b.length) return undefined;
  return a.map((dim, axis) => (sameDim(dim, b[axis]!) ? dim : unknown(axis)));
}

/** What holds for both of two types. */
export function commonType(
  a: ValueType | undefined,
  b: ValueType | undefined,
  node: Node,
  output: number,
): ValueType | undefined {
  if (!a || !b || a.kind !== b.kind) return undefined;
  if (a.kind === 'tensor' && b.kind === 'tensor') {
    if (a.dtype !== b.dtype) return undefined;
    return tensorType(
      a.dtype,
      commonShape(a.shape, b.shape, (axis) => String(unknownDim(node, output, axis))),
    );
  }
  if (a.kind === 'sequence' && b.kind === 'sequence')
    return { kind: 'sequence', element: commonType(a.element, b.element, node, output) };
  return a;
}

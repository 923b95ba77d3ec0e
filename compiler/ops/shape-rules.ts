import { NpucError } from '../errors.ts';
import { maxDims, sameDim } from '../ir/dims.ts';
import type { DType } from '../ir/dtype.ts';
import { type Dim, type Node, type Shape, tensorType, type ValueType } from '../ir/graph.ts';
import { normalizeAxis } from './indexing.ts';
import type { InferContext } from './op.ts';

/** How errors name a node: its own name, or its op. */
export function nodeName(node: Node): string {
  return node.name === '' ? node.op : node.name;
}

const UNKNOWN = 'unknown_';

/** A name for a dimension that only the run decides (NonZero, Compress): the same on every inference. */
export function unknownDim(node: Node, output: number, axis: number): Dim {
  const name = node.outputs[output]?.name ?? `${nodeName(node)}_${output}`;
  return `${UNKNOWN}${name.replace(/[^\p{L}\p{N}_]/gu, '_')}_${axis}`;
}

/** Whether a dimension is one of those names. */
export function isUnknownDim(dim: Dim): boolean {
  return typeof dim === 'string' && dim.startsWith(UNKNOWN);
}

/** A shape of known rank with nothing else known. */
export function unknownShape(node: Node, output: number, rank: number): Dim[] {
  return Array.from({ length: rank }, (_, axis) => unknownDim(node, output, axis));
}

/** Element type of an input, undefined when it is absent, unknown or no tensor. */
export function inputDtype(context: InferContext, index: number): DType | undefined {
  const type = context.type(index);
  return type?.kind === 'tensor' ? type.dtype : undefined;
}

/** A tensor type, or undefined when the element type is not known. */
export function typeOrUnknown(dtype: DType | undefined, shape: Shape | undefined): ValueType | undefined {
  return dtype === undefined ? undefined : tensorType(dtype, shape);
}

/** Infer rule: the output is as input 0, with another element type if one is given. */
export function likeInput(dtype?: DType): (context: InferContext) => readonly (ValueType | undefined)[] {
  return (context) => [typeOrUnknown(dtype ?? inputDtype(context, 0), context.shape(0))];
}

/** Two dimensions under numpy broadcasting; `max(a, b)` where only the run knows which one is 1. @throws IR020 */
export function broadcastDim(a: Dim, b: Dim, where: string): Dim {
  if (a === 1) return b;
  if (b === 1 || sameDim(a, b)) return a;
  if (typeof a === 'number' && typeof b === 'number')
    throw new NpucError('IR020', { message: `dimensions ${a} and ${b} do not broadcast`, where });
  // A number above 1 is what the other one must be, unless that is 1.
  if (typeof a === 'number') return a;
  if (typeof b === 'number') return b;
  return maxDims(a, b);
}

/** The numpy broadcast of shapes; undefined when a rank is unknown. @throws IR020 when they do not fit */
export function broadcastShapes(shapes: readonly (Shape | undefined)[], where: string): Shape | undefined {
  let out: Shape = [];
  for (const shape of shapes) {
    if (!shape) return undefined;
    const [long, short] = shape.length > out.length ? [shape, out] : [out, shape];
    const skip = long.length - short.length;
    out = long.map((dim, axis) => (axis < skip ? dim : broadcastDim(dim, short[axis - skip]!, where)));
  }
  return out;
}

/** An axis attribute counted from the front. @throws IR022 when it lies outside the rank */
export function axisOf(context: InferContext, name: string, fallback: number, rank: number): number {
  return normalizeAxis(context.node.int(name, fallback), rank, nodeName(context.node));
}

/** Axes given as an input (since some opset) or as an attribute; undefined when absent or not known. */
export function axesOf(context: InferContext, input: number, attribute = 'axes'): number[] | undefined {
  const listed = context.node.ints(attribute);
  if (listed) return listed;
  const content = context.content(input);
  return content?.every((axis): axis is number => typeof axis === 'number') ? [...content] : undefined;
}

/** Content of an integer input with every entry known, be it symbolic. */
export function knownContent(context: InferContext, index: number): Dim[] | undefined {
  const content = context.content(index);
  return content?.every((dim): dim is Dim => dim !== undefined) ? [...content] : undefined;
}

/** Content of an integer input with every entry a number. */
export function knownIntegers(context: InferContext, index: number): number[] | undefined {
  const content = context.content(index);
  return content?.every((dim): dim is number => typeof dim === 'number') ? [...content] : undefined;
}

/** Whether an optional input is given. */
export function hasInput(node: Node, index: number): boolean {
  return node.inputs[index] !== undefined;
}

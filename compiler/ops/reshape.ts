import { NpucError } from '../errors.ts';
import { divDims, divDimsExactly, mulDims, productOfDims, sameDim, subtractDims } from '../ir/dims.ts';
import type { Dim, Shape } from '../ir/graph.ts';
import { elementCount } from '../ir/tensor.ts';
import { need, readInts, withShape } from './elements.ts';
import { normalizeAxes } from './indexing.ts';
import { defineOp, type InferContext, type OpDefinition } from './op.ts';
import { axesOf, hasInput, inputDtype, nodeName, typeOrUnknown, unknownDim, unknownShape } from './shape-rules.ts';

/** Ops that keep every element in place and change the shape only. */

/** The target of a Reshape: the attribute `shape` up to opset 4, input 1 since. */
function inferReshape(context: InferContext): Shape | undefined {
  const { node } = context;
  const from = context.shape(0);
  const target = node.ints('shape') ?? context.content(1);
  if (!target) {
    const rank = context.shape(1)?.[0];
    return typeof rank === 'number' ? unknownShape(node, 0, rank) : undefined;
  }
  const allowZero = node.int('allowzero', 0) === 1;
  let wild = -1;
  const out: (Dim | undefined)[] = target.map((dim, axis) => {
    if (dim === 0 && !allowZero) return from?.[axis];
    if (dim === -1) wild = axis;
    return dim;
  });
  const rest = out.filter((_, axis) => axis !== wild);
  const known = rest.every((dim): dim is Dim => dim !== undefined);
  if (wild >= 0) out[wild] = from && known ? inferredRest(from, rest as Dim[]) : undefined;
  else if (from && out.filter((dim) => dim === undefined).length === 1) {
    const hole = out.indexOf(undefined);
    out[hole] = divDimsExactly(productOfDims(from), productOfDims(rest.filter((dim): dim is Dim => dim !== undefined)));
  }
  return out.map((dim, axis) => dim ?? unknownDim(node, 0, axis));
}

/** The dimension that -1 stands for: equal factors are dropped first, so that symbolic ones need not be divided. */
function inferredRest(from: Shape, rest: readonly Dim[]): Dim | undefined {
  const left = [...from];
  const right: Dim[] = [];
  for (const dim of rest) {
    const at = left.findIndex((other) => sameDim(other, dim));
    if (at >= 0 && dim !== 0) left.splice(at, 1);
    else right.push(dim);
  }
  const divisor = productOfDims(right);
  if (divisor === 0) return undefined;
  // A Reshape that fits divides exactly, so rounding down is never seen.
  return divDims(productOfDims(left), divisor);
}

const reshape = defineOp({
  name: 'Reshape',
  since: 1,
  quantization: 'passthrough',
  infer: (context) => [typeOrUnknown(inputDtype(context, 0), inferReshape(context))],
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const target = node.ints('shape') ?? readInts(need(inputs, 1, nodeName(node)));
    const allowZero = node.int('allowzero', 0) === 1;
    const shape = target.map((dim, axis) => (dim === 0 && !allowZero ? x.shape[axis]! : dim));
    const wild = shape.indexOf(-1);
    const count = elementCount(x.shape);
    if (wild >= 0) {
      const rest = elementCount(shape.filter((_, axis) => axis !== wild));
      shape[wild] = rest === 0 ? 0 : count / rest;
    }
    if (elementCount(shape) !== count || shape.some((dim) => !Number.isInteger(dim) || dim < 0))
      throw new NpucError('IR020', { message: `[${x.shape}] cannot become [${target}]`, where: nodeName(node) });
    return [withShape(x, shape)];
  },
});

function squeezed<T extends Dim>(shape: readonly T[], axes: readonly number[] | undefined, where: string): T[] {
  const drop = axes ? normalizeAxes(axes, shape.length, where) : undefined;
  for (const axis of drop ?? [])
    if (typeof shape[axis] === 'number' && shape[axis] !== 1)
      throw new NpucError('IR020', { message: `axis ${axis} of [${shape}] is not 1`, where });
  return shape.filter((dim, axis) => (drop ? !drop.includes(axis) : dim !== 1));
}

const squeeze = defineOp({
  name: 'Squeeze',
  since: 1,
  quantization: 'passthrough',
  infer: (context) => {
    const shape = context.shape(0);
    const axes = axesOf(context, 1);
    const dtype = inputDtype(context, 0);
    if (!shape || (axes === undefined && (hasInput(context.node, 1) || shape.some((dim) => typeof dim !== 'number'))))
      return [typeOrUnknown(dtype, undefined)];
    return [typeOrUnknown(dtype, squeezed(shape, axes, nodeName(context.node)))];
  },
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const axes = node.ints('axes') ?? (inputs[1] && readInts(inputs[1]));
    return [withShape(x, squeezed(x.shape, axes, nodeName(node)))];
  },
});

function unsqueezed<T extends Dim>(shape: readonly T[], axes: readonly number[], one: T, where: string): T[] {
  const out = [...shape];
  // Ascending order: each insertion is then at its final place.
  for (const axis of normalizeAxes(axes, shape.length + axes.length, where)) out.splice(axis, 0, one);
  return out;
}

const unsqueeze = defineOp({
  name: 'Unsqueeze',
  since: 1,
  quantization: 'passthrough',
  infer: (context) => {
    const shape = context.shape(0);
    const axes = axesOf(context, 1);
    return [
      typeOrUnknown(inputDtype(context, 0), shape && axes && unsqueezed<Dim>(shape, axes, 1, nodeName(context.node))),
    ];
  },
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const axes = node.ints('axes') ?? readInts(need(inputs, 1, nodeName(node)));
    return [withShape(x, unsqueezed(x.shape, axes, 1, nodeName(node)))];
  },
});

/** The axis of Flatten may equal the rank. */
function flattenAxis(axis: number, rank: number, where: string): number {
  const positive = axis < 0 ? axis + rank : axis;
  if (positive < 0 || positive > rank)
    throw new NpucError('IR022', { message: `axis ${axis} lies outside rank ${rank}`, where });
  return positive;
}

const flatten = defineOp({
  name: 'Flatten',
  since: 1,
  quantization: 'passthrough',
  infer: (context) => {
    const shape = context.shape(0);
    const dtype = inputDtype(context, 0);
    if (!shape) return [typeOrUnknown(dtype, unknownShape(context.node, 0, 2))];
    const axis = flattenAxis(context.node.int('axis', 1), shape.length, nodeName(context.node));
    return [typeOrUnknown(dtype, [productOfDims(shape.slice(0, axis)), productOfDims(shape.slice(axis))])];
  },
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const axis = flattenAxis(node.int('axis', 1), x.shape.length, nodeName(node));
    return [withShape(x, [elementCount(x.shape.slice(0, axis)), elementCount(x.shape.slice(axis))])];
  },
});

const identity = defineOp({
  name: 'Identity',
  since: 1,
  quantization: 'passthrough',
  infer: (context) => [context.type(0)],
  evaluate: (inputs, { node }) => [need(inputs, 0, nodeName(node))],
});

/** Dropout at inference: the data itself and, if asked for, a mask of ones. Training mode is random: never evaluated. */
const dropout = defineOp({
  name: 'Dropout',
  since: 7,
  quantization: 'passthrough',
  infer: (context) => [
    context.type(0),
    typeOrUnknown(context.opset < 10 ? inputDtype(context, 0) : 'bool', context.shape(0)),
  ],
  evaluate: (inputs, { node, opset }) => {
    const x = need(inputs, 0, nodeName(node));
    const ratio = inputs[1] ? Number(inputs[1].data[0]) : node.float('ratio', 0.5);
    if (opset >= 12 && inputs[2]?.data[0] === 1 && ratio !== 0)
      throw new NpucError('RT010', { message: 'Dropout in training mode is random', where: nodeName(node) });
    const count = elementCount(x.shape);
    return opset < 10 ? [x, x] : [x, { dtype: 'bool', shape: x.shape, data: new Uint8Array(count).fill(1) }];
  },
});

/** The sizes of a Split: given, or equal parts where the last one may be smaller (opset 18). */
export function splitSizes(total: Dim, parts: number, given: readonly Dim[] | undefined): Dim[] | undefined {
  if (given) return [...given];
  if (typeof total === 'number') {
    const size = Math.ceil(total / parts);
    return Array.from({ length: parts }, (_, index) => Math.max(0, Math.min(size, total - index * size)));
  }
  const equal = divDimsExactly(total, parts);
  if (equal === undefined) return undefined;
  const head: Dim[] = new Array(parts - 1).fill(equal);
  return [...head, subtractDims(total, mulDims(equal, parts - 1))];
}

export const RESHAPE_OPS: readonly OpDefinition[] = [reshape, squeeze, unsqueeze, flatten, identity, dropout];

import { NpucError } from '../errors.ts';
import { ceilDivDims, maxDims, subtractDims } from '../ir/dims.ts';
import { type DType, dtypeOfOnnxCode } from '../ir/dtype.ts';
import { type Dim, type Node, tensorType } from '../ir/graph.ts';
import { elementCount, encodeStrings, Tensor, type TensorData } from '../ir/tensor.ts';
import { encodeReals, int64s, isBig, need, newArray, newReals, readInts, readReals } from './elements.ts';
import { defineOp, type OpDefinition } from './op.ts';
import { inputDtype, knownContent, nodeName, typeOrUnknown, unknownDim, unknownShape } from './shape-rules.ts';

/** Ops that make tensors out of attributes, shapes and scalars. */

/** The tensor of a Constant node, whichever attribute holds it. @throws IR022 when none does */
export function constantOf(node: Node): Tensor {
  const value = node.attributes.get('value');
  if (value?.kind === 'tensor') return value.value;
  for (const attribute of node.attributes.values()) {
    if (attribute.kind === 'float') return Tensor.scalar('f32', attribute.value);
    if (attribute.kind === 'floats') return Tensor.of('f32', [attribute.value.length], attribute.value);
    if (attribute.kind === 'int' || attribute.kind === 'ints') {
      const list = attribute.kind === 'int' ? [attribute.value] : attribute.value;
      return Tensor.of('i64', attribute.kind === 'int' ? [] : [list.length], BigInt64Array.from(list, BigInt));
    }
    if (attribute.kind === 'string' || attribute.kind === 'strings') {
      const list = attribute.kind === 'string' ? [attribute.value] : attribute.value;
      const shape = attribute.kind === 'string' ? [] : [list.length];
      return new Tensor('string', shape, { kind: 'memory', bytes: encodeStrings(list) });
    }
  }
  throw new NpucError('IR022', { message: 'a Constant has no value that can be read', where: nodeName(node) });
}

const constant = defineOp({
  name: 'Constant',
  since: 1,
  quantization: 'never',
  infer: ({ node }) => {
    if ([...node.attributes.values()].every((attribute) => attribute.kind === 'raw')) return [undefined];
    const tensor = constantOf(node);
    return [tensorType(tensor.dtype, tensor.shape)];
  },
  evaluate: (_, { node }) => [constantOf(node).toData()],
});

function shapeSpan(node: Node, rank: number): [number, number] {
  const clamp = (value: number): number => Math.min(rank, Math.max(0, value < 0 ? value + rank : value));
  return [clamp(node.int('start', 0)), clamp(node.int('end', rank))];
}

const shape = defineOp({
  name: 'Shape',
  since: 1,
  quantization: 'never',
  infer: (context) => {
    const dims = context.shape(0);
    if (!dims) return [tensorType('i64', [unknownDim(context.node, 0, 0)])];
    const [from, to] = shapeSpan(context.node, dims.length);
    return [tensorType('i64', [Math.max(0, to - from)])];
  },
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const part = x.shape.slice(...shapeSpan(node, x.shape.length));
    return [int64s([part.length], part)];
  },
});

/** The part of a shape that a Shape node gives: shape inference propagates it. */
export function shapeContent(node: Node, dims: readonly Dim[]): readonly Dim[] {
  return dims.slice(...shapeSpan(node, dims.length));
}

const size = defineOp({
  name: 'Size',
  since: 1,
  quantization: 'never',
  infer: () => [tensorType('i64', [])],
  evaluate: (inputs, { node }) => [int64s([], [elementCount(need(inputs, 0, nodeName(node)).shape)])],
});

function filled(dtype: DType, dims: readonly number[], value: TensorData): TensorData {
  const data = newArray(dtype, elementCount(dims)) as Float32Array;
  return { dtype, shape: dims, data: data.fill(value.data[0] as number) };
}

const constantOfShape = defineOp({
  name: 'ConstantOfShape',
  since: 9,
  quantization: 'never',
  infer: (context) => {
    const value = context.node.attributes.get('value');
    const dtype = value?.kind === 'tensor' ? value.value.dtype : 'f32';
    const dims = context.content(0);
    if (dims)
      return [
        tensorType(
          dtype,
          dims.map((dim, axis) => dim ?? unknownDim(context.node, 0, axis)),
        ),
      ];
    const rank = context.shape(0)?.[0];
    return [tensorType(dtype, typeof rank === 'number' ? unknownShape(context.node, 0, rank) : undefined)];
  },
  evaluate: (inputs, { node }) => {
    const dims = readInts(need(inputs, 0, nodeName(node)));
    const value = node.attributes.get('value');
    const fill = value?.kind === 'tensor' ? value.value.toData() : encodeReals('f32', [1], Float32Array.of(0));
    return [filled(fill.dtype, dims, fill)];
  },
});

/** How many steps of `delta` lie between start and limit. */
function rangeLength(start: number, limit: number, delta: number): number {
  return Math.max(0, Math.ceil((limit - start) / delta));
}

const range = defineOp({
  name: 'Range',
  since: 11,
  quantization: 'never',
  infer: (context) => {
    const [start, limit, delta] = [0, 1, 2].map((index) => knownContent(context, index)?.[0]);
    let length: Dim = unknownDim(context.node, 0, 0);
    if (start !== undefined && limit !== undefined && typeof delta === 'number' && delta !== 0) {
      if (typeof start === 'number' && typeof limit === 'number') length = rangeLength(start, limit, delta);
      else {
        const span = delta > 0 ? subtractDims(limit, start) : subtractDims(start, limit);
        // From 0 up to a length nothing can be negative.
        length = ceilDivDims(start === 0 && delta > 0 ? span : maxDims(0, span), Math.abs(delta));
      }
    } else {
      const numbers = [0, 1, 2].map((index) => context.constant(index)?.toNumbers()[0]);
      if (numbers.every((value) => value !== undefined)) length = rangeLength(numbers[0]!, numbers[1]!, numbers[2]!);
    }
    return [typeOrUnknown(inputDtype(context, 0), [length])];
  },
  evaluate: (inputs, { node }) => {
    const first = need(inputs, 0, nodeName(node));
    const [start, limit, delta] = [0, 1, 2].map((index) => readReals(need(inputs, index, nodeName(node)))[0]!) as [
      number,
      number,
      number,
    ];
    const length = rangeLength(start, limit, delta);
    const out = newReals(first.dtype, length);
    for (let i = 0; i < length; i++) out[i] = start + i * delta;
    return [encodeReals(first.dtype, [length], out)];
  },
});

const eyeLike = defineOp({
  name: 'EyeLike',
  since: 9,
  quantization: 'never',
  infer: (context) => [typeOrUnknown(castTarget(context.node) ?? inputDtype(context, 0), context.shape(0))],
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const [rows, columns] = x.shape as [number, number];
    const k = node.int('k', 0);
    const out = new Float64Array(rows * columns);
    for (let row = 0; row < rows; row++) if (row + k >= 0 && row + k < columns) out[row * columns + row + k] = 1;
    const dtype = castTarget(node) ?? x.dtype;
    return [encodeReals(dtype, x.shape, dtype === 'f64' || isBig(dtype) ? out : Array.from(out))];
  },
});

/** The element type that an attribute `dtype` or `to` names; undefined when it is absent. @throws IR022 for an unknown code */
export function castTarget(node: Node, attribute = 'dtype'): DType | undefined {
  const code = node.int(attribute);
  if (code === undefined) return undefined;
  const dtype = dtypeOfOnnxCode(code);
  if (!dtype) throw new NpucError('IR022', { message: `element type ${code} is not known`, where: nodeName(node) });
  return dtype;
}

export const CONSTANT_OPS: readonly OpDefinition[] = [constant, shape, size, constantOfShape, range, eyeLike];

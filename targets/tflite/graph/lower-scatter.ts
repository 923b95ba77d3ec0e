import { DTYPES } from '../../../compiler/ir/dtype.ts';
import type { Node } from '../../../compiler/ir/graph.ts';
import { elementCount, Tensor } from '../../../compiler/ir/tensor.ts';
import { TensorType } from '../schema-enums.ts';
import { quantizationOf, typeOf } from '../subgraph-builder.ts';
import type { GraphLowering } from './graph-lowering.ts';
import type { GraphOps } from './graph-op.ts';
import { orderOf } from './order.ts';

/** 32-bit places, counted from the start where they are constant. */
function placesOf(node: Node, lowering: GraphLowering): number {
  const { builder } = lowering;
  const value = node.input(1);
  if (!value.data) {
    const tensor = lowering.input(node, 1);
    const { type, shape } = builder.tensor(tensor);
    if (type === TensorType.INT32) return tensor;
    const narrow = builder.addTensor(`${value.name}.i32`, TensorType.INT32, shape);
    const options = { kind: 'CastOptions', inDataType: type, outDataType: TensorType.INT32 } as const;
    builder.addOperator('CAST', [tensor], [narrow], { options });
    return narrow;
  }
  const limits = node.input(0).dims;
  const depth = value.dims.at(-1)!;
  const places = value.data.toNumbers().map((place, i) => (place < 0 ? place + limits[i % depth]! : place));
  return builder.addConstant(value.name, Tensor.of('i32', value.dims, places));
}

/**
 * ScatterND. SCATTER_ND adds into zeros: a sum is what is wanted for `add`, else a SELECT_V2 takes its elements where
 * something was scattered.
 */
function lowerScatterNd(node: Node, lowering: GraphLowering): void {
  const { builder } = lowering;
  const [data, indices, updates] = [node.input(0), node.input(1), node.input(2)];
  const output = node.output();
  const places = placesOf(node, lowering);
  const shape = builder.addInts('shape', data.dims);
  const add = node.string('reduction', 'none') === 'add';
  const options = { kind: 'ScatterNdOptions' } as const;
  const x = lowering.view(data, orderOf('plain', data.dims.length));
  const parts = lowering.view(updates, orderOf('plain', updates.dims.length));
  const floats = add && output.encoding !== undefined;
  const scattered = floats
    ? builder.addFloats(`${output.name}.scattered`, data.dims)
    : builder.addTensor(
        `${output.name}.scattered`,
        typeOf(output),
        data.dims,
        quantizationOf(output.encoding, output.name),
      );
  const wanted = floats ? lowering.toFloat(parts) : parts;
  lowering.run('SCATTER_ND', node, [places, wanted, shape], scattered, { options, activations: [1] });
  if (add) {
    const sum = { kind: 'AddOptions', fusedActivationFunction: 0, potScaleInt16: false } as const;
    const onFloats = floats ? 'sums of integers have zero points' : undefined;
    lowering.emit('ADD', node, [x, scattered], { options: sum, onFloats });
    return;
  }
  const mask = maskOf(node, places, lowering);
  lowering.emit('SELECT_V2', node, [mask, scattered, x], {
    options: { kind: 'SelectV2Options' },
    activations: [1, 2],
  });

  /** Whether something was scattered to a place, [..dims that the places name, 1, ..]. */
  function maskOf(of: Node, at: number, into: GraphLowering): number {
    const depth = indices.dims.at(-1)!;
    const named = data.dims.slice(0, depth);
    const dims = [...named, ...new Array<number>(data.dims.length - depth).fill(1)];
    if (indices.data) {
      const hits = new Uint8Array(elementCount(named));
      const flat = indices.data.toNumbers();
      for (let i = 0; i < flat.length; i += depth) {
        const index = named.reduce((sum, dim, k) => sum * dim + ((flat[i + k]! + dim) % dim), 0);
        hits[index] = 1;
      }
      return into.builder.addConstant(`${of.output().name}.mask`, Tensor.of('bool', dims, [...hits]));
    }
    const count = indices.dims.slice(0, -1);
    const ones = Tensor.of('f32', count, new Float32Array(elementCount(count)).fill(1));
    const numbers = into.builder.addFloats(`${of.output().name}.hits`, named);
    const inputs = [at, into.builder.addConstant('ones', ones), into.builder.addInts('named', named)];
    into.builder.addOperator('SCATTER_ND', inputs, [numbers], { options });
    const wide = into.reshape(numbers, dims, `${of.output().name}.hits`);
    const result = into.builder.addTensor(`${of.output().name}.mask`, TensorType.BOOL, dims);
    const zero = into.builder.addConstant('none', Tensor.of('f32', [], [0]));
    into.builder.addOperator('GREATER', [wide, zero], [result], { options: { kind: 'GreaterOptions' } });
    return result;
  }
}

function refuseScatterNd(node: Node): string | undefined {
  const reduction = node.string('reduction', 'none');
  if (reduction !== 'none' && reduction !== 'add') return `ScatterND of reduction ${reduction}`;
  if (node.inputs.some((input) => elementCount(input!.dims) === 0)) return 'ScatterND of nothing';
  return undefined;
}

/** TOPK_V2 over the last axis; the smallest are the largest of what is negated. Places are cast to ONNX's 64 bits. */
function lowerTopK(node: Node, lowering: GraphLowering): void {
  const { builder } = lowering;
  const x = node.input(0);
  const rank = x.dims.length;
  const axis = (node.int('axis', -1) + rank) % rank;
  const order = [...orderOf('plain', rank).filter((each) => each !== axis), axis];
  const largest = node.int('largest', 1) === 1;
  const [values, places] = node.outputs;
  const source = lowering.view(x, order);
  const negate = (from: number, name: string): number => {
    const { type, shape } = builder.tensor(from);
    const to = builder.addTensor(name, type, shape);
    builder.addOperator('NEG', [from], [to], { options: { kind: 'NegOptions' } });
    return to;
  };
  const from = largest ? source : negate(lowering.toFloat(source), `${x.name}.negated`);
  const { type, shape, quantization } = builder.tensor(from);
  const count = (values ?? places)!.dims[axis]!;
  const dims = [...shape.slice(0, -1), count];
  const name = (values ?? places)!.name;
  const found = builder.addTensor(`${name}.values`, type, dims, quantization);
  const at = builder.addTensor(`${name}.places`, TensorType.INT32, dims);
  const k = builder.addConstant('k', Tensor.of('i32', [], [count]));
  builder.addOperator('TOPK_V2', [from, k], [found, at], { options: { kind: 'TopKV2Options' } });
  if (values) {
    let result = largest ? found : negate(found, `${name}.back`);
    if (!largest && values.encoding) {
      const integers = builder.addTensor(
        `${name}.quantized`,
        typeOf(values),
        dims,
        quantizationOf(values.encoding, name),
      );
      builder.addQuantize(result, integers);
      result = integers;
    }
    lowering.define(values, result, order);
  }
  if (places) {
    const wide = builder.addTensor(places.name, TensorType.INT64, dims);
    const options = { kind: 'CastOptions', inDataType: TensorType.INT32, outDataType: TensorType.INT64 } as const;
    builder.addOperator('CAST', [at], [wide], { options });
    lowering.define(places, wide, order);
  }
}

function refuseTopK(node: Node): string | undefined {
  const { dtype } = node.input(0);
  const [values] = node.outputs;
  if (!node.input(1).data) return 'TopK of a computed number';
  if (dtype !== 'f32' && !(node.int('largest', 1) === 1 && (dtype === 'i32' || dtype === 'i64')))
    return `TopK of ${dtype}`;
  return values?.dims.length === 0 ? 'TopK of a scalar' : undefined;
}

/** The remainder with the sign of the divisor. */
function lowerMod(node: Node, lowering: GraphLowering): void {
  const rank = node.output().dims.length;
  const operands = [0, 1].map((index) => lowering.operand(node, node.input(index), rank));
  lowering.emit('FLOOR_MOD', node, operands, { options: { kind: 'FloorModOptions' } });
}

function refuseMod(node: Node): string | undefined {
  if (node.int('fmod', 0) === 1) return 'Mod with the sign of the dividend';
  const { dtype } = node.input(0);
  return dtype === 'i32' || dtype === 'i64' ? undefined : `Mod of ${DTYPES[dtype].bits}-bit ${dtype}`;
}

export const SCATTERS: GraphOps = {
  ScatterND: { layout: 'plain', refuse: refuseScatterNd, lower: lowerScatterNd },
  TopK: { layout: 'plain', refuse: refuseTopK, lower: lowerTopK },
  Mod: { layout: 'any', refuse: refuseMod, lower: lowerMod },
};

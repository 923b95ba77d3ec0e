import type { Node } from '../../compiler/ir/graph.ts';
import { elementCount, Tensor } from '../../compiler/ir/tensor.ts';
import type { Lowering } from './lowering.ts';
import { TensorType } from './schema-enums.ts';

/** Why a lookup has no form; undefined when it has one. */
export function refuseGather(node: Node): string | undefined {
  const axis = node.int('axis', 0);
  if (axis !== 0) return `Gather over axis ${axis}`;
  return node.input(1).dtype === 'i32' ? undefined : `Gather of ${node.input(1).dtype} indices`;
}

/**
 * Rows of a table. Integers with a scale per row are what EMBEDDING_LOOKUP alone reads, a vector of ids in, floats out; GATHER
 * moves anything else as it is.
 */
export function lowerGather(node: Node, lowering: Lowering): void {
  const { builder } = lowering;
  const [table, ids, rows] = [node.input(0), node.input(1), node.output()];
  if (table.encoding?.axis === undefined) {
    lowering.emit('GATHER', node, [builder.tensorOf(table), builder.tensorOf(ids)], {
      options: { kind: 'GatherOptions', axis: 0, batchDims: 0 },
    });
    return;
  }
  const count = elementCount(ids.dims);
  const width = table.dims[1]!;
  const vector = reshape(lowering, builder.tensorOf(ids), `${ids.name}.vector`, TensorType.INT32, [count]);
  const floats = builder.addFloats(`${rows.name}.rows`, [count, width]);
  builder.addOperator('EMBEDDING_LOOKUP', [vector, builder.tensorOf(table)], [floats]);
  const shaped = reshape(lowering, floats, `${rows.name}.floats`, TensorType.FLOAT32, rows.dims);
  if (rows.encoding) builder.addQuantize(shaped, builder.tensorOf(rows));
  else builder.bind(rows, shaped);
}

function reshape(
  { builder }: Lowering,
  from: number,
  name: string,
  type: typeof TensorType.FLOAT32 | typeof TensorType.INT32,
  shape: readonly number[],
): number {
  const to = builder.addTensor(name, type, shape);
  builder.addOperator('RESHAPE', [from, builder.addInts(`shape.${shape.join('x')}`, shape)], [to], {
    options: { kind: 'ReshapeOptions', newShape: Int32Array.from(shape) },
  });
  return to;
}

export function refuseSlice(node: Node): string | undefined {
  if (node.inputs.slice(1).some((bound) => bound && !bound.data)) return 'Slice with computed bounds';
  const steps = node.inputs[4]?.data?.toNumbers() ?? [];
  return steps.every((step) => step === 1) ? undefined : 'Slice with steps';
}

/** SLICE: begin and size of every axis. */
export function lowerSlice(node: Node, lowering: Lowering): void {
  const { builder } = lowering;
  const [input, output] = [node.input(0), node.output()];
  const starts = node.input(1).data!.toNumbers();
  const axes = node.inputs[3]?.data?.toNumbers() ?? starts.map((_, i) => i);
  const begin = input.dims.map((dim, axis) => {
    const at = axes.findIndex((each) => (each + input.dims.length) % input.dims.length === axis);
    const start = at < 0 ? 0 : starts[at]!;
    return Math.min(dim, start < 0 ? Math.max(0, start + dim) : start);
  });
  const inputs = [builder.tensorOf(input), builder.addInts('begin', begin), builder.addInts('size', output.dims)];
  builder.addOperator('SLICE', inputs, [builder.tensorOf(output)], { options: { kind: 'SliceOptions' } });
}

export function refusePad(node: Node): string | undefined {
  if (node.string('mode', 'constant') !== 'constant') return `Pad of mode ${node.string('mode', 'constant')}`;
  if (!node.input(1).data) return 'Pad by computed lengths';
  return node.inputs[2] || node.inputs[3] ? 'Pad with a value or axes of its own' : undefined;
}

/** PAD with zeros: the integer that stands for zero. */
export function lowerPad(node: Node, lowering: Lowering): void {
  const { builder } = lowering;
  const pads = node.input(1).data!.toNumbers();
  const rank = pads.length / 2;
  const pairs = Array.from({ length: rank }, (_, axis) => [pads[axis]!, pads[rank + axis]!]).flat();
  const paddings = builder.addConstant('paddings', Tensor.of('i32', [rank, 2], pairs));
  lowering.emit('PAD', node, [builder.tensorOf(node.input(0)), paddings], { options: { kind: 'PadOptions' } });
}

export function refuseTensorScatter(node: Node): string | undefined {
  if (node.string('mode', 'linear') !== 'linear') return 'TensorScatter that goes round';
  return node.input(0).dims[0] === 1 && node.inputs[2] ? undefined : 'TensorScatter over several batch entries';
}

/** DYNAMIC_UPDATE_SLICE at [0, .., index, .., 0]; the caches of one graph share that vector. */
export function lowerTensorScatter(node: Node, lowering: Lowering): void {
  const { builder } = lowering;
  const [cache, rows, index] = [node.input(0), node.input(1), node.input(2)];
  const rank = cache.dims.length;
  const axis = (node.int('axis', -2) + rank) % rank;
  const key = `${index.name}.at${axis}of${rank}`;
  let start = lowering.starts.get(key);
  if (start === undefined) {
    start = builder.addTensor(key, TensorType.INT32, [rank]);
    const zeros = (count: number): number[] =>
      count === 0 ? [] : [builder.addConstant('zeros', Tensor.of('i32', [count], new Int32Array(count)))];
    const parts = [...zeros(axis), builder.tensorOf(index), ...zeros(rank - axis - 1)];
    builder.addOperator('CONCATENATION', parts, [start], {
      options: { kind: 'ConcatenationOptions', axis: 0, fusedActivationFunction: 0 },
    });
    lowering.starts.set(key, start);
  }
  lowering.emit('DYNAMIC_UPDATE_SLICE', node, [builder.tensorOf(cache), builder.tensorOf(rows), start], {
    options: { kind: 'DynamicUpdateSliceOptions' },
  });
}

import type { Node } from '../../../compiler/ir/graph.ts';
import { elementCount, Tensor } from '../../../compiler/ir/tensor.ts';
import { quantizationOf, typeOf } from '../subgraph-builder.ts';
import { type GraphLowering, isConstant } from './graph-lowering.ts';
import type { GraphOp, GraphOps } from './graph-op.ts';
import { isFlattenOfWeights } from './lower-products.ts';
import { orderedDims, placeOf } from './order.ts';

/** The same elements under other dimensions: the order of axes must be the model's. */
const reshape: GraphOp = {
  layout: (node) => (isFlattenOfWeights(node) ? undefined : 'plain'),
  lower: (node, lowering) => {
    if (isFlattenOfWeights(node)) return;
    const output = node.output();
    const tensor = lowering.reshape(lowering.input(node, 0), output.dims, output.name);
    lowering.define(output, tensor, lowering.orderIn(node, output));
  },
};

/** A Transpose renames axes; the readers' views make an operator of it where one is needed. */
const transpose: GraphOp = { layout: () => undefined, lower: () => {} };

function lowerConcat(node: Node, lowering: GraphLowering): void {
  const output = node.output();
  const axis = placeOf(node.int('axis', 0), lowering.orderIn(node, output));
  const parts = node.inputs.map((value, i) => (elementCount(value!.dims) === 0 ? -1 : lowering.input(node, i)));
  lowering.emit(
    'CONCATENATION',
    node,
    parts.filter((part) => part >= 0),
    { options: { kind: 'ConcatenationOptions', axis, fusedActivationFunction: 0 } },
  );
}

/** One SLICE per part: it is in the set of operators that every plugin takes, SPLIT is not (facts litert 5). */
function lowerSplit(node: Node, lowering: GraphLowering): void {
  const { builder } = lowering;
  const input = node.input(0);
  const order = lowering.orderIn(node, input);
  const axis = placeOf(node.int('axis', 0), order);
  let start = 0;
  for (const output of node.outputs) {
    const size = orderedDims(output!.dims, order);
    const begin = size.map((_, i) => (i === axis ? start : 0));
    const inputs = [lowering.input(node, 0), builder.addInts('begin', begin), builder.addInts('size', size)];
    lowering.emit('SLICE', node, inputs, { output: output!, options: { kind: 'SliceOptions' } });
    start += size[axis]!;
  }
}

/** Starts, ends and steps of every axis of a Slice, in the model's order; ends lie outside for a step back to the start. */
function sliceRanges(node: Node): { readonly start: number; readonly step: number; readonly count: number }[] {
  const { dims } = node.input(0);
  const read = (index: number): number[] | undefined => node.inputs[index]?.data?.toNumbers();
  const [starts, axes, steps] = [read(1)!, read(3), read(4)];
  const ranges = dims.map((count) => ({ start: 0, step: 1, count }));
  starts.forEach((given, i) => {
    const axis = axes ? (axes[i]! + dims.length) % dims.length : i;
    const [dim, step] = [dims[axis]!, steps?.[i] ?? 1];
    const from = given < 0 ? given + dim : given;
    const start = Math.max(0, Math.min(from, step < 0 ? dim - 1 : dim));
    ranges[axis] = { start, step, count: node.output().dims[axis]! };
  });
  return ranges;
}

function lowerSlice(node: Node, lowering: GraphLowering): void {
  const { builder } = lowering;
  const order = lowering.orderIn(node, node.input(0));
  const ranges = order.map((axis) => sliceRanges(node)[axis]!);
  const x = lowering.input(node, 0);
  const begin = builder.addInts(
    'begin',
    ranges.map(({ start }) => start),
  );
  if (ranges.every(({ step }) => step === 1)) {
    const size = builder.addInts(
      'size',
      ranges.map(({ count }) => count),
    );
    lowering.emit('SLICE', node, [x, begin, size], { options: { kind: 'SliceOptions' } });
    return;
  }
  // An end before the first element is written as a mask: as a number it would count from the other side.
  const ends = ranges.map(({ start, step, count }) => start + (count - 1) * step + Math.sign(step));
  const endMask = ends.reduce((mask, end, i) => (end < 0 ? mask | (1 << i) : mask), 0);
  const inputs = [
    x,
    begin,
    builder.addInts(
      'end',
      ends.map((end) => Math.max(0, end)),
    ),
    builder.addInts(
      'strides',
      ranges.map(({ step }) => step),
    ),
  ];
  lowering.emit('STRIDED_SLICE', node, inputs, {
    options: {
      kind: 'StridedSliceOptions',
      beginMask: 0,
      endMask,
      ellipsisMask: 0,
      newAxisMask: 0,
      shrinkAxisMask: 0,
      offset: false,
    },
  });
}

function refuseSlice(node: Node): string | undefined {
  const constant = node.inputs.slice(1).every((input) => !input || input.data);
  if (!constant) return 'Slice with computed bounds';
  return elementCount(node.output().dims) === 0 ? 'Slice of nothing' : undefined;
}

/** Pads of every axis, in the model's order. */
function padsOf(node: Node): [number, number][] {
  const rank = node.input(0).dims.length;
  const pads = node.inputs[1]!.data!.toNumbers();
  const axes = node.inputs[3]?.data?.toNumbers() ?? node.input(0).dims.map((_, axis) => axis);
  const result = node.input(0).dims.map((): [number, number] => [0, 0]);
  axes.forEach((axis, i) => {
    result[(axis + rank) % rank] = [pads[i]!, pads[i + axes.length]!];
  });
  return result;
}

function refusePad(node: Node): string | undefined {
  const mode = node.string('mode', 'constant');
  if (mode !== 'constant' && mode !== 'reflect') return `Pad of mode ${mode}`;
  if (!node.inputs[1]?.data || (node.inputs[3] && !node.inputs[3].data)) return 'Pad with computed pads';
  if (node.inputs[2] && !node.inputs[2].data) return 'Pad with a computed value';
  return padsOf(node).some((pads) => pads.some((pad) => pad < 0)) ? 'Pad that cuts' : undefined;
}

function lowerPad(node: Node, lowering: GraphLowering): void {
  const { builder } = lowering;
  const order = lowering.orderIn(node, node.input(0));
  const pads = padsOf(node);
  const table = Tensor.of(
    'i32',
    [order.length, 2],
    order.flatMap((axis) => pads[axis]!),
  );
  const paddings = builder.addConstant('paddings', table);
  const x = lowering.input(node, 0);
  if (node.string('mode', 'constant') === 'reflect') {
    lowering.emit('MIRROR_PAD', node, [x, paddings], { options: { kind: 'MirrorPadOptions', mode: 0 } });
    return;
  }
  const filler = node.inputs[2]?.data?.toNumbers()[0] ?? 0;
  if (filler === 0) {
    lowering.emit('PAD', node, [x, paddings], { options: { kind: 'PadOptions' } });
    return;
  }
  const { encoding, dtype } = node.output();
  const value = encoding
    ? lowering.quantizedScalar(filler, encoding, 'filler')
    : builder.addConstant('filler', Tensor.of(dtype, [1], [filler]));
  lowering.emit('PADV2', node, [x, paddings, value], { options: { kind: 'PadV2Options' } });
}

/** BROADCAST_TO takes the shape of the result. */
function lowerExpand(node: Node, lowering: GraphLowering): void {
  const output = node.output();
  const shape = lowering.builder.addInts('shape', orderedDims(output.dims, lowering.orderIn(node, output)));
  const x = lowering.operand(node, node.input(0), output.dims.length);
  lowering.emit('BROADCAST_TO', node, [x, shape], { options: { kind: 'BroadcastToOptions' } });
}

function lowerTile(node: Node, lowering: GraphLowering): void {
  const repeats = node.input(1).data!.toNumbers();
  const multiples = orderedDims(repeats, lowering.orderIn(node, node.output()));
  lowering.emit('TILE', node, [lowering.input(node, 0), lowering.builder.addInts('multiples', multiples)], {
    options: { kind: 'TileOptions' },
  });
}

/** Places along one axis, negative ones counted from its end. */
function lowerGather(node: Node, lowering: GraphLowering): void {
  const x = node.input(0);
  const axis = (node.int('axis', 0) + x.dims.length) % x.dims.length;
  const indices = node.input(1);
  const places = indices.data
    ? lowering.builder.addConstant(
        indices.name,
        Tensor.of(
          'i32',
          indices.dims,
          indices.data.toNumbers().map((place) => (place < 0 ? place + x.dims[axis]! : place)),
        ),
      )
    : lowering.input(node, 1);
  lowering.emit('GATHER', node, [lowering.input(node, 0), places], {
    options: { kind: 'GatherOptions', axis, batchDims: 0 },
    activations: [0],
  });
}

/** Blocks of channels spread over rows and columns: TFLite has the order of DCR, CRD takes its channels in another one. */
function lowerDepthToSpace(node: Node, lowering: GraphLowering): void {
  const x = node.input(0);
  const blockSize = node.int('blocksize', 1);
  const [, channels] = x.dims as [number, number];
  const outputs = channels / blockSize ** 2;
  let from = lowering.input(node, 0);
  if (node.string('mode', 'DCR') === 'CRD' && outputs > 1) {
    const { builder } = lowering;
    const places = Array.from(
      { length: channels },
      (_, to) => (to % outputs) * blockSize ** 2 + Math.floor(to / outputs),
    );
    const turned = builder.addTensor(
      `${x.name}.dcr`,
      typeOf(x),
      builder.tensor(from).shape,
      quantizationOf(x.encoding, x.name),
    );
    const options = { kind: 'GatherOptions', axis: 3, batchDims: 0 } as const;
    lowering.run('GATHER', node, [from, builder.addInts('channels', places)], turned, { options, activations: [0] });
    from = turned;
  }
  lowering.emit('DEPTH_TO_SPACE', node, [from], { options: { kind: 'DepthToSpaceOptions', blockSize } });
}

function lowerSpaceToDepth(node: Node, lowering: GraphLowering): void {
  lowering.emit('SPACE_TO_DEPTH', node, [lowering.input(node, 0)], {
    options: { kind: 'SpaceToDepthOptions', blockSize: node.int('blocksize', 1) },
  });
}

const refuseComputed =
  (index: number, what: string) =>
  (node: Node): string | undefined =>
    node.inputs[index] && !isConstant(node.inputs[index]) ? `${node.op} with computed ${what}` : undefined;

export const MOVEMENT: GraphOps = {
  Reshape: reshape,
  Flatten: reshape,
  Squeeze: reshape,
  Unsqueeze: reshape,
  Transpose: transpose,
  Concat: { layout: 'any', lower: lowerConcat },
  Split: { layout: 'any', lower: lowerSplit },
  Slice: { layout: 'any', refuse: refuseSlice, lower: lowerSlice },
  Pad: { layout: 'any', refuse: refusePad, lower: lowerPad },
  Expand: { layout: 'any', lower: lowerExpand },
  Tile: { layout: 'any', refuse: refuseComputed(1, 'repeats'), lower: lowerTile },
  Gather: { layout: 'plain', lower: lowerGather },
  GatherND: {
    layout: 'plain',
    refuse: (node) => (node.int('batch_dims', 0) === 0 ? undefined : 'GatherND with batches'),
    lower: (node, lowering) =>
      lowering.emit('GATHER_ND', node, [lowering.input(node, 0), lowering.input(node, 1)], { activations: [0] }),
  },
  DepthToSpace: { layout: 'last', lower: lowerDepthToSpace },
  SpaceToDepth: { layout: 'last', lower: lowerSpaceToDepth },
};

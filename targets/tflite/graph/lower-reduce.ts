import type { Node } from '../../../compiler/ir/graph.ts';
import { axesOfNode } from '../../../compiler/value-facts.ts';
import { TensorType } from '../schema-enums.ts';
import type { KernelName } from '../versions.ts';
import type { GraphLowering } from './graph-lowering.ts';
import type { GraphOp, GraphOps } from './graph-op.ts';
import { orderOf, placeOf } from './order.ts';

/** The axes that are reduced, all where none is named; as the model numbers them. */
function reducedAxes(node: Node): number[] {
  const rank = node.input(0).dims.length;
  const axes = axesOfNode(node) ?? [];
  if (axes.length === 0) return node.int('noop_with_empty_axes', 0) === 1 ? [] : orderOf('plain', rank).slice();
  return axes.map((axis) => (axis < 0 ? axis + rank : axis)).sort((a, b) => a - b);
}

function reduce(name: KernelName): GraphOp {
  return {
    // Without the reduced axes the order of the others is the model's.
    layout: (node) => (node.int('keepdims', 1) === 1 ? 'any' : keepsOrder(node) ? 'any' : 'plain'),
    refuse: (node) => {
      if (node.inputs[1] && !node.inputs[1].data) return `${node.op} over computed axes`;
      return reducedAxes(node).length === 0 ? `${node.op} over no axis` : undefined;
    },
    lower: (node, lowering) => {
      const order = lowering.orderIn(node, node.input(0));
      const axes = lowering.builder.addInts(
        'axes',
        reducedAxes(node)
          .map((axis) => placeOf(axis, order))
          .sort((a, b) => a - b),
      );
      const keepDims = node.int('keepdims', 1) === 1;
      lowering.emit(name, node, [lowering.input(node, 0), axes], { options: { kind: 'ReducerOptions', keepDims } });
    },
  };
}

/** Whether what is left of the axes has fewer than three of them and one order in both layouts. */
function keepsOrder(node: Node): boolean {
  const gone = new Set(reducedAxes(node));
  const left = orderOf('last', node.input(0).dims.length).filter((axis) => !gone.has(axis));
  return left.length < 3 && left.every((axis, i) => i === 0 || left[i - 1]! < axis);
}

/** The place of the largest or smallest element; ONNX's 64-bit places come from a CAST of the kernel's. */
function lowerArg(name: 'ARG_MAX' | 'ARG_MIN', node: Node, lowering: GraphLowering): void {
  const { builder } = lowering;
  const rank = node.input(0).dims.length;
  const axis = (node.int('axis', 0) + rank) % rank;
  const dims = node.input(0).dims.filter((_, i) => i !== axis);
  const options = {
    kind: name === 'ARG_MAX' ? 'ArgMaxOptions' : 'ArgMinOptions',
    outputType: TensorType.INT64,
  } as const;
  const inputs = [lowering.input(node, 0), builder.addInts('axis', [axis])];
  lowering.emit(name, node, inputs, { options, dims, activations: [0] });
}

const refuseArg = (node: Node): string | undefined =>
  node.int('select_last_index', 0) === 1 ? `${node.op} of the last index` : undefined;

type SoftName = 'SOFTMAX' | 'LOG_SOFTMAX';

/** Over the last axis of the tensor, which is the channels' in the layout `last`; others are moved there. */
function soft(name: SoftName): GraphOp {
  const axisOf = (node: Node): number => {
    const rank = node.input(0).dims.length;
    return (node.int('axis', -1) + rank) % rank;
  };
  return {
    layout: (node) => (axisOf(node) === 1 && node.input(0).dims.length > 2 ? 'last' : 'plain'),
    lower: (node, lowering) => {
      const x = node.input(0);
      const rank = x.dims.length;
      const axis = axisOf(node);
      const options =
        name === 'SOFTMAX' ? ({ kind: 'SoftmaxOptions', beta: 1 } as const) : ({ kind: 'LogSoftmaxOptions' } as const);
      if (lowering.orderIn(node, x).at(-1) === axis) {
        lowering.emit(name, node, [lowering.input(node, 0)], { options });
        return;
      }
      const order = [...orderOf('plain', rank).filter((each) => each !== axis), axis];
      lowering.emit(name, node, [lowering.view(x, order)], { options, order });
    },
  };
}

/** Sums along an axis. */
function lowerCumSum(node: Node, lowering: GraphLowering): void {
  const [axis] = node.input(1).data!.toNumbers();
  const order = lowering.orderIn(node, node.input(0));
  const place = lowering.builder.addInts('axis', [placeOf(axis!, order)]);
  lowering.emit('CUMSUM', node, [lowering.input(node, 0), place], {
    options: {
      kind: 'CumsumOptions',
      exclusive: node.int('exclusive', 0) === 1,
      reverse: node.int('reverse', 0) === 1,
    },
  });
}

/** ONNX divides alpha by the number of channels in the window, TFLite does not. */
function lowerLrn(node: Node, lowering: GraphLowering): void {
  const size = node.int('size', 1);
  lowering.emit('LOCAL_RESPONSE_NORMALIZATION', node, [lowering.input(node, 0)], {
    options: {
      kind: 'LocalResponseNormalizationOptions',
      radius: (size - 1) / 2,
      bias: node.float('bias', 1),
      alpha: node.float('alpha', 1e-4) / size,
      beta: node.float('beta', 0.75),
    },
  });
}

export const REDUCTIONS: GraphOps = {
  ReduceMean: reduce('MEAN'),
  ReduceSum: reduce('SUM'),
  ReduceMax: reduce('REDUCE_MAX'),
  ReduceMin: reduce('REDUCE_MIN'),
  ReduceProd: reduce('REDUCE_PROD'),
  ArgMax: { layout: 'plain', refuse: refuseArg, lower: (node, lowering) => lowerArg('ARG_MAX', node, lowering) },
  ArgMin: { layout: 'plain', refuse: refuseArg, lower: (node, lowering) => lowerArg('ARG_MIN', node, lowering) },
  Softmax: soft('SOFTMAX'),
  LogSoftmax: soft('LOG_SOFTMAX'),
  CumSum: {
    layout: 'any',
    refuse: (node) => (node.input(1).data ? undefined : 'CumSum over a computed axis'),
    lower: lowerCumSum,
  },
  LRN: {
    layout: 'last',
    refuse: (node) => (node.int('size', 1) % 2 === 1 ? undefined : 'LRN over an even number of channels'),
    lower: lowerLrn,
  },
};

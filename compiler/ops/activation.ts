import type { Node } from '../ir/graph.ts';
import { combineElements, mapElements } from './broadcast.ts';
import { need, withShape } from './elements.ts';
import { defineOp, type OpDefinition, type QuantizationRule } from './op.ts';
import { likeInput, nodeName } from './shape-rules.ts';
import { erf } from './special.ts';

/** An activation: a function of one element, made from the node's attributes. */
function activation(
  name: string,
  since: number,
  make: (node: Node) => (x: number) => number,
  quantization: QuantizationRule = 'independent',
): OpDefinition {
  return defineOp({
    name,
    since,
    quantization,
    infer: likeInput(),
    evaluate: (inputs, { node }) => [mapElements(need(inputs, 0, nodeName(node)), make(node))],
  });
}

export const sigmoid = (x: number): number => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x)));

/** log(1 + exp(x)) without overflow. */
export const softplus = (x: number): number => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));

export const geluExact = (x: number): number => 0.5 * x * (1 + erf(x / Math.SQRT2));

export const geluTanh = (x: number): number =>
  0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x)));

const clampUnit = (x: number): number => Math.min(1, Math.max(0, x));

/** Attributes are f32 in ONNX; a default must be the same number. */
const fixed = Math.fround;

const relu = defineOp({
  name: 'Relu',
  since: 6,
  quantization: 'independent',
  infer: likeInput(),
  evaluate: (inputs, { node }) => [
    mapElements(
      need(inputs, 0, nodeName(node)),
      (x) => (x > 0 || Number.isNaN(x) ? x : 0),
      (x) => (x > 0n ? x : 0n),
    ),
  ],
});

/** The slope broadcasts to x, never the other way. */
const prelu = defineOp({
  name: 'PRelu',
  since: 1,
  quantization: 'independent',
  infer: likeInput(),
  evaluate: (inputs, { node, opset }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const rule = {
      real: (value: number, slope: number) => (value < 0 ? slope * value : value),
      big: (value: bigint, slope: bigint) => (value < 0n ? slope * value : value),
    };
    const slope = need(inputs, 1, where);
    // Up to opset 6 a vector is one slope per channel, axis 1.
    const perChannel = opset < 7 && slope.shape.length === 1 && slope.shape[0] !== 1;
    const aligned = perChannel ? withShape(slope, [slope.shape[0]!, ...x.shape.slice(2).map(() => 1)]) : slope;
    return [combineElements(x, aligned, rule, x.dtype, where)];
  },
});

export const ACTIVATION_OPS: readonly OpDefinition[] = [
  relu,
  prelu,
  activation('LeakyRelu', 6, (node) => {
    const alpha = node.float('alpha', fixed(0.01));
    return (x) => (x < 0 ? alpha * x : x);
  }),
  activation('Elu', 6, (node) => {
    const alpha = node.float('alpha', 1);
    return (x) => (x < 0 ? alpha * Math.expm1(x) : x);
  }),
  activation('Selu', 6, (node) => {
    const alpha = node.float('alpha', fixed(1.6732632));
    const gamma = node.float('gamma', fixed(1.050701));
    return (x) => gamma * (x <= 0 ? alpha * Math.expm1(x) : x);
  }),
  activation('Celu', 12, (node) => {
    const alpha = node.float('alpha', 1);
    return (x) => Math.max(0, x) + Math.min(0, alpha * Math.expm1(x / alpha));
  }),
  activation('Sigmoid', 6, () => sigmoid, { fixed: [0, 1] }),
  activation(
    'HardSigmoid',
    6,
    (node) => {
      const alpha = node.float('alpha', fixed(0.2));
      const beta = node.float('beta', 0.5);
      return (x) => clampUnit(alpha * x + beta);
    },
    { fixed: [0, 1] },
  ),
  activation('HardSwish', 14, () => (x) => x * clampUnit(x / 6 + 0.5)),
  activation('Tanh', 6, () => Math.tanh, { fixed: [-1, 1] }),
  activation('Softplus', 1, () => softplus),
  activation('Softsign', 1, () => (x) => x / (1 + Math.abs(x)), { fixed: [-1, 1] }),
  activation('ThresholdedRelu', 10, (node) => {
    const alpha = node.float('alpha', 1);
    return (x) => (x > alpha ? x : 0);
  }),
  activation('Shrink', 9, (node) => {
    const bias = node.float('bias', 0);
    const lambd = node.float('lambd', 0.5);
    return (x) => (x < -lambd ? x + bias : x > lambd ? x - bias : 0);
  }),
  activation('Mish', 18, () => (x) => x * Math.tanh(softplus(x))),
  activation('Gelu', 20, (node) => (node.string('approximate', 'none') === 'tanh' ? geluTanh : geluExact)),
  activation('Swish', 24, (node) => {
    const alpha = node.float('alpha', 1);
    return (x) => x * sigmoid(alpha * x);
  }),
];

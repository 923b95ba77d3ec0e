import { DTYPES } from '../../../compiler/ir/dtype.ts';
import type { Node } from '../../../compiler/ir/graph.ts';
import { Tensor } from '../../../compiler/ir/tensor.ts';
import { scalarTensor } from '../../../compiler/value-facts.ts';
import type { UnionValue } from '../schema.ts';
import { TensorType } from '../schema-enums.ts';
import { quantizationOf, typeCode, typeOf } from '../subgraph-builder.ts';
import type { KernelName } from '../versions.ts';
import { clampLimits, type GraphLowering } from './graph-lowering.ts';
import type { GraphOp, GraphOps } from './graph-op.ts';
import { orderOf } from './order.ts';

type Options = UnionValue<'BuiltinOptions'>;

const NO_ACTIVATION = { fusedActivationFunction: 0 } as const;
// The schema's default is true: an old power-of-two form of int16 arithmetic (facts litert 2).
const ADDITIVE = { ...NO_ACTIVATION, potScaleInt16: false } as const;

/** An operator of any number of operands that broadcast. */
function spread(name: KernelName, options?: Options, refuse?: GraphOp['refuse']): GraphOp {
  return {
    layout: 'any',
    ...(refuse ? { refuse } : {}),
    lower: (node, lowering) => {
      lowering.emit(name, node, spreadOperands(node, lowering), options ? { options } : {});
    },
  };
}

function spreadOperands(node: Node, lowering: GraphLowering): number[] {
  const rank = node.output().dims.length;
  return node.inputs.map((value) => lowering.operand(node, value!, rank));
}

/** An operator of one operand. */
function unary(name: KernelName, options?: Options): GraphOp {
  return {
    layout: 'any',
    lower: (node, lowering) => lowering.emit(name, node, [lowering.input(node, 0)], options ? { options } : {}),
  };
}

/** One operand, on real numbers only. */
function real(name: KernelName, options?: Options): GraphOp {
  return {
    ...unary(name, options),
    refuse: (node) => (node.input(0).dtype === 'f32' ? undefined : `${node.op} of ${node.input(0).dtype}`),
  };
}

/** Powers whose operator is another one. */
function lowerPow(node: Node, lowering: GraphLowering): void {
  const exponent = node.input(1).data;
  const [power] = exponent?.size === 1 ? exponent.toNumbers() : [];
  const x = (): number => lowering.input(node, 0);
  if (power === 2) lowering.emit('MUL', node, [x(), x()], { options: { kind: 'MulOptions', ...NO_ACTIVATION } });
  else if (power === 0.5) lowering.emit('SQRT', node, [x()]);
  else if (power === -0.5) lowering.emit('RSQRT', node, [x()]);
  else lowering.emit('POW', node, spreadOperands(node, lowering), { options: { kind: 'PowOptions' } });
}

/** 0 - x where there are integers: NEG has no integer kernel that rescales. */
function lowerNeg(node: Node, lowering: GraphLowering): void {
  const { encoding, dtype } = node.input(0);
  if (!encoding) {
    lowering.emit('NEG', node, [lowering.input(node, 0)], { options: { kind: 'NegOptions' } });
    return;
  }
  const zero = lowering.builder.addConstant(
    'zero',
    Tensor.of(encoding.dtype, [1], [encoding.zeroPoint?.[0] ?? 0]),
    quantizationOf(encoding, dtype),
  );
  lowering.emit('SUB', node, [zero, lowering.input(node, 0)], { options: { kind: 'SubOptions', ...ADDITIVE } });
}

function lowerReciprocal(node: Node, lowering: GraphLowering): void {
  const one = lowering.builder.addConstant('one', Tensor.of('f32', [1], [1]));
  const x = lowering.toFloat(lowering.input(node, 0));
  lowering.emit('DIV', node, [one, x], { options: { kind: 'DivOptions', ...NO_ACTIVATION } });
}

/** Relu, Relu6, or a maximum and a minimum with constants. */
function lowerClip(node: Node, lowering: GraphLowering): void {
  const [low, high] = clampLimits(node)!;
  const x = lowering.input(node, 0);
  if (low === 0 && high === Number.POSITIVE_INFINITY) {
    lowering.emit('RELU', node, [x]);
    return;
  }
  if (low === 0 && high === 6) {
    lowering.emit('RELU6', node, [x]);
    return;
  }
  const output = node.output();
  const { builder } = lowering;
  const bound = (value: number): number => {
    if (!output.encoding) return builder.addConstant(`${output.name}.bound`, scalarTensor(output.dtype, value));
    return lowering.quantizedScalar(value, output.encoding, `${output.name}.bound`);
  };
  const options = { kind: 'MaximumMinimumOptions' } as const;
  if (low === Number.NEGATIVE_INFINITY || lowering.raised.has(node)) {
    lowering.emit('MINIMUM', node, [x, bound(high)], { options });
    return;
  }
  if (high === Number.POSITIVE_INFINITY) {
    lowering.emit('MAXIMUM', node, [x, bound(low)], { options });
    return;
  }
  const quantization = quantizationOf(output.encoding, output.name);
  const raised = builder.addTensor(`${output.name}.raised`, typeOf(output), builder.tensor(x).shape, quantization);
  lowering.run('MAXIMUM', node, [x, bound(low)], raised, { options });
  lowering.emit('MINIMUM', node, [raised, bound(high)], { options });
}

/** Slopes per channel: PRELU takes them in the order of the last axes. */
function lowerPRelu(node: Node, lowering: GraphLowering): void {
  const x = node.input(0);
  const slope = node.input(1);
  const rank = x.dims.length;
  const dims = [...new Array<number>(rank - slope.dims.length).fill(1), ...slope.dims];
  const order = orderOf(lowering.layoutOf(node), rank);
  // The kernels want the batch left out.
  const alpha = lowering.constant(slope, dims, order);
  const { shape } = lowering.builder.tensor(alpha);
  const short = lowering.constant(
    slope,
    shape.slice(1),
    shape.slice(1).map((_, axis) => axis),
  );
  lowering.emit('PRELU', node, [lowering.input(node, 0), isLastOnly(shape) ? short : alpha]);
}

const isLastOnly = (shape: readonly number[]): boolean => shape.slice(0, -1).every((dim) => dim === 1);

function refuseSlope(node: Node): string | undefined {
  return node.input(1).data ? undefined : 'PRelu with a computed slope';
}

function lowerCast(node: Node, lowering: GraphLowering): void {
  const [from, to] = [node.input(0), node.output()];
  if (from.data?.dtype === 'f16') return;
  const [inDataType, outDataType] = [typeCode(from.dtype, from.name), typeCode(to.dtype, to.name)];
  lowering.emit('CAST', node, [lowering.input(node, 0)], {
    options: { kind: 'CastOptions', inDataType, outDataType },
  });
}

const CASTABLE: ReadonlySet<string> = new Set(['f32', 'i32', 'i64', 'bool', 'i8', 'i16', 'u8']);

function refuseCast(node: Node): string | undefined {
  const [from, to] = [node.input(0), node.output()];
  if (from.data?.dtype === 'f16' && to.dtype === 'f32') return undefined;
  if (CASTABLE.has(from.dtype) && CASTABLE.has(to.dtype)) return undefined;
  return `Cast from ${from.dtype} to ${to.dtype}`;
}

function lowerIdentity(node: Node, lowering: GraphLowering): void {
  const [from, to] = [node.input(0), node.output()];
  const order = lowering.orderIn(node, to);
  const tensor = lowering.input(node, 0);
  if (!from.encoding && !to.encoding) {
    lowering.define(to, tensor, order);
    return;
  }
  if (!to.encoding) {
    lowering.define(to, lowering.toFloat(tensor), order);
    return;
  }
  // From floats or from integers of any width.
  const { builder } = lowering;
  const dims = builder.tensor(tensor).shape;
  const written = builder.addTensor(to.name, typeOf(to), dims, quantizationOf(to.encoding, to.name));
  builder.addQuantize(tensor, written);
  lowering.define(to, written, order);
}

/** Where(condition, a, b). */
function lowerWhere(node: Node, lowering: GraphLowering): void {
  lowering.emit('SELECT_V2', node, spreadOperands(node, lowering), { options: { kind: 'SelectV2Options' } });
}

function lowerXor(node: Node, lowering: GraphLowering): void {
  lowering.emit('NOT_EQUAL', node, spreadOperands(node, lowering), { options: { kind: 'NotEqualOptions' } });
}

const maxMin: Options = { kind: 'MaximumMinimumOptions' };

const refuseVariadic = (node: Node): string | undefined =>
  node.inputs.length === 2 ? undefined : `${node.op} of ${node.inputs.length} inputs`;

const gelu: GraphOp = {
  layout: 'any',
  lower: (node, lowering) => {
    const approximate = node.string('approximate', 'none') === 'tanh';
    lowering.emit('GELU', node, [lowering.input(node, 0)], { options: { kind: 'GeluOptions', approximate } });
  },
};

/** Integer division by TFLite's DIV truncates as ONNX's does, and has no 64-bit kernel. */
const refuseWideDivision = (node: Node): string | undefined =>
  DTYPES[node.input(0).dtype].bits === 64 ? `Div of ${node.input(0).dtype}` : undefined;

const truth = (node: Node): string | undefined =>
  typeOf(node.input(0)) === TensorType.BOOL ? undefined : `${node.op} of ${node.input(0).dtype}`;

export const ELEMENTWISE: GraphOps = {
  Add: spread('ADD', { kind: 'AddOptions', ...ADDITIVE }),
  Sub: spread('SUB', { kind: 'SubOptions', ...ADDITIVE }),
  Mul: spread('MUL', { kind: 'MulOptions', ...NO_ACTIVATION }),
  Div: spread('DIV', { kind: 'DivOptions', ...NO_ACTIVATION }, refuseWideDivision),
  Max: spread('MAXIMUM', maxMin, refuseVariadic),
  Min: spread('MINIMUM', maxMin, refuseVariadic),
  Pow: { layout: 'any', lower: lowerPow },
  Neg: { layout: 'any', lower: lowerNeg },
  Reciprocal: { layout: 'any', lower: lowerReciprocal },
  Abs: unary('ABS', { kind: 'AbsOptions' }),
  Exp: real('EXP', { kind: 'ExpOptions' }),
  Log: real('LOG'),
  Sqrt: real('SQRT'),
  Sin: real('SIN'),
  Cos: real('COS', { kind: 'CosOptions' }),
  Floor: real('FLOOR'),
  Ceil: real('CEIL'),
  Round: real('ROUND'),
  Sign: unary('SIGN', { kind: 'SignOptions' }),
  Sigmoid: real('LOGISTIC'),
  Tanh: real('TANH'),
  Relu: real('RELU'),
  HardSwish: real('HARD_SWISH', { kind: 'HardSwishOptions' }),
  Gelu: gelu,
  Elu: {
    ...real('ELU'),
    refuse: (node) => (node.float('alpha', 1) === 1 ? undefined : `Elu with alpha ${node.float('alpha', 1)}`),
  },
  LeakyRelu: {
    layout: 'any',
    lower: (node, lowering) =>
      lowering.emit('LEAKY_RELU', node, [lowering.input(node, 0)], {
        options: { kind: 'LeakyReluOptions', alpha: node.float('alpha', 0.01) },
      }),
  },
  PRelu: {
    layout: (node) => (node.input(1).dims.length > 0 && node.input(1).data ? 'last' : 'any'),
    refuse: refuseSlope,
    lower: lowerPRelu,
  },
  Clip: {
    layout: 'any',
    refuse: (node) => (clampLimits(node) ? undefined : 'Clip with computed bounds'),
    lower: lowerClip,
  },
  Cast: { layout: 'any', refuse: refuseCast, lower: lowerCast },
  Identity: { layout: 'any', lower: lowerIdentity },
  Where: { layout: 'any', lower: lowerWhere },
  Equal: spread('EQUAL', { kind: 'EqualOptions' }),
  Greater: spread('GREATER', { kind: 'GreaterOptions' }),
  GreaterOrEqual: spread('GREATER_EQUAL', { kind: 'GreaterEqualOptions' }),
  Less: spread('LESS', { kind: 'LessOptions' }),
  LessOrEqual: spread('LESS_EQUAL', { kind: 'LessEqualOptions' }),
  And: spread('LOGICAL_AND', { kind: 'LogicalAndOptions' }, truth),
  Or: spread('LOGICAL_OR', { kind: 'LogicalOrOptions' }, truth),
  Xor: { layout: 'any', refuse: truth, lower: lowerXor },
  Not: unary('LOGICAL_NOT', { kind: 'LogicalNotOptions' }),
};

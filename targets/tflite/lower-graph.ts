import { NpucError } from '../../compiler/errors.ts';
import { quantizeLazily } from '../../compiler/export/quantize-constant.ts';
import { type Encoding, sameEncoding } from '../../compiler/ir/encoding.ts';
import type { Graph, Node, Value } from '../../compiler/ir/graph.ts';
import { Tensor, transposeTensor } from '../../compiler/ir/tensor.ts';
import type { TflitePort, TfliteSignature } from './model.ts';
import { TensorType } from './schema-enums.ts';
import { type BufferPool, quantizationOf, SubgraphBuilder } from './subgraph-builder.ts';
import { type ActivationType, fullyConnectedVersion, opVersion, type VersionedOp } from './versions.ts';

export type PortForm = 'float' | 'quantized';

/** A lowered graph and its signature. */
export interface LoweredGraph {
  readonly builder: SubgraphBuilder;
  readonly signature: Omit<TfliteSignature, 'subgraph'>;
}

/**
 * Lowers one graph of encoded values to a TFLite subgraph of the ops that every NPU plugin takes (facts litert 5).
 * Float ports get QUANTIZE and DEQUANTIZE at the boundary, quantized ports are the integers themselves.
 * @throws TF201 naming every node that has no lowering
 */
export function lowerGraph(graph: Graph, ports: PortForm, pool: BufferPool): LoweredGraph {
  const unknown = graph.nodes.filter((node) => !LOWERINGS[node.op]);
  if (unknown.length > 0) {
    throw new NpucError('TF201', {
      message: `no TFLite lowering for ${[...new Set(unknown.map((node) => node.op))].join(', ')}`,
      where: unknown
        .slice(0, 5)
        .map((node) => node.from[0] ?? node.name)
        .join(', '),
    });
  }
  const builder = new SubgraphBuilder(graph.name, pool);
  const lowering = new Lowering(builder);
  const inputs = graph.inputs.map((value) => lowering.addInput(value, ports));
  for (const node of graph.nodes) if (!lowering.absorbed.has(node)) LOWERINGS[node.op]!(node, lowering);
  const outputs = graph.outputs.map((value) => lowering.addOutput(value, ports));
  builder.graph.inputs = inputs.map((port) => port.tensor);
  builder.graph.outputs = outputs.map((port) => port.tensor);
  return { builder, signature: { key: graph.name, inputs, outputs } };
}

type Lower = (node: Node, lowering: Lowering) => void;

/** What lowerings share. */
class Lowering {
  readonly builder: SubgraphBuilder;
  /** Nodes that became part of another one's operator. */
  readonly absorbed: Set<Node> = new Set();
  /** Transposes whose only readers take the transposed operand by a flag. */
  readonly swapped: Map<Value, Value> = new Map();

  constructor(builder: SubgraphBuilder) {
    this.builder = builder;
  }

  addInput(value: Value, ports: PortForm): TflitePort {
    const { builder } = this;
    if (!value.encoding || ports === 'quantized') return { name: value.name, tensor: builder.tensorOf(value) };
    const float = builder.addTensor(value.name, TensorType.FLOAT32, value.dims);
    const inner = builder.addTensor(
      `${value.name}.quantized`,
      typeCode(value),
      value.dims,
      quantizationOf(value.encoding),
    );
    builder.addOperator('QUANTIZE', opVersion('QUANTIZE', typeName(value)), [float], [inner], {
      kind: 'QuantizeOptions',
    });
    builder.bind(value, inner);
    return { name: value.name, tensor: float };
  }

  addOutput(value: Value, ports: PortForm): TflitePort {
    const { builder } = this;
    const tensor = builder.tensorOf(value);
    if (!value.encoding || ports === 'quantized') return { name: value.name, tensor };
    return { name: value.name, tensor: this.toFloat(value, `${value.name}.float`) };
  }

  /** The value as floats. */
  toFloat(value: Value, name: string): number {
    const tensor = this.builder.tensorOf(value);
    if (!value.encoding) return tensor;
    const float = this.builder.addTensor(name, TensorType.FLOAT32, value.dims);
    this.builder.addOperator('DEQUANTIZE', opVersion('DEQUANTIZE', typeName(value)), [tensor], [float], {
      kind: 'DequantizeOptions',
    });
    return float;
  }

  op(
    name: VersionedOp,
    node: Node,
    inputs: readonly number[],
    options?: Parameters<SubgraphBuilder['addOperator']>[4],
  ): void {
    const output = node.output();
    this.builder.addOperator(name, opVersion(name, typeName(output)), inputs, [this.builder.tensorOf(output)], options);
  }
}

function typeName(value: Value): ActivationType {
  const dtype = value.encoding?.dtype ?? 'f32';
  if (dtype === 'i8' || dtype === 'i16' || dtype === 'f32') return dtype;
  throw new NpucError('TF202', {
    message: `activations of type ${dtype} have no kernels in TFLite`,
    where: value.name,
  });
}

function typeCode(
  value: Value,
): (typeof TensorType)['INT8'] | (typeof TensorType)['INT16'] | (typeof TensorType)['FLOAT32'] {
  const name = typeName(value);
  return name === 'i8' ? TensorType.INT8 : name === 'i16' ? TensorType.INT16 : TensorType.FLOAT32;
}

const NONE = { fusedActivationFunction: 0 } as const;
// The schema's default is true: an old power-of-two form of int16 arithmetic (facts litert 2).
const ADDITIVE = { fusedActivationFunction: 0, potScaleInt16: false } as const;

const LOWERINGS: Readonly<Record<string, Lower>> = {
  Add: (node, lowering) => lowerBinary('ADD', node, lowering),
  Sub: (node, lowering) => lowerBinary('SUB', node, lowering),
  Mul: (node, lowering) => lowerBinary('MUL', node, lowering),
  Sigmoid: (node, lowering) => lowering.op('LOGISTIC', node, [lowering.builder.tensorOf(node.input(0))]),
  Softmax: (node, lowering) => {
    requireLastAxis(node, node.int('axis', -1));
    lowering.op('SOFTMAX', node, [lowering.builder.tensorOf(node.input(0))], { kind: 'SoftmaxOptions', beta: 1 });
  },
  Reshape: (node, lowering) => {
    const { builder } = lowering;
    const shape = node.output().dims;
    const target = builder.addInts(`shape.${shape.join('x')}`, shape);
    lowering.op('RESHAPE', node, [builder.tensorOf(node.input(0)), target], {
      kind: 'ReshapeOptions',
      newShape: Int32Array.from(shape),
    });
  },
  Transpose: lowerTranspose,
  Split: lowerSplit,
  Concat: (node, lowering) => {
    const inputs = node.inputs.map((value) => lowering.builder.tensorOf(value!));
    lowering.op('CONCATENATION', node, inputs, { kind: 'ConcatenationOptions', axis: node.int('axis', 0), ...NONE });
  },
  Identity: lowerConversion,
  MatMul: lowerMatMul,
  RMSNormalization: lowerRmsNorm,
};

function lowerBinary(op: 'ADD' | 'SUB' | 'MUL', node: Node, lowering: Lowering): void {
  const inputs = node.inputs.map((value) => lowering.builder.tensorOf(value!));
  const kind = `${op[0]}${op.slice(1).toLowerCase()}Options` as 'AddOptions' | 'SubOptions' | 'MulOptions';
  lowering.op(op, node, inputs, kind === 'MulOptions' ? { kind, ...NONE } : { kind, ...ADDITIVE });
}

function requireLastAxis(node: Node, axis: number): void {
  const rank = node.input(0).dims.length;
  if (axis === -1 || axis === rank - 1) return;
  throw new NpucError('TF201', {
    message: `TFLite's SOFTMAX works on the last axis, not on axis ${axis}`,
    where: node.from[0] ?? node.name,
  });
}

/** A change of number format; equal formats need no op. */
function lowerConversion(node: Node, lowering: Lowering): void {
  const { builder } = lowering;
  const [from, to] = [node.input(0), node.output()];
  if (from.encoding && to.encoding && !sameEncoding(from.encoding, to.encoding)) {
    builder.addOperator('QUANTIZE', 2, [builder.tensorOf(from)], [builder.tensorOf(to)], { kind: 'QuantizeOptions' });
  } else builder.bind(to, builder.tensorOf(from));
}

/** A transpose that only feeds the second operand of products becomes the products' adjY flag where its last axes allow. */
function lowerTranspose(node: Node, lowering: Lowering): void {
  const { builder } = lowering;
  const output = node.output();
  const perm = node.ints('perm')!;
  const rank = perm.length;
  const onlyOperands =
    output.uses.size > 0 &&
    !node.graph!.isOutput(output) &&
    [...output.uses].every((use) => use.node.op === 'MatMul' && use.index === 1 && !use.node.input(1).data);
  if (onlyOperands && rank >= 2 && perm[rank - 1]! < perm[rank - 2]!) {
    // Keys arrive token-major: [.., CL, hd] with adjY is what the plugins take best (facts litert 2, BATCH_MATMUL_adjY).
    const swapped = [...perm.slice(0, -2), perm[rank - 1]!, perm[rank - 2]!];
    const dims = swapped.map((axis) => node.input(0).dims[axis]!);
    const isIdentity = swapped.every((axis, i) => axis === i);
    const tensor = isIdentity
      ? builder.tensorOf(node.input(0))
      : builder.addTensor(`${output.name}.rows`, typeCode(output), dims, quantizationOf(output.encoding));
    if (!isIdentity) addTranspose(lowering, node.input(0), tensor, swapped, typeName(output));
    lowering.builder.bind(output, tensor);
    lowering.swapped.set(output, output);
    return;
  }
  addTranspose(lowering, node.input(0), builder.tensorOf(output), perm, typeName(output));
}

function addTranspose(
  lowering: Lowering,
  input: Value,
  output: number,
  perm: readonly number[],
  type: ActivationType,
): void {
  const { builder } = lowering;
  const axes = builder.addInts(`perm.${perm.join('')}`, perm);
  builder.addOperator('TRANSPOSE', opVersion('TRANSPOSE', type), [builder.tensorOf(input), axes], [output], {
    kind: 'TransposeOptions',
  });
}

function lowerSplit(node: Node, lowering: Lowering): void {
  const { builder } = lowering;
  const input = node.input(0);
  const axis = (node.int('axis', 0) + input.dims.length) % input.dims.length;
  let start = 0;
  for (const output of node.outputs) {
    const size = output!.dims;
    const begin = size.map((_, i) => (i === axis ? start : 0));
    builder.addOperator(
      'SLICE',
      opVersion('SLICE', typeName(output!)),
      [builder.tensorOf(input), builder.addInts('begin', begin), builder.addInts('size', size)],
      [builder.tensorOf(output!)],
      { kind: 'SliceOptions' },
    );
    start += size[axis]!;
  }
}

function lowerMatMul(node: Node, lowering: Lowering): void {
  const { builder } = lowering;
  const [left, right] = [node.input(0), node.input(1)];
  if (!right.data) {
    lowering.op('BATCH_MATMUL', node, [builder.tensorOf(left), builder.tensorOf(right)], {
      kind: 'BatchMatMulOptions',
      adjX: false,
      adjY: lowering.swapped.has(right),
      asymmetricQuantizeInputs: false,
    });
    return;
  }
  const bias = fusedBias(node);
  const output = bias ? bias.sum.output() : node.output();
  if (bias) lowering.absorbed.add(bias.sum);
  const weight = addWeight(lowering, right);
  const inputs = [builder.tensorOf(left), weight, bias ? addBias(lowering, bias.constant, left, right) : -1];
  const weightType = (right.encoding?.dtype ?? 'f32') as 'f32' | 'i4' | 'i8';
  builder.addOperator(
    'FULLY_CONNECTED',
    fullyConnectedVersion(typeName(left), weightType),
    inputs,
    [builder.tensorOf(output)],
    {
      kind: 'FullyConnectedOptions',
      ...NONE,
      weightsFormat: 0,
      keepNumDims: true,
      asymmetricQuantizeInputs: false,
    },
  );
}

/** The addition of a constant vector that only follows this product. */
function fusedBias(node: Node): { sum: Node; constant: Value } | undefined {
  const product = node.output();
  const [use] = product.uses;
  if (product.uses.size !== 1 || node.graph!.isOutput(product) || use!.node.op !== 'Add') return undefined;
  const constant = use!.node.inputs.find((value) => value !== product);
  return constant?.data && constant.dims.length === 1 ? { sum: use!.node, constant } : undefined;
}

/** A [K, N] weight as TFLite wants it: rows of [N, K], scales along axis 0. */
function addWeight(lowering: Lowering, weight: Value): number {
  const { builder } = lowering;
  const rows = transposeTensor(weight.data!);
  if (!weight.encoding) return builder.addConstant(weight.name, rows);
  const encoding = rowEncoding(weight.encoding);
  return builder.addConstant(weight.name, quantizeLazily(rows, encoding, weight.name), quantizationOf(encoding));
}

const rowEncodings = new WeakMap<Encoding, Encoding>();

/** The same scales for the transposed tensor; one object per encoding, so that graphs share their bytes. */
function rowEncoding(encoding: Encoding): Encoding {
  let turned = rowEncodings.get(encoding);
  if (!turned) {
    turned = encoding.axis === undefined ? encoding : { ...encoding, axis: 1 - encoding.axis };
    rowEncodings.set(encoding, turned);
  }
  return turned;
}

/** Bias integers: int64 for int16 activations, int32 for int8, scale = input scale * weight scale. */
function addBias(lowering: Lowering, bias: Value, input: Value, weight: Value): number {
  const floats = bias.data!.toFloats();
  if (!input.encoding || !weight.encoding)
    return lowering.builder.addConstant(bias.name, Tensor.of('f32', [floats.length], floats));
  const inputScale = input.encoding.scale[0]!;
  const weightScales = weight.encoding.scale;
  const scale = Float32Array.from(floats, (_, n) => inputScale * weightScales[weightScales.length === 1 ? 0 : n]!);
  const integers = Array.from(floats, (value, n) => Math.trunc(value / scale[n]! + Math.sign(value) * 0.5));
  const dtype = input.encoding.dtype === 'i16' ? 'i64' : 'i32';
  return lowering.builder.addConstant(bias.name, Tensor.of(dtype, [integers.length], integers), {
    scale,
    zeroPoint: new Int32Array(scale.length),
    quantizedDimension: 0,
  });
}

/**
 * RMSNormalization in float between DEQUANTIZE and QUANTIZE: the squares of a residual stream with outliers span more than
 * 16 bits hold (facts accuracy: channels above 1,000 beside rows of about 1).
 */
function lowerRmsNorm(node: Node, lowering: Lowering): void {
  const { builder } = lowering;
  const [input, gain, output] = [node.input(0), node.input(1), node.output()];
  const shape = input.dims;
  const reduced = [...shape.slice(0, -1), 1];
  const name = output.name;
  const float = (suffix: string, dims: readonly number[]): number =>
    builder.addTensor(`${name}.${suffix}`, TensorType.FLOAT32, dims);
  const x = lowering.toFloat(input, `${name}.input`);
  const [square, mean, sum, root, scaled] = [
    float('square', shape),
    float('mean', reduced),
    float('sum', reduced),
    float('rsqrt', reduced),
    float('scaled', shape),
  ];
  builder.addOperator('MUL', 1, [x, x], [square], { kind: 'MulOptions', ...NONE });
  builder.addOperator('MEAN', 1, [square, builder.addInts('last_axis', [shape.length - 1])], [mean], {
    kind: 'ReducerOptions',
    keepDims: true,
  });
  const epsilon = builder.addConstant('epsilon', Tensor.of('f32', [1], [node.float('epsilon', 1e-5)]));
  builder.addOperator('ADD', 1, [mean, epsilon], [sum], { kind: 'AddOptions', ...ADDITIVE });
  builder.addOperator('RSQRT', 1, [sum], [root]);
  builder.addOperator('MUL', 1, [x, root], [scaled], { kind: 'MulOptions', ...NONE });
  const weight = builder.addConstant(gain.name, gain.data!);
  if (!output.encoding) {
    builder.addOperator('MUL', 1, [scaled, weight], [builder.tensorOf(output)], { kind: 'MulOptions', ...NONE });
    return;
  }
  const normed = float('normed', shape);
  builder.addOperator('MUL', 1, [scaled, weight], [normed], { kind: 'MulOptions', ...NONE });
  builder.addOperator('QUANTIZE', opVersion('QUANTIZE', typeName(output)), [normed], [builder.tensorOf(output)], {
    kind: 'QuantizeOptions',
  });
}

import { quantizeLazily } from '../../compiler/export/quantize-constant.ts';
import { type Encoding, integerRange, roundEven } from '../../compiler/ir/encoding.ts';
import type { Node, Value } from '../../compiler/ir/graph.ts';
import { packSubByte, Tensor, transposeTensor } from '../../compiler/ir/tensor.ts';
import type { Lowering } from './lowering.ts';
import { quantizationOf, type SubgraphBuilder, typeOf } from './subgraph-builder.ts';

/**
 * FULLY_CONNECTED for a constant [K, N] right operand, a constant vector added to the product as its bias;
 * BATCH_MATMUL for anything else.
 */
export function lowerMatMul(node: Node, lowering: Lowering): void {
  const { builder } = lowering;
  const [left, right] = [node.input(0), node.input(1)];
  const weight = weightOf(right);
  if (!weight) {
    const adjY = isTransposedOperand(right);
    lowering.emit('BATCH_MATMUL', node, [builder.tensorOf(left), builder.tensorOf(right)], {
      options: { kind: 'BatchMatMulOptions', adjX: false, adjY, asymmetricQuantizeInputs: false },
    });
    return;
  }
  const bias = followingBias(node);
  if (bias) lowering.absorbed.add(bias.sum);
  const output = bias ? bias.sum.output() : node.output();
  const inputs = [
    builder.tensorOf(left),
    addWeight(lowering, weight),
    bias ? addBias(lowering, bias.vector, left, weight) : -1,
  ];
  builder.addOperator('FULLY_CONNECTED', inputs, [builder.tensorOf(output)], {
    options: {
      kind: 'FullyConnectedOptions',
      fusedActivationFunction: 0,
      weightsFormat: 0,
      keepNumDims: true,
      // Rows of floats become integers with a zero point, as the delegate does it in any case.
      asymmetricQuantizeInputs: isDynamicProduct(node, weight),
    },
  });
}

/** Whether a product's kernel quantizes the rows of its input while it runs: floats times integer weights. */
export function isDynamicProduct(node: Node, weight: Value): boolean {
  return !node.input(0).encoding && !node.output().encoding && weight.encoding !== undefined;
}

/** The constant matrix behind an operand: itself, or the half floats that a Cast widens. */
export function weightOf(operand: Value): Value | undefined {
  const cast = operand.producer?.op === 'Cast' ? operand.producer : undefined;
  const constant = cast ? cast.input(0) : operand;
  return constant.data?.shape.length === 2 ? constant : undefined;
}

/**
 * A value that only products read, as their right operand, made by a Transpose that is nearer to no transpose at all
 * without the swap of its last two axes: the products swap them by a flag. Keys arrive token-major, and [.., CL, hd] with
 * adjY is what the NPU plugins take best (facts litert 2, BATCH_MATMUL_adjY).
 */
export function isTransposedOperand(value: Value): boolean {
  const node = value.producer;
  if (node?.op !== 'Transpose' || value.uses.size === 0 || node.graph!.isOutput(value)) return false;
  if (![...value.uses].every((use) => use.node.op === 'MatMul' && use.index === 1)) return false;
  const permutation = node.ints('perm')!;
  return permutation.at(-1)! < permutation.at(-2)!;
}

/** A Transpose whose last two axes the products behind it swap, or a plain one. */
export function lowerTranspose(node: Node, lowering: Lowering): void {
  const { builder } = lowering;
  const [input, output] = [node.input(0), node.output()];
  const permutation = node.ints('perm')!;
  if (!isTransposedOperand(output)) {
    lowering.addTranspose(input, builder.tensorOf(output), permutation);
    return;
  }
  const swapped = [...permutation.slice(0, -2), permutation.at(-1)!, permutation.at(-2)!];
  if (swapped.every((axis, i) => axis === i)) {
    builder.bind(output, builder.tensorOf(input));
    return;
  }
  const dims = swapped.map((axis) => input.dims[axis]!);
  const rows = builder.addTensor(
    `${output.name}.rows`,
    typeOf(output),
    dims,
    quantizationOf(output.encoding, output.name),
  );
  lowering.addTranspose(input, rows, swapped);
  builder.bind(output, rows);
}

/** The addition of a constant vector that alone reads this product. */
export function followingBias(node: Node): { readonly sum: Node; readonly vector: Value } | undefined {
  const product = node.output();
  const [use] = product.uses;
  if (product.uses.size !== 1 || node.graph!.isOutput(product) || use!.node.op !== 'Add') return undefined;
  const vector = use!.node.inputs.find((value) => value !== product);
  return vector?.data && vector.dims.length === 1 && vector.dims[0] === product.dims.at(-1)
    ? { sum: use!.node, vector }
    : undefined;
}

/** A [K, N] weight as the kernels want it: rows of [N, K], scales along axis 0. Half floats are widened in the graph. */
function addWeight({ builder }: Lowering, weight: Value): number {
  const { data, encoding, payload, name } = weight;
  if (!encoding) {
    const constant = builder.addConstant(name, transposeTensor(data!));
    return data!.dtype === 'f16' ? builder.addDequantize(constant, `${name}.f32`) : constant;
  }
  const turned = turnEncoding(encoding, weight.dims as [number, number]);
  const integers = payload ? transposeIntegers(payload) : quantizeLazily(transposeTensor(data!), turned, name);
  return builder.addWeight(name, integers, turned);
}

// One object per source, so that graphs which share a weight share its bytes.
const turnedEncodings = new WeakMap<Encoding, Encoding>();
const transposedIntegers = new WeakMap<Tensor, Tensor>();

/** The same scales for the transposed matrix. @param dims of the matrix that the encoding is of */
export function turnEncoding(encoding: Encoding, dims: readonly [number, number]): Encoding {
  const { axis, block } = encoding;
  if (axis === undefined) return encoding;
  let turned = turnedEncodings.get(encoding);
  if (!turned) {
    turned = { ...encoding, axis: 1 - axis };
    if (block !== undefined && !encoding.blockScale) {
      const [rows, columns] = axis === 0 ? [dims[0] / block, dims[1]] : [dims[0], dims[1] / block];
      turned = { ...turned, scale: transposeTensor(Tensor.of('f32', [rows, columns], encoding.scale)).toFloats() };
    }
    turnedEncodings.set(encoding, turned);
  }
  return turned;
}

/** The transpose of integers that were chosen for a weight, 4-bit ones among them. */
function transposeIntegers(source: Tensor): Tensor {
  let turned = transposedIntegers.get(source);
  if (!turned) {
    const [rows, columns] = source.shape as [number, number];
    const compute = (): Uint8Array => {
      const wide = Tensor.of('i8', source.shape, source.toData().data as Int8Array);
      const bytes = transposeTensor(wide).read();
      return source.dtype === 'i4' ? packSubByte(bytes, 4) : bytes;
    };
    turned = new Tensor(source.dtype, [columns, rows], { kind: 'derived', compute });
    transposedIntegers.set(source, turned);
  }
  return turned;
}

/** The kernels' fixed-point multiplication takes int64 sums of less than 48 bits (kernels/internal/common.h). */
const LARGEST_WIDE_BIAS = 2 ** 46;

/** A bias vector: floats, or integers. */
function addBias({ builder }: Lowering, bias: Value, input: Value, weight: Value): number {
  const floats = bias.data!.toFloats();
  if (!input.encoding || !weight.encoding) {
    return builder.addConstant(bias.name, Tensor.of('f32', [floats.length], floats));
  }
  return addIntegerBias(builder, bias.name, floats, input.encoding, weight.encoding);
}

/** A bias as integers at input scale times weight scale: int64 for int16 activations and int32 for int8. */
export function addIntegerBias(
  builder: SubgraphBuilder,
  name: string,
  floats: Float32Array,
  input: Encoding,
  weight: Encoding,
): number {
  const [inputScale] = input.scale;
  const scales = weight.scale;
  const scale = Float32Array.from(floats, (_, n) => inputScale! * scales[scales.length === 1 ? 0 : n]!);
  const dtype = input.dtype === 'i16' ? 'i64' : 'i32';
  const [low, high] = dtype === 'i64' ? [-LARGEST_WIDE_BIAS, LARGEST_WIDE_BIAS] : integerRange(dtype);
  const integers = Array.from(floats, (value, n) => Math.min(high, Math.max(low, roundEven(value / scale[n]!))));
  return builder.addConstant(name, Tensor.of(dtype, [integers.length], integers), {
    scale,
    zeroPoint: new Int32Array(scale.length),
    quantizedDimension: 0,
  });
}

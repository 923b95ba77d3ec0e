import { litertFormat } from '../../../calibration/recipe.ts';
import { NpucError } from '../../../compiler/errors.ts';
import { quantizeLazily } from '../../../compiler/export/quantize-constant.ts';
import { type Encoding, integerRange, sameEncoding } from '../../../compiler/ir/encoding.ts';
import type { Graph, Node, Value } from '../../../compiler/ir/graph.ts';
import { elementCount, Tensor } from '../../../compiler/ir/tensor.ts';
import { soleNumber } from '../../../compiler/match.ts';
import { turnEncoding } from '../lower-matmul.ts';
import type { PortForm } from '../lowering.ts';
import type { TflitePort, TfliteTensor } from '../model.ts';
import type { UnionValue } from '../schema.ts';
import { ActivationFunctionType, TensorType } from '../schema-enums.ts';
import { type BufferPool, type OperatorOptions, quantizationOf, SubgraphBuilder, typeOf } from '../subgraph-builder.ts';
import type { KernelName } from '../versions.ts';
import { KERNEL_FORMS } from './kernel-forms.ts';
import {
  isIdentity,
  type Layout,
  movesNothing,
  type Order,
  orderedDims,
  orderOf,
  permutationBetween,
} from './order.ts';
import { moveEncoding, permuteConstant } from './permute-constant.ts';

/** What an operator needs beside its inputs. */
export interface EmitOptions extends OperatorOptions {
  /** The value that the operator writes; left out, the node's own, or that of an activation that it computes too. */
  readonly output?: Value;
  /** Dimensions of the operator's own output where they are not the value's: a RESHAPE follows. */
  readonly dims?: readonly number[];
  /** The order of the output's axes, where it is not that of the node's layout. */
  readonly order?: Order;
  /** Why the kernel's integers would be wrong here, so that it must run on floats. */
  readonly onFloats?: string | undefined;
  /** Positions of the inputs that are activations; left out, all that hold real numbers. */
  readonly activations?: readonly number[];
}

/**
 * The lowering of one graph of any kind. Every value has one home tensor in the layout of the node that makes it; readers ask
 * for the order of axes that they want, and transposes are made where an order is asked for that is not there yet.
 * A Transpose node is no operator by itself: it only renames axes.
 */
export class GraphLowering {
  readonly builder: SubgraphBuilder;
  readonly graph: Graph;
  /** Nodes that became part of another one's operator. */
  readonly absorbed: Set<Node> = new Set();
  /** Clips whose lower bound, 0, the operator before them has applied. */
  readonly raised: Set<Node> = new Set();
  /** Operators that run on floats between conversions, by the reason. */
  readonly floats: Map<string, Node[]> = new Map();
  readonly #layouts: ReadonlyMap<Node, Layout>;
  readonly #homes: Map<Value, { readonly tensor: number; readonly order: Order }> = new Map();
  readonly #views: Map<Value, Map<string, number>> = new Map();
  /** The tensor that a RESHAPE read, by the one it wrote. */
  readonly #origins: Map<number, number> = new Map();
  readonly #reshaped: Map<string, number> = new Map();
  readonly #converted: Map<string, number> = new Map();

  constructor(graph: Graph, layouts: ReadonlyMap<Node, Layout>, pool: BufferPool) {
    this.graph = graph;
    this.#layouts = layouts;
    this.builder = new SubgraphBuilder(graph.name, pool);
  }

  layoutOf(node: Node): Layout {
    return this.#layouts.get(node) ?? 'plain';
  }

  /** The order in which a node reads or writes a value. */
  orderIn(node: Node, value: Value): Order {
    return orderOf(this.layoutOf(node), value.dims.length);
  }

  /** The tensor of a node's input in the node's layout. */
  input(node: Node, index: number): number {
    const value = node.input(index);
    return this.view(value, this.orderIn(node, value));
  }

  /** An operand that broadcasts to a value of so many axes, in the node's layout. */
  operand(node: Node, value: Value, rank: number): number {
    const missing = rank - value.dims.length;
    const layout = this.layoutOf(node);
    if (missing === 0 || elementCount(value.dims) === 1 || layout === 'plain' || rank < 3) {
      return this.view(value, orderOf(missing === 0 ? layout : 'plain', value.dims.length));
    }
    const dims = [...new Array<number>(missing).fill(1), ...value.dims];
    const order = orderOf(layout, rank);
    if (isConstant(value)) return this.constant(value, dims, order);
    const wide = this.reshape(this.view(value, orderOf('plain', value.dims.length)), dims, value.name);
    return this.#transpose(wide, order, value.name);
  }

  /** The tensor of a value with its axes in an order. */
  view(value: Value, order: Order): number {
    const key = order.join();
    let views = this.#views.get(value);
    if (!views) {
      views = new Map();
      this.#views.set(value, views);
    }
    let tensor = views.get(key);
    if (tensor === undefined) {
      tensor = this.#makeView(value, order);
      views.set(key, tensor);
    }
    return tensor;
  }

  #makeView(value: Value, order: Order): number {
    if (isConstant(value)) return this.constant(value, value.dims, order);
    const renamed = renamedBy(value);
    if (renamed) {
      const { source, permutation } = renamed;
      return this.view(
        source,
        order.map((axis) => permutation[axis]!),
      );
    }
    const home = this.#homes.get(value);
    if (!home) throw new NpucError('XX001', { message: `${value.name} is read before it is made`, where: value.name });
    return this.#transpose(home.tensor, permutationBetween(home.order, order), value.name);
  }

  /** Whether a value is at hand in an order, without moving its elements. */
  isFree(value: Value, order: Order): boolean {
    if (isConstant(value)) return true;
    const renamed = renamedBy(value);
    if (renamed)
      return this.isFree(
        renamed.source,
        order.map((axis) => renamed.permutation[axis]!),
      );
    const home = this.#homes.get(value);
    if (!home) return false;
    if (this.#views.get(value)?.has(order.join())) return true;
    return movesNothing(this.builder.tensor(home.tensor).shape, permutationBetween(home.order, order));
  }

  /** The order in which a value lies in its home tensor; undefined for a constant and for a renamed value. */
  homeOrder(value: Value): Order | undefined {
    return this.#homes.get(value)?.order;
  }

  /** Says which tensor holds a value, and in which order. */
  define(value: Value, tensor: number, order: Order): void {
    this.#homes.set(value, { tensor, order });
    this.#views.set(value, new Map([[order.join(), tensor]]));
  }

  #transpose(tensor: number, permutation: readonly number[], name: string): number {
    if (isIdentity(permutation)) return tensor;
    const { shape, type, quantization } = this.builder.tensor(tensor);
    const dims = permutation.map((axis) => shape[axis]!);
    if (movesNothing(shape, permutation)) return this.reshape(tensor, dims, name);
    const turned = this.builder.addTensor(`${name}.${permutation.join('')}`, type, dims, quantization);
    const axes = this.builder.addInts(`perm.${permutation.join('')}`, permutation);
    this.builder.addOperator('TRANSPOSE', [tensor, axes], [turned], { options: { kind: 'TransposeOptions' } });
    return turned;
  }

  /** The same elements under other dimensions; a RESHAPE of a RESHAPE reads the first one's input. */
  reshape(tensor: number, dims: readonly number[], name: string): number {
    const origin = this.#origins.get(tensor) ?? tensor;
    const { shape, type, quantization } = this.builder.tensor(origin);
    if (shape.join() === dims.join()) return origin;
    const key = `${origin}:${dims}`;
    let result = this.#reshaped.get(key);
    if (result === undefined) {
      result = this.builder.addTensor(`${name}.${dims.join('x')}`, type, dims, quantization);
      this.#emitReshape(origin, result);
      this.#origins.set(result, origin);
      this.#reshaped.set(key, result);
    }
    return result;
  }

  #emitReshape(from: number, to: number): void {
    const dims = this.builder.tensor(to).shape;
    this.builder.addOperator('RESHAPE', [from, this.builder.addInts(`shape.${dims.join('x')}`, dims)], [to], {
      options: { kind: 'ReshapeOptions', newShape: Int32Array.from(dims) },
    });
  }

  /**
   * A constant under other dimensions, transposed: dimension k of the tensor is dimension `permutation[k]` of `dims`.
   * Half floats that a Cast widens are widened by a DEQUANTIZE.
   * @param weight for a weight: the tensor's dimension that its scales lie along, and the shape that it gets in the end
   */
  constant(
    value: Value,
    dims: readonly number[],
    permutation: readonly number[],
    weight?: { readonly axis: number; readonly shape?: readonly number[] },
  ): number {
    const stored = value.data ? value : value.producer!.input(0);
    const { encoding, payload, name } = stored;
    const moved = permuteConstant(payload ?? stored.data!, dims, permutation);
    const turned = weight?.shape
      ? permuteConstant(
          moved,
          weight.shape,
          weight.shape.map((_, axis) => axis),
        )
      : moved;
    if (!encoding || !value.data) {
      const tensor = this.builder.addConstant(name, turned);
      return value.data ? tensor : this.builder.addDequantize(tensor, `${name}.f32`);
    }
    if (encoding.axis !== undefined && !weight) {
      throw new NpucError('XX001', { message: `${name} has a scale per channel and is no weight`, where: name });
    }
    const along = weight ? turnScales(encoding, dims, permutation, weight.axis) : encoding;
    const integers = payload ? turned : quantizeLazily(turned, along, name);
    return this.builder.addWeight(name, integers, along);
  }

  /** One number in an encoding, as a constant. */
  quantizedScalar(value: number, encoding: Encoding, name: string): number {
    const tensor = quantizeLazily(Tensor.of('f32', [1], [value]), encoding, name);
    return this.builder.addConstant(name, tensor, quantizationOf(encoding, name));
  }

  /** An operator whose output is the node's, in the node's layout. */
  emit(name: KernelName, node: Node, inputs: readonly number[], options: EmitOptions = {}): void {
    const fused = options.output ? undefined : this.#fuse(node, options.options);
    const own = options.output ?? node.output();
    const output = fused?.output ?? own;
    const order = options.order ?? this.orderIn(node, own);
    const dims = orderedDims(own.dims, order);
    const quantization = quantizationOf(output.encoding, output.name);
    const tensor = this.builder.addTensor(output.name, typeOf(output), options.dims ?? dims, quantization);
    this.run(name, node, inputs, tensor, { ...options, ...(fused ? { options: fused.options } : {}) });
    const renamed = fused ? permutationBetween(fused.permutation, order) : order;
    this.define(output, this.reshape(tensor, dims, output.name), renamed);
  }

  /**
   * An operator between tensors. Where the kernel needs equal scales, inputs are requantized to the output's, or the output
   * from the input's; where there is no kernel for integers of this kind, it runs on floats between conversions.
   */
  run(name: KernelName, node: Node, inputs: readonly number[], output: number, options: EmitOptions = {}): void {
    const { builder } = this;
    const to = builder.tensor(output);
    const activations = (options.activations ?? inputs.map((_, i) => i)).filter(
      (i) => inputs[i]! >= 0 && isRealTensor(builder.tensor(inputs[i]!)),
    );
    const tensors = activations.map((i) => builder.tensor(inputs[i]!));
    if (isRealTensor(to)) tensors.push(to);
    if (tensors.every(({ type }) => type === TensorType.FLOAT32)) {
      builder.addOperator(name, inputs, [output], options);
      return;
    }
    const types = new Set(tensors.map(({ type }) => type));
    const bits =
      types.size > 1 ? undefined : types.has(TensorType.INT8) ? 8 : types.has(TensorType.INT16) ? 16 : undefined;
    const form = bits === undefined || options.onFloats ? 'none' : KERNEL_FORMS[name][bits];
    const replaced = [...inputs];
    if (form === 'none') {
      const missing =
        bits === undefined ? 'its operands differ in type' : `LiteRT has no ${bits}-bit kernel for ${name}`;
      const reason = options.onFloats ?? missing;
      this.floats.set(reason, [...(this.floats.get(reason) ?? []), node]);
      for (const i of activations) replaced[i] = this.toFloat(inputs[i]!);
      if (to.type === TensorType.FLOAT32 || !isRealTensor(to)) {
        builder.addOperator(name, replaced, [output], options);
        return;
      }
      const floats = builder.addFloats(`${to.name.slice(builder.graph.name.length + 1)}.float`, to.shape);
      builder.addOperator(name, replaced, [floats], options);
      builder.addQuantize(floats, output);
      return;
    }
    const [first] = activations;
    if (form === 'keeps' && scaleKey(builder.tensor(inputs[first!]!)) !== scaleKey(to)) {
      const { quantization } = builder.tensor(inputs[first!]!);
      const kept = builder.addTensor(`${node.output().name}.kept`, to.type, to.shape, quantization);
      builder.addOperator(name, inputs, [kept], options);
      builder.addQuantize(kept, output);
      return;
    }
    if (form === 'equal' && isRealTensor(to)) {
      for (const i of activations) replaced[i] = this.#requantize(inputs[i]!, to);
    }
    const fixed = bits && litertFormat.fixed[node.op]?.[bits];
    const encoding = node.output().encoding;
    if (fixed && encoding && !sameEncoding(fixed, encoding)) {
      const written = builder.addTensor(
        `${node.output().name}.fixed`,
        to.type,
        to.shape,
        quantizationOf(fixed, node.output().name),
      );
      builder.addOperator(name, replaced, [written], options);
      builder.addQuantize(written, output);
      return;
    }
    builder.addOperator(name, replaced, [output], options);
  }

  /** Integers as floats; floats as they are. */
  toFloat(tensor: number): number {
    const { type, name } = this.builder.tensor(tensor);
    if (type === TensorType.FLOAT32) return tensor;
    const key = `float:${tensor}`;
    let floats = this.#converted.get(key);
    if (floats === undefined) {
      floats = this.builder.addDequantize(tensor, `${name.slice(this.builder.graph.name.length + 1)}.float`);
      this.#converted.set(key, floats);
    }
    return floats;
  }

  #requantize(tensor: number, like: TfliteTensor): number {
    const from = this.builder.tensor(tensor);
    if (scaleKey(from) === scaleKey(like)) return tensor;
    const key = `${tensor}:${scaleKey(like)}`;
    let result = this.#converted.get(key);
    if (result === undefined) {
      const name = from.name.slice(this.builder.graph.name.length + 1);
      result = this.builder.addTensor(`${name}.requantized`, from.type, from.shape, like.quantization);
      this.builder.addQuantize(tensor, result);
      this.#converted.set(key, result);
    }
    return result;
  }

  /**
   * The activation that alone reads a node's output, maybe through Transposes, and that its kernel can compute too.
   * `permutation`: axis k of the activation's output is axis `permutation[k]` of the node's.
   */
  #fuse(
    node: Node,
    options: UnionValue<'BuiltinOptions'> | undefined,
  ):
    | { readonly output: Value; readonly permutation: Order; readonly options: UnionValue<'BuiltinOptions'> }
    | undefined {
    if (!options || !('fusedActivationFunction' in options)) return undefined;
    let output = node.output();
    let permutation = orderOf('plain', output.dims.length);
    let reader = this.#onlyReader(output);
    while (reader?.op === 'Transpose' && renamedBy(reader.output())) {
      permutation = transposePermutation(reader).map((axis) => permutation[axis]!);
      output = reader.output();
      reader = this.#onlyReader(output);
    }
    const code = reader && activationCode(reader);
    if (code === undefined) {
      const [low, high] = (reader && !output.encoding && clampLimits(reader)) || [];
      if (low !== 0 || high === undefined || high < 0 || output !== node.output()) return undefined;
      this.raised.add(reader!);
      return { output, permutation, options: { ...options, fusedActivationFunction: ActivationFunctionType.RELU } };
    }
    const [before, after] = [output.encoding, reader!.output().encoding];
    if (before && after ? !sameEncoding(before, after) : before !== after) return undefined;
    this.absorbed.add(reader!);
    return { output: reader!.output(), permutation, options: { ...options, fusedActivationFunction: code } };
  }

  /** The node that alone reads a value, as its first input. */
  #onlyReader(value: Value): Node | undefined {
    const [use] = value.uses;
    return value.uses.size === 1 && !this.graph.isOutput(value) && use!.index === 0 ? use!.node : undefined;
  }

  addInput(value: Value, form: PortForm): TflitePort {
    const { builder } = this;
    const order = orderOf('plain', value.dims.length);
    const type = value.encoding && form === 'float' ? TensorType.FLOAT32 : typeOf(value);
    const quantization = quantizationOf(value.encoding, value.name);
    const port = builder.addTensor(value.name, type, value.dims, form === 'float' ? undefined : quantization);
    if (!value.encoding || form === 'quantized') this.define(value, port, order);
    else {
      const integers = builder.addTensor(`${value.name}.quantized`, typeOf(value), value.dims, quantization);
      builder.addQuantize(port, integers);
      this.define(value, integers, order);
    }
    return { name: value.name, tensor: port };
  }

  /** @param taken tensors that are ports already: a port is a tensor of its own */
  addOutput(value: Value, form: PortForm, taken: ReadonlySet<number>): TflitePort {
    const { builder } = this;
    const tensor = this.view(value, orderOf('plain', value.dims.length));
    if (value.encoding && form === 'float') {
      return { name: value.name, tensor: builder.addDequantize(tensor, `${value.name}.float`) };
    }
    if (!taken.has(tensor) && builder.tensor(tensor).buffer === 0) return { name: value.name, tensor };
    const { type, shape, quantization } = builder.tensor(tensor);
    const copy = builder.addTensor(`${value.name}.port`, type, shape, quantization);
    this.#emitReshape(tensor, copy);
    return { name: value.name, tensor: copy };
  }
}

/** Scales of a weight whose dimensions are permuted: along an axis, or blocks of a matrix. */
function turnScales(
  encoding: Encoding,
  dims: readonly number[],
  permutation: readonly number[],
  axis: number,
): Encoding {
  if (encoding.block === undefined) return moveEncoding(encoding, axis);
  return isIdentity(permutation) ? encoding : turnEncoding(encoding, dims as [number, number]);
}

/** A constant, or half floats that a Cast widens. */
export function isConstant(value: Value): boolean {
  const cast = value.producer?.op === 'Cast' ? value.producer : undefined;
  return value.data !== undefined || (cast?.input(0).data?.dtype === 'f16' && value.dtype === 'f32');
}

/** The value whose axes a Transpose renames; undefined where a value is no such thing, or changes its encoding. */
export function renamedBy(
  value: Value,
): { readonly source: Value; readonly permutation: readonly number[] } | undefined {
  const node = value.producer;
  if (node?.op !== 'Transpose' || node.domain !== '') return undefined;
  const source = node.input(0);
  const [a, b] = [source.encoding, value.encoding];
  if (a && b ? !sameEncoding(a, b) : a !== b) return undefined;
  return { source, permutation: transposePermutation(node) };
}

/** The permutation of a Transpose; left out, it reverses the axes. */
export function transposePermutation(node: Node): number[] {
  return node.ints('perm') ?? node.input(0).dims.map((_, axis, all) => all.length - 1 - axis);
}

function scaleKey({ quantization }: TfliteTensor): string {
  return `${quantization?.scale?.[0]}:${quantization?.zeroPoint?.[0] ?? 0}`;
}

function isRealTensor({ type, quantization }: TfliteTensor): boolean {
  if (type === TensorType.FLOAT32) return true;
  return (type === TensorType.INT8 || type === TensorType.INT16) && quantization !== undefined;
}

/** The code of an activation that kernels can compute on their own results. */
function activationCode(node: Node): number | undefined {
  if (node.domain !== '') return undefined;
  const limits = clampLimits(node);
  if (!limits) return undefined;
  const [low, high] = limits;
  const { encoding } = node.output();
  // Integers that do not reach beyond the limits are clamped by their type.
  if (encoding && covers(low, high, encoding)) return ActivationFunctionType.NONE;
  if (low === 0 && high === Number.POSITIVE_INFINITY) return ActivationFunctionType.RELU;
  if (low === 0 && high === 6) return ActivationFunctionType.RELU6;
  if (low === -1 && high === 1) return ActivationFunctionType.RELU_N1_TO_1;
  return undefined;
}

/** The bounds of a Relu or of a Clip with constant ones. */
export function clampLimits(node: Node): readonly [number, number] | undefined {
  if (node.op === 'Relu') return [0, Number.POSITIVE_INFINITY];
  if (node.op !== 'Clip') return undefined;
  const bound = (index: number, fallback: number): number | undefined =>
    node.inputs[index] ? soleNumber(node.inputs[index]) : fallback;
  const low = bound(1, Number.NEGATIVE_INFINITY);
  const high = bound(2, Number.POSITIVE_INFINITY);
  return low === undefined || high === undefined ? undefined : [low, high];
}

/** Whether the limits lie at or outside of what an encoding can hold. */
function covers(low: number, high: number, { dtype, scale, zeroPoint }: Encoding): boolean {
  const [least, most] = integerRange(dtype);
  const zero = zeroPoint?.[0] ?? 0;
  const step = scale[0]!;
  // A limit may lie half a step from the end, because zero was rounded: it rounds to the same integer or its neighbour.
  const room = 0.501 * step;
  return (least - zero) * step >= low - room && (most - zero) * step <= high + room;
}

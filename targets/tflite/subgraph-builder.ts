import { NpucError } from '../../compiler/errors.ts';
import { halveLazily } from '../../compiler/export/halve-constant.ts';
import { quantizeLazily } from '../../compiler/export/quantize-constant.ts';
import type { DType } from '../../compiler/ir/dtype.ts';
import type { Encoding } from '../../compiler/ir/encoding.ts';
import type { Value } from '../../compiler/ir/graph.ts';
import { Tensor } from '../../compiler/ir/tensor.ts';
import type { TfliteOperator, TfliteQuantization, TfliteSubgraph, TfliteTensor } from './model.ts';
import type { BufferBytes, UnionValue } from './schema.ts';
import { BuiltinOperator, TensorType, type TensorTypeCode } from './schema-enums.ts';
import { type KernelName, kernelVersion } from './versions.ts';

const TYPES: Readonly<Partial<Record<DType, TensorTypeCode>>> = {
  f32: TensorType.FLOAT32,
  f16: TensorType.FLOAT16,
  i4: TensorType.INT4,
  i8: TensorType.INT8,
  i16: TensorType.INT16,
  i32: TensorType.INT32,
  i64: TensorType.INT64,
  u8: TensorType.UINT8,
  bool: TensorType.BOOL,
};

/** Constant data of a model, each tensor once however many subgraphs read it. */
export class BufferPool {
  /** Buffer 0 is no data: computed tensors point at it. */
  readonly buffers: (BufferBytes | undefined)[] = [undefined];
  readonly #known: Map<Tensor | string, number> = new Map();

  /** The index of a tensor's bytes. Tensors in memory are known by content, others by identity. */
  add(tensor: Tensor): number {
    const key = tensor.storage.kind === 'memory' ? tensor.digest : tensor;
    let index = this.#known.get(key);
    if (index === undefined) {
      index = this.buffers.length;
      this.buffers.push(
        tensor.storage.kind === 'memory'
          ? tensor.read()
          : { byteLength: tensor.byteLength, write: (sink) => sink(tensor.read()) },
      );
      this.#known.set(key, index);
    }
    return index;
  }
}

/** What follows an operator's tensors; composites have the second form. */
export interface OperatorOptions {
  readonly options?: UnionValue<'BuiltinOptions'>;
  readonly options2?: UnionValue<'BuiltinOptions2'>;
}

/** Builds one subgraph op by op. Tensor names carry the subgraph's name: they must be unique over the file. */
export class SubgraphBuilder {
  readonly graph: TfliteSubgraph & { readonly name: string };
  readonly #pool: BufferPool;
  readonly #names: Set<string> = new Set();
  /** Tensor indices of IR values. */
  readonly #tensors: Map<Value, number> = new Map();

  constructor(name: string, pool: BufferPool) {
    this.#pool = pool;
    this.graph = { name, tensors: [], inputs: [], outputs: [], operators: [] };
  }

  /** A fresh tensor; a taken name gets a number. */
  addTensor(
    name: string,
    type: TensorTypeCode,
    shape: readonly number[],
    quantization?: TfliteQuantization,
    buffer = 0,
  ): number {
    let unique = `${this.graph.name}/${name}`;
    for (let n = 1; this.#names.has(unique); n++) unique = `${this.graph.name}/${name}_${n}`;
    this.#names.add(unique);
    this.graph.tensors.push({ name: unique, type, shape, buffer, ...(quantization ? { quantization } : {}) });
    return this.graph.tensors.length - 1;
  }

  /** A fresh tensor of 32-bit floats. */
  addFloats(name: string, shape: readonly number[]): number {
    return this.addTensor(name, TensorType.FLOAT32, shape);
  }

  tensor(index: number): TfliteTensor {
    return this.graph.tensors[index]!;
  }

  /**
   * Appends an operator; its kernel version follows from its tensors.
   * @param inputs -1 for an optional input that is left out
   */
  addOperator(
    name: KernelName,
    inputs: readonly number[],
    outputs: readonly number[],
    { options, options2 }: OperatorOptions = {},
  ): void {
    const version = kernelVersion(
      name,
      inputs.map((index) => this.graph.tensors[index]),
      outputs.map((index) => this.tensor(index)),
      options,
    );
    const operator: TfliteOperator = { code: BuiltinOperator[name], version, inputs, outputs };
    if (options) operator.options = options;
    if (options2) operator.options2 = options2;
    this.graph.operators.push(operator);
  }

  /** QUANTIZE: floats to integers, or one integer format to another. */
  addQuantize(from: number, to: number): void {
    this.addOperator('QUANTIZE', [from], [to], { options: { kind: 'QuantizeOptions' } });
  }

  /** DEQUANTIZE: integers or half floats to a fresh tensor of 32-bit floats. */
  addDequantize(from: number, name: string): number {
    const floats = this.addFloats(name, this.tensor(from).shape);
    this.addOperator('DEQUANTIZE', [from], [floats], { options: { kind: 'DequantizeOptions' } });
    return floats;
  }

  /** The tensor of an IR value in its own encoding, made on first use; constants bring their data. */
  tensorOf(value: Value): number {
    let index = this.#tensors.get(value);
    if (index !== undefined) return index;
    const { encoding, data } = value;
    const integers = data && encoding && (value.payload ?? quantizeLazily(data, encoding, value.name));
    const constant = integers ?? data;
    const buffer = constant ? this.#pool.add(constant) : 0;
    index = this.addTensor(value.name, typeOf(value), value.dims, quantizationOf(encoding, value.name), buffer);
    this.#tensors.set(value, index);
    return index;
  }

  /** Says that a tensor made by hand is an IR value. */
  bind(value: Value, tensor: number): void {
    this.#tensors.set(value, tensor);
  }

  /** A constant that is no IR value. */
  addConstant(name: string, tensor: Tensor, quantization?: TfliteQuantization): number {
    const type = TYPES[tensor.dtype];
    if (type === undefined) throw unsupportedType(name, tensor.dtype);
    return this.addTensor(name, type, tensor.shape, quantization, this.#pool.add(tensor));
  }

  /**
   * Integers of a weight with rows of output channels: one scale a row, or one a block of a row, which are half floats in a
   * tensor of their own.
   * @throws TF202 for blocks in two levels
   */
  addWeight(name: string, integers: Tensor, encoding: Encoding): number {
    const { block, axis, blockScale } = encoding;
    if (block === undefined || blockScale) return this.addConstant(name, integers, quantizationOf(encoding, name));
    if (axis !== 1 || integers.shape.length !== 2) throw refuseBlocks(name);
    const [rows, columns] = integers.shape as [number, number];
    const halves = halveLazily(scalesOf(encoding, [rows, columns / block]), name);
    const scales = this.addConstant(`${name}.scales`, halves);
    return this.addConstant(name, integers, {
      quantizedDimension: 0,
      details: { kind: 'BlockwiseQuantization', scales, zeroPoints: -1, blockSize: block },
    });
  }

  /** A constant vector of 32-bit integers: shapes, permutations, axes. */
  addInts(name: string, values: readonly number[]): number {
    return this.addConstant(name, Tensor.of('i32', [values.length], values));
  }
}

const scaleTensors = new WeakMap<Encoding, Tensor>();

/** Scales as a tensor, one for each encoding: subgraphs that share a weight share them. */
function scalesOf(encoding: Encoding, shape: readonly number[]): Tensor {
  let tensor = scaleTensors.get(encoding);
  if (!tensor) {
    tensor = Tensor.of('f32', shape, encoding.scale);
    scaleTensors.set(encoding, tensor);
  }
  return tensor;
}

function refuseBlocks(where: string): NpucError {
  return new NpucError('TF202', {
    message: 'block-wise integers have no form in TFLite but for the weights of matrices under float activations',
    where,
    hint: 'quantize per channel for this target',
  });
}

function unsupportedType(where: string, dtype: DType): NpucError {
  return new NpucError('TF202', { message: `TFLite has no tensor of type ${dtype}`, where });
}

/**
 * The TFLite type of a value: its encoding's integers, or its own type.
 * @throws TF202
 */
export function typeOf(value: Value): TensorTypeCode {
  // Unsigned bytes are a type of their own; kernels of quantized values take signed ones.
  if (value.encoding?.dtype === 'u8') throw unsupportedType(value.name, 'u8');
  return typeCode(value.encoding?.dtype ?? value.dtype, value.name);
}

/** The type of elements that a TFLite type stands for. @throws TF202 */
export function dtypeOf(type: number, where: string): DType {
  const found = Object.entries(TYPES).find(([, code]) => code === type);
  if (found) return found[0] as DType;
  throw new NpucError('TF202', { message: `a tensor of the TFLite type ${type} cannot be fed`, where });
}

/** The TFLite type of elements. @throws TF202 */
export function typeCode(dtype: DType, where: string): TensorTypeCode {
  const type = TYPES[dtype];
  if (type === undefined) throw unsupportedType(where, dtype);
  return type;
}

/** @throws TF202 for block forms: no NPU plugin takes them (facts litert 0) */
export function quantizationOf(encoding: Encoding | undefined, where: string): TfliteQuantization | undefined {
  if (!encoding) return undefined;
  if (encoding.block !== undefined) throw refuseBlocks(where);
  const zeros = encoding.zeroPoint ?? new Int32Array(1);
  return {
    scale: encoding.scale,
    zeroPoint: Int32Array.from(encoding.scale, (_, i) => zeros[zeros.length === 1 ? 0 : i]!),
    ...(encoding.axis === undefined ? {} : { quantizedDimension: encoding.axis }),
  };
}

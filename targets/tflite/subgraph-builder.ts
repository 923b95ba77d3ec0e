import { NpucError } from '../../compiler/errors.ts';
import { quantizeLazily } from '../../compiler/export/quantize-constant.ts';
import type { DType } from '../../compiler/ir/dtype.ts';
import type { Encoding } from '../../compiler/ir/encoding.ts';
import type { Value } from '../../compiler/ir/graph.ts';
import { Tensor } from '../../compiler/ir/tensor.ts';
import type { TfliteModel, TfliteOperator, TfliteQuantization, TfliteSubgraph } from './model.ts';
import type { BufferBytes, UnionValue } from './schema.ts';
import { BuiltinOperator, TensorType, type TensorTypeCode } from './schema-enums.ts';

type OperatorName = keyof typeof BuiltinOperator;

const TYPES: Readonly<Partial<Record<DType, TensorTypeCode>>> = {
  f32: TensorType.FLOAT32,
  f16: TensorType.FLOAT16,
  i4: TensorType.INT4,
  i8: TensorType.INT8,
  i16: TensorType.INT16,
  i32: TensorType.INT32,
  i64: TensorType.INT64,
  bool: TensorType.BOOL,
};

/** Constant data of a model, each tensor once however many subgraphs read it. */
export class BufferPool {
  readonly buffers: BufferBytes[] = [new Uint8Array(0)];
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

/** Builds one subgraph op by op. Tensor names carry the subgraph's name: they must be unique over the file. */
export class SubgraphBuilder {
  readonly graph: TfliteSubgraph & {
    tensors: TfliteModel['subgraphs'][number]['tensors'];
    operators: TfliteOperator[];
  };
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

  addOperator(
    name: OperatorName,
    version: number,
    inputs: readonly number[],
    outputs: readonly number[],
    options?: UnionValue<'BuiltinOptions'>,
  ): void {
    this.graph.operators.push({
      code: BuiltinOperator[name],
      version,
      inputs,
      outputs,
      ...(options ? { options } : {}),
    });
  }

  /** The tensor of an IR value in its own encoding, made on first use; constants bring their data. */
  tensorOf(value: Value): number {
    let index = this.#tensors.get(value);
    if (index !== undefined) return index;
    index = value.data
      ? this.#addConstant(value)
      : this.addTensor(value.name, typeOf(value), value.dims, quantizationOf(value.encoding));
    this.#tensors.set(value, index);
    return index;
  }

  /** Says that a tensor made by hand is an IR value. */
  bind(value: Value, tensor: number): void {
    this.#tensors.set(value, tensor);
  }

  #addConstant(value: Value): number {
    const { encoding } = value;
    const data = value.payload ?? (encoding ? quantizeLazily(value.data!, encoding, value.name) : value.data!);
    return this.addTensor(value.name, typeOf(value), value.dims, quantizationOf(encoding), this.#pool.add(data));
  }

  /** A constant that is no IR value. */
  addConstant(name: string, tensor: Tensor, quantization?: TfliteQuantization): number {
    const type = TYPES[tensor.dtype];
    if (type === undefined) throw unsupportedType(name, tensor.dtype);
    return this.addTensor(name, type, tensor.shape, quantization, this.#pool.add(tensor));
  }

  addInts(name: string, values: readonly number[]): number {
    return this.addConstant(name, Tensor.of('i32', [values.length], values));
  }
}

function unsupportedType(where: string, dtype: DType): NpucError {
  return new NpucError('TF202', { message: `TFLite has no tensor of type ${dtype}`, where });
}

/** The TFLite type of a value: its encoding's integers, or its own floats. */
export function typeOf(value: Value): TensorTypeCode {
  const dtype = value.encoding?.dtype ?? value.dtype;
  const type = TYPES[dtype];
  if (type === undefined) throw unsupportedType(value.name, dtype);
  return type;
}

/**
 * @throws TF202 for block forms: no NPU plugin takes them (facts litert 0)
 */
export function quantizationOf(encoding: Encoding | undefined): TfliteQuantization | undefined {
  if (!encoding) return undefined;
  if (encoding.block !== undefined) {
    throw new NpucError('TF202', {
      message: 'block-wise integers have no NPU form in TFLite',
      hint: 'quantize per channel for this target',
    });
  }
  const zeros = encoding.zeroPoint ?? new Int32Array(1);
  return {
    scale: encoding.scale,
    zeroPoint: Int32Array.from(encoding.scale, (_, i) => zeros[zeros.length === 1 ? 0 : i]!),
    ...(encoding.axis === undefined ? {} : { quantizedDimension: encoding.axis }),
  };
}

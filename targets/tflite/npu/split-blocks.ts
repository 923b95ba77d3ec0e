import { halfToNumber } from '../../../compiler/ir/dtype.ts';
import type { TfliteModel, TfliteOperator, TfliteSubgraph, TfliteTensor } from '../model.ts';
import type { BufferBytes } from '../schema.ts';
import { BuiltinOperator, TensorType } from '../schema-enums.ts';
import { type KernelName, kernelVersion } from '../versions.ts';
import { readBuffer } from './read-buffer.ts';

/**
 * Matrices with a scale for each block of a row, as sums of products that have one scale a row: no vendor's plugin takes blocks
 * (Qualcomm's ends the compile, OpenVINO's crashes; facts litert 5).
 *
 *     FULLY_CONNECTED(x, W in blocks of b) -> ADD(.. ADD(FC(x[0..b], W0), FC(x[b..2b], W1)) ..)
 *
 * The integers and scales are the same. 4-bit ones are stored in 8 bits: under float activations Qualcomm's plugin takes no
 * others. Slices of one input are made once for all matrices that read it.
 */
export function splitBlocks(model: TfliteModel): TfliteModel {
  const buffers = [...model.buffers];
  const parts = new Map<string, number>();
  /** The buffer of one block column of a matrix; signatures share it as they share the matrix. */
  const partOf = (weight: TfliteTensor, block: number, index: number): number => {
    const key = `${weight.buffer}.${block}.${index}`;
    let part = parts.get(key);
    if (part === undefined) {
      part = buffers.push(takeColumns(model.buffers[weight.buffer]!, weight, block, index)) - 1;
      parts.set(key, part);
    }
    return part;
  };
  const ints = new Map<string, number>();
  const vectorOf = (values: readonly number[]): number => {
    const key = values.join();
    let buffer = ints.get(key);
    if (buffer === undefined) {
      buffer = buffers.push(new Uint8Array(Int32Array.from(values).buffer)) - 1;
      ints.set(key, buffer);
    }
    return buffer;
  };
  const subgraphs = model.subgraphs.map((graph) => new Splitter(graph, model, partOf, vectorOf).run());
  return { ...model, subgraphs, buffers };
}

/** Splits the matrices of one subgraph. */
class Splitter {
  readonly #graph: TfliteSubgraph;
  readonly #model: TfliteModel;
  readonly #partOf: (weight: TfliteTensor, block: number, index: number) => number;
  readonly #vectorOf: (values: readonly number[]) => number;
  readonly #tensors: TfliteTensor[];
  readonly #operators: TfliteOperator[] = [];
  readonly #slices: Map<string, number> = new Map();

  constructor(
    graph: TfliteSubgraph,
    model: TfliteModel,
    partOf: (weight: TfliteTensor, block: number, index: number) => number,
    vectorOf: (values: readonly number[]) => number,
  ) {
    this.#graph = graph;
    this.#model = model;
    this.#partOf = partOf;
    this.#vectorOf = vectorOf;
    this.#tensors = [...graph.tensors];
  }

  run(): TfliteSubgraph {
    for (const operator of this.#graph.operators) {
      if (!this.#split(operator)) this.#operators.push(operator);
    }
    return { ...this.#graph, tensors: this.#tensors, operators: this.#operators };
  }

  #split(operator: TfliteOperator): boolean {
    const [input, weightIndex, bias = -1] = operator.inputs as [number, number, number?];
    const weight = this.#tensors[weightIndex];
    const details = weight?.quantization?.details;
    if (operator.code !== BuiltinOperator.FULLY_CONNECTED || details?.kind !== 'BlockwiseQuantization') return false;
    const { options } = operator;
    if (options?.kind !== 'FullyConnectedOptions') return false;
    const [rows, columns] = weight!.shape as [number, number];
    const block = details.blockSize!;
    const count = columns / block;
    const scales = this.#scalesOf(this.#tensors[details.scales!]!);
    const output = operator.outputs[0]!;
    const { name, shape } = this.#tensors[output]!;
    let sum: number | undefined;
    for (let index = 0; index < count; index++) {
      const part = this.#add({
        name: `${weight!.name}.of.${name}.${index}`,
        type: TensorType.INT8,
        shape: [rows, block],
        buffer: this.#partOf(weight!, block, index),
        quantization: {
          scale: Float32Array.from({ length: rows }, (_, row) => scales[row * count + index]!),
          zeroPoint: new Int32Array(rows),
          quantizedDimension: 0,
        },
      });
      const product = this.#add({ name: `${name}.part${index}`, type: TensorType.FLOAT32, shape, buffer: 0 });
      const inputs = [this.#slice(input, block, index), part, index === 0 ? bias : -1];
      this.#emit('FULLY_CONNECTED', inputs, product, { ...options, fusedActivationFunction: 0 });
      if (sum === undefined) {
        sum = product;
        continue;
      }
      const last = index === count - 1;
      const next = last
        ? output
        : this.#add({ name: `${name}.sum${index}`, type: TensorType.FLOAT32, shape, buffer: 0 });
      this.#emit('ADD', [sum, product], next, {
        kind: 'AddOptions',
        fusedActivationFunction: last ? (options.fusedActivationFunction ?? 0) : 0,
        potScaleInt16: false,
      });
      sum = next;
    }
    return true;
  }

  #slice(input: number, block: number, index: number): number {
    const key = `${input}.${block}.${index}`;
    const known = this.#slices.get(key);
    if (known !== undefined) return known;
    const { name, shape, type } = this.#tensors[input]!;
    const cut = shape.map((dim, axis) => (axis === shape.length - 1 ? block : dim));
    const begin = shape.map((_, axis) => (axis === shape.length - 1 ? index * block : 0));
    const vector = (what: string, values: readonly number[]): number =>
      this.#add({
        name: `${name}.${what}${block}x${index}`,
        type: TensorType.INT32,
        shape: [values.length],
        buffer: this.#vectorOf(values),
      });
    const slice = this.#add({ name: `${name}.block${block}x${index}`, type, shape: cut, buffer: 0 });
    this.#emit('SLICE', [input, vector('begin', begin), vector('size', cut)], slice, { kind: 'SliceOptions' });
    this.#slices.set(key, slice);
    return slice;
  }

  #scalesOf({ buffer }: TfliteTensor): number[] {
    const bytes = readBuffer(this.#model.buffers[buffer]!);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    return Array.from({ length: bytes.byteLength / 2 }, (_, i) => halfToNumber(view.getUint16(2 * i, true)));
  }

  #add(tensor: TfliteTensor): number {
    return this.#tensors.push(tensor) - 1;
  }

  #emit(name: KernelName, inputs: readonly number[], output: number, options: TfliteOperator['options']): void {
    const version = kernelVersion(
      name,
      inputs.map((index) => this.#tensors[index]),
      [this.#tensors[output]!],
      options,
    );
    const operator: TfliteOperator = { code: BuiltinOperator[name], version, inputs, outputs: [output] };
    this.#operators.push(options ? { ...operator, options } : operator);
  }
}

/** Columns of one block of a [rows, columns] matrix, a byte an integer. */
function takeColumns(source: BufferBytes, { shape, type }: TfliteTensor, block: number, index: number): BufferBytes {
  const [rows, columns] = shape as [number, number];
  return {
    byteLength: rows * block,
    write: (sink) => {
      const bytes = readBuffer(source);
      const out = new Int8Array(rows * block);
      for (let row = 0; row < rows; row++) {
        for (let i = 0; i < block; i++) {
          const at = row * columns + index * block + i;
          // Two 4-bit integers a byte, the first one in its lower half.
          out[row * block + i] = type === TensorType.INT4 ? nibble(bytes[at >> 1]!, at & 1) : (bytes[at]! << 24) >> 24;
        }
      }
      sink(new Uint8Array(out.buffer));
    },
  };
}

function nibble(byte: number, half: number): number {
  return ((half === 0 ? byte << 28 : byte << 24) >> 28) | 0;
}

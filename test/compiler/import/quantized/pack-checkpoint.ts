import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { openCheckpoint } from '../../../../compiler/import/checkpoint.ts';
import { numberToHalf } from '../../../../compiler/ir/dtype.ts';

/**
 * Quantized checkpoints written down from the formats' public definitions, with nothing of the reader's: the integers are
 * put into words one at a time, by the place that the definition gives to each.
 */

/** A matrix [outputs, inputs] as any quantizer leaves it; integers and zero points count from 0. */
export interface Quantized {
  readonly outputs: number;
  readonly inputs: number;
  readonly bits: 4 | 8;
  readonly group: number;
  readonly integers: readonly number[];
  /** [outputs][groups] */
  readonly scales: readonly (readonly number[])[];
  readonly zeros: readonly (readonly number[])[];
  /** Of every input channel. */
  readonly groupOf: readonly number[];
}

export interface FileTensor {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

/** Half floats that are exactly representable, so that nobody rounds a scale. */
const asHalf = (value: number): number => {
  const power = 2 ** (Math.floor(Math.log2(value)) - 10);
  return Math.ceil(value / power) * power;
};

/** Rounds a float matrix to the nearest integers, group by group. */
export function quantizeMatrix(
  weights: ArrayLike<number>,
  outputs: number,
  inputs: number,
  options: { bits: 4 | 8; group?: number; symmetric?: boolean; order?: readonly number[] },
): Quantized {
  const { bits, symmetric = true } = options;
  const group = options.group ?? inputs;
  const groups = Math.ceil(inputs / group);
  const groupOf = options.order ?? Array.from({ length: inputs }, (_, k) => Math.floor(k / group));
  const most = 2 ** bits - 1;
  const middle = 2 ** (bits - 1);
  const scales: number[][] = [];
  const zeros: number[][] = [];
  const integers = new Array<number>(outputs * inputs).fill(0);
  for (let n = 0; n < outputs; n++) {
    scales.push([]);
    zeros.push([]);
    for (let g = 0; g < groups; g++) {
      const members = groupOf.flatMap((each, k) => (each === g ? [k] : []));
      const values = members.map((k) => weights[n * inputs + k]!);
      const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
      const scale = asHalf(symmetric ? Math.max(-low, high) / (middle - 1) : (high - low) / most) || 2 ** -10;
      // 1 at the least: format `gptq` stores one less.
      const zero = symmetric ? middle : Math.min(most, Math.max(1, Math.floor(-low / scale + 0.5)));
      scales[n]!.push(scale);
      zeros[n]!.push(zero);
      for (const k of members) {
        const step = Math.floor(weights[n * inputs + k]! / scale + 0.5) + zero;
        integers[n * inputs + k] = Math.min(most, Math.max(0, step));
      }
    }
  }
  return { outputs, inputs, bits, group, integers, scales, zeros, groupOf };
}

/** What the integers stand for, [outputs, inputs], in f32. */
export function realNumbers({ outputs, inputs, integers, scales, zeros, groupOf }: Quantized): Float32Array {
  return Float32Array.from({ length: outputs * inputs }, (_, i) => {
    const [n, g] = [Math.floor(i / inputs), groupOf[i % inputs]!];
    return (integers[i]! - zeros[n]![g]!) * scales[n]![g]!;
  });
}

class Words {
  readonly shape: readonly [number, number];
  readonly #words: Uint32Array;

  constructor(rows: number, columns: number) {
    this.shape = [rows, columns];
    this.#words = new Uint32Array(rows * columns);
  }

  put(row: number, column: number, shift: number, value: number): void {
    const at = row * this.shape[1] + column;
    this.#words[at] = (this.#words[at]! | (value << shift)) >>> 0;
  }

  tensor(): FileTensor {
    return { dtype: 'I32', shape: this.shape, bytes: new Uint8Array(this.#words.buffer) };
  }
}

const halves = (rows: readonly (readonly number[])[]): FileTensor => ({
  dtype: 'F16',
  shape: [rows.length, rows[0]!.length],
  bytes: new Uint8Array(Uint16Array.from(rows.flat(), numberToHalf).buffer),
});

const integers32 = (values: readonly number[]): FileTensor => ({
  dtype: 'I32',
  shape: [values.length],
  bytes: new Uint8Array(Int32Array.from(values).buffer),
});

const turned = (rows: readonly (readonly number[])[]): number[][] =>
  rows[0]!.map((_, column) => rows.map((row) => row[column]!));

/** AutoGPTQ / GPTQModel: input channels down the words of qweight, output channels across those of qzeros. */
export function packGptq(matrix: Quantized, version: 'gptq' | 'gptq_v2' = 'gptq'): Record<string, FileTensor> {
  const { outputs, inputs, bits, integers, scales, zeros, groupOf } = matrix;
  const each = 32 / bits;
  const groups = scales[0]!.length;
  const qweight = new Words(inputs / each, outputs);
  const qzeros = new Words(groups, outputs / each);
  for (let n = 0; n < outputs; n++) {
    for (let k = 0; k < inputs; k++) qweight.put(Math.floor(k / each), n, bits * (k % each), integers[n * inputs + k]!);
    for (let g = 0; g < groups; g++) {
      const stored = zeros[n]![g]! - (version === 'gptq' ? 1 : 0);
      qzeros.put(g, Math.floor(n / each), bits * (n % each), stored);
    }
  }
  return {
    qweight: qweight.tensor(),
    qzeros: qzeros.tensor(),
    scales: halves(turned(scales)),
    g_idx: integers32(groupOf),
  };
}

/** AutoAWQ GEMM: the eight output channels of a word sit at bits 0, 16, 4, 20, 8, 24, 12, 28. */
export function packAwq(matrix: Quantized): Record<string, FileTensor> {
  const { outputs, inputs, integers, scales, zeros } = matrix;
  const shift = [0, 16, 4, 20, 8, 24, 12, 28];
  const groups = scales[0]!.length;
  const qweight = new Words(inputs, outputs / 8);
  const qzeros = new Words(groups, outputs / 8);
  for (let n = 0; n < outputs; n++) {
    for (let k = 0; k < inputs; k++) qweight.put(k, Math.floor(n / 8), shift[n % 8]!, integers[n * inputs + k]!);
    for (let g = 0; g < groups; g++) qzeros.put(g, Math.floor(n / 8), shift[n % 8]!, zeros[n]![g]!);
  }
  return { qweight: qweight.tensor(), qzeros: qzeros.tensor(), scales: halves(turned(scales)) };
}

/** compressed-tensors pack-quantized: input channels across the words, from the low bits up; padded at the end of a row. */
export function packCompressed(
  matrix: Quantized,
  options: { zeros?: boolean; order?: boolean } = {},
): Record<string, FileTensor> {
  const { outputs, inputs, bits, integers, scales, zeros, groupOf } = matrix;
  const each = 32 / bits;
  const groups = scales[0]!.length;
  const packed = new Words(outputs, Math.ceil(inputs / each));
  const points = new Words(Math.ceil(outputs / each), groups);
  for (let n = 0; n < outputs; n++) {
    for (let k = 0; k < inputs; k++) packed.put(n, Math.floor(k / each), bits * (k % each), integers[n * inputs + k]!);
    for (let g = 0; g < groups; g++) points.put(Math.floor(n / each), g, bits * (n % each), zeros[n]![g]!);
  }
  const shape = BigInt64Array.of(BigInt(outputs), BigInt(inputs));
  return {
    weight_packed: packed.tensor(),
    weight_scale: halves(scales),
    weight_shape: { dtype: 'I64', shape: [2], bytes: new Uint8Array(shape.buffer) },
    ...(options.zeros ? { weight_zero_point: points.tensor() } : {}),
    ...(options.order ? { weight_g_idx: integers32(groupOf) } : {}),
  };
}

/** compressed-tensors int-quantized: signed bytes. */
export function packBytes(matrix: Quantized): Record<string, FileTensor> {
  const bytes = Int8Array.from(matrix.integers, (integer) => integer - 128);
  return {
    weight: { dtype: 'I8', shape: [matrix.outputs, matrix.inputs], bytes: new Uint8Array(bytes.buffer) },
    weight_scale: halves(matrix.scales),
  };
}

/** A .safetensors file: length of the header, the header, the tensors. */
function writeTensors(path: string, tensors: Readonly<Record<string, FileTensor>>): void {
  let offset = 0;
  const header = Object.entries(tensors).map(([name, { dtype, shape, bytes }]) => {
    const entry = [name, { dtype, shape, data_offsets: [offset, offset + bytes.length] }] as const;
    offset += bytes.length;
    return entry;
  });
  const text = Buffer.from(JSON.stringify(Object.fromEntries(header)));
  const length = Buffer.alloc(8);
  length.writeUInt32LE(text.length);
  writeFileSync(path, Buffer.concat([length, text, ...Object.values(tensors).map(({ bytes }) => bytes)]));
}

/** A folder with the config and tokenizer of `source`, the tensors, and the quantization that the config shall name. */
function writeCheckpoint(
  folder: string,
  source: string,
  tensors: Readonly<Record<string, FileTensor>>,
  quantization: object,
): void {
  mkdirSync(folder, { recursive: true });
  for (const name of ['tokenizer.json', 'tokenizer_config.json', 'generation_config.json'])
    copyFileSync(join(source, name), join(folder, name));
  const config = JSON.parse(readFileSync(join(source, 'config.json'), 'utf8')) as object;
  writeFileSync(join(folder, 'config.json'), JSON.stringify({ ...config, quantization_config: quantization }));
  writeTensors(join(folder, 'model.safetensors'), tensors);
}

export interface PackOptions {
  readonly quantization: object;
  readonly pack: (matrix: Quantized) => Record<string, FileTensor>;
  readonly options: Omit<Parameters<typeof quantizeMatrix>[3], 'order'> & { readonly actOrder?: boolean };
}

/**
 * A checkpoint as a quantizer leaves it: the layers' matrices as integers, norms and embedding as they are.
 * @returns the matrices, by weight name
 */
export async function packModel(
  folder: string,
  source: string,
  { quantization, pack, options: { actOrder, ...options } }: PackOptions,
): Promise<Map<string, Quantized>> {
  const checkpoint = await openCheckpoint(source);
  const matrices = new Map<string, Quantized>();
  const parts: Record<string, FileTensor> = {};
  for (const [key, tensor] of checkpoint.tensors) {
    if (!key.endsWith('_proj.weight')) {
      parts[key] = { dtype: tensor.dtype.toUpperCase(), shape: tensor.shape, bytes: tensor.read() };
      continue;
    }
    const [outputs, inputs] = tensor.shape as [number, number];
    const order = Array.from({ length: inputs }, (_, k) => (k * 7) % (inputs / options.group!));
    const matrix = quantizeMatrix(tensor.toFloats(), outputs, inputs, actOrder ? { ...options, order } : options);
    matrices.set(key, matrix);
    for (const [part, each] of Object.entries(pack(matrix))) parts[key.replace(/weight$/, part)] = each;
  }
  checkpoint.close();
  writeCheckpoint(folder, source, parts, quantization);
  return matrices;
}

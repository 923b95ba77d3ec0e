import { NpucError } from '../../errors.ts';
import type { DType } from '../../ir/dtype.ts';
import type { Tensor } from '../../ir/tensor.ts';

/** The tensors of one quantized layer, checked as they are asked for. */
export class ModuleTensors {
  readonly name: string;
  readonly #tensors: ReadonlyMap<string, Tensor>;
  readonly #where: string;

  constructor(name: string, tensors: ReadonlyMap<string, Tensor>, where: string) {
    this.name = name;
    this.#tensors = tensors;
    this.#where = where;
  }

  /** @throws IM405 */
  refuse(message: string, hint?: string): never {
    throw new NpucError('IM405', {
      message: `${this.name}: ${message}`,
      where: this.#where,
      ...(hint ? { hint } : {}),
    });
  }

  find(part: string): Tensor | undefined {
    return this.#tensors.get(`${this.name}.${part}`);
  }

  /** A tensor of that type and rank. @throws IM405 when it is missing or another */
  get(part: string, dtypes: readonly DType[], rank: number): Tensor {
    const tensor = this.find(part);
    if (!tensor) return this.refuse(`there is no ${part}`, 'is every shard there?');
    if (!dtypes.includes(tensor.dtype)) this.refuse(`${part} is ${tensor.dtype}, not ${dtypes.join(' or ')}`);
    if (tensor.shape.length !== rank) this.refuse(`${part} is [${tensor.shape}], not of ${rank} dimensions`);
    return tensor;
  }

  /** @throws IM405 when a scale is not a positive number: nothing could be read with it */
  scales(part: string): { readonly scales: Float32Array; readonly shape: readonly number[] } {
    const tensor = this.find(part);
    if (!tensor) return this.refuse(`there is no ${part}`, 'is every shard there?');
    if (!['f16', 'bf16', 'f32'].includes(tensor.dtype)) this.refuse(`${part} is ${tensor.dtype}, not a float`);
    const scales = tensor.toFloats();
    const wrong = scales.findIndex((scale) => !(scale > 0 && Number.isFinite(scale)));
    if (wrong >= 0) this.refuse(`entry ${wrong} of ${part} is ${scales[wrong]}: a scale is a positive number`);
    return { scales, shape: tensor.shape };
  }
}

/** 32-bit words of a packed tensor. */
export function readWords(tensor: Tensor): Uint32Array {
  const bytes = tensor.read();
  const whole = bytes.byteOffset % 4 === 0 ? bytes : new Uint8Array(bytes);
  return new Uint32Array(whole.buffer, whole.byteOffset, whole.byteLength / 4);
}

/** Integers of a matrix of words packed along its rows' direction, from the low bits up: word [r, c] holds rows r * n + i. */
export function unpackDown(words: Uint32Array, columns: number, rows: number, bits: 4 | 8): Uint8Array {
  const each = 32 / bits;
  const mask = 2 ** bits - 1;
  const out = new Uint8Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    const from = Math.floor(row / each) * columns;
    const shift = (row % each) * bits;
    for (let c = 0; c < columns; c++) out[row * columns + c] = (words[from + c]! >>> shift) & mask;
  }
  return out;
}

/**
 * Integers of a matrix of words packed along its columns, from the low bits up: word [r, c] holds columns c * n + order[i].
 * @param order the column inside a word of each of its integers; by default in order
 */
export function unpackAcross(
  words: Uint32Array,
  rows: number,
  columns: number,
  bits: 4 | 8,
  order?: readonly number[],
): Uint8Array {
  const each = 32 / bits;
  const mask = 2 ** bits - 1;
  const perRow = Math.ceil(columns / each);
  const out = new Uint8Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    for (let word = 0; word < perRow; word++) {
      const value = words[row * perRow + word]!;
      for (let i = 0; i < each; i++) {
        const column = word * each + (order?.[i] ?? i);
        if (column < columns) out[row * columns + column] = (value >>> (i * bits)) & mask;
      }
    }
  }
  return out;
}

/** The transpose of a matrix of bytes. */
export function transposeBytes(source: Uint8Array, rows: number, columns: number): Uint8Array {
  const out = new Uint8Array(source.length);
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) out[c * rows + r] = source[r * columns + c]!;
  return out;
}

/** The group of every input channel where they are not neighbours in groups of one size. */
export function activationOrder(groups: ArrayLike<number>, group: number): Uint32Array | undefined {
  const order = Uint32Array.from(groups);
  return order.every((each, k) => each === Math.floor(k / group)) ? undefined : order;
}

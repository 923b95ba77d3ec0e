import { DTYPES, type DType, halfToNumber } from '../ir/dtype.ts';

/**
 * ggml's element types by their number in a GGUF file, and how their blocks become f32 (block layouts: ggml-common.h and
 * ggml-quants.c of ggml). Products are rounded to f32 where ggml's own reference rounds them, so the results have its bits.
 */
export interface GgmlType {
  readonly name: string;
  /** Elements of one block; a block never spans two rows. */
  readonly blockSize: number;
  readonly blockBytes: number;
  /** The same bytes are a tensor of this type. */
  readonly plain?: DType;
  /** Decodes one block that starts at `at`. */
  readonly decode?: (bytes: Uint8Array, at: number, out: Float32Array, outAt: number) => void;
}

const { fround } = Math;

function half(bytes: Uint8Array, at: number): number {
  return halfToNumber(bytes[at] | (bytes[at + 1] << 8));
}

function plain(name: string, dtype: DType): GgmlType {
  return { name, blockSize: 1, blockBytes: DTYPES[dtype].bits / 8, plain: dtype };
}

/** Low nibbles are the first half of the block, high nibbles the second. */
const Q4_0: GgmlType = {
  name: 'Q4_0',
  blockSize: 32,
  blockBytes: 18,
  decode(bytes, at, out, outAt) {
    const scale = half(bytes, at);
    for (let i = 0; i < 16; i++) {
      const pair = bytes[at + 2 + i];
      out[outAt + i] = ((pair & 15) - 8) * scale;
      out[outAt + 16 + i] = ((pair >> 4) - 8) * scale;
    }
  },
};

const Q4_1: GgmlType = {
  name: 'Q4_1',
  blockSize: 32,
  blockBytes: 20,
  decode(bytes, at, out, outAt) {
    const scale = half(bytes, at);
    const offset = half(bytes, at + 2);
    for (let i = 0; i < 16; i++) {
      const pair = bytes[at + 4 + i];
      out[outAt + i] = fround((pair & 15) * scale) + offset;
      out[outAt + 16 + i] = fround((pair >> 4) * scale) + offset;
    }
  },
};

/** Four bits as in Q4, the fifth of element i is bit i of a 32-bit word. */
const Q5_0: GgmlType = {
  name: 'Q5_0',
  blockSize: 32,
  blockBytes: 22,
  decode(bytes, at, out, outAt) {
    const scale = half(bytes, at);
    for (let i = 0; i < 16; i++) {
      const pair = bytes[at + 6 + i];
      out[outAt + i] = (((pair & 15) | (fifthBit(bytes, at + 2, i) << 4)) - 16) * scale;
      out[outAt + 16 + i] = (((pair >> 4) | (fifthBit(bytes, at + 2, 16 + i) << 4)) - 16) * scale;
    }
  },
};

const Q5_1: GgmlType = {
  name: 'Q5_1',
  blockSize: 32,
  blockBytes: 24,
  decode(bytes, at, out, outAt) {
    const scale = half(bytes, at);
    const offset = half(bytes, at + 2);
    for (let i = 0; i < 16; i++) {
      const pair = bytes[at + 8 + i];
      out[outAt + i] = fround(((pair & 15) | (fifthBit(bytes, at + 4, i) << 4)) * scale) + offset;
      out[outAt + 16 + i] = fround(((pair >> 4) | (fifthBit(bytes, at + 4, 16 + i) << 4)) * scale) + offset;
    }
  },
};

function fifthBit(bytes: Uint8Array, at: number, index: number): number {
  return (bytes[at + (index >> 3)] >> (index & 7)) & 1;
}

const Q8_0: GgmlType = {
  name: 'Q8_0',
  blockSize: 32,
  blockBytes: 34,
  decode(bytes, at, out, outAt) {
    const scale = half(bytes, at);
    for (let i = 0; i < 32; i++) out[outAt + i] = signed(bytes[at + 2 + i]) * scale;
  },
};

function signed(byte: number): number {
  return (byte << 24) >> 24;
}

/** A scale and a minimum of 6 bits each for the eight groups of a 256-element block, packed in 12 bytes. */
function scaleAndMinimum(bytes: Uint8Array, at: number, group: number): [number, number] {
  if (group < 4) return [bytes[at + group] & 63, bytes[at + group + 4] & 63];
  const low = bytes[at + group + 4];
  return [(low & 15) | ((bytes[at + group - 4] >> 6) << 4), (low >> 4) | ((bytes[at + group] >> 6) << 4)];
}

/** Q4_K and Q5_K: eight groups of 32; group 2k takes the low and 2k+1 the high nibbles of the same 32 bytes. */
function decodeGroups(
  bytes: Uint8Array,
  at: number,
  nibbles: number,
  out: Float32Array,
  outAt: number,
  fifth: (group: number, index: number) => number,
): void {
  const scale = half(bytes, at);
  const minimumScale = half(bytes, at + 2);
  for (let group = 0; group < 8; group++) {
    const [groupScale, groupMinimum] = scaleAndMinimum(bytes, at + 4, group);
    const step = fround(scale * groupScale);
    const offset = fround(minimumScale * groupMinimum);
    const shift = (group & 1) * 4;
    for (let i = 0; i < 32; i++) {
      const quant = ((bytes[nibbles + (group >> 1) * 32 + i] >> shift) & 15) | fifth(group, i);
      out[outAt + group * 32 + i] = fround(step * quant) - offset;
    }
  }
}

const Q4_K: GgmlType = {
  name: 'Q4_K',
  blockSize: 256,
  blockBytes: 144,
  decode: (bytes, at, out, outAt) => decodeGroups(bytes, at, at + 16, out, outAt, () => 0),
};

const Q5_K: GgmlType = {
  name: 'Q5_K',
  blockSize: 256,
  blockBytes: 176,
  decode: (bytes, at, out, outAt) =>
    decodeGroups(bytes, at, at + 48, out, outAt, (group, i) => ((bytes[at + 16 + i] >> group) & 1) << 4),
};

/** 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales for 16 elements each, the block's scale. */
const Q6_K: GgmlType = {
  name: 'Q6_K',
  blockSize: 256,
  blockBytes: 210,
  decode(bytes, at, out, outAt) {
    const scale = half(bytes, at + 208);
    for (let i = 0; i < 256; i++) {
      const part = i >> 7;
      const quarter = (i >> 5) & 3;
      const column = i & 31;
      const low = (bytes[at + part * 64 + (quarter & 1) * 32 + column] >> ((quarter >> 1) * 4)) & 15;
      const high = (bytes[at + 128 + part * 32 + column] >> (quarter * 2)) & 3;
      const step = fround(scale * signed(bytes[at + 192 + (i >> 4)]));
      out[outAt + i] = step * ((low | (high << 4)) - 32);
    }
  },
};

/** Types that can be read, by their number. */
export const GGML_TYPES: ReadonlyMap<number, GgmlType> = new Map([
  [0, plain('F32', 'f32')],
  [1, plain('F16', 'f16')],
  [2, Q4_0],
  [3, Q4_1],
  [6, Q5_0],
  [7, Q5_1],
  [8, Q8_0],
  [12, Q4_K],
  [13, Q5_K],
  [14, Q6_K],
  [24, plain('I8', 'i8')],
  [25, plain('I16', 'i16')],
  [26, plain('I32', 'i32')],
  [27, plain('I64', 'i64')],
  [28, plain('F64', 'f64')],
  [30, plain('BF16', 'bf16')],
]);

/** Names of the types that cannot be read, for messages. */
const OTHER_NAMES: ReadonlyMap<number, string> = new Map([
  [9, 'Q8_1'],
  [10, 'Q2_K'],
  [11, 'Q3_K'],
  [15, 'Q8_K'],
  [16, 'IQ2_XXS'],
  [17, 'IQ2_XS'],
  [18, 'IQ3_XXS'],
  [19, 'IQ1_S'],
  [20, 'IQ4_NL'],
  [21, 'IQ3_S'],
  [22, 'IQ2_S'],
  [23, 'IQ4_XS'],
  [29, 'IQ1_M'],
  [34, 'TQ1_0'],
  [35, 'TQ2_0'],
  [39, 'MXFP4'],
]);

/** What a type number is called, whether it can be read or not. */
export function nameOfGgmlType(code: number): string {
  return GGML_TYPES.get(code)?.name ?? OTHER_NAMES.get(code) ?? `number ${code}`;
}

import { describe, expect, test } from 'vitest';
import { takeOver } from '../../../../compiler/import/quantized/take-over.ts';
import type { DType } from '../../../../compiler/ir/dtype.ts';
import { Tensor } from '../../../../compiler/ir/tensor.ts';
import { seededRandom } from '../../../../compiler/runtime/generate.ts';
import {
  type FileTensor,
  packAwq,
  packBytes,
  packCompressed,
  packGptq,
  type Quantized,
  quantizeMatrix,
  realNumbers,
} from './pack-checkpoint.ts';

const TYPES: Readonly<Record<string, DType>> = { I32: 'i32', I64: 'i64', F16: 'f16', I8: 'i8', F32: 'f32' };

function open(parts: Readonly<Record<string, FileTensor>>, quantization: object, more: object = {}) {
  const tensors = new Map(
    Object.entries(parts).map(([part, { dtype, shape, bytes }]) => [
      `model.layers.0.mlp.up_proj.${part}`,
      new Tensor(TYPES[dtype]!, shape, { kind: 'memory', bytes }),
    ]),
  );
  return takeOver({ quantization_config: quantization, ...more }, tensors, 'somewhere');
}

/** Integers over the whole range, the smallest and the largest among them, as no rounding of ours would give them. */
function randomMatrix(
  outputs: number,
  inputs: number,
  options: { bits: 4 | 8; group?: number; symmetric?: boolean; order?: readonly number[] },
): Quantized {
  const random = seededRandom(outputs * 31 + inputs);
  const floats = Float32Array.from({ length: outputs * inputs }, () => random() - 0.5);
  const matrix = quantizeMatrix(floats, outputs, inputs, options);
  const integers = matrix.integers.map((_, i) =>
    i === 0 ? 0 : i === 1 ? 2 ** options.bits - 1 : Math.floor(random() * 2 ** options.bits),
  );
  return { ...matrix, integers };
}

const NAME = 'model.layers.0.mlp.up_proj.weight';
const gptq = { quant_method: 'gptq', bits: 4, group_size: 32, desc_act: false, sym: true };
const awq = { quant_method: 'awq', bits: 4, group_size: 32, version: 'gemm', zero_point: true };
const compressed = { quant_method: 'compressed-tensors', format: 'pack-quantized' };

/** Integers as the encoding counts them, [K, N]. */
function expected({ outputs, inputs, integers }: Quantized, offset: number): number[] {
  return Array.from({ length: inputs * outputs }, (_, i) => {
    const [k, n] = [Math.floor(i / outputs), i % outputs];
    return integers[n * inputs + k]! - offset;
  });
}

describe('the integers of a layer', () => {
  const even = { bits: 4, group: 32 } as const;
  const skew = { ...even, symmetric: false };
  test.each<[string, object, (matrix: Quantized) => Record<string, FileTensor>, Parameters<typeof randomMatrix>[2]]>([
    ['gptq', gptq, packGptq, even],
    ['gptq of 8 bits', { ...gptq, bits: 8 }, packGptq, { bits: 8, group: 32 }],
    ['gptq, asymmetric', { ...gptq, sym: false }, packGptq, skew],
    ['gptq_v2', { ...gptq, checkpoint_format: 'gptq_v2' }, (m) => packGptq(m, 'gptq_v2'), skew],
    ['gptq per channel', { ...gptq, group_size: -1 }, packGptq, { bits: 4 }],
    ['gptq whose config is of another width than the layer', { ...gptq, bits: 8 }, packGptq, even],
    ['awq', awq, packAwq, skew],
    ['awq, symmetric', awq, packAwq, even],
    ['awq per channel', { ...awq, group_size: -1 }, packAwq, { bits: 4, symmetric: false }],
    ['compressed-tensors', compressed, packCompressed, even],
    ['compressed-tensors of 8 bits', compressed, packCompressed, { bits: 8, group: 16 }],
    ['compressed-tensors with zero points', compressed, (m) => packCompressed(m, { zeros: true }), skew],
    ['compressed-tensors per channel', compressed, packCompressed, { bits: 4 }],
    ['compressed-tensors of bytes', { ...compressed, format: 'int-quantized' }, packBytes, { bits: 8 }],
  ])('%s: are those of the file, and so is what they stand for', (_, quantization, pack, options) => {
    const matrix = randomMatrix(24, 64, options);
    const { tensors, taken, config } = open(pack(matrix), quantization, { hidden_size: 24 });
    expect(config).toEqual({ hidden_size: 24 });
    expect([...tensors.keys()]).toEqual([NAME]);
    const { exact } = taken.get(NAME)!;
    const { symmetric = true } = options;
    const { encoding, integers } = exact!;
    expect(integers.dtype).toBe(`${symmetric ? 'i' : 'u'}${options.bits}`);
    expect(integers.toNumbers()).toEqual(expected(matrix, symmetric ? 2 ** (options.bits - 1) : 0));
    expect(encoding.zeroPoint === undefined).toBe(symmetric);
    expect([encoding.axis, encoding.block]).toEqual(options.group === undefined ? [1, undefined] : [0, options.group]);
    expect(tensors.get(NAME)!.shape).toEqual([24, 64]);
    expect(tensors.get(NAME)!.toFloats()).toEqual(realNumbers(matrix));
  });

  test('rows that do not fill their last word, and groups that do not fill the channels', () => {
    const padded = randomMatrix(20, 60, { bits: 4, group: 15, symmetric: false });
    const rows = open(packCompressed(padded, { zeros: true }), compressed);
    expect(rows.tensors.get(NAME)!.toFloats()).toEqual(realNumbers(padded));
    const whole = randomMatrix(16, 40, { bits: 4, group: 32 });
    const last = open(packGptq(whole), gptq);
    expect(last.tensors.get(NAME)!.toFloats()).toEqual(realNumbers(whole));
  });

  test.each<[string, object, (matrix: Quantized) => Record<string, FileTensor>, boolean]>([
    ['gptq', { ...gptq, desc_act: true }, packGptq, true],
    ['gptq, asymmetric', { ...gptq, desc_act: true, sym: false }, packGptq, false],
    ['compressed-tensors', compressed, (m) => packCompressed(m, { order: true }), true],
  ])('activation order in %s: is read, but no encoding can say it', (_, quantization, pack, symmetric) => {
    const order = Array.from({ length: 64 }, (_, k) => (k * 5) % 2);
    const matrix = randomMatrix(24, 64, { bits: 4, group: 32, symmetric, order });
    const { tensors, taken } = open(pack(matrix), quantization);
    expect(taken.get(NAME)!.exact).toBeUndefined();
    expect(taken.get(NAME)!.why).toMatch(/activation order/);
    expect(tensors.get(NAME)!.toFloats()).toEqual(realNumbers(matrix));
  });

  test('activation order that orders nothing is none', () => {
    const matrix = randomMatrix(24, 64, { bits: 4, group: 32 });
    expect(open(packGptq(matrix), { ...gptq, desc_act: true }).taken.get(NAME)!.exact).toBeDefined();
  });
});

describe('what cannot be taken over', () => {
  const matrix = randomMatrix(24, 64, { bits: 4, group: 32 });
  const change = (parts: Record<string, FileTensor>, part: string, more: Partial<FileTensor>) => ({
    ...parts,
    [part]: { ...parts[part]!, ...more },
  });
  const without = ({ ...parts }: Record<string, FileTensor>, part: string) => {
    delete parts[part];
    return parts;
  };
  test.each<[string, Record<string, FileTensor>, object, RegExp]>([
    ['another method', packGptq(matrix), { quant_method: 'bitsandbytes' }, /it is quantized by bitsandbytes/],
    ['no method', packGptq(matrix), {}, /quantized by nothing/],
    ['a layout of one kernel', packGptq(matrix), { ...gptq, checkpoint_format: 'marlin' }, /one kernel \(marlin\)/],
    ['the gemv layout of AWQ', packAwq(matrix), { ...awq, version: 'gemv' }, /version gemv; gemm is read/],
    ['floats of 8 bits', packCompressed(matrix), { ...compressed, format: 'float-quantized' }, /float-quantized/],
    ['a sparse one', packCompressed(matrix), { ...compressed, sparsity_config: { format: 'sparse-24' } }, /sparse/],
    ['no quantized layer', {}, gptq, /no layer has a qweight/],
    ['no scales', without(packGptq(matrix), 'scales'), gptq, /up_proj: there is no scales/],
    [
      'a scale of zero',
      change(packGptq(matrix), 'scales', { bytes: new Uint8Array(96) }),
      gptq,
      /entry 0 of scales is 0/,
    ],
    ['groups of another size', packGptq(matrix), { ...gptq, group_size: 16 }, /2 groups of 16 for 64 input channels/],
    ['weights of 2 bits', without(packGptq(matrix), 'g_idx'), { ...gptq, bits: 2 }, /weights of 2 bits/],
    ['zero points of another shape', change(packGptq(matrix), 'qzeros', { shape: [3, 2] }), gptq, /qzeros are \[3,2\]/],
    [
      'a zero point that wraps around',
      change(packGptq(matrix), 'qzeros', { bytes: new Uint8Array(24).fill(255) }),
      gptq,
      /zero point of all ones/,
    ],
    [
      'groups that are not there',
      change(packGptq(matrix), 'g_idx', { bytes: new Uint8Array(256).fill(1) }),
      gptq,
      /g_idx names/,
    ],
    [
      'a last group of another length',
      packCompressed(randomMatrix(24, 60, { bits: 4, group: 8 })),
      compressed,
      /8 groups do not divide 60 input channels/,
    ],
    [
      'words of another width',
      change(packCompressed(matrix), 'weight_shape', { bytes: new Uint8Array(BigInt64Array.of(24n, 100n).buffer) }),
      compressed,
      /neither 4 nor 8 bits/,
    ],
  ])('%s', (_, parts, quantization, message) => {
    expect(() => open(parts, quantization)).toThrowError(
      expect.objectContaining({ code: 'IM405', message: expect.stringMatching(message) }),
    );
  });
});

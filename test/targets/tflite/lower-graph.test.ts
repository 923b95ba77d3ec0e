import { describe, expect, it } from 'vitest';
import { NpucError } from '../../../compiler/errors.ts';
import { quantizeConstant } from '../../../compiler/export/quantize-constant.ts';
import type { Module } from '../../../compiler/ir/graph.ts';
import { Tensor } from '../../../compiler/ir/tensor.ts';
import { runPasses } from '../../../compiler/pass.ts';
import { storeWeightsF16 } from '../../../passes/store-weights-f16.ts';
import { lowerGraphs } from '../../../targets/tflite/lower-graph.ts';
import type { TfliteModel } from '../../../targets/tflite/model.ts';
import { operatorName, TensorType, tensorTypeName } from '../../../targets/tflite/schema-enums.ts';
import { compareEngines, encode, type Form, parseGraph, unit } from './compare-engines.ts';

const x = (form: Form, shape: string, limit = 1): string => `  in %x : f32[${shape}]${encode(form, limit)}\n`;

/** A [K, N] weight, random or given, with one scale a column in integer forms. */
function weight(form: Form, K: number, N: number, bits: 4 | 8 = 8): string {
  const scales = Array.from({ length: N }, (_, n) => Math.fround(((n + 2) * 0.1) / (bits === 4 ? 7 : 127)));
  const encoding = form === 'f32' ? '' : ` q(i${bits}, axis 1, scale [${scales.join(', ')}])`;
  return `  %w : f32[${K},${N}]${encoding} = const rand(7, uniform -0.3 0.3)\n`;
}

/** Bodies of one-op graphs by what they show, and the operators that they become. */
const CASES: Readonly<Record<string, { readonly body: (form: Form) => string; readonly ops: readonly string[] }>> = {
  Add: {
    body: (f) => `${x(f, '1,3,4,8')}  in %b : f32[1,1,4,8]${encode(f, 1.5)}
  %y : f32[1,3,4,8]${encode(f, 2)} = Add(%x, %b)\n  out %y`,
    ops: ['ADD'],
  },
  Sub: {
    body: (f) => `${x(f, '1,4,8')}  in %b : f32[1,4,8]${encode(f, 1.5)}
  %y : f32[1,4,8]${encode(f, 2)} = Sub(%x, %b)\n  out %y`,
    ops: ['SUB'],
  },
  Mul: {
    body: (f) => `${x(f, '1,4,2,8')}  in %b : f32[1,4,1,8]${encode(f, 1.5)}
  %y : f32[1,4,2,8]${encode(f, 1)} = Mul(%x, %b)\n  out %y`,
    ops: ['MUL'],
  },
  'Mul whose product of scales exceeds the output scale': {
    body: (f) => `${x(f, '1,4,8', 200)}  in %b : f32[1,4,8]${encode(f, 200)}
  %y : f32[1,4,8]${encode(f, 1)} = Mul(%x, %b)\n  out %y`,
    ops: ['MUL'],
  },
  Sigmoid: { body: (f) => `${x(f, '1,4,8')}  %y : f32[1,4,8]${unit(f)} = Sigmoid(%x)\n  out %y`, ops: ['LOGISTIC'] },
  Softmax: {
    body: (f) => `${x(f, '1,2,4,32')}  %y : f32[1,2,4,32]${unit(f)} = Softmax(%x) {axis -1}\n  out %y`,
    ops: ['SOFTMAX'],
  },
  Reshape: {
    body: (f) => `${x(f, '1,4,8')}  %shape : i64[4] = const [1, 4, 2, 4]
  %y : f32[1,4,2,4]${encode(f, 1)} = Reshape(%x, %shape)\n  out %y`,
    ops: ['RESHAPE'],
  },
  Transpose: {
    body: (f) => `${x(f, '1,4,2,8')}  %y : f32[1,2,4,8]${encode(f, 1)} = Transpose(%x) {perm [0, 2, 1, 3]}\n  out %y`,
    ops: ['TRANSPOSE'],
  },
  Split: {
    body: (f) => `${x(f, '1,2,2,10')}  %lengths : i64[3] = const [2, 5, 3]
  %a : f32[1,2,2,2]${encode(f, 1)}, %b : f32[1,2,2,5]${encode(f, 1)}, %y : f32[1,2,2,3]${encode(f, 1)} = Split(%x, %lengths) {axis -1}
  out %y\n  out %a\n  out %b`,
    ops: ['SLICE', 'SLICE', 'SLICE'],
  },
  Concat: {
    body: (f) => `${x(f, '1,2,8')}  in %b : f32[1,3,8]${encode(f, 1)}
  %y : f32[1,5,8]${encode(f, 1)} = Concat(%x, %b) {axis 1}\n  out %y`,
    ops: ['CONCATENATION'],
  },
  'MatMul with a weight': {
    body: (f) => `${x(f, '1,4,8')}${weight(f, 8, 6)}  %y : f32[1,4,6]${encode(f, 2)} = MatMul(%x, %w)\n  out %y`,
    ops: ['FULLY_CONNECTED'],
  },
  'MatMul with one scale for a weight': {
    body: (
      f,
    ) => `${x(f, '4,8')}  %w : f32[8,6]${f === 'f32' ? '' : ' q(i8, scale 0.0024)'} = const rand(7, uniform -0.3 0.3)
  %y : f32[4,6]${encode(f, 2)} = MatMul(%x, %w)\n  out %y`,
    ops: ['FULLY_CONNECTED'],
  },
  'MatMul and a bias': {
    body: (
      f,
    ) => `${x(f, '1,4,8')}${weight(f, 8, 6)}  %b : f32[6]${encode(f, 3)} = const [0.5, -3.0, 2.0, 0.0, 1.0, -0.25]
  %p : f32[1,4,6]${encode(f, 2)} = MatMul(%x, %w)
  %y : f32[1,4,6]${encode(f, 4)} = Add(%b, %p)\n  out %y`,
    ops: ['FULLY_CONNECTED'],
  },
  'MatMul and an addition that is no bias': {
    body: (f) => `${x(f, '1,4,8')}${weight(f, 8, 6)}  %b : f32[1]${encode(f, 3)} = const [0.5]
  %p : f32[1,4,6]${encode(f, 2)} = MatMul(%x, %w)
  %y : f32[1,4,6]${encode(f, 4)} = Add(%p, %b)\n  out %y`,
    ops: ['FULLY_CONNECTED', 'ADD'],
  },
  'MatMul and a bias, the product read twice': {
    body: (
      f,
    ) => `${x(f, '1,4,8')}${weight(f, 8, 6)}  %b : f32[6]${encode(f, 3)} = const [0.5, -3.0, 2.0, 0.0, 1.0, -0.25]
  %p : f32[1,4,6]${encode(f, 2)} = MatMul(%x, %w)
  %y : f32[1,4,6]${encode(f, 4)} = Add(%p, %b)\n  out %y\n  out %p`,
    ops: ['FULLY_CONNECTED', 'ADD'],
  },
  'MatMul of two values': {
    body: (f) => `${x(f, '1,2,4,16')}  in %b : f32[1,2,16,8]${encode(f, 1)}
  %y : f32[1,2,4,8]${encode(f, 6)} = MatMul(%x, %b)\n  out %y`,
    ops: ['BATCH_MATMUL'],
  },
  'MatMul with token-major keys': {
    body: (f) => `${x(f, '1,2,4,16')}  in %k : f32[1,6,2,16]${encode(f, 1)}
  %t : f32[1,2,16,6]${encode(f, 1)} = Transpose(%k) {perm [0, 2, 3, 1]}
  %y : f32[1,2,4,6]${encode(f, 6)} = MatMul(%x, %t)\n  out %y`,
    ops: ['TRANSPOSE', 'BATCH_MATMUL'],
  },
  'MatMul with head-major keys': {
    body: (f) => `${x(f, '1,2,4,16')}  in %k : f32[1,2,6,16]${encode(f, 1)}
  %t : f32[1,2,16,6]${encode(f, 1)} = Transpose(%k) {perm [0, 1, 3, 2]}
  %y : f32[1,2,4,6]${encode(f, 6)} = MatMul(%x, %t)\n  out %y`,
    ops: ['BATCH_MATMUL'],
  },
  'MatMul with keys that leave the graph transposed too': {
    body: (f) => `${x(f, '1,2,4,16')}  in %k : f32[1,2,6,16]${encode(f, 1)}
  %t : f32[1,2,16,6]${encode(f, 1)} = Transpose(%k) {perm [0, 1, 3, 2]}
  %y : f32[1,2,4,6]${encode(f, 6)} = MatMul(%x, %t)\n  out %y\n  out %t`,
    ops: ['TRANSPOSE', 'BATCH_MATMUL'],
  },
  RMSNormalization: {
    body: (f) => `${x(f, '1,4,16')}  %g : f32[16]${encode(f, 1)} = const rand(3, uniform 0.5 1.0)
  %y : f32[1,4,16]${encode(f, 2.5)} = RMSNormalization(%x, %g) {axis -1, epsilon 1e-5}\n  out %y`,
    ops: ['STABLEHLO_COMPOSITE'],
  },
};

/** Operators of a model's first graph, the conversions at its ports left out. */
function operators(model: TfliteModel): string[] {
  const [graph] = model.subgraphs;
  const names = graph!.operators.map((operator) => operatorName(operator.code));
  return names.filter((name) => name !== 'QUANTIZE' && name !== 'DEQUANTIZE');
}

/** The least dB and the most steps of the output's scale that a form may differ from ONNX Runtime's floats. */
const LIMITS = { f32: [120, 0], i8: [38, 1], i16: [70, 1] } as const;

describe.each(['f32', 'i8', 'i16'] as const)('one op in %s is in LiteRT what it is in ONNX Runtime', (form) => {
  it.each(Object.keys(CASES))('%s', async (name) => {
    const { body, ops } = CASES[name]!;
    const { model, sqnr, steps } = await compareEngines(parseGraph(`${body(form)}\nend`));
    expect(operators(model)).toEqual(ops);
    const [least, most] = LIMITS[form];
    expect(sqnr).toBeGreaterThan(least);
    expect(steps).toBeLessThanOrEqual(most);
  });
});

describe('kernel versions are the lowest that do the job', () => {
  const versionOf = (name: string, form: Form): number[] => {
    const model = lowerGraphs([parseGraph(`${CASES[name]!.body(form)}\nend`).graph()], 'quantized');
    return model.subgraphs[0]!.operators.map((operator) => operator.version);
  };
  it.each([
    ['Add', 1, 2, 3],
    ['Sub', 1, 2, 5],
    ['Mul', 1, 2, 4],
    ['Mul whose product of scales exceeds the output scale', 1, 3, 4],
    ['Sigmoid', 1, 2, 3],
    ['Softmax', 1, 2, 3],
    ['Reshape', 1, 1, 1],
    ['Transpose', 1, 2, 5],
    ['Concat', 1, 2, 3],
    ['MatMul with a weight', 5, 5, 7],
    ['MatMul of two values', 1, 2, 3],
    ['RMSNormalization', 1, 1, 1],
  ])('%s', (name, float, int8, int16) => {
    expect([versionOf(name, 'f32'), versionOf(name, 'i8'), versionOf(name, 'i16')]).toEqual([[float], [int8], [int16]]);
  });

  it.each(['Add', 'Sub'])('%s of int16 says that its scales are no powers of two', (name) => {
    const model = lowerGraphs([parseGraph(`${CASES[name]!.body('i16')}\nend`).graph()], 'quantized');
    expect(model.subgraphs[0]!.operators[0]!.options).toMatchObject({ potScaleInt16: false });
  });

  it('Transpose and Split of more dimensions', () => {
    const high = (op: string): number[] => {
      const { subgraphs } = lowerGraphs(
        [parseGraph(`${x('f32', '1,2,3,4,5')}  ${op}\n  out %y\nend`).graph()],
        'float',
      );
      return subgraphs[0]!.operators.map((operator) => operator.version);
    };
    expect(high('%y : f32[1,3,2,4,5] = Transpose(%x) {perm [0, 2, 1, 3, 4]}')).toEqual([4]);
    expect(high('%y : f32[1,2,3,4,5] = Split(%x) {axis 1, num_outputs 1}')).toEqual([5]);
  });
});

describe('weights', () => {
  const fullyConnected = (model: TfliteModel) => {
    const graph = model.subgraphs[0]!;
    const operator = graph.operators.find(({ code }) => operatorName(code) === 'FULLY_CONNECTED')!;
    const [, weightAt, biasAt] = operator.inputs;
    return { graph, operator, weight: graph.tensors[weightAt!]!, bias: graph.tensors[biasAt!] };
  };

  it.each(['i8', 'i16'] as const)('are 4-bit rows, packed, under %s activations', async (form) => {
    const text = `${x(form, '1,4,8')}${weight(form, 8, 6, 4)}  %y : f32[1,4,6]${encode(form, 2)} = MatMul(%x, %w)\n  out %y\nend`;
    const { model, sqnr, steps } = await compareEngines(parseGraph(text));
    expect(steps).toBeLessThanOrEqual(1);
    expect(sqnr).toBeGreaterThan(form === 'i8' ? 38 : 80);
    const { weight: tensor, operator } = fullyConnected(model);
    expect(tensorTypeName(tensor.type)).toBe('INT4');
    expect(tensor.shape).toEqual([6, 8]);
    expect(tensor.quantization!.quantizedDimension ?? 0).toBe(0);
    expect(model.buffers[tensor.buffer]!.byteLength).toBe(24);
    expect(operator.version).toBe(form === 'i8' ? 10 : 13);
  });

  it.each([4, 8] as const)('keep %s-bit integers that were chosen for them', async (bits) => {
    const module = parseGraph(
      `${x('i16', '1,4,8')}${weight('i16', 8, 6, bits)}  %y : f32[1,4,6]${encode('i16', 2)} = MatMul(%x, %w)\n  out %y\nend`,
    );
    const value = module.graph().find('w')!;
    const plain = quantizeConstant(value.data!, value.encoding!, 'w');
    const rounded = new Tensor(`i${bits}`, [8, 6], { kind: 'memory', bytes: plain }).toData().data as Int8Array;
    // Not what rounding gives, so that the test sees which integers are written.
    value.payload = Tensor.of(
      `i${bits}`,
      [8, 6],
      rounded.map((integer, i) => (i % 3 === 0 ? -integer : integer)),
    );
    const { sqnr } = await compareEngines(module);
    expect(sqnr).toBeGreaterThan(80);
  });

  it('are half floats that the graph widens', async () => {
    const module = parseGraph(
      `${x('f32', '1,4,8')}${weight('f32', 8, 6)}  %y : f32[1,4,6] = MatMul(%x, %w)\n  out %y\nend`,
    );
    runPasses(module, [storeWeightsF16()]);
    const { model, sqnr } = await compareEngines(module);
    expect(sqnr).toBeGreaterThan(120);
    const [dequantize] = model.subgraphs[0]!.operators;
    expect([operatorName(dequantize!.code), dequantize!.version]).toEqual(['DEQUANTIZE', 3]);
    const stored = model.subgraphs[0]!.tensors[dequantize!.inputs[0]!]!;
    expect([tensorTypeName(stored.type), stored.shape, model.buffers[stored.buffer]!.byteLength]).toEqual([
      'FLOAT16',
      [6, 8],
      96,
    ]);
  });

  it('that something else reads too are widened as they are', async () => {
    const module = parseGraph(
      `${x('f32', '6,6')}${weight('f32', 6, 6)}  %p : f32[6,6] = MatMul(%x, %w)\n  %y : f32[6,6] = Add(%p, %w)\n  out %y\nend`,
    );
    runPasses(module, [storeWeightsF16()]);
    expect((await compareEngines(module)).sqnr).toBeGreaterThan(120);
  });

  it('have integer biases, ties to even, 32 bits for int8 and 64 bits for int16', () => {
    const scales = { i8: 2 ** -5, i16: 2 ** -12 } as const;
    for (const form of ['i8', 'i16'] as const) {
      const step = scales[form] * 2 ** -4;
      const bias = [0.5, 1.5, 2.5, -0.5, -1.5, 1e30].map((steps) => steps * step);
      const module = parseGraph(`  in %x : f32[1,2] q(${form}, scale ${scales[form]})
  %w : f32[2,6] q(i8, axis 1, scale [${new Array(6).fill(2 ** -4).join(', ')}]) = const rand(7, uniform -0.3 0.3)
  %b : f32[6]${encode(form, 3)} = const [${bias.join(', ')}]
  %p : f32[1,6]${encode(form, 4)} = MatMul(%x, %w)
  %y : f32[1,6]${encode(form, 4)} = Add(%p, %b)
  out %y
end`);
      const model = lowerGraphs([module.graph()], 'float');
      const { bias: tensor } = fullyConnected(model);
      expect(tensor!.type).toBe(form === 'i8' ? TensorType.INT32 : TensorType.INT64);
      const bytes = model.buffers[tensor!.buffer] as Uint8Array;
      const integers = form === 'i8' ? new Int32Array(bytes.slice().buffer) : new BigInt64Array(bytes.slice().buffer);
      expect(Array.from(integers, Number)).toEqual([0, 2, 2, 0, -2, form === 'i8' ? 2 ** 31 - 1 : 2 ** 46]);
      expect(Array.from(tensor!.quantization!.scale!)).toEqual(new Array(6).fill(step));
    }
  });
});

describe('changes of format', () => {
  it.each([
    ['i8', 'i16'],
    ['i16', 'i8'],
    ['f32', 'i8'],
    ['i16', 'f32'],
  ] as const)('from %s to %s', async (from, to) => {
    const text = `${x(from, '1,4,8')}  %y : f32[1,4,8]${encode(to, 1)} = Identity(%x)\n  out %y\nend`;
    const { steps, sqnr } = await compareEngines(parseGraph(text));
    expect(steps).toBeLessThanOrEqual(1);
    expect(sqnr).toBeGreaterThan(38);
  });

  it('between equal formats are no operator', () => {
    const text = `${x('i8', '4')}  %a : f32[4]${unit('i8')} = Sigmoid(%x)\n  %y : f32[4]${unit('i8')} = Identity(%a)\n  out %y\nend`;
    expect(operators(lowerGraphs([parseGraph(text).graph()], 'float'))).toEqual(['LOGISTIC']);
  });
});

describe('RMSNormalization', () => {
  it('is a composite with a body of its own for every node', () => {
    const module = parseGraph(`  in %x : f32[1,4,16]
  %g : f32[16] = const rand(3, uniform 0.5 1.0)
  %a : f32[1,4,16] = RMSNormalization(%x, %g) {axis -1, epsilon 1e-5}
  %y : f32[1,4,16] = RMSNormalization(%a, %g) {axis 2, epsilon 1e-5}
  out %y
end`);
    const { subgraphs, signatures } = lowerGraphs([module.graph()], 'float');
    expect(signatures.map(({ key, subgraph }) => [key, subgraph])).toEqual([['g', 0]]);
    const composites = subgraphs[0]!.operators.map((operator) => operator.options2);
    // Two composites over one body make the Qualcomm compiler fail, though the bodies would be equal.
    expect(
      composites.map((options) => options?.kind === 'StableHLOCompositeOptions' && options.decompositionSubgraphIndex),
    ).toEqual([1, 2]);
    expect(subgraphs[1]!.operators.map((operator) => operatorName(operator.code))).toEqual([
      'MUL',
      'MEAN',
      'ADD',
      'RSQRT',
      'MUL',
      'MUL',
    ]);
    const [weightAt] = subgraphs[0]!.operators[0]!.inputs.slice(1);
    expect(subgraphs[0]!.tensors[weightAt!]!.shape).toEqual([16]);
  });
});

function refusal(module: Module): NpucError {
  try {
    lowerGraphs([module.graph()], 'float');
  } catch (error) {
    if (error instanceof NpucError) return error;
    throw error;
  }
  throw new Error('the graph was accepted');
}

describe('what is refused', () => {
  it('names every node without a form, grouped by reason', () => {
    const error = refusal(
      parseGraph(`  in %x : f32[1,4,16]
  %a : f32[1,4,16] = Erf(%x)  ; from gelu_1
  %b : f32[1,4,16] = Erf(%a)  ; from gelu_2
  %c : f32[1,4,16] = Softmax(%b) {axis 1}  ; from attention
  %d : f32[1,4,16] = com.microsoft::Gelu(%c)  ; from last
  %e : f64[1,4,16] = Cast(%d) {to 11}  ; from cast
  out %e
end`),
    );
    expect(error.code).toBe('TF201');
    expect(error.message).toBe(
      'TFLite has no form for Erf (gelu_1, gelu_2); Softmax over axis 1 (attention); com.microsoft.Gelu (last); Cast from f32 to f64 (cast)',
    );
    expect(error.where).toBe('gelu_1');
  });

  it('a norm without a constant weight, or over other axes than the last', () => {
    const norm = (g: string, axis: number): Module =>
      parseGraph(`  in %x : f32[2,4]
  in %z : f32[4]
  %c : f32[4] = const fill 1.0
  %y : f32[2,4] = RMSNormalization(%x, ${g}) {axis ${axis}}  ; from norm
  out %y
end`);
    expect(refusal(norm('%z', -1)).message).toBe(
      'TFLite has no form for RMSNormalization without a constant weight per channel (norm)',
    );
    expect(refusal(norm('%c', 0)).message).toBe('TFLite has no form for RMSNormalization over the axes from 0 (norm)');
    expect(() => lowerGraphs([norm('%c', 1).graph()], 'float')).not.toThrow();
  });

  it.each([
    ['unsigned activations', '  in %x : f32[4] q(u8, scale 0.1)\n  %y : f32[4] q(u8, scale 0.1) = Reshape(%x, %s)'],
    [
      'blocks of weights',
      `  in %x : f32[1,4] q(i16, scale 0.1)
  %w : f32[4,2] q(i4, axis 0, block 2, channel 1, scale [0.5, 0.25], blockscale [1, 2, 3, 15]) = const fill 1.0
  %y : f32[1,2] q(i16, scale 0.1) = MatMul(%x, %w)`,
    ],
  ])('TF202: %s', (_, body) => {
    const error = refusal(parseGraph(`  %s : i64[1] = const [4]\n${body}\n  out %y\nend`));
    expect(error.code).toBe('TF202');
  });

  it.each([
    [
      'unequal scales around movement',
      '  in %x : f32[4] q(i16, scale 0.1)\n  in %z : f32[4] q(i16, scale 0.2)\n  %y : f32[8] q(i16, scale 0.1) = Concat(%x, %z) {axis 0}',
      'moves integers between the scales of x and z',
    ],
    [
      'two widths in one node',
      '  in %x : f32[4] q(i16, scale 0.1)\n  in %z : f32[4] q(i8, scale 0.2)\n  %y : f32[4] q(i16, scale 0.1) = Add(%x, %z)',
      'mixes x i16, z i8, y i16',
    ],
    ['floats beside integers', '  in %x : f32[4] q(i16, scale 0.1)\n  %y : f32[4] = Sigmoid(%x)', 'mixes x i16, y f32'],
    [
      'another scale for SOFTMAX',
      '  in %x : f32[1,4] q(i8, scale 0.1)\n  %y : f32[1,4] q(i8, scale 0.01) = Softmax(%x)',
      'the kernel writes i8 scale 0.00390625 zero -128, the plan says i8 scale 0.009999999776482582 zero 0',
    ],
    [
      'a zero point of int16',
      '  in %x : f32[4] q(i16, scale 0.1, zero 3)\n  %y : f32[4] q(i16, scale 0.1) = Add(%x, %x)',
      'x has a zero point',
    ],
    [
      'a zero point of a weight',
      '  in %x : f32[1,4] q(i8, scale 0.1)\n  %w : f32[4,2] q(i8, scale 0.1, zero 3) = const fill 0.5\n  %y : f32[1,2] q(i8, scale 0.1) = MatMul(%x, %w)',
      'the weight w has a zero point',
    ],
    [
      'scales along the input channels',
      '  in %x : f32[1,4] q(i8, scale 0.1)\n  %w : f32[4,2] q(i8, axis 0, scale [0.1, 0.1, 0.1, 0.1]) = const fill 0.5\n  %y : f32[1,2] q(i8, scale 0.1) = MatMul(%x, %w)',
      'the weight w has its scales on axis 0',
    ],
  ])('ours: %s', (_, body, message) => {
    const error = refusal(parseGraph(`${body}  ; from here\n  out %y\nend`));
    expect([error.code, error.where, error.exitCode]).toEqual(['XX001', 'here', 70]);
    expect(error.message).toContain(message);
  });
});

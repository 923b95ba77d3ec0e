import { describe, expect, it } from 'vitest';
import { NpucError } from '../../../compiler/errors.ts';
import type { Module } from '../../../compiler/ir/graph.ts';
import { parseModule } from '../../../compiler/ir/text.ts';
import { openLitert } from '../../../compiler/runtime/litert.ts';
import { lowerModel } from '../../../targets/tflite/graph/lower-model.ts';
import { encodeTflite } from '../../../targets/tflite/write.ts';
import { computed, FORMS, formText } from './graph-forms.ts';
import { type FormScheme, lowerForm, operatorsOf, runBoth } from './run-graph.ts';

const graph = (body: string): Module => parseModule(formText(body));
const conv = (from: string, to: string, seed: number): string =>
  `%w${seed} : f32[8,8,1,1] = const rand(${seed}, normal 0.2)\n%${to} = Conv(%${from}, %w${seed})`;

/** Operators of a form, and that it computes the same. */
async function operators(body: string, scheme: FormScheme = 'float'): Promise<string[]> {
  const { lowered, worst } = await runBoth(graph(body), scheme);
  expect(worst).toBeLessThanOrEqual(scheme === 'float' ? 1e-5 : 2);
  return operatorsOf(lowered);
}

describe('transposes', () => {
  it('are one at each end of a chain of convolutions, whatever lies between', async () => {
    const body = `${conv('x', 'a', 1)}
%k : f32[8,1,1] = const rand(9, normal 0.5)
%s = Mul(%a, %k)
%t = Sigmoid(%s)
%j = Concat(%t, %a) {axis 1}
%n : i64[2] = const [8, 8]
%p, %q = Split(%j, %n) {axis 1}
%r = Add(%p, %q)
${conv('r', 'y', 2)}`;
    const found = await operators(body);
    expect(found.filter((name) => name === 'TRANSPOSE')).toHaveLength(2);
    expect([found[0], found.at(-1)]).toEqual(['TRANSPOSE', 'TRANSPOSE']);
  });

  it('of the model itself vanish where the tensor already lies that way', async () => {
    const body = `${conv('x', 'a', 1)}\n%t = Transpose(%a) {perm [0, 2, 3, 1]}\n%s : i64[3] = const [1, 144, 8]\n%y = Reshape(%t, %s)`;
    expect(await operators(body)).toEqual(['TRANSPOSE', 'CONV_2D', 'RESHAPE']);
  });

  it('of channels-last models around every convolution vanish all', async () => {
    const body = `in %x : f32[1,12,12,8]
%a = Transpose(%x) {perm [0, 3, 1, 2]}
${conv('a', 'b', 1)}
%c = Transpose(%b) {perm [0, 2, 3, 1]}
%d = Relu(%c)
%e = Transpose(%d) {perm [0, 3, 1, 2]}
${conv('e', 'f', 2)}
%y = Transpose(%f) {perm [0, 2, 3, 1]}`;
    expect(await operators(body)).toEqual(['CONV_2D', 'CONV_2D']);
  });

  it('that only move axes of length 1 are reshapes', async () => {
    const body =
      'in %x : f32[1,1,12,12]\n%w : f32[4,1,3,3] = const rand(1, normal 0.2)\n%c = Conv(%x, %w)\n%y = GlobalAveragePool(%c)';
    expect(await operators(body)).toEqual(['RESHAPE', 'CONV_2D', 'MEAN', 'RESHAPE']);
  });

  it('are not needed where nothing wants channels last', async () => {
    expect(await operators(FORMS['Concat, channels']!)).toEqual(['CONCATENATION']);
    expect(await operators(FORMS['Softmax, last axis']!)).toEqual(['SOFTMAX']);
  });

  it('of a flattened image are made once, in the weights behind it', async () => {
    expect(await operators(FORMS['Gemm of a flattened image']!)).toEqual([
      'TRANSPOSE',
      'CONV_2D',
      'RESHAPE',
      'FULLY_CONNECTED',
    ]);
  });

  it('of keys are a flag of the product', async () => {
    expect(await operators(FORMS['MatMul, transposed']!)).toEqual(['BATCH_MATMUL']);
  });

  it('are taken where the value is smallest', async () => {
    // The sum of the rows is a hundredth of the image: it is turned, and not what it is made from.
    const body = `${conv('x', 'a', 1)}\n%m : i64[1] = const [3]\n%r = ReduceSum(%a, %m) {keepdims 1}\n%s = Sigmoid(%r)\n%i : i64[3] = const [1, 4, 24]\n%y = Reshape(%s, %i)`;
    const { lowered } = await runBoth(graph(body), 'float');
    const { operators: all, tensors } = lowered.model.subgraphs[0]!;
    expect(operatorsOf(lowered)).toEqual(['TRANSPOSE', 'CONV_2D', 'SUM', 'TRANSPOSE', 'LOGISTIC', 'RESHAPE']);
    expect(tensors[all[3]!.inputs[0]!]!.shape).toEqual([1, 12, 1, 8]);
  });
});

describe('activations', () => {
  it('are computed by the operator before them', async () => {
    expect(await operators(FORMS['Conv and Relu6']!)).toEqual(['TRANSPOSE', 'CONV_2D', 'TRANSPOSE']);
  });

  it('from 0 to another bound are half computed by the operator before them', async () => {
    const body = '%k : f32[8,1,1] = const rand(9, normal 0.5)\n%a = Add(%x, %k)\n%y = HardSigmoid(%a)';
    expect(await operators(body)).toEqual(['ADD', 'ADD', 'MINIMUM', 'MUL']);
  });

  it('are operators of their own where something else reads what they clamp', async () => {
    const body = `${conv('x', 'a', 1)}\n%b = Relu(%a)\n%y = Add(%a, %b)`;
    expect(await operators(body)).toContain('RELU');
  });

  it('with bounds of their own are clamped by the integers', async () => {
    const body = `%k : f32[8,1,1] = const rand(9, normal 0.5)\n%a = Add(%x, %k)\n%lo : f32[] = const -0.25\n%hi : f32[] = const 0.25\n%y = Clip(%a, %lo, %hi)`;
    expect(await operators(body)).toEqual(['ADD', 'MAXIMUM', 'MINIMUM']);
    expect(await operators(body, 'w8a8')).toEqual(['ADD']);
  });
});

describe('integers', () => {
  it('get equal scales where the kernel compares them as they are', async () => {
    const { lowered } = await runBoth(graph(FORMS['Max of ranges that differ']!), 'w8a8');
    const { operators: all, tensors } = lowered.model.subgraphs[0]!;
    const maximum = all.find(({ code }) => code === 55)!;
    const scales = [...maximum.inputs, ...maximum.outputs].map((index) => tensors[index]!.quantization!.scale![0]);
    expect(new Set(scales).size).toBe(1);
  });

  it('keep the scale of the input over a mean of windows', async () => {
    const { lowered } = await runBoth(graph(FORMS['AveragePool, halving']!), 'w8a8');
    const { operators: all, tensors } = lowered.model.subgraphs[0]!;
    const pool = all.find(({ code }) => code === 1)!;
    const [from, to] = [pool.inputs[0]!, pool.outputs[0]!].map((index) => tensors[index]!.quantization!.scale![0]);
    expect(to).toBe(from);
  });

  it.each([
    ['Sin', 'w8a8', 'LiteRT has no 8-bit kernel for SIN'],
    ['Log', 'w8a16', 'LiteRT has no 16-bit kernel for LOG'],
    ['DepthToSpace', 'w8a16', 'LiteRT has no 16-bit kernel for DEPTH_TO_SPACE'],
    ['Resize, linear, align_corners', 'w8a16', 'the 16-bit kernel has places of 1/1024 of a pixel only'],
  ] as const)('%s at %s runs on floats, and says why', async (form, scheme, reason) => {
    const { lowered } = await runBoth(graph(computed(FORMS[form]!)), scheme);
    expect([...lowered.floats.keys()]).toEqual([reason]);
  });

  it('of another width are made by one QUANTIZE', () => {
    const { model } = lowerModel(
      graph('in %x : f32[4] q(i8, scale 0.1)\n%y : f32[4] q(i16, scale 0.001) = Identity(%x)').graph(),
      'quantized',
    );
    expect(model.subgraphs[0]!.operators.map(({ code }) => code)).toEqual([114]);
  });
});

describe('ports', () => {
  it('are tensors of their own, in the order and layout of the model', async () => {
    const module = graph('in %x : f32[1,2,3,4]\nin %unused : f32[7]\n%y = Identity(%x)\n%z = Relu(%x)\nout %y\nout %z');
    const { model } = lowerModel(lowerForm(module, 'float').graph(), 'float');
    const [signature] = model.signatures;
    expect(signature!.inputs.map(({ name }) => name)).toEqual(['x']);
    expect(signature!.outputs.map(({ name }) => name)).toEqual(['y', 'z']);
    expect(new Set([...signature!.inputs, ...signature!.outputs].map(({ tensor }) => tensor)).size).toBe(3);
    const runner = await openLitert(encodeTflite(model), 'form');
    const data = Float32Array.from({ length: 24 }, (_, i) => i - 12);
    const { y, z } = await runner.run({ x: { dtype: 'f32', shape: [1, 2, 3, 4], data } });
    await runner.close();
    expect(Array.from(y!.data as Float32Array)).toEqual(Array.from(data));
    expect(Array.from(z!.data as Float32Array)).toEqual(Array.from(data, (each) => Math.max(0, each)));
  });

  it('give the same bytes twice', () => {
    const bytes = (): Uint8Array =>
      encodeTflite(lowerModel(lowerForm(graph(FORMS['Conv and Relu']!), 'float').graph(), 'float').model);
    expect(Buffer.from(bytes()).equals(bytes())).toBe(true);
  });
});

it('what has no form is named, grouped by reason', () => {
  const body = `%a = Erf(%x)  ; from gelu_1
%b = Erf(%a)  ; from gelu_2
%k : f32[] = const 2.0
%m = Mod(%b, %k) {fmod 1}  ; from wrap
%y = com.microsoft::Thing(%m)  ; from last`;
  try {
    lowerModel(graph(body).graph(), 'float');
    expect.unreachable();
  } catch (error) {
    expect(error).toBeInstanceOf(NpucError);
    const { code, message, where } = error as NpucError;
    expect(code).toBe('TF201');
    expect(message).toBe(
      'TFLite has no form for Erf (gelu_1, gelu_2); Mod with the sign of the dividend (wrap); com.microsoft.Thing (last)',
    );
    expect(where).toBe('gelu_1');
  }
});

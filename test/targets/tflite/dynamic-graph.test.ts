import { describe, expect, it, test } from 'vitest';
import { quantizeGraph } from '../../../calibration/quantize-graph.ts';
import { litertFormat, makeRecipe, type RecipeOptions } from '../../../calibration/recipe.ts';
import { randomSamples } from '../../../calibration/samples.ts';
import { cloneModule } from '../../../compiler/ir/clone.ts';
import type { Module } from '../../../compiler/ir/graph.ts';
import { toFloats } from '../../../compiler/ir/tensor.ts';
import { parseModule } from '../../../compiler/ir/text.ts';
import { wasmKernels } from '../../../compiler/kernels/index.ts';
import { openModule } from '../../../compiler/runtime/engine.ts';
import { openLitert } from '../../../compiler/runtime/litert.ts';
import type { Tensors } from '../../../compiler/runtime/runner.ts';
import { lowerModel } from '../../../targets/tflite/graph/lower-model.ts';
import { imitateKernels } from '../../../targets/tflite/imitate/imitate-kernels.ts';
import type { TfliteModel } from '../../../targets/tflite/model.ts';
import { operatorName, tensorTypeName } from '../../../targets/tflite/schema-enums.ts';
import { encodeTflite } from '../../../targets/tflite/write.ts';
import { FORMS, formText } from './graph-forms.ts';
import { lowerForm } from './run-graph.ts';

interface DynamicRun {
  readonly model: TfliteModel;
  /** LiteRT's largest difference over the largest magnitude: to its imitation, and to the float graph. */
  readonly imitated: number;
  readonly float: number;
}

async function runDynamic(text: string, scheme: string, options: RecipeOptions = {}): Promise<DynamicRun> {
  const module = parseModule(text);
  lowerForm(module, 'float');
  const { feeds } = randomSamples(module.graph(), 2, 1);
  const recipe = makeRecipe(scheme, options);
  const quantized = await quantizeGraph({ module, feeds, recipe, format: litertFormat, kernels: wasmKernels });
  const graph = quantized.module.graph();
  const { model } = lowerModel(graph, 'float');
  const litert = await openLitert(encodeTflite(model), graph.name);
  const got = await litert.run(feeds[0]!);
  await litert.close();
  return {
    model,
    imitated: await distance(imitateKernels(quantized.module), feeds[0]!, got),
    float: await distance(cloneModule(quantized.float), feeds[0]!, got),
  };
}

async function distance(module: Module, feed: Tensors, got: Tensors): Promise<number> {
  const runner = await openModule(module);
  const wanted = await runner.run(feed);
  await runner.close();
  return Math.max(
    ...Object.entries(wanted).map(([name, tensor]) => {
      const [a, b] = [toFloats(tensor), toFloats(got[name]!)];
      const most = a.reduce((largest, each) => Math.max(largest, Math.abs(each)), 1e-30);
      return a.reduce((worst, each, i) => Math.max(worst, Math.abs(each - b[i]!)), 0) / most;
    }),
  );
}

/** Operators, the weights of products with the type that they are read in. */
function describeOperators({ subgraphs, buffers }: TfliteModel): string[] {
  const { tensors, operators } = subgraphs[0]!;
  return operators.map(({ code, inputs }) => {
    const weight = inputs
      .map((index) => tensors[index])
      .find((tensor) => tensor?.quantization && buffers[tensor.buffer]);
    const details = weight?.quantization?.details;
    const block = details?.kind === 'BlockwiseQuantization' ? `/${details.blockSize}` : '';
    return `${operatorName(code)}${weight ? ` ${tensorTypeName(weight.type)}${block}` : ''}`;
  });
}

const WEIGHTED = Object.keys(FORMS).filter((name) => /^(Conv|ConvTranspose|MatMul|Gemm)\b/.test(name));

describe('a graph with dynamic integers is in LiteRT what its kernels are said to compute', () => {
  it.each(WEIGHTED)('%s', async (name) => {
    const { imitated, float, model } = await runDynamic(formText(FORMS[name]!), 'dynamic-int8');
    expect(imitated).toBeLessThan(2e-6);
    expect(float).toBeLessThan(0.05);
    const described = describeOperators(model).join(', ');
    if (/^MatMul, (a batch|transposed)/.test(name)) expect(described).toBe('BATCH_MATMUL');
    // Kernels that multiply floats with integers: others have floats made of their weights.
    else if (/group|depthwise|Transpose/.test(name)) expect(described).toContain('DEQUANTIZE INT8');
    else expect(described).toMatch(/(CONV_2D|FULLY_CONNECTED) INT8/);
  });
});

const product = (inputs: number, op = 'MatMul'): string =>
  `npuir 1\nir 10\nopset 21\n\ngraph @g\nin %x : f32[3,${inputs}]\n%w : f32[${inputs},24] = const rand(1, normal 0.2)\n%y : f32[3,24] = ${op}(%x, %w)\nout %y\n`;

describe('dynamic int4', () => {
  test.each([
    [256, 0, 'FULLY_CONNECTED INT4'],
    [256, 32, 'FULLY_CONNECTED INT4/32'],
    [256, 64, 'FULLY_CONNECTED INT4/64'],
    [256, 128, 'FULLY_CONNECTED INT4/128'],
    [256, 256, 'FULLY_CONNECTED INT4/256'],
    [172, 32, 'FULLY_CONNECTED INT8'],
    [171, 0, 'FULLY_CONNECTED INT4'],
  ])('%i inputs in blocks of %i: %s', async (inputs, block, operator) => {
    const { imitated, float, model } = await runDynamic(product(inputs), 'dynamic-int4', { block });
    expect(describeOperators(model)).toEqual([operator]);
    expect(imitated).toBeLessThan(2e-6);
    expect(float).toBeLessThan(0.2);
  });

  test('blocks of a Gemm lie along its rows', async () => {
    const text =
      'npuir 1\nir 10\nopset 21\n\ngraph @g\nin %x : f32[3,64]\n%w : f32[24,64] = const rand(1, normal 0.2)\n%b : f32[24] = const rand(2, normal 1)\n%y : f32[3,24] = Gemm(%x, %w, %b) {transB 1}\nout %y\n';
    const { imitated, model } = await runDynamic(text, 'dynamic-int4');
    expect(describeOperators(model)).toEqual(['FULLY_CONNECTED INT4/32']);
    expect(imitated).toBeLessThan(2e-6);
  });

  test('blocks keep the order of a flattened image', async () => {
    const text =
      'npuir 1\nir 10\nopset 21\n\ngraph @g\nin %x : f32[1,8,4,4]\n%k : f32[8,8,3,3] = const rand(1, normal 0.2)\n%c = Conv(%x, %k) {pads [1, 1, 1, 1]}\n%f = Flatten(%c)\n%w : f32[128,24] = const rand(2, normal 0.2)\n%y = MatMul(%f, %w)\nout %y\n';
    const { imitated, model } = await runDynamic(text, 'dynamic-int4');
    expect(describeOperators(model)).toContain('FULLY_CONNECTED INT4/32');
    expect(imitated).toBeLessThan(2e-6);
  });

  test('integers that make up for each other are nearer to the float graph', async () => {
    const text = product(256);
    const { float } = await runDynamic(text, 'dynamic-int4', { block: 64 });
    const module = parseModule(text);
    const { feeds } = randomSamples(module.graph(), 2, 1);
    expect(feeds).toHaveLength(2);
    // Of 4 bits, blocks of 64 and as many samples as rows, the plain search leaves 8 % (measured).
    expect(float).toBeLessThan(0.05);
  });

  test.each([
    ['dynamic-int4', { block: 16 }],
    ['dynamic-int4', { block: 48 }],
    ['dynamic-int8', { block: 32, overrides: [{ match: 'w', weight: { bits: 8, block: 32 } }] }],
    ['dynamic-int4', { overrides: [{ match: 'w', weight: { bits: 4, block: 16 } }] }],
  ] as const)('%s has no %j', (scheme, options) => {
    expect(() => makeRecipe(scheme, options as RecipeOptions)).toThrow(expect.objectContaining({ code: 'QT101' }));
  });
});

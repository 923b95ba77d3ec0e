import { describe, expect, test } from 'vitest';
import { type QuantizedGraph, quantizeGraph } from '../../calibration/quantize-graph.ts';
import { htpFormat, makeRecipe, onnxFormat, type RecipeOptions } from '../../calibration/recipe.ts';
import { randomSamples } from '../../calibration/samples.ts';
import { type Encoding, sameEncoding } from '../../compiler/ir/encoding.ts';
import type { Module } from '../../compiler/ir/graph.ts';
import { parseModule, printModule } from '../../compiler/ir/text.ts';
import { verify } from '../../compiler/ir/verify.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { inferShapes } from '../../compiler/ops/infer-shapes.ts';
import { openModule } from '../../compiler/runtime/engine.ts';
import type { Tensors } from '../../compiler/runtime/runner.ts';
import { compareResults, runSamples, worstSqnr } from '../../evaluation/compare-runs.ts';

function parse(body: string, opset = 21): Module {
  const module = parseModule(`npuir 1\nopset ${opset}\ngraph @g\n${body.trim().replace(/^/gm, '  ')}\n`);
  inferShapes(module);
  return module;
}

interface Options extends RecipeOptions {
  readonly format?: typeof htpFormat;
  readonly feeds?: readonly Tensors[];
}

async function quantize(module: Module, scheme: string, options: Options = {}): Promise<QuantizedGraph> {
  const { format = onnxFormat, feeds = randomSamples(module.graph(), 4, 3).feeds, ...rest } = options;
  const made = await quantizeGraph({ module, feeds, recipe: makeRecipe(scheme, rest), format, kernels: wasmKernels });
  verify(made.module);
  return made;
}

async function run(module: Module, feeds: readonly Tensors[]): Promise<Tensors[]> {
  const runner = await openModule(module);
  try {
    return await runSamples(runner, feeds);
  } finally {
    await runner.close();
  }
}

/** The worst output's SQNR of a quantized graph on the samples of its calibration: of tiny tensors, others leave the ranges. */
async function measure({ module, float }: QuantizedGraph): Promise<number> {
  const { feeds } = randomSamples(float.graph(), 4, 3);
  const names = float.graph().outputs.map(({ name }) => name);
  return worstSqnr(compareResults(names, await run(float, feeds), await run(module, feeds), wasmKernels));
}

const encodingOf = (made: QuantizedGraph, name: string): Encoding => made.module.graph().find(name)!.encoding!;

const CONV = `
in %x : f32[1,3,8,8]
%w : f32[4,3,3,3] = const rand(1, normal 0.4)
%b : f32[4] = const rand(2, normal 0.4)
`;

describe('a value that an activation clamps', () => {
  const clamped = parse(`${CONV}
%lo : f32[] = const 0.0
%hi : f32[] = const 1.5
%c = Conv(%x, %w, %b) {pads [1, 1, 1, 1]}
%y = Clip(%c, %lo, %hi)
out %y`);

  test.each(['w8a8', 'w8a16'])(
    'takes the range that is left, and saturation clamps it exactly (%s)',
    async (scheme) => {
      const made = await quantize(clamped, scheme, { range: 'min-max' });
      expect(encodingOf(made, 'c')).toBe(encodingOf(made, 'y'));
      const { scale, dtype, zeroPoint } = encodingOf(made, 'y');
      expect(zeroPoint![0]).toBe(0);
      expect(scale[0]! * (dtype === 'u8' ? 255 : 65535)).toBeCloseTo(1.5, 3);
      expect(await measure(made)).toBeGreaterThan(scheme === 'w8a8' ? 30 : 35);
    },
  );

  test('has bounds that stay floats', async () => {
    const made = await quantize(clamped, 'w8a8');
    for (const bound of ['lo', 'hi']) expect(made.module.graph().find(bound)!.encoding).toBeUndefined();
  });

  test.each([
    ['is an output', `%c = Conv(%x, %w, %b)\n%y = Relu(%c)\nout %y\nout %c`],
    ['is read elsewhere', `%c = Conv(%x, %w, %b)\n%y = Relu(%c)\n%z = Neg(%c)\nout %y\nout %z`],
  ])('keeps a range of its own where it %s', async (_, body) => {
    const made = await quantize(parse(CONV + body), 'w8a16');
    expect(sameEncoding(encodingOf(made, 'c'), encodingOf(made, 'y'))).toBe(false);
    expect(encodingOf(made, 'c').zeroPoint![0]).toBeGreaterThan(0);
  });
});

describe('biases', () => {
  /** The steps that ONNX gives an integer bias: input scale times weight scale. */
  const expectSteps = (made: QuantizedGraph, output: string): void => {
    const node = made.module.graph().find(output)!.producer!;
    const [input, weight, bias] = node.inputs.map((value) => value!.encoding!);
    expect(bias!.dtype).toBe('i32');
    bias!.scale.forEach((scale, n) => expect(scale).toBe(Math.fround(input!.scale[0]! * weight!.scale[n]!)));
  };

  test('that two ops share become two, each with the steps of its own op', async () => {
    const made = await quantize(
      parse(`${CONV}
%v : f32[4,4,1,1] = const rand(3, normal 0.1)
%c = Conv(%x, %w, %b) {pads [1, 1, 1, 1]}
%y = Conv(%c, %v, %b)
out %y`),
      'w8a16',
    );
    expectSteps(made, 'c');
    expectSteps(made, 'y');
    expect(made.module.graph().find('c')!.producer!.input(2)).not.toBe(
      made.module.graph().find('y')!.producer!.input(2),
    );
  });

  test('are made where there is none, and flattened where a Gemm has them otherwise', async () => {
    const made = await quantize(
      parse(`
in %x : f32[2,6]
%w : f32[6,5] = const rand(1, normal 0.4)
%row : f32[1,5] = const rand(2, normal 0.4)
%one : f32[] = const 0.5
%a = Gemm(%x, %w, %row)
%b = Gemm(%x, %w, %one)
%c = Gemm(%x, %w)
out %a
out %b
out %c`),
      'w8a16',
    );
    for (const output of ['a', 'b', 'c']) expectSteps(made, output);
    expect(await measure(made)).toBeGreaterThan(40);
  });

  test('next to weights of almost nothing keep their value', async () => {
    const module = parse(`
in %x : f32[1,1,4,4]
%w : f32[2,1,1,1] = const [1.0, 1e-12]
%b : f32[2] = const [0.5, 3.0]
%y = Conv(%x, %w, %b)
out %y`);
    const made = await quantize(module, 'w8a16');
    expectSteps(made, 'y');
    expect(await measure(made)).toBeGreaterThan(60);
  });

  test('take up what rounding the weights does to the mean of a channel', async () => {
    // All inputs positive, as behind an activation: rounding errors of the weights do not cancel.
    const module = parse(`
in %x : f32[1,16,8,8]
%s : f32[] = const 4.0
%w : f32[8,16,3,3] = const rand(1, normal 0.4)
%b : f32[8] = const rand(2, normal 0.4)
%p = Abs(%x)
%q = Add(%p, %s)
%y = Conv(%q, %w, %b)
out %y`);
    const made = await quantize(module, 'w8a16');
    const { feeds } = randomSamples(made.float.graph(), 4, 3);
    const [float, rounded] = [await run(made.float, feeds), await run(made.module, feeds)];
    const { data } = float[0]!.y!;
    const plane = data.length / 8;
    let [shift, spread] = [0, 0];
    for (let channel = 0; channel < 8; channel++) {
      let mean = 0;
      feeds.forEach((_, sample) => {
        for (let i = channel * plane; i < (channel + 1) * plane; i++) {
          const error = Number(rounded[sample]!.y!.data[i]) - Number(float[sample]!.y!.data[i]);
          mean += error / plane / feeds.length;
          spread += error ** 2 / data.length / feeds.length;
        }
      });
      shift += mean ** 2 / 8;
    }
    expect(shift).toBeLessThan(spread / 100);
    expect(await measure(made)).toBeGreaterThan(45);
  });
});

describe('what only moves elements', () => {
  test('shares one encoding; scales of a Resize and constants that are no data stay floats', async () => {
    const made = await quantize(
      parse(`
in %x : f32[1,2,4,4]
%k : f32[] = const 5.0
%s : f32[4] = const [1.0, 1.0, 2.0, 2.0]
%a = Mul(%x, %k)
%c = Concat(%a, %x) {axis 1}
%p = MaxPool(%c) {kernel_shape [2, 2], strides [2, 2]}
%y = Resize(%p, _, %s)
out %y`),
      'w8a8',
    );
    for (const name of ['x', 'a', 'c', 'p']) expect(encodingOf(made, name), name).toBe(encodingOf(made, 'y'));
    expect(made.module.graph().find('s')!.encoding).toBeUndefined();
    expect(encodingOf(made, 'k')).toBeDefined();
  });

  test('has a fixed encoding only where all of it is fixed', async () => {
    const module = parse(`
in %x : f32[1,4,4]
%k : f32[] = const 5.0
%a = Sigmoid(%x)
%b = Mul(%x, %k)
%c = Concat(%a, %b) {axis 1}
%d = Sigmoid(%b)
out %c
out %d`);
    const made = await quantize(module, 'w8a16', { format: htpFormat });
    expect(encodingOf(made, 'd').scale[0]).toBe(2 ** -16);
    expect(encodingOf(made, 'a')).toBe(encodingOf(made, 'c'));
    expect(encodingOf(made, 'a').scale[0]! * 65535).toBeGreaterThan(5);
  });
});

describe('what has no rule', () => {
  test('stays float, with a remark; values beside it are quantized', async () => {
    const made = await quantize(
      parse(`${CONV}
in %flag : bool[]
%c = Conv(%x, %w, %b)
%i = If(%flag) {then_branch graph @then
    %t = Relu(%c)
    out %t
  end, else_branch graph @else
    %e = Neg(%c)
    out %e
  end}
%y = Mul(%i, %i)
out %y`),
      'w8a8',
    );
    expect(made.plan.remarks.join('\n')).toMatch(/If stays float \(what its branches compute is not quantized\)/);
    const [branch] = made.module.graph().find('i')!.producer!.subgraphs;
    for (const value of branch!.values) expect(value.encoding, value.name).toBeUndefined();
    expect(encodingOf(made, 'c').dtype).toBe('u8');
    expect(await measure(made)).toBeGreaterThan(25);
  });

  test('integers and shapes are left alone', async () => {
    const made = await quantize(
      parse(`
in %x : f32[1,6]
%k : i64[1] = const [2]
%v, %i = TopK(%x, %k)
%f = Cast(%i) {to 1}
out %v
out %f`),
      'w8a8',
    );
    const encoded = [...made.module.graph().values].filter((value) => value.encoding).map(({ name }) => name);
    expect(encoded).toEqual([]);
  });
});

describe('8 bits', () => {
  /** y is the small difference of two large values: rounding either at 8 bits leaves nothing of it. */
  const cancelling = parse(`
in %x : f32[1,64]
%small : f32[] = const 0.02
%large : f32[] = const 10.0
%a = Mul(%x, %small)
%b = Add(%a, %large)
%c = Sub(%b, %large)
%y = Mul(%c, %c)
out %y`);

  test('are kept where they are good enough', async () => {
    const made = await quantize(parse('in %x : f32[1,64]\n%y = Relu(%x)\nout %y'), 'w8a8');
    expect(encodingOf(made, 'y').dtype).toBe('u8');
    expect(made.plan.remarks).toEqual([]);
  });

  test('become 16 for the values that cost an output most, and a remark says what they cost', async () => {
    const made = await quantize(cancelling, 'w8a8');
    expect(encodingOf(made, 'b').dtype).toBe('u16');
    expect(made.plan.remarks.join('\n')).toMatch(/^b: 16 bits, at 8 bits it alone leaves -?\d+ dB of an output$/m);
    expect(await measure(made)).toBeGreaterThan(25);
  });

  test('stay where the user says so', async () => {
    const made = await quantize(cancelling, 'w8a8', { overrides: [{ match: '^b$', activation: 8 }] });
    expect(encodingOf(made, 'b').dtype).toBe('u8');
  });
});

describe('what even 16 bits cannot hold', () => {
  /** The root brings back the small values that equal steps over the range of a fourth power have lost. */
  const power = parse(`
in %x : f32[1,512]
%a = Mul(%x, %x)
%b = Mul(%a, %a)
%r = Sqrt(%b)
%y = Sqrt(%r)
out %y`);

  test.each(['w8a16', 'w8a8'])('stays a half float between integers (%s)', async (scheme) => {
    const made = await quantize(power, scheme);
    expect(made.module.graph().find('b')!.encoding).toBeUndefined();
    expect(made.plan.activations.has('b')).toBe(false);
    expect(encodingOf(made, 'y')).toBeDefined();
    expect(made.plan.remarks.join('\n')).toMatch(/^b: half floats, at 16 bits it alone leaves \d+ dB of an output$/m);
    expect(await measure(made)).toBeGreaterThan(scheme === 'w8a8' ? 33 : 50);
  });

  test('has integers all the same where the target has nothing else, and where half floats are no better', async () => {
    const made = await quantize(power, 'w8a16', { format: { ...onnxFormat, halfFloats: false } });
    expect(encodingOf(made, 'b').dtype).toBe('u16');
    expect(await measure(made)).toBeLessThan(40);
    // Beyond the largest half float.
    const large = parse(`
in %x : f32[1,512]
%k : f32[] = const 1e5
%m = Mul(%x, %k)
%b = Mul(%m, %m)
%y = Sqrt(%b)
out %y`);
    expect(encodingOf(await quantize(large, 'w8a16'), 'b').dtype).toBe('u16');
  });

  test('has integers where a convolution makes or reads it', async () => {
    const made = await quantize(
      parse(`
in %x : f32[1,1,16,16]
%w : f32[1,1,1,1] = const [1.0]
%a = Mul(%x, %x)
%b = Mul(%a, %a)
%c = Conv(%b, %w)
%r = Sqrt(%c)
%y = Sqrt(%r)
out %y`),
      'w8a16',
    );
    for (const name of ['b', 'c']) expect(encodingOf(made, name).dtype).toBe('u16');
  });
});

test('the same samples give the same graph, and the module that came in stays as it was', async () => {
  const module = parse(`${CONV}\n%c = Conv(%x, %w, %b)\n%y = Relu(%c)\nout %y`);
  const before = printModule(module, { data: 'all' });
  const all = [await quantize(module, 'w8a8'), await quantize(module, 'w8a8')];
  const [first, second] = all.map((made) => printModule(made.module, { data: 'all' }));
  expect(first).toBe(second);
  expect(printModule(module, { data: 'all' })).toBe(before);
});

test('old opsets take the same integers', async () => {
  const body = `${CONV}\n%c = Conv(%x, %w, %b)\n%y = Relu(%c)\nout %y`;
  expect(await measure(await quantize(parse(body, 11), 'w8a16'))).toBeGreaterThan(40);
});

test('half floats are kept for fp16 and refused otherwise', async () => {
  const module = parse('in %x : f16[1,4]\n%y = Relu(%x)\nout %y');
  expect((await quantize(module, 'fp16')).plan.activations.size).toBe(0);
  await expect(quantize(module, 'w8a8')).rejects.toMatchObject({ code: 'QT121' });
});

test('a value that is not finite in calibration is named', async () => {
  const module = parse('in %x : f32[1,4]\n%z : f32[] = const 0.0\n%a = Mul(%x, %z)\n%y = Log(%a)\nout %y');
  await expect(quantize(module, 'w8a16')).rejects.toMatchObject({
    code: 'QT010',
    message: expect.stringMatching(/^y /),
  });
});

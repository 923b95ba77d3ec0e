import { describe, expect, test } from 'vitest';
import { quantizeGraph } from '../../../calibration/quantize-graph.ts';
import { makeRecipe, type Scheme } from '../../../calibration/recipe.ts';
import { randomSamples } from '../../../calibration/samples.ts';
import { parseModule } from '../../../compiler/ir/text.ts';
import { wasmKernels } from '../../../compiler/kernels/index.ts';
import { runPasses } from '../../../compiler/pass.ts';
import { openModule } from '../../../compiler/runtime/engine.ts';
import { compareResults, runSamples, worstSqnr } from '../../../evaluation/compare-runs.ts';
import { fuse, simplify } from '../../../passes/pipelines.ts';
import { qnnModelTarget } from '../../../targets/qnn/qnn-model.ts';
import { findSoc } from '../../../targets/socs.ts';
import { toolchain } from './toolchain-or-skip.ts';

const SAMPLES = 2;

interface Case {
  readonly name: string;
  readonly text: string;
  /** dB against the float graph that each scheme must keep on the simulator. */
  readonly least: Readonly<Partial<Record<Scheme, number>>>;
  readonly soc?: string;
}

const image = 'in %x : f32[1,8,12,12]';
const weight = (shape: string): string => `%w : f32[${shape}] = const rand(1, normal 0.3)`;

/** Forms that HTP refuses or computes wrongly as models have them (facts of the vendor's simulator), and plain ones. */
const CASES: readonly Case[] = [
  {
    name: 'Log, wrong at 16 bits',
    text: `${image}\n%a = Abs(%x)\n%c : f32[] = const 0.5\n%b = Add(%a, %c)\n%y = Log(%b)\nout %y`,
    least: { w8a8: 35, w8a16: 35 },
  },
  {
    name: 'PRelu, refused at 16 bits',
    text: `${image}\n%s : f32[8,1,1] = const rand(2, uniform 0.1 0.5)\n%y = PRelu(%x, %s)\nout %y`,
    least: { w8a8: 35, w8a16: 35 },
  },
  { name: 'Softplus, weak at 16 bits', text: `${image}\n%y = Softplus(%x)\nout %y`, least: { w8a8: 40, w8a16: 40 } },
  {
    name: 'CumSum, wrong at 8 bits',
    text: `${image}\n%axis : i64[] = const 3\n%y = CumSum(%x, %axis)\nout %y`,
    least: { w8a8: 40, w8a16: 70 },
  },
  {
    name: 'LayerNormalization without a bias',
    text: `in %x : f32[1,6,16]\n%w : f32[16] = const rand(1, uniform 0.5 1.5)\n%y = LayerNormalization(%x, %w)\nout %y`,
    least: { w8a8: 35, w8a16: 60 },
  },
  {
    name: 'BatchNormalization alone',
    text: `${image}
%s : f32[8] = const rand(1, uniform 0.5 1.5)
%t : f32[8] = const rand(2, normal 0.5)
%m : f32[8] = const rand(3, normal 0.5)
%v : f32[8] = const rand(4, uniform 0.5 1.5)
%r = Relu(%x)
%y = BatchNormalization(%r, %s, %t, %m, %v)
out %y`,
    least: { w8a8: 35, w8a16: 70 },
  },
  {
    name: 'Pad with edges, wrong in half floats',
    text: `${image}\n%pads : i64[8] = const [0, 0, 1, 2, 0, 0, 1, 2]\n%y = Pad(%x, %pads) {mode "edge"}\nout %y`,
    least: { fp16: 60, w8a8: 40, w8a16: 70 },
  },
  {
    name: 'product of two activations',
    text: 'in %a : f32[1,4,8,16]\nin %b : f32[1,4,16,8]\n%p = MatMul(%a, %b)\n%s = Softmax(%p) {axis -1}\nout %p\nout %s',
    least: { w8a8: 30, w8a16: 65 },
  },
  {
    name: 'product of two activations on an old SoC',
    text: 'in %a : f32[1,4,8,16]\nin %b : f32[1,4,16,8]\n%p = MatMul(%a, %b)\nout %p',
    least: { w8a16: 40 },
    soc: 'SM8450',
  },
  {
    name: 'encodings that the compiler replaces',
    text: `${image}\n%a = Sigmoid(%x)\n%b = Tanh(%x)\n%c = HardSigmoid(%x)\nout %a\nout %b\nout %c`,
    least: { w8a8: 40, w8a16: 60 },
  },
  {
    name: 'convolution with its activation, and a residual',
    text: `${image}
${weight('8,8,3,3')}
%b : f32[8] = const rand(2, normal 0.3)
%lo : f32[] = const 0.0
%hi : f32[] = const 6.0
%c = Conv(%x, %w, %b) {pads [1, 1, 1, 1]}
%r = Clip(%c, %lo, %hi)
%s = Add(%r, %x)
%y = Relu(%s)
out %y`,
    least: { fp16: 55, w8a8: 35, w8a16: 45 },
  },
  {
    name: 'transposed convolution in groups',
    text: `${image}\n${weight('8,2,3,3')}\n%y = ConvTranspose(%x, %w) {group 4, strides [2, 2]}\nout %y`,
    least: { w8a8: 35, w8a16: 45 },
  },
  {
    name: 'Einsum, refused at 16 bits',
    text: 'in %a : f32[1,4,8,16]\nin %b : f32[1,4,8,16]\n%y = Einsum(%a, %b) {equation "bhid,bhjd->bhij"}\nout %y',
    least: { w8a8: 30, w8a16: 30 },
  },
  {
    name: 'joined ranges, resized and cut',
    text: `${image}
%k : f32[] = const 3.0
%s : f32[4] = const [1.0, 1.0, 2.0, 2.0]
%sizes : i64[2] = const [4, 12]
%a = Mul(%x, %k)
%c = Concat(%a, %x) {axis 1}
%p, %q = Split(%c, %sizes) {axis 1}
%y = Resize(%q, _, %s) {mode "linear"}
out %p
out %y`,
    least: { w8a8: 35, w8a16: 60 },
  },
];

describe.skipIf(!toolchain).each(CASES)('$name', ({ text, least, soc: socName = 'SM8750' }) => {
  test.each(Object.entries(least) as [Scheme, number][])('%s', async (scheme, expected) => {
    const module = parseModule(`npuir 1\nopset 21\ngraph @g\n${text.replace(/^/gm, '  ')}\n`);
    runPasses(module, [...simplify, ...fuse], { untilStable: true });
    const soc = findSoc(socName);
    const samples = randomSamples(module.graph(), SAMPLES, 7);
    const reference = await openModule(module);
    const names = module.graph().outputs.map((output) => output.name);
    const wanted = await runSamples(reference, samples.feeds, names);
    await reference.close();
    qnnModelTarget.lower(module, soc);
    const quantized = await quantizeGraph({
      module,
      feeds: samples.feeds,
      recipe: makeRecipe(scheme),
      format: qnnModelTarget.format(soc),
      kernels: wasmKernels,
    });
    const engine = await qnnModelTarget.openModule!(quantized.module, soc, { toolchain: toolchain! });
    const got = await runSamples(engine, samples.feeds, names);
    await engine.close();
    const outputs = compareResults(names, wanted, got, wasmKernels);
    expect(worstSqnr(outputs), JSON.stringify(outputs)).toBeGreaterThan(expected);
  });
});

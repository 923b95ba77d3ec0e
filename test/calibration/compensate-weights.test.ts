import { describe, expect, test } from 'vitest';
import { compensateWeights } from '../../calibration/compensate-weights.ts';
import { planWeights } from '../../calibration/plan-weights.ts';
import { makeRecipe, onnxFormat } from '../../calibration/recipe.ts';
import { randomSamples } from '../../calibration/samples.ts';
import { cloneModule } from '../../compiler/ir/clone.ts';
import type { Module } from '../../compiler/ir/graph.ts';
import { Tensor } from '../../compiler/ir/tensor.ts';
import { parseModule } from '../../compiler/ir/text.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { inferShapes } from '../../compiler/ops/infer-shapes.ts';
import { openModule } from '../../compiler/runtime/engine.ts';
import type { Tensors } from '../../compiler/runtime/runner.ts';
import { compareResults, runSamples, worstSqnr } from '../../evaluation/compare-runs.ts';

function parse(body: string): Module {
  const module = parseModule(`npuir 1\nopset 21\ngraph @g\n${body.trim().replace(/^/gm, '  ')}\n`);
  inferShapes(module);
  return module;
}

/** Neighbours that are alike, as in an image: what an error of one weight does, the next one can undo. */
const SMOOTH = `
in %x : f32[1,8,24,24]
%near : f32[8,8,5,5] = const rand(9, normal 0.1)
%abs = Abs(%x)
%s = AveragePool(%abs) {kernel_shape [5, 5], pads [2, 2, 2, 2]}
%m = Conv(%s, %near) {pads [2, 2, 2, 2]}
%p = Abs(%m)`;

async function run(module: Module, feeds: readonly Tensors[]): Promise<Tensors[]> {
  const runner = await openModule(module);
  try {
    return await runSamples(runner, feeds);
  } finally {
    await runner.close();
  }
}

/** The outputs with weights that are replaced, against float, on other samples than those of calibration. */
async function measure(module: Module, weights: ReadonlyMap<string, Tensor>): Promise<number> {
  const rounded = cloneModule(module);
  for (const [name, tensor] of weights) rounded.graph().find(name)!.data = tensor;
  const { feeds } = randomSamples(module.graph(), 3, 77);
  const names = module.graph().outputs.map(({ name }) => name);
  return worstSqnr(compareResults(names, await run(module, feeds), await run(rounded, feeds), wasmKernels));
}

async function compensate(module: Module) {
  const plans = planWeights(module.graph(), makeRecipe('w8a16'), onnxFormat, []);
  const { feeds } = randomSamples(module.graph(), 3, 5);
  return await compensateWeights({ float: module, plans, feeds, kernels: wasmKernels });
}

/** The same scales, every weight rounded to nearest. */
function roundToNearest(module: Module, name: string, scale: Float32Array, axis: number): Tensor {
  const data = module.graph().find(name)!.data!;
  const inner = data.shape.slice(axis + 1).reduce((product, dim) => product * dim, 1);
  const values = data.toFloats().map((value, i) => {
    const step = scale[Math.floor(i / inner) % data.shape[axis]!]!;
    return Math.floor(value / step + 0.5) * step;
  });
  return Tensor.of('f32', data.shape, values);
}

describe.each([
  [
    'a convolution',
    '%w : f32[12,8,3,3] = const rand(3, normal 0.3)\n%y = Conv(%p, %w) {pads [1, 1, 1, 1], strides [2, 1]}',
  ],
  ['groups', '%w : f32[12,4,3,3] = const rand(3, normal 0.3)\n%y = Conv(%p, %w) {group 2, dilations [2, 2]}'],
  [
    'a depthwise convolution',
    '%w : f32[8,1,5,5] = const rand(3, normal 0.3)\n%y = Conv(%p, %w) {group 8, auto_pad "SAME_UPPER"}',
  ],
  ['a product', '%w : f32[24,10] = const rand(3, normal 0.3)\n%y = MatMul(%p, %w)'],
  [
    'a Gemm with rows of weights',
    '%f = Flatten(%p) {axis 3}\n%w : f32[10,24] = const rand(3, normal 0.3)\n%y = Gemm(%f, %w) {transB 1}',
  ],
])('the weights of %s', (_, body) => {
  test('lose less than rounded to nearest, and lie on their grid', async () => {
    const module = parse(`${SMOOTH}\n${body}\nout %y`);
    const { encoding, values } = (await compensate(module)).get('w')!;
    const axis = encoding.axis!;
    const nearest = roundToNearest(module, 'w', encoding.scale, axis);
    const inner = values.shape.slice(axis + 1).reduce((product, dim) => product * dim, 1);
    values.toFloats().forEach((value, i) => {
      const integer = value / encoding.scale[Math.floor(i / inner) % values.shape[axis]!]!;
      expect(Math.abs(integer)).toBeLessThan(127.001);
      expect(Math.abs(integer - Math.floor(integer + 0.5))).toBeLessThan(1e-3);
    });
    const [kept, lost] = [
      await measure(module, new Map([['w', values]])),
      await measure(module, new Map([['w', nearest]])),
    ];
    expect(kept).toBeGreaterThan(lost + 4);
  });
});

test('weights that two layers share, and those of a value that is constant, are left alone', async () => {
  const module = parse(`${SMOOTH}
%w : f32[8,8,1,1] = const rand(3, normal 0.3)
%k : f32[1,8,2,2] = const rand(4, normal 0.3)
%v : f32[3,8,1,1] = const rand(5, normal 0.3)
%a = Conv(%p, %w)
%b = Conv(%a, %w)
%c = Conv(%k, %v)
out %b
out %c`);
  expect([...(await compensate(module)).keys()]).toEqual(['near']);
});

test('a layer whose input is zero on all samples rounds to nearest', async () => {
  const module = parse(`
in %x : f32[1,4,6,6]
%zero : f32[] = const 0.0
%w : f32[3,4,3,3] = const rand(3, normal 0.3)
%z = Mul(%x, %zero)
%y = Conv(%z, %w)
out %y`);
  const { encoding, values } = (await compensate(module)).get('w')!;
  expect(values.toFloats()).toEqual(roundToNearest(module, 'w', encoding.scale, 0).toFloats());
});

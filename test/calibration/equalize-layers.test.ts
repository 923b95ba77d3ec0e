import { describe, expect, test } from 'vitest';
import { equalizeLayers } from '../../calibration/equalize-layers.ts';
import { quantizeGraph } from '../../calibration/quantize-graph.ts';
import { makeRecipe, onnxFormat } from '../../calibration/recipe.ts';
import { randomSamples } from '../../calibration/samples.ts';
import { cloneModule } from '../../compiler/ir/clone.ts';
import type { Module } from '../../compiler/ir/graph.ts';
import { Tensor } from '../../compiler/ir/tensor.ts';
import { parseModule, printModule } from '../../compiler/ir/text.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { inferShapes } from '../../compiler/ops/infer-shapes.ts';
import { openModule, openModules } from '../../compiler/runtime/engine.ts';
import type { Tensors } from '../../compiler/runtime/runner.ts';
import { compareResults, runSamples, worstSqnr } from '../../evaluation/compare-runs.ts';

/** Channels of very different size, as training leaves them. */
const GAINS = [1, 0.05, 30, 0.2, 5, 0.02];

/** A convolution of six such channels, and what reads it. */
function parse(body: string): Module {
  const text = `
npuir 1
opset 21
graph @g
  in %x : f32[1,4,8,8]
  %w : f32[6,4,3,3] = const rand(1, normal 0.4)
  %b : f32[6] = const rand(2, normal 0.4)
  %c = Conv(%x, %w, %b) {pads [1, 1, 1, 1]}
${body.trim().replace(/^/gm, '  ')}
`;
  const module = parseModule(text.trimStart());
  inferShapes(module);
  for (const name of ['w', 'b']) {
    const value = module.graph().find(name)!;
    const inner = value.data!.size / GAINS.length;
    const scaled = value.data!.toFloats().map((each, i) => each * GAINS[Math.floor(i / inner)]!);
    value.data = Tensor.of('f32', value.dims, scaled);
  }
  return module;
}

const feedsOf = (module: Module): readonly Tensors[] => randomSamples(module.graph(), 3, 5).feeds;

/** The worst output of one module against another's, on the samples of calibration. */
async function compare(expected: Module, got: Module): Promise<number> {
  const names = expected.graph().outputs.map(({ name }) => name);
  const [first, second] = await openModules([expected, got]);
  try {
    const feeds = feedsOf(expected);
    return worstSqnr(
      compareResults(names, await runSamples(first!, feeds), await runSamples(second!, feeds), wasmKernels),
    );
  } finally {
    await first!.close();
    await second!.close();
  }
}

/** The largest absolute value of every channel of a value. */
async function channelSizes(module: Module, name: string): Promise<number[]> {
  const tapped = cloneModule(module);
  const value = tapped.graph().find(name)!;
  if (!tapped.graph().isOutput(value)) tapped.graph().outputs.push(value);
  const runner = await openModule(tapped);
  const sizes = new Array<number>(value.dims[1]!).fill(0);
  try {
    for (const result of await runSamples(runner, feedsOf(module), [name])) {
      const data = result[name]!.data as Float32Array;
      const plane = data.length / sizes.length;
      data.forEach((each, i) => {
        const channel = Math.floor(i / plane);
        sizes[channel] = Math.max(sizes[channel]!, Math.abs(each));
      });
    }
  } finally {
    await runner.close();
  }
  return sizes;
}

const DEPTHWISE = `
%r = Relu(%c)
%v : f32[6,1,3,3] = const rand(3, normal 0.4)
%d : f32[6] = const rand(4, normal 0.1)
%y = Conv(%r, %v, %d) {group 6}
out %y`;
const DENSE = `
%r = Relu(%c)
%p = MaxPool(%r) {kernel_shape [2, 2], strides [2, 2]}
%v : f32[5,6,1,1] = const rand(3, normal 0.4)
%y = Conv(%p, %v)
out %y`;

describe('scales of channels move into the next convolution', () => {
  test('until all channels before a depthwise one fill the range, at 8 bits', async () => {
    const module = parse(DEPTHWISE);
    const before = cloneModule(module);
    expect(await equalizeLayers(module, feedsOf(module), 8)).toEqual(['r']);
    const sizes = await channelSizes(module, 'r');
    for (const size of sizes) expect(size / Math.max(...sizes)).toBeGreaterThan(0.99);
    expect(await compare(before, module)).toBeGreaterThan(110);
  });

  test('to a quarter of the range at 16 bits, where room is worth more than steps', async () => {
    const module = parse(DEPTHWISE);
    const before = await channelSizes(module, 'r');
    await equalizeLayers(module, feedsOf(module), 16);
    const sizes = await channelSizes(module, 'r');
    const most = Math.max(...before);
    sizes.forEach((size, c) => expect(size / most).toBeCloseTo(Math.max(before[c]! / most, 0.25), 3));
  });

  test.each([
    [8, 4],
    [16, 0.5],
  ] as const)('of a dense one where that makes less noise, through what only picks (%i bits)', async (bits, gain) => {
    const module = parse(DENSE);
    const scheme = bits === 8 ? 'w8a8' : 'w8a16';
    const quantize = async (source: Module, equalized: boolean): Promise<number> => {
      const copy = cloneModule(source);
      // A value that is also an output is never scaled.
      if (!equalized) copy.graph().outputs.push(copy.graph().find('c')!);
      const { module: made } = await quantizeGraph({
        module: copy,
        feeds: feedsOf(source),
        recipe: makeRecipe(scheme),
        format: onnxFormat,
        kernels: wasmKernels,
        promote: false,
      });
      return await compare(source, made);
    };
    expect(await quantize(module, true)).toBeGreaterThan((await quantize(module, false)) + gain);
  });
});

test.each([
  ['is an output', `${DEPTHWISE}\nout %c`],
  ['is read elsewhere', `${DEPTHWISE}\n%z = Neg(%r)\nout %z`],
  ['goes through what minds its size', DEPTHWISE.replace('Relu', 'Sigmoid')],
  ['is read by a weight that another layer shares', `${DEPTHWISE}\n%z = Conv(%y, %v) {group 6}\nout %z`],
])('nothing is scaled where the value %s', async (_, body) => {
  const module = parse(body);
  const before = printModule(module, { data: 'all' });
  expect(await equalizeLayers(module, feedsOf(module), 8)).toEqual([]);
  expect(printModule(module, { data: 'all' })).toBe(before);
});

test('a channel that is always zero stays, and a model without convolutions passes through', async () => {
  const module = parse(DEPTHWISE);
  const graph = module.graph();
  for (const [name, size] of [
    ['w', 36],
    ['b', 1],
  ] as const) {
    const values = graph.find(name)!.data!.toFloats().slice();
    values.fill(0, 2 * size, 3 * size);
    graph.find(name)!.data = Tensor.of('f32', graph.find(name)!.dims, values);
  }
  const before = cloneModule(module);
  await equalizeLayers(module, feedsOf(module), 8);
  expect(await compare(before, module)).toBeGreaterThan(110);
  const plain = parse('%r = Relu(%c)\nout %r');
  expect(await equalizeLayers(plain, feedsOf(plain), 8)).toEqual([]);
});

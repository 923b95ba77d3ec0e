import { beforeAll, describe, expect, test } from 'vitest';
import { quantizeGraph } from '../../../calibration/quantize-graph.ts';
import { makeRecipe, type RecipeOptions, type Scheme } from '../../../calibration/recipe.ts';
import { randomSamples } from '../../../calibration/samples.ts';
import { openModel } from '../../../cli/jobs/open-model.ts';
import { parseModule } from '../../../compiler/ir/text.ts';
import { wasmKernels } from '../../../compiler/kernels/index.ts';
import { runPasses } from '../../../compiler/pass.ts';
import { simplify } from '../../../passes/pipelines.ts';
import { checkGraph } from '../../../targets/qnn/check-graph.ts';
import { qnnModelTarget } from '../../../targets/qnn/qnn-model.ts';
import { findSoc } from '../../../targets/socs.ts';
import { demo } from '../../cli/run-npuc.ts';
import { hasMaterial, materialPath } from '../../material.ts';
import { openSmallDecoder, type SmallDecoder } from '../small-decoder.ts';

const SOC = findSoc('SM8650');

/** What the linter says of a graph with encodings, other than that it is weak. */
const problems = (module: Parameters<typeof checkGraph>[0], soc = SOC): string[] =>
  checkGraph(module, soc, { scheme: 'w8a16' })
    .filter(({ verdict }) => verdict !== 'weak')
    .map(({ code, reason, nodes }) => `${code} ${reason}: ${nodes.map(({ name }) => name).join(', ')}`);

describe('no form that HTP refuses or computes wrongly leaves the compiler', { timeout: 60_000 }, () => {
  describe('in the decoder of the demo model', () => {
    let decoder: SmallDecoder;
    beforeAll(async () => {
      decoder = await openSmallDecoder(demo);
    });

    test.each<[string, RecipeOptions]>([
      ['w8a8', {}],
      ['w8a16', { cache: 8 }],
      ['w8a16', { cache: 16 }],
      ['w4a16', { block: 32 }],
    ])('%s %j', async (scheme, options) => {
      const quantized = await decoder.quantize(scheme, 'qnn', options);
      for (const tokens of [1, 64])
        expect(problems(quantized.stamp({ name: 'graph', tokens, cache: 128 }))).toEqual([]);
    });
  });

  const models = hasMaterial
    ? [
        { name: 'mnist_8', path: 'mnist_8/model.onnx', bind: [] },
        { name: 'super_resolution_10', path: 'super_resolution_10/model.onnx', bind: ['batch_size=1'] },
        {
          name: 'silero-vad',
          path: 'silero-vad/silero_vad_16k_op15.onnx',
          bind: ['batch=1', 'sequence=576'],
        },
      ]
    : [];
  describe.skipIf(!hasMaterial).each(models)('in $name', ({ path, bind }) => {
    test.each<Scheme>(['w8a8', 'w8a16'])('%s', async (scheme) => {
      const { module } = openModel(materialPath('onnx', path), bind);
      qnnModelTarget.lower(module, SOC, makeRecipe(scheme));
      const quantized = await quantizeGraph({
        module,
        feeds: randomSamples(module.graph(), 1, 1).feeds,
        recipe: makeRecipe(scheme),
        format: qnnModelTarget.format(SOC),
        kernels: wasmKernels,
        promote: false,
      });
      expect(problems(quantized.module)).toEqual([]);
    });
  });

  test('the check sees what is wrong', async () => {
    const text = 'npuir 1\nopset 21\n\ngraph @g\n  in %x : f32[2,8]\n  %a = Abs(%x)\n  %y = Log(%a)\n  out %y\n';
    const module = parseModule(text);
    runPasses(module, simplify);
    expect(problems(module)).toEqual([expect.stringMatching(/^HTP013 /)]);
  });
});

import { readdirSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { makeRecipe } from '../../../calibration/recipe.ts';
import { tensorType } from '../../../compiler/ir/graph.ts';
import { Tensor, type TensorData, toFloats } from '../../../compiler/ir/tensor.ts';
import { runPasses } from '../../../compiler/pass.ts';
import { openLitert } from '../../../compiler/runtime/litert.ts';
import { fuse, simplify } from '../../../passes/pipelines.ts';
import { findSoc } from '../../../targets/socs.ts';
import { lowerModel } from '../../../targets/tflite/graph/lower-model.ts';
import { tfliteModelTarget } from '../../../targets/tflite/tflite-model.ts';
import { encodeTflite } from '../../../targets/tflite/write.ts';
import { backendSuitePath, hasBackendSuite } from '../../backend-suite.ts';
import { openCase, readCaseData } from '../../compiler/ops/backend-case.ts';

/** Ops that TFLite has under another form, by the names of their cases. */
const CASES =
  /^test_(gru|simple_rnn|rnn|top_k|scatter|scatternd|gather_elements|gathernd|onehot|hardmax|softplus|selu|elu|thresholdedrelu|shrink|isnan|tan|mod_(broadcast|mixed_sign_int(32|64)))(_|$)|^test_resize_.*cubic/;

/** What has no form, and why. */
const WITHOUT: Readonly<Record<string, RegExp>> = {
  'sequences of several lengths, or the batch first': /seq_length|batchwise/,
  'a product or extremum of what is scattered': /(scatternd|scatter_elements)_.*(multiply|mul|max|min)$/,
  'elements outside of the image': /tf_crop_and_resize/,
  'types that TFLite does not sort': /uint64/,
  'half floats': /float16/,
  // The suite has 2.5 for what ONNX Runtime computes as 2.395 (fixtures/onnx-backend.yaml).
  'a case that is wrong': /downsample_scales_cubic_align_corners$/,
};

/** Ops whose inputs behind the first are what a model has as constants. */
const PARAMETERS: ReadonlySet<string> = new Set(['GRU', 'OneHot', 'RNN', 'Resize', 'TopK']);

describe.skipIf(!hasBackendSuite)('cases of the ONNX backend suite in LiteRT', { timeout: 60_000 }, () => {
  const all = hasBackendSuite ? readdirSync(backendSuitePath('node')).filter((name) => CASES.test(name)) : [];
  const named = all.filter((name) => !name.includes('_expanded'));
  const known = named.filter((name) => !Object.values(WITHOUT).some((pattern) => pattern.test(name)));

  test('there are as many as there were', () => {
    expect(known.length).toBeGreaterThan(60);
  });

  test.each(known)('%s', async (name) => {
    const module = openCase(`node/${name}`);
    const graph = module.graph();
    const [data] = readCaseData(
      `node/${name}`,
      graph,
      graph.outputs.map(({ type }) => type),
    );
    const names = graph.outputs.map((output) => output.name);
    for (const [index, input] of [...graph.inputs].entries()) {
      const tensor = data!.feeds[input.name] as TensorData | undefined;
      if (!tensor) continue;
      input.type = tensorType(tensor.dtype, tensor.shape);
      if (index === 0 || !PARAMETERS.has(graph.nodes[0]!.op)) continue;
      input.data = Tensor.of(tensor.dtype, tensor.shape, tensor.data as Float32Array);
      graph.inputs.splice(graph.inputs.indexOf(input), 1);
    }
    runPasses(module, [...simplify, ...fuse, ...simplify], { untilStable: true });
    tfliteModelTarget.lower(module, findSoc('SM8650'), makeRecipe('fp16'));
    const litert = await openLitert(encodeTflite(lowerModel(graph, 'float').model), graph.name);
    const ports = new Set(litert.inputs.map((port) => port.name));
    const feeds = Object.fromEntries(Object.entries(data!.feeds).filter(([port]) => ports.has(port)));
    const got = await litert.run(feeds as Record<string, TensorData>);
    await litert.close();
    for (const [index, output] of names.entries()) {
      const wanted = data!.expected[index] as TensorData | undefined;
      if (!wanted) continue;
      expect(got[output]!.shape).toEqual(wanted.shape);
      expect(got[output]!.dtype).toBe(wanted.dtype);
      const [a, b] = [toFloats(wanted), toFloats(got[output]!)];
      const far = a.findIndex((each, i) => each !== b[i] && !(Math.abs(each - b[i]!) <= 1e-5 + 1e-4 * Math.abs(each)));
      expect(far, `${a[far]} and ${b[far]}`).toBe(-1);
    }
  });
});

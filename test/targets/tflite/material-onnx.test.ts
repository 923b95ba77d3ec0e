import { describe, expect, it } from 'vitest';
import { quantizeGraph } from '../../../calibration/quantize-graph.ts';
import { litertFormat, makeRecipe } from '../../../calibration/recipe.ts';
import { openModel as openSource } from '../../../cli/jobs/open-model.ts';
import { readNpz } from '../../../compiler/import/npz.ts';
import { openTensorFile } from '../../../compiler/import/onnx.ts';
import { cloneModule } from '../../../compiler/ir/clone.ts';
import type { Module } from '../../../compiler/ir/graph.ts';
import { toFloats } from '../../../compiler/ir/tensor.ts';
import { wasmKernels } from '../../../compiler/kernels/index.ts';
import { runPasses } from '../../../compiler/pass.ts';
import { randomFeeds } from '../../../compiler/pass-values.ts';
import { openModule } from '../../../compiler/runtime/engine.ts';
import { openLitert } from '../../../compiler/runtime/litert.ts';
import type { Runner, Tensors } from '../../../compiler/runtime/runner.ts';
import { compareResults, worstSqnr } from '../../../evaluation/compare-runs.ts';
import { storeWeightsF16 } from '../../../passes/store-weights-f16.ts';
import { findSoc } from '../../../targets/socs.ts';
import { lowerModel } from '../../../targets/tflite/graph/lower-model.ts';
import { tfliteModelTarget } from '../../../targets/tflite/tflite-model.ts';
import { encodeTflite } from '../../../targets/tflite/write.ts';
import { hasMaterial, materialPath } from '../../material.ts';

interface Case {
  readonly path: string;
  readonly bind: readonly string[];
  /** Real inputs; without them random ones. */
  readonly feeds?: () => Tensors;
  readonly transposes: number;
  /** How many times what one rounding of the input does to the model the output may be off, beside 1e-4 of its magnitude. */
  readonly sensitivity?: number;
}

const npz = (path: string) => (): Tensors => {
  const arrays = readNpz(materialPath('onnx', path));
  const inputs = Object.entries(arrays).filter(([name]) => name.startsWith('in_'));
  return Object.fromEntries(inputs.map(([name, tensor]) => [name.slice(3), tensor]));
};
const pb = (folder: string, input: string) => (): Tensors => ({
  [input]: openTensorFile(materialPath('onnx', folder, 'test_data_set_0', 'input_0.pb')).toData(),
});

/** Every ONNX model of the material, with the transposes that are left: one for an image of several channels as input. */
const CASES: Readonly<Record<string, Case>> = {
  mnist_8: { path: 'mnist_8/model.onnx', bind: [], feeds: pb('mnist_8', 'Input3'), transposes: 0 },
  super_resolution_10: {
    path: 'super_resolution_10/model.onnx',
    bind: ['batch_size=1'],
    feeds: pb('super_resolution_10', 'input'),
    transposes: 0,
  },
  ultraface: { path: 'ultraface/version-RFB-320.onnx', bind: [], transposes: 1 },
  yunet: { path: 'yunet/yunet_n_320_320.onnx', bind: [], transposes: 1 },
  'ppocr-det': {
    path: 'ppocr-v4/ch_PP-OCRv4_det_infer.onnx',
    bind: ['x=1x3x320x320'],
    feeds: npz('ppocr-v4/det.two-lines.npz'),
    transposes: 1,
  },
  'ppocr-cls': {
    path: 'ppocr-v4/ch_ppocr_mobile_v2.0_cls_infer.onnx',
    bind: ['x=1x3x48x192'],
    feeds: npz('ppocr-v4/cls.ocr-line.npz'),
    transposes: 1,
  },
  // A pure tone: the logarithm of bins that nearly cancel. One rounding of the input moves ONNX Runtime's own output as far.
  'basic-pitch': {
    path: 'basic-pitch/nmp.onnx',
    bind: ['unk__749=1'],
    feeds: npz('basic-pitch/nmp.a440.npz'),
    transposes: 2,
    sensitivity: 4,
  },
  'silero-vad': {
    path: 'silero-vad/silero_vad_16k_op15.onnx',
    bind: ['batch=1', 'sequence=576'],
    feeds: npz('silero-vad/silero_vad_16k_op15.jfk-frame60.npz'),
    transposes: 0,
  },
  'silero-vad-sequence': {
    path: 'silero-vad/silero_vad_16k_sequence.onnx',
    bind: ['sequence_length=3'],
    transposes: 0,
  },
};

function open(name: string): { readonly module: Module; readonly feeds: Tensors } {
  const { path, bind, feeds } = CASES[name]!;
  const { module } = openSource(materialPath('onnx', path), bind);
  return { module, feeds: feeds?.() ?? randomFeeds(module.graph()) };
}

function lowered(module: Module, scheme: string): Module {
  const copy = cloneModule(module);
  tfliteModelTarget.lower(copy, findSoc('SM8650'), makeRecipe(scheme));
  return copy;
}

const use = async <T>(runner: Runner, work: (runner: Runner) => Promise<T>): Promise<T> => {
  try {
    return await work(runner);
  } finally {
    await runner.close();
  }
};

/**
 * Outputs below this are compared as if they reached it: ONNX Runtime's Sigmoid is right to 1e-7 and no better near 0, where
 * LiteRT's agrees with the reference semantics.
 */
const SMALLEST = 3e-3;

/** The largest difference over the largest magnitude, over all outputs. */
function difference(a: Tensors, b: Tensors): number {
  let worst = 0;
  for (const [name, tensor] of Object.entries(a)) {
    const [x, y] = [toFloats(tensor), toFloats(b[name]!)];
    expect(b[name]!.shape).toEqual(tensor.shape);
    const most = x.reduce((largest, each) => Math.max(largest, Math.abs(each)), SMALLEST);
    x.forEach((each, i) => {
      worst = Math.max(worst, Math.abs(each - y[i]!) / most);
    });
  }
  return worst;
}

/** Every element of an input moved by one rounding. */
function nudge(feeds: Tensors): Tensors {
  const move = (data: Float32Array): Float32Array => data.map((each, i) => each * (i % 2 === 0 ? 1 + 6e-8 : 1 - 6e-8));
  return Object.fromEntries(
    Object.entries(feeds).map(([name, tensor]) => [
      name,
      tensor.dtype === 'f32' ? { ...tensor, data: move(tensor.data as Float32Array) } : tensor,
    ]),
  );
}

describe.skipIf(!hasMaterial)('the ONNX models of the material in LiteRT', () => {
  it.each(Object.keys(CASES))(
    '%s: float outputs equal ONNX Runtime, with as few transposes as there can be',
    async (name) => {
      const { module, feeds } = open(name);
      const { transposes, sensitivity = 0 } = CASES[name]!;
      const result = lowerModel(lowered(module, 'fp16').graph(), 'float');
      expect(result.transposes).toBe(transposes);
      const litert = await openLitert(encodeTflite(result.model), module.graph().name);
      const got = await use(litert, (runner) => runner.run(feeds));
      await use(await openModule(module), async (runner) => {
        const wanted = await runner.run(feeds);
        const room = sensitivity === 0 ? 0 : sensitivity * difference(wanted, await runner.run(nudge(feeds)));
        expect(difference(wanted, got)).toBeLessThan(1e-4 + room);
      });
    },
  );

  it('mnist_8 with half floats as weights is smaller, and as near as they are', async () => {
    const { module, feeds } = open('mnist_8');
    const copy = lowered(module, 'fp16');
    const wide = encodeTflite(lowerModel(copy.graph(), 'float').model);
    runPasses(copy, [storeWeightsF16()]);
    const narrow = encodeTflite(lowerModel(copy.graph(), 'float').model);
    expect(narrow.byteLength).toBeLessThan(0.65 * wide.byteLength);
    const got = await use(await openLitert(narrow, module.graph().name), (runner) => runner.run(feeds));
    const wanted = await use(await openModule(module), (runner) => runner.run(feeds));
    expect(difference(wanted, got)).toBeLessThan(1e-3);
  });

  it.each([
    ['mnist_8', 'w8a8', 40],
    ['mnist_8', 'w8a16', 70],
    ['ppocr-cls', 'w8a8', 25],
    ['ppocr-cls', 'w8a16', 60],
  ] as const)('%s at %s keeps %i dB of its QDQ graph', async (name, scheme, least) => {
    const { module, feeds } = open(name);
    const quantized = await quantizeGraph({
      module: lowered(module, scheme),
      feeds: [feeds],
      recipe: makeRecipe(scheme),
      format: litertFormat,
      kernels: wasmKernels,
    });
    const graph = quantized.module.graph();
    const names = graph.outputs.map((value) => value.name);
    const bytes = encodeTflite(lowerModel(graph, 'float').model);
    const got = await use(await openLitert(bytes, graph.name), (runner) => runner.run(feeds));
    const wanted = await use(await openModule(quantized.module), (runner) => runner.run(feeds));
    expect(worstSqnr(compareResults(names, [wanted], [got], wasmKernels))).toBeGreaterThan(least);
  });
});

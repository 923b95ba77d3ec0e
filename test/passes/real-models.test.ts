import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { parse, stringify } from 'yaml';
import { readNpz } from '../../compiler/import/npz.ts';
import { openOnnx, openTensorFile } from '../../compiler/import/onnx.ts';
import type { Module } from '../../compiler/ir/graph.ts';
import type { TensorData } from '../../compiler/ir/tensor.ts';
import { findProblems } from '../../compiler/ir/verify.ts';
import { runPasses } from '../../compiler/pass.ts';
import { findDifference, randomFeeds } from '../../compiler/pass-values.ts';
import { openModule } from '../../compiler/runtime/engine.ts';
import type { Tensors } from '../../compiler/runtime/runner.ts';
import { type FreezeOptions, freezeShapes } from '../../passes/freeze-shapes.ts';
import { liftOpset } from '../../passes/lift-opset.ts';
import { fuse, simplify } from '../../passes/pipelines.ts';
import { hasMaterial, materialPath } from '../material.ts';

interface Reference {
  readonly feeds: Tensors;
  /** In the order of the graph's outputs. */
  readonly outputs: readonly TensorData[];
}

interface RealModel {
  readonly path: string;
  readonly freeze: FreezeOptions;
  /** The published reference; absent where there is none: then the untouched model in ONNX Runtime is the reference. */
  readonly reference?: (module: Module) => Reference;
}

/** A folder of the ONNX model zoo's test data. */
function fromFolder(folder: string): (module: Module) => Reference {
  return (module) => {
    const tensor = (name: string): TensorData => openTensorFile(materialPath('onnx', folder, `${name}.pb`)).toData();
    return { feeds: { [module.graph().inputs[0]!.name]: tensor('input_0') }, outputs: [tensor('output_0')] };
  };
}

/** A .npz of in_* and out_* arrays, each in the order of the graph's inputs and outputs. */
function fromNpz(path: string): (module: Module) => Reference {
  return (module) => {
    const arrays = Object.entries(readNpz(materialPath('onnx', path)));
    const inputs = arrays.filter(([name]) => name.startsWith('in_')).map(([, data]) => data);
    const outputs = arrays.filter(([name]) => name.startsWith('out_')).map(([, data]) => data);
    const feeds = Object.fromEntries(module.graph().inputs.map((input, index) => [input.name, inputs[index]!]));
    return { feeds, outputs };
  };
}

const MODELS: Readonly<Record<string, RealModel>> = {
  mnist_8: { path: 'mnist_8/model.onnx', freeze: {}, reference: fromFolder('mnist_8/test_data_set_0') },
  super_resolution_10: {
    path: 'super_resolution_10/model.onnx',
    freeze: { bindings: { batch_size: 1 } },
    reference: fromFolder('super_resolution_10/test_data_set_0'),
  },
  ultraface: { path: 'ultraface/version-RFB-320.onnx', freeze: {} },
  yunet: { path: 'yunet/yunet_n_320_320.onnx', freeze: {} },
  'basic-pitch': {
    path: 'basic-pitch/nmp.onnx',
    freeze: { inputs: { 'serving_default_input_2:0': [1, 43844, 1] } },
    reference: fromNpz('basic-pitch/nmp.a440.npz'),
  },
  'ppocr-det': {
    path: 'ppocr-v4/ch_PP-OCRv4_det_infer.onnx',
    freeze: { inputs: { x: [1, 3, 320, 320] } },
    reference: fromNpz('ppocr-v4/det.two-lines.npz'),
  },
  'ppocr-cls': {
    path: 'ppocr-v4/ch_ppocr_mobile_v2.0_cls_infer.onnx',
    freeze: { inputs: { x: [1, 3, 48, 192] } },
    reference: fromNpz('ppocr-v4/cls.ocr-line.npz'),
  },
  'silero-op15': {
    path: 'silero-vad/silero_vad_16k_op15.onnx',
    freeze: { bindings: { batch: 1, sequence: 576 } },
    reference: fromNpz('silero-vad/silero_vad_16k_op15.jfk-frame60.npz'),
  },
  'silero-sequence': {
    path: 'silero-vad/silero_vad_16k_sequence.onnx',
    freeze: { bindings: { sequence_length: 4 } },
  },
};

async function run(module: Module, feeds: Tensors): Promise<TensorData[]> {
  const runner = await openModule(module);
  const outputs = await runner.run(feeds);
  await runner.close();
  return module.graph().outputs.map((output) => outputs[output.name]!);
}

interface Counts {
  readonly imported: number;
  readonly simplified: number;
  readonly fused: number;
  /** Operators after all. */
  readonly operators: Readonly<Record<string, number>>;
}

const TABLE = fileURLToPath(new URL('real-models.yaml', import.meta.url));

describe.skipIf(!hasMaterial)('real models, frozen and simplified', () => {
  const found: Record<string, Counts> = {};

  it.each(Object.entries(MODELS))('%s computes the same in ONNX Runtime', { timeout: 120_000 }, async (name, model) => {
    const module = openOnnx(materialPath('onnx', model.path));
    const graph = module.graph();
    const imported = graph.nodes.length;
    runPasses(module, [freezeShapes(model.freeze)]);
    runPasses(module, simplify, { untilStable: true });
    const simplified = graph.nodes.length;
    runPasses(module, fuse, { untilStable: true });
    expect(findProblems(module, 'frozen')).toEqual([]);
    expect(runPasses(module, [...simplify, ...fuse]).changed).toEqual([]);

    const untouched = openOnnx(materialPath('onnx', model.path));
    const reference = model.reference?.(module);
    const feeds = reference?.feeds ?? randomFeeds(graph);
    const expected = reference?.outputs ?? (await run(untouched, feeds));
    const actual = await run(module, feeds);
    expect(actual.length).toBe(expected.length);
    expected.forEach((wanted, index) => {
      expect(findDifference(wanted, actual[index]!, 1e-4), graph.outputs[index]!.name).toBeUndefined();
    });

    // The same after lifting to the opset that quantization needs, and once more simplified there.
    runPasses(module, [liftOpset(21), ...simplify], { untilStable: true });
    expect(module.opsets.get('')).toBe(21);
    (await run(module, feeds)).forEach((data, index) => {
      expect(findDifference(expected[index]!, data, 1e-4), `${graph.outputs[index]!.name} at opset 21`).toBeUndefined();
    });

    const operators: Record<string, number> = {};
    for (const { op } of graph.nodes) operators[op] = (operators[op] ?? 0) + 1;
    found[name] = { imported, simplified, fused: graph.nodes.length, operators };
  });

  it('have the committed numbers of nodes', () => {
    const sorted = (counts: Counts): Counts => ({
      ...counts,
      operators: Object.fromEntries(Object.entries(counts.operators).sort(([a], [b]) => (a < b ? -1 : 1))),
    });
    const table = Object.fromEntries(Object.entries(found).map(([name, counts]) => [name, sorted(counts)]));
    if (process.env.UPDATE_CASES && !process.env.CI)
      writeFileSync(
        TABLE,
        `# Nodes of the real models (test/passes/real-models.test.ts): as imported, frozen and simplified, fused.\n${stringify(table)}`,
      );
    expect(existsSync(TABLE)).toBe(true);
    expect(table).toEqual(parse(readFileSync(TABLE, 'utf8')));
  });
});

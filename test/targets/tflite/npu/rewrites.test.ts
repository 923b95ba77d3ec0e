import { beforeAll, describe, expect, test } from 'vitest';
import { quantizeGraph } from '../../../../calibration/quantize-graph.ts';
import { litertFormat, makeRecipe } from '../../../../calibration/recipe.ts';
import { randomSamples } from '../../../../calibration/samples.ts';
import { elementCount, type TensorData } from '../../../../compiler/ir/tensor.ts';
import { parseModule } from '../../../../compiler/ir/text.ts';
import { seededUniform } from '../../../../compiler/ir/text-data.ts';
import { wasmKernels } from '../../../../compiler/kernels/index.ts';
import { openLitert } from '../../../../compiler/runtime/litert.ts';
import type { Tensors } from '../../../../compiler/runtime/runner.ts';
import { graphRequests } from '../../../../targets/graph-requests.ts';
import { findSoc } from '../../../../targets/socs.ts';
import { lowerModel } from '../../../../targets/tflite/graph/lower-model.ts';
import { lowerGraphs } from '../../../../targets/tflite/lower-graph.ts';
import type { TfliteModel } from '../../../../targets/tflite/model.ts';
import { groupDepthwise } from '../../../../targets/tflite/npu/group-depthwise.ts';
import { inlineComposites } from '../../../../targets/tflite/npu/inline-composites.ts';
import { splitBlocks } from '../../../../targets/tflite/npu/split-blocks.ts';
import { tapModel } from '../../../../targets/tflite/npu/tap-model.ts';
import { operatorName } from '../../../../targets/tflite/schema-enums.ts';
import { tfliteModelTarget } from '../../../../targets/tflite/tflite-model.ts';
import { encodeTflite } from '../../../../targets/tflite/write.ts';
import { demo } from '../../../cli/run-npuc.ts';
import { makeBiasedDecoder, openSmallDecoder } from '../../small-decoder.ts';

const DEPTHWISE = `npuir 1
opset 21

graph @main
  in %x : f32[1,6,9,9]
  %w : f32[6,1,3,3] = const rand(7, uniform -0.5 0.5)
  %b : f32[6] = const rand(8, uniform -0.5 0.5)
  %y : f32[1,6,5,5] = Conv(%x, %w, %b) {group 6, strides [2,2], pads [1,1,1,1]}
  out %y
`;

/** What a signature gives on integers in the whole range of its ports, or on floats up to 1. */
async function run(model: TfliteModel, signature: string): Promise<Tensors> {
  const runner = await openLitert(encodeTflite(model), signature);
  try {
    const next = seededUniform(5);
    const feed = ({ dtype, shape }: { dtype: TensorData['dtype']; shape: readonly number[] }): TensorData => ({
      dtype,
      shape,
      data:
        dtype === 'f32'
          ? Float32Array.from({ length: elementCount(shape) }, () => next() * 2 - 1)
          : Int16Array.from({ length: elementCount(shape) }, () => Math.floor((next() * 2 - 1) * 20000)),
    });
    return await runner.run(Object.fromEntries(runner.inputs.map((port) => [port.name, feed(port)])));
  } finally {
    await runner.close();
  }
}

const operatorsOf = (model: TfliteModel): string[] =>
  model.subgraphs.flatMap(({ operators }) => operators.map(({ code }) => operatorName(code)));

describe('16-bit depthwise convolutions', () => {
  const lower = async (scheme: string): Promise<TfliteModel> => {
    const module = parseModule(DEPTHWISE);
    const recipe = makeRecipe(scheme);
    tfliteModelTarget.lower(module, findSoc('SM8750'), recipe);
    const { feeds } = randomSamples(module.graph(), 2, 1);
    const quantized = await quantizeGraph({ module, feeds, recipe, format: litertFormat, kernels: wasmKernels });
    return lowerModel(quantized.module.graph(), 'quantized').model;
  };

  test('are convolutions of groups, with the same integers', async () => {
    const model = await lower('w8a16');
    const grouped = groupDepthwise(model);
    expect(operatorsOf(model)).toContain('DEPTHWISE_CONV_2D');
    expect(operatorsOf(grouped)).not.toContain('DEPTHWISE_CONV_2D');
    expect(operatorsOf(grouped)).toContain('CONV_2D');
    const [a, b] = [await run(model, 'main'), await run(grouped, 'main')];
    expect(b).toEqual(a);
    expect(new Set((a.y!.data as Int16Array).map(Math.abs)).size).toBeGreaterThan(50);
  });

  test('stay where the plugin takes them, and where 32 bits do not hold a bias', async () => {
    const narrow = await lower('w8a8');
    expect(groupDepthwise(narrow).subgraphs).toEqual(narrow.subgraphs);
    const model = await lower('w8a16');
    const graph = model.subgraphs[0]!;
    const [depthwise] = graph.operators.filter(({ code }) => operatorName(code) === 'DEPTHWISE_CONV_2D');
    const bias = graph.tensors[depthwise!.inputs[2]!]!;
    const sums = BigInt64Array.from({ length: 6 }, (_, i) => (i === 3 ? 2n ** 31n : 0n));
    model.buffers[bias.buffer] = new Uint8Array(sums.buffer);
    expect(groupDepthwise(model).subgraphs).toEqual(model.subgraphs);
  });
});

describe('composites', () => {
  let model: TfliteModel;
  beforeAll(async () => {
    const decoder = await (await makeBiasedDecoder()).quantize('w8a16', 'tflite');
    const graphs = graphRequests({ tokens: [4], caches: [16] }).map((request) => decoder.stamp(request).graph());
    model = lowerGraphs(graphs, 'quantized');
  });

  test('written out compute the same integers in the same signatures', async () => {
    const whole = inlineComposites(model);
    expect(operatorsOf(model)).toContain('STABLEHLO_COMPOSITE');
    expect(operatorsOf(whole)).not.toContain('STABLEHLO_COMPOSITE');
    expect(whole.subgraphs).toHaveLength(2);
    for (const { key, inputs, outputs } of model.signatures) {
      const now = whole.signatures.find((signature) => signature.key === key)!;
      expect(now.inputs.map(({ name }) => name)).toEqual(inputs.map(({ name }) => name));
      expect(now.outputs.map(({ name }) => name)).toEqual(outputs.map(({ name }) => name));
      expect(await run(whole, key)).toEqual(await run(model, key));
    }
  });

  test('a tapped signature shows the values that lie between partitions', async () => {
    const graph = model.subgraphs[model.signatures.find(({ key }) => key === 'decode')!.subgraph]!;
    const softmax = graph.operators.find(({ code }) => operatorName(code) === 'SOFTMAX')!;
    const inside = graph.tensors[softmax.outputs[0]!]!.name;
    const logits = graph.tensors[model.signatures.find(({ key }) => key === 'decode')!.outputs[0]!.tensor]!.name;
    const tapped = tapModel(model, 'decode', [inside, logits, 'no such tensor', graph.tensors[graph.inputs[0]!]!.name]);
    const values = await run(tapped, 'decode');
    expect(Object.keys(values).sort()).toEqual([inside, logits].sort());
    // Probabilities of 16 bits add up to 1 in every row.
    const { data, shape } = values[inside]!;
    const row = [...(data as Int16Array).subarray(0, shape.at(-1))].reduce((sum, share) => sum + share, 0);
    expect(row / 32768).toBeCloseTo(1, 2);
  });
});

test('matrices of blocks are sums of products with the same integers and scales', async () => {
  const decoder = await (await openSmallDecoder(demo)).quantize('dynamic-int4', 'tflite');
  const requests = graphRequests({ tokens: [4], caches: [16] });
  const model = lowerGraphs(
    requests.map((request) => decoder.stamp(request).graph()),
    'float',
  );
  const split = splitBlocks(model);
  const blocks = ({ subgraphs }: TfliteModel): number =>
    subgraphs.flatMap(({ tensors }) => tensors).filter(({ quantization }) => quantization?.details).length;
  expect(blocks(model)).toBeGreaterThan(10);
  const read = new Set(
    split.subgraphs.flatMap(({ tensors, operators }) =>
      operators.flatMap(({ inputs }) => inputs.map((input) => tensors[input])),
    ),
  );
  expect([...read].filter((tensor) => tensor?.quantization?.details)).toEqual([]);
  // Both signatures read one copy of every part.
  const parts = (subgraph: number): number[] =>
    split.subgraphs[subgraph]!.tensors.filter(({ name }) => / *\.of\./.test(name)).map(({ buffer }) => buffer);
  expect(new Set([...parts(0), ...parts(1)]).size).toBe(Math.max(new Set(parts(0)).size, new Set(parts(1)).size));
  const [whole, sums] = [await run(model, 'decode'), await run(split, 'decode')];
  const difference = (name: string): number => {
    const [a, b] = [whole[name]!.data as Float32Array, sums[name]!.data as Float32Array];
    const signal = a.reduce((sum, value) => sum + value * value, 0);
    return 10 * Math.log10(signal / a.reduce((sum, value, i) => sum + (value - b[i]!) ** 2, 0));
  };
  // LiteRT rounds the activations of every row to 8 bits: of a whole row, or of each part.
  expect(difference('kv_slice_k_0')).toBeGreaterThan(35);
  expect(difference('logits')).toBeGreaterThan(20);
});

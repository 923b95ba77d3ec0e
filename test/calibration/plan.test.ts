import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  buildPlainDecoder,
  calibrationShape,
  collectDecoderStatistics,
  cutWindows,
} from '../../calibration/decoder-statistics.ts';
import { decoderSites, migrateOutliers } from '../../calibration/migrate-outliers.ts';
import { type QuantizedDecoder, quantizeDecoder } from '../../calibration/quantize-decoder.ts';
import { chooseRange } from '../../calibration/range.ts';
import { htpFormat, makeRecipe, type RecipeOptions } from '../../calibration/recipe.ts';
import type { ValueStatistics } from '../../calibration/statistics.ts';
import { defaultText, readTokens } from '../../calibration/texts.ts';
import { encodeWeights } from '../../calibration/weights.ts';
import { openCheckpoint } from '../../compiler/import/checkpoint.ts';
import { type DecoderModel, readDecoderModel } from '../../compiler/import/decoder-model.ts';
import { sameEncoding } from '../../compiler/ir/encoding.ts';
import { verify } from '../../compiler/ir/verify.ts';
import { createKernelPool, wasmKernels } from '../../compiler/kernels/index.ts';
import { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { openModule } from '../../compiler/runtime/engine.ts';
import { plainContract } from '../../passes/io-contract.ts';
import { makeProtocol } from '../../passes/protocol.ts';
import { formatOf } from '../../targets/index.ts';
import type { TargetName } from '../../targets/target.ts';
import { demo } from '../cli/run-npuc.ts';

let model: DecoderModel;
let windows: number[][];
let statistics: Map<string, ValueStatistics>;

beforeAll(async () => {
  model = readDecoderModel(await openCheckpoint(demo));
  const shape = calibrationShape(model.config);
  const { ids } = readTokens(defaultText('calibration'), model.checkpoint.tokenizer!, 2 * shape.window, shape.window);
  windows = cutWindows(ids, shape, 2);
  statistics = await collectDecoderStatistics(model.config, model.weights, windows);
});
afterAll(() => model.checkpoint.close());

const quantize = (scheme: string, target: TargetName, options: RecipeOptions = {}): Promise<QuantizedDecoder> =>
  quantizeDecoder({
    config: model.config,
    weights: model.weights,
    statistics,
    windows,
    recipe: makeRecipe(scheme, options),
    ...formatOf(target),
    kernels: wasmKernels,
  });

describe.each(['onnx', 'qnn', 'tflite'] as const)('a plan for %s', (target) => {
  test.each(['w4a16', 'w8a16', 'w8a8', 'fp16'])(
    '%s serves prefill and decode of any shape, each valid',
    async (scheme) => {
      const decoder = await quantize(scheme, target);
      for (const [tokens, cache] of [
        [1, 32],
        [16, 64],
        [48, 128],
      ] as const) {
        const module = decoder.stamp({ name: 'g', tokens, cache, logits: 'all' });
        verify(module);
        const encoded = [...module.graph().values].filter((value) => value.encoding).length;
        if (scheme === 'fp16') expect(encoded).toBe(0);
        else expect(encoded).toBeGreaterThan(100);
      }
    },
  );

  test('past, new and whole cache share one symmetric encoding, in every graph', async () => {
    const decoder = await quantize('w8a16', target);
    const graphs = [1, 16].map((tokens) => decoder.stamp({ name: 'g', tokens, cache: 64 }).graph());
    const [decode] = graphs as [(typeof graphs)[0]];
    for (const [name, port] of decode.states) {
      const encoding = port.input.encoding!;
      expect(encoding.dtype).toBe(target === 'tflite' ? 'i16' : 'u8');
      expect(encoding.zeroPoint![0]).toBe(target === 'tflite' ? 0 : 128);
      expect(sameEncoding(port.output.encoding!, encoding), name).toBe(true);
      const whole = [...port.input.uses].find((use) => use.node.op === 'Concat')!.node.output();
      expect(sameEncoding(whole.encoding!, encoding), name).toBe(true);
      for (const graph of graphs) {
        const there = graph.find(port.output.name);
        if (there) expect(sameEncoding(there.encoding!, encoding), name).toBe(true);
      }
    }
  });

  test('w8a8 with a 16-bit cache multiplies it with 16-bit values: HTP takes no 8 by 16 bit product', async () => {
    const graph = (await quantize('w8a8', target, { cache: 16 })).stamp({ name: 'g', tokens: 16, cache: 64 }).graph();
    if (target === 'tflite') {
      // LiteRT has no mixed products: the cache follows the activations there.
      for (const port of graph.states.values()) expect(port.input.encoding!.dtype).toBe('i8');
      return;
    }
    const products = graph.nodes.filter((node) => node.op === 'MatMul' && node.input(1).encoding!.dtype === 'i16');
    expect(products.length).toBe(2 * model.config.layers);
    for (const node of products) expect(node.input(0).encoding!.dtype, node.name).toBe('u16');
  });

  test('what only moves elements shares its encoding', async () => {
    const graph = (await quantize('w8a8', target)).stamp({ name: 'g', tokens: 16, cache: 64, logits: 'all' }).graph();
    let seen = 0;
    for (const node of graph.nodes) {
      if (!['Reshape', 'Transpose', 'Concat', 'Split'].includes(node.op)) continue;
      const values = [...(node.op === 'Concat' ? node.inputs : [node.inputs[0]]), ...node.outputs];
      for (const value of values) {
        expect(sameEncoding(value!.encoding!, values[0]!.encoding!), `${node.name} ${value!.name}`).toBe(true);
        seen++;
      }
    }
    expect(seen).toBeGreaterThan(50);
  });
});

describe('recipes', () => {
  test('an override by regular expression changes what it names and nothing else', async () => {
    const decoder = await quantize('w4a16', 'qnn', {
      overrides: [
        { match: 'layers\\.0\\.mlp\\.down_proj', weight: { bits: 8, block: 0 } },
        { match: 'layers\\.1\\..*o_proj', activation: 8 },
      ],
    });
    const { plan } = decoder;
    expect(plan.weights.get('model.layers.0.mlp.down_proj.weight')).toMatchObject({
      form: { bits: 8, block: 0 },
      why: /override/,
    });
    expect(plan.weights.get('model.layers.1.mlp.gate_proj.weight')!.form).toEqual({ bits: 4, block: 64 });
    expect(plan.activations.get('layers.1.o_proj')!.encoding.dtype).toBe('u8');
    expect(plan.activations.get('layers.0.o_proj')!.encoding.dtype).toBe('u16');
  });
  test('a block that does not divide falls back to 8 bits, with a remark, and is an error only when forced', async () => {
    const width = model.config.intermediateSize;
    const block = [16, 32, 64].find((size) => width % size !== 0);
    if (block === undefined) {
      // Every dimension of the demo model is divisible: the narrow case is tested on stories260k in test/targets.
      expect(width % 64).toBe(0);
      return;
    }
    await expect(
      quantize('w4a16', 'qnn', { overrides: [{ match: 'down_proj', weight: { bits: 4, block: block as 16 } }] }),
    ).rejects.toMatchObject({ code: 'QT104' });
  });
  test.each([
    ['w3a16', {}, 'QT101'],
    ['w4a16', { block: 48 }, 'QT101'],
    ['w4a16', { overrides: [{ match: '(' }] }, 'QT102'],
  ])('%s %j is refused', (scheme, options, code) => {
    expect(() => makeRecipe(scheme, options)).toThrowError(expect.objectContaining({ code }));
  });
});

test('scales searched on two threads are the same bits', async () => {
  const decoder = await quantize('w4a16', 'qnn', { block: 32 });
  const graph = decoder.stamp({ name: 'g', tokens: 1, cache: 32 }).graph();
  const pool = createKernelPool(2);
  try {
    const pooled = await encodeWeights(graph, decoder.plan, decoder.migration.statistics, wasmKernels, undefined, pool);
    expect(pooled.size).toBeGreaterThan(20);
    for (const [name, encoding] of pooled) expect(encoding, name).toEqual(decoder.weightEncodings.get(name));
  } finally {
    await pool.close();
  }
});

describe('migration of outliers', () => {
  test('leaves the float function as it is', async () => {
    const recipe = makeRecipe('w8a8');
    const migration = await migrateOutliers(
      model.weights,
      decoderSites(model.config.layers),
      statistics,
      recipe,
      htpFormat,
      wasmKernels,
    );
    expect([...migration.exponents.values()].every((exponent) => exponent === 0.5)).toBe(true);
    const run = async (weights: typeof model.weights): Promise<Float32Array[]> => {
      const runner = await openModule(buildPlainDecoder(model.config, weights, 16, 64));
      const session = new DecoderSession({
        protocol: makeProtocol(model.config, plainContract, 64),
        graphs: new Map([[16, runner]]),
      });
      const rows = await session.feed(windows[0]!.slice(0, 32), 'all');
      await session.close();
      return rows;
    };
    const before = await run(model.weights);
    const after = await run(migration.weights);
    let worst = 0;
    before.forEach((row, i) => {
      row.forEach((value, j) => {
        worst = Math.max(worst, Math.abs(value - after[i]![j]!));
      });
    });
    expect(worst).toBeLessThan(2e-3);
    // It did move something: the norm's weight is another one, its statistics are smaller.
    const site = decoderSites(model.config.layers)[0]!;
    expect(migration.weights.get(site.before.weight)).not.toBe(model.weights.get(site.before.weight));
    expect(migration.statistics.get(site.value)!.max).not.toBe(statistics.get(site.value)!.max);
  });
});

describe('ranges', () => {
  const histogram = new Float64Array(2048).fill(0);
  histogram.fill(1000, 960, 1088);
  histogram[0] = 1;
  histogram[2047] = 1;
  const seen: ValueStatistics = { min: -16, max: 16, typical: 0.5, histogram };
  test('min-max covers everything', () => {
    expect(chooseRange(seen, makeRecipe('w8a8', { range: 'min-max' }), 8)).toEqual({ min: -16, max: 16 });
  });
  test('percentile cuts the share it is told', () => {
    const { min, max } = chooseRange(
      { ...seen },
      { ...makeRecipe('w8a8', { range: 'percentile' }), percentile: 1e-4 },
      8,
    );
    expect(min).toBeCloseTo(-1, 1);
    expect(max).toBeCloseTo(1, 1);
  });
  test('histogram-mse trades two outliers for a finer step', () => {
    const { min, max } = chooseRange(seen, makeRecipe('w8a8', { range: 'histogram-mse' }), 8);
    expect(max - min).toBeLessThan(32);
    expect(max).toBeGreaterThanOrEqual(1);
    expect(min).toBeLessThanOrEqual(-1);
  });
  test('16 bits always cover everything', () => {
    expect(chooseRange(seen, makeRecipe('w8a8', { range: 'percentile' }), 16)).toEqual({ min: -16, max: 16 });
  });
});

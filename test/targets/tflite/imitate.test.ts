import { beforeAll, describe, expect, test } from 'vitest';
import type { QuantizedDecoder } from '../../../calibration/quantize-decoder.ts';
import { Graph, Module, type Node, type Value } from '../../../compiler/ir/graph.ts';
import { type TensorData, toFloats } from '../../../compiler/ir/tensor.ts';
import { parseModule } from '../../../compiler/ir/text.ts';
import { DecoderSession } from '../../../compiler/runtime/decoder-session.ts';
import { openModule } from '../../../compiler/runtime/engine.ts';
import { openLitert } from '../../../compiler/runtime/litert.ts';
import { tapModule } from '../../../compiler/runtime/taps.ts';
import { makeProtocol } from '../../../passes/protocol.ts';
import { imitateKernels } from '../../../targets/tflite/imitate/imitate-kernels.ts';
import { logisticTable } from '../../../targets/tflite/imitate/tables.ts';
import { lowerGraphs } from '../../../targets/tflite/lower-graph.ts';
import { encodeTflite } from '../../../targets/tflite/write.ts';
import { CHECKPOINTS, openSmallDecoder, type SmallDecoder } from '../small-decoder.ts';

const [TOKENS, CACHE] = [16, 48];

/** Layers whose operators are looked at: the others have the same. */
const LAYERS = 2;

/** The values of two chunks of text in a decoder's graph, after the second. */
async function runValues(
  small: SmallDecoder,
  decoder: QuantizedDecoder,
  module: Module,
): Promise<Map<string, TensorData>> {
  const graph = module.graph();
  const runner = await openModule(
    tapModule(
      module,
      graph.nodes.flatMap((node) => node.outputs.map((each) => each!.name)),
    ),
  );
  const own = new Set(graph.outputs.map(({ name }) => name));
  let seen = new Map<string, TensorData>();
  const session = new DecoderSession({
    protocol: makeProtocol(decoder.config, decoder.contract, CACHE),
    graphs: new Map([
      [
        TOKENS,
        {
          ...runner,
          engine: runner.engine,
          inputs: runner.inputs,
          outputs: runner.outputs.filter(({ name }) => own.has(name)),
          run: async (feeds) => {
            const results = await runner.run(feeds);
            seen = new Map(Object.entries({ ...feeds, ...results }));
            return results;
          },
          close: () => runner.close(),
        },
      ],
    ]),
    embedding: decoder.embed,
  });
  await session.feed([...small.prefix, ...small.text].slice(0, 2 * TOKENS), 'all');
  await session.close();
  return seen;
}

/** A module of one node of another module's graph. */
function isolate(module: Module, node: Node): Module {
  const alone = new Module();
  alone.irVersion = module.irVersion;
  for (const [domain, version] of module.opsets) alone.opsets.set(domain, version);
  const graph = new Graph('g');
  alone.graphs.push(graph);
  const copies = new Map<Value, Value>();
  const copy = (value: Value | undefined): Value | undefined => {
    if (!value) return undefined;
    let fresh = copies.get(value);
    if (!fresh) {
      fresh = graph.addValue(value.name, value.type, value.data);
      fresh.encoding = value.encoding;
      fresh.payload = value.payload;
      copies.set(value, fresh);
    }
    return fresh;
  };
  const [inputs, outputs] = [node.inputs.map(copy), node.outputs.map(copy)];
  graph.addNode({ op: node.op, domain: node.domain, name: 'node', inputs, outputs, attributes: node.attributes });
  graph.inputs.push(...new Set(inputs.filter((value) => value && !value.data) as Value[]));
  graph.outputs.push(...(outputs as Value[]));
  return alone;
}

interface Difference {
  /** Largest difference in steps of the output. */
  steps: number;
  /** Share of elements that differ at all. */
  share: number;
  nodes: number;
}

async function run(module: Module, feeds: Record<string, TensorData>): Promise<Record<string, TensorData>> {
  const runner = await openModule(module);
  try {
    return await runner.run(feeds);
  } finally {
    await runner.close();
  }
}

/** Every operator alone, on integers that it has in a run: LiteRT against the real numbers and against the imitation. */
async function compareOperators(
  small: SmallDecoder,
  decoder: QuantizedDecoder,
): Promise<Map<string, [Difference, Difference]>> {
  const module = decoder.stamp({ name: 'score', tokens: TOKENS, cache: CACHE, logits: 'all' });
  const values = await runValues(small, decoder, module);
  const found = new Map<string, [Difference, Difference]>();
  for (const node of module.graph().nodes) {
    const layer = Number(/^layers\.(\d+)/.exec(node.output().name)?.[1] ?? 0);
    if (layer >= LAYERS) continue;
    const alone = isolate(module, node);
    const graph = alone.graph();
    // Integers as LiteRT reads them from floats: ties of a port are not this operator's.
    const feeds = Object.fromEntries(graph.inputs.map((input) => [input.name, snap(input, values.get(input.name)!)]));
    const litert = await openLitert(encodeTflite(lowerGraphs([graph], 'float')), 'g');
    const got = await litert.run(feeds);
    await litert.close();
    const references = [await run(alone, feeds), await run(imitateKernels(alone), feeds)];
    const output = node.output();
    const types = [...new Set([...graph.inputs, output].map(({ encoding }) => encoding?.dtype ?? 'f32'))].join(' to ');
    const key = `${node.op} ${types}`;
    const known = found.get(key) ?? [
      { steps: 0, share: 0, nodes: 0 },
      { steps: 0, share: 0, nodes: 0 },
    ];
    for (const [i, reference] of references.entries()) {
      for (const { name, encoding } of node.outputs as Value[]) {
        const [wanted, given] = [toFloats(reference[name]!), toFloats(got[name]!)];
        const differences = wanted.map((each, k) => Math.abs(Math.round((given[k]! - each) / encoding!.scale[0]!)));
        known[i]!.steps = Math.max(known[i]!.steps, ...differences);
        known[i]!.share += differences.filter((each) => each > 0).length / wanted.length;
        known[i]!.nodes++;
      }
    }
    found.set(key, known);
  }
  return found;
}

/** Numbers that are multiples of a value's step. */
function snap({ encoding }: Value, tensor: TensorData): TensorData {
  if (!encoding || tensor.dtype !== 'f32') return tensor;
  const step = encoding.scale[0]!;
  return { ...tensor, data: (tensor.data as Float32Array).map((each) => Math.round(each / step) * step) };
}

/** Of LiteRT's own: where masked slots have e^-10 each, whatever the mask says (docs/litert.md). */
const SOFTMAX = 'Softmax i16';

const { name: checkpoint, source } = CHECKPOINTS.at(-1)!;

describe(`operators of ${checkpoint} on identical integers`, { timeout: 120_000 }, () => {
  let small: SmallDecoder;
  beforeAll(async () => {
    small = await openSmallDecoder(source());
  });

  test.each(['w8a8', 'w8a16', 'w4a16'])('%s', async (scheme) => {
    const found = await compareOperators(small, await small.quantize(scheme, 'tflite'));
    expect(found.size).toBeGreaterThan(8);
    for (const [operator, [real, imitated]] of found) {
      const limit = operator.endsWith('i8') ? 1 : 2;
      const [share, other] = [real, imitated].map((each) => (each.share / each.nodes).toExponential(1));
      console.log(`${scheme} ${operator}: ${real.steps} steps, ${share}; to the imitation ${imitated.steps}, ${other}`);
      if (operator !== SOFTMAX) expect(real.steps, operator).toBeLessThanOrEqual(limit);
      expect(imitated.steps, operator).toBe(0);
    }
  });
});

describe('tables of 16-bit kernels', () => {
  test.each([0.0005, 0.00013, 0.002])('LOGISTIC of every integer at a step of %d', async (step) => {
    const scale = Math.fround(step);
    const text = `npuir 1\nir 10\nopset 23\n\ngraph @g\nin %x : f32[1,65536] q(i16, scale ${scale})\n%y : f32[1,65536] q(i16, scale 3.0517578125e-5) = Sigmoid(%x)\nout %y\n`;
    const runner = await openLitert(encodeTflite(lowerGraphs([parseModule(text).graph()], 'float')), 'g');
    const data = Float32Array.from({ length: 65536 }, (_, i) => (i - 32768) * scale);
    const { y } = await runner.run({ x: { dtype: 'f32', shape: [1, 65536], data } });
    await runner.close();
    const integers = Array.from(y!.data as Float32Array, (each) => each * 32768);
    expect(integers).toEqual([...logisticTable(scale)]);
  });

  test('SOFTMAX gives 2 of 32768 to every slot that a mask takes out', async () => {
    const text =
      'npuir 1\nir 10\nopset 23\n\ngraph @g\nin %x : f32[1,512] q(i16, scale 0.002)\n%y : f32[1,512] q(i16, scale 3.0517578125e-5) = Softmax(%x)\nout %y\n';
    const module = parseModule(text);
    const runner = await openLitert(encodeTflite(lowerGraphs([module.graph()], 'float')), 'g');
    const x: TensorData = { dtype: 'f32', shape: [1, 512], data: new Float32Array(512).fill(-50) };
    x.data[0] = 0;
    const { y } = await runner.run({ x });
    await runner.close();
    const integers = Array.from(y!.data as Float32Array, (each) => each * 32768);
    expect(integers[0]).toBe(31777);
    expect(integers.slice(1).every((each) => each === 2)).toBe(true);
    const imitated = await run(imitateKernels(module), { x });
    expect(Array.from(imitated.y!.data as Float32Array, (each) => each * 32768)).toEqual(integers);
  });
});

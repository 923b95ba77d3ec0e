import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { buildPlainDecoder } from '../../calibration/decoder-statistics.ts';
import type { QuantizedDecoder } from '../../calibration/quantize-decoder.ts';
import type { Module } from '../../compiler/ir/graph.ts';
import { verify } from '../../compiler/ir/verify.ts';
import { ChainRunner } from '../../compiler/runtime/chain-runner.ts';
import { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { openModules } from '../../compiler/runtime/engine.ts';
import type { Runner, Tensors } from '../../compiler/runtime/runner.ts';
import { plainContract } from '../../passes/io-contract.ts';
import { makeProtocol } from '../../passes/protocol.ts';
import { decoderStages, splitDecoder } from '../../passes/split-decoder.ts';
import type { TargetName } from '../../targets/target.ts';
import { CHECKPOINTS, openSmallDecoder, type SmallDecoder } from '../targets/small-decoder.ts';

/** A part's ports that carry the residual stream, and what each says about it. */
function boundary(part: Module, name: string, side: 'inputs' | 'outputs') {
  const graph = part.graph();
  const value = graph[side].find((port) => port.name === name)!;
  return { shape: value.shape, encoding: value.encoding, quantized: graph.quantizedPorts.has(value) };
}

/** Keeps what goes in and out of a runner, so that two can be fed alike. */
function recording(runner: Runner, runs: { feeds: Tensors; results: Tensors }[]): Runner {
  return {
    engine: runner.engine,
    inputs: runner.inputs,
    outputs: runner.outputs,
    run: async (feeds) => {
      const results = await runner.run(feeds);
      runs.push({ feeds, results });
      return results;
    },
    close: () => runner.close(),
  };
}

describe.each(CHECKPOINTS)('$name, cut', ({ source }) => {
  let small: SmallDecoder;
  beforeAll(async () => {
    small = await openSmallDecoder(source());
  });
  afterAll(() => small.model?.checkpoint.close());

  const stamp = (decoder: QuantizedDecoder, tokens: number): Module => {
    const module = decoder.stamp({ name: 'decoder', tokens, cache: 64 });
    const graph = module.graph();
    for (const port of [...graph.inputs, ...graph.outputs]) if (port.encoding) graph.quantizedPorts.add(port);
    return module;
  };

  test.each<[string, TargetName]>([
    ['w8a16', 'qnn'],
    ['w4a16', 'qnn'],
    ['w8a8', 'qnn'],
    ['w8a16', 'onnx'],
    ['w8a8', 'tflite'],
    ['fp16', 'qnn'],
  ])('%s for %s gives the integers of the whole', async (scheme, target) => {
    const decoder = await small.quantize(scheme, target);
    for (const tokens of [16, 1]) {
      const whole = stamp(decoder, tokens);
      const stages = decoderStages(whole.graph());
      const cuts = stages.flatMap(({ end }) => end ?? []);
      const parts = splitDecoder(whole, cuts);
      for (const part of parts) verify(part);
      expect(parts).toHaveLength(stages.length);
      cuts.forEach((cut, i) => {
        const out = boundary(parts[i]!, cut, 'outputs');
        expect(boundary(parts[i + 1]!, cut, 'inputs')).toEqual(out);
        expect(out.quantized).toBe(scheme !== 'fp16');
      });
      // Every weight stands in exactly one part.
      const weights = (module: Module): string[] =>
        module.graph().constants.flatMap(({ name }) => (name.endsWith('.weight') ? [name] : []));
      expect(parts.flatMap(weights).sort()).toEqual(weights(whole).sort());
      const [one, ...rest] = await openModules([whole, ...parts]);
      const chain = new ChainRunner(rest);
      try {
        expect([...chain.inputs].sort(byName)).toEqual([...one!.inputs].sort(byName));
        expect([...chain.outputs].sort(byName)).toEqual([...one!.outputs].sort(byName));
        const feeds = randomFeeds(one!);
        const [expected, found] = [await one!.run(feeds), await chain.run(feeds)];
        expect(Object.keys(found).sort()).toEqual(Object.keys(expected).sort());
        for (const [name, tensor] of Object.entries(expected)) expect(found[name], name).toEqual(tensor);
      } finally {
        await one!.close();
        await chain.close();
      }
    }
  });

  test('the float decoder in two parts, fed through a session', async () => {
    const whole = buildPlainDecoder(small.config, small.weights, 16, 64);
    const parts = splitDecoder(whole, ['layers.1.mlp_residual']);
    const runs: { feeds: Tensors; results: Tensors }[] = [];
    const [one, ...rest] = await openModules([whole, ...parts]);
    const session = new DecoderSession({
      protocol: makeProtocol(small.config, plainContract, 64),
      graphs: new Map([[16, recording(one!, runs)]]),
    });
    const chain = new ChainRunner(rest);
    await session.feed(small.text.slice(0, 48));
    expect(runs).toHaveLength(3);
    for (const { feeds, results } of runs) expect(await chain.run(feeds)).toEqual(results);
    // A part whose results nobody wants does not run: it would miss its feeds.
    const { input_ids, attention_mask, position_ids, past_key_0, past_value_0, past_key_1, past_value_1 } =
      runs[0]!.feeds;
    const first = { input_ids, attention_mask, position_ids, past_key_0, past_value_0, past_key_1, past_value_1 };
    expect(Object.keys(await chain.run(first as Tensors, ['new_key_1']))).toEqual(['new_key_1']);
    await expect(chain.run(first as Tensors, ['new_key_9'])).rejects.toMatchObject({ code: 'RT011' });
    await session.close();
    await chain.close();
  });

  test('a prefill graph without logits ends inside its last layer', async () => {
    const decoder = await small.quantize('w8a16', 'tflite');
    const [prefill, decode] = [stamp(decoder, 16), stamp(decoder, 1)];
    const layers = small.config.layers;
    expect(decoderStages(decode.graph()).map(({ name }) => name)).toEqual([
      ...Array.from({ length: layers }, (_, layer) => `layers.${layer}`),
      'head',
    ]);
    expect(decoderStages(prefill.graph()).map(({ name }) => name)).toEqual(
      Array.from({ length: layers }, (_, layer) => `layers.${layer}`),
    );
    const cuts = ['layers.0.mlp_residual', `layers.${layers - 1}.mlp_residual`];
    expect(splitDecoder(decode, cuts)).toHaveLength(3);
    expect(splitDecoder(prefill, cuts)).toHaveLength(2);
  });

  test('a cut that something else passes over is refused', async () => {
    const whole = buildPlainDecoder(small.config, small.weights, 16, 64);
    expect(() => splitDecoder(whole, ['layers.1.attn_norm'])).toThrow(
      expect.objectContaining({ code: 'XX001', message: expect.stringContaining('passes over the cut') }),
    );
  });
});

const byName = (a: { readonly name: string }, b: { readonly name: string }): number => (a.name < b.name ? -1 : 1);

/** Deterministic feeds for every port: integers over the middle of their range, small floats. */
function randomFeeds(runner: Runner): Tensors {
  let state = 12345;
  const next = (): number => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return state / 2 ** 32;
  };
  const arrays = {
    u8: Uint8Array,
    i8: Int8Array,
    u16: Uint16Array,
    i16: Int16Array,
    i32: Int32Array,
    f32: Float32Array,
  };
  const ranges = { u8: [100, 156], i8: [-30, 30], u16: [20000, 45000], i16: [-9000, 9000], i32: [0, 60], f32: [-1, 1] };
  return Object.fromEntries(
    runner.inputs.map(({ name, dtype, shape }) => {
      const [low, high] = ranges[dtype as keyof typeof ranges];
      const count = shape.reduce((product, dim) => product * dim, 1);
      const data = new arrays[dtype as keyof typeof arrays](count);
      for (let i = 0; i < count; i++) {
        const value = low! + next() * (high! - low!);
        data[i] = dtype === 'f32' ? value : Math.floor(value);
      }
      return [name, { dtype, shape, data }];
    }),
  );
}

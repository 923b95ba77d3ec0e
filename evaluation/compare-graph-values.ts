import type { QuantizedDecoder } from '../calibration/quantize-decoder.ts';
import type { Encoding } from '../compiler/ir/encoding.ts';
import type { Module } from '../compiler/ir/graph.ts';
import type { TensorData } from '../compiler/ir/tensor.ts';
import { wasmKernels } from '../compiler/kernels/index.ts';
import { DecoderSession, MASK_VALUE } from '../compiler/runtime/decoder-session.ts';
import { type OpenEngine, openModule } from '../compiler/runtime/engine.ts';
import type { Runner } from '../compiler/runtime/runner.ts';
import { groupByBytes, tapModule } from '../compiler/runtime/taps.ts';
import { makeProtocol } from '../passes/protocol.ts';
import { comparedNames } from './compare-model-values.ts';
import { attributeNoise, comparedInputs, compareValues, type ValueComparison } from './compare-values.ts';

/**
 * Every value of one prefill chunk, the target's QDQ graph against the float graph in the same contract. Both run on ONNX
 * Runtime from an empty cache; values are fetched in groups through taps, a run per group, so that memory stays bounded.
 */
export async function compareGraphValues(
  decoder: QuantizedDecoder,
  chunk: number,
  cache: number,
  window: readonly number[],
): Promise<ValueComparison[]> {
  // Graphs that shift see their own tokens besides the cache.
  const seen = decoder.contract.update === 'shift' ? cache + chunk : cache;
  const request = { name: 'taps', tokens: chunk, cache: seen, logits: 'all' as const };
  const quantized = decoder.stamp(request);
  const float = decoder.lowerFloat(request);
  const common = comparedNames({ module: quantized, float });
  const encodings = new Map<string, Encoding>(common.map((name) => [name, quantized.graph().find(name)!.encoding!]));
  const from = new Map(common.map((name) => [name, quantized.graph().find(name)!.producer?.from ?? []]));
  const reference = await openTaps(decoder, float, common, chunk, cache);
  const other = await openTaps(decoder, quantized, common, chunk, cache);
  try {
    const comparisons: ValueComparison[] = [];
    for (const group of groupByBytes(float.graph(), common)) {
      const expected = await reference.fetch(window, group);
      const got = await other.fetch(window, group);
      comparisons.push(...compareValues(group, expected, got, encodings, from, wasmKernels));
    }
    return attributeNoise(comparisons, comparedInputs(quantized.graph(), new Set(common)));
  } finally {
    await reference.close();
    await other.close();
  }
}

/** A tapped graph behind a session. */
export interface Taps {
  /** Runs the window from an empty cache and gives the named values of its last chunk. */
  fetch(window: readonly number[], names: readonly string[]): Promise<Record<string, TensorData>>;
  close(): Promise<void>;
}

/** Opens a graph of one chunk size so that the named values can be fetched with a window's last chunk. */
export async function openTaps(
  decoder: QuantizedDecoder,
  module: Module,
  names: readonly string[],
  chunk: number,
  cache: number,
  open?: OpenEngine,
): Promise<Taps> {
  const runner = await openModule(tapModule(module, names), open);
  let wanted: readonly string[] = [];
  let seen: Record<string, TensorData> = {};
  const tapped: Runner = {
    engine: runner.engine,
    inputs: runner.inputs,
    outputs: runner.outputs,
    run: async (feeds, outputs) => {
      seen = await runner.run(feeds, [...new Set([...wanted, ...(outputs ?? [])])]);
      return seen;
    },
    close: () => runner.close(),
  };
  // The session only asks for the contract's own outputs.
  const own = module.graph().outputs.map((output) => output.name);
  const session = new DecoderSession({
    // A lower value of the mask saturates in integers: what it leaves of a score says nothing.
    protocol: { ...makeProtocol(decoder.config, decoder.contract, cache), masked: MASK_VALUE },
    graphs: new Map([[chunk, { ...tapped, outputs: runner.outputs.filter(({ name }) => own.includes(name)) }]]),
    ...(decoder.contract.embedding === 'embeds' ? { embedding: decoder.embed } : {}),
  });
  return {
    fetch: async (window, group) => {
      wanted = group;
      session.reset();
      await session.feed(window, 'all');
      const result = seen;
      seen = {};
      return result;
    },
    close: () => session.close(),
  };
}

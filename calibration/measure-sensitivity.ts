import type { DecoderConfig } from '../compiler/import/huggingface/config.ts';
import type { DecoderWeights } from '../compiler/import/huggingface/llama.ts';
import { type Module, tensorType } from '../compiler/ir/graph.ts';
import { type Tensor, toFloats } from '../compiler/ir/tensor.ts';
import { type OpenEngine, openModule } from '../compiler/runtime/engine.ts';
import type { Runner } from '../compiler/runtime/runner.ts';
import { buildDecoderLayer, layerFeeds, runLayer } from './decoder-layer.ts';
import { buildPlainDecoder } from './decoder-statistics.ts';

export interface SensitivityInputs {
  readonly config: DecoderConfig;
  /** Float weights, [K, N]. */
  readonly weights: DecoderWeights;
  /** What quantized weights stand for, [K, N]. */
  readonly quantized: ReadonlyMap<string, Tensor>;
  /** Groups of weights of one layer each, by name. */
  readonly groups: ReadonlyMap<string, readonly string[]>;
  readonly embed: (ids: readonly number[]) => Float32Array;
  /** Windows of one length. */
  readonly windows: readonly (readonly number[])[];
  readonly open?: OpenEngine;
  readonly onLayer?: (done: number, total: number) => void;
}

/**
 * Mean KL(float || model with one group quantized) over every token of the windows, for each group. The residual streams of
 * the float model and of every perturbed one go through the decoder side by side: each layer is opened once, and again for
 * each group of its own; one layer's weights are in memory, and a stream for every group.
 * @returns by group name
 */
export async function measureSensitivity(inputs: SensitivityInputs): Promise<Map<string, number>> {
  const { config, weights, quantized, groups, windows, open } = inputs;
  const window = windows[0]!.length;
  const feeds = layerFeeds(config, window);
  const float = windows.map((ids) => inputs.embed(ids));
  const perturbed = new Map<string, Float32Array[]>();
  for (let layer = 0; layer < config.layers; layer++) {
    const here = `model.layers.${layer}.`;
    const fresh = new Map<string, Float32Array[]>();
    const advance = async (chosen: DecoderWeights, all: readonly (readonly Float32Array[])[]) => {
      const { module, output } = buildDecoderLayer(config, chosen, layer, window, false);
      const runner = await openModule(module, open);
      try {
        const results: Float32Array[][] = [];
        for (const streams of all) {
          const next: Float32Array[] = [];
          for (const stream of streams)
            next.push(toFloats((await runLayer(runner, feeds, stream, window, [output]))[output]!));
          results.push(next);
        }
        return results;
      } finally {
        await runner.close();
      }
    };
    for (const [name, members] of groups) {
      if (!members.every((member) => member.startsWith(here))) continue;
      const changed = new Map(weights);
      for (const member of members) changed.set(member, quantized.get(member)!);
      fresh.set(name, (await advance(changed, [float]))[0]!);
    }
    const names = [...perturbed.keys()];
    const [first, ...others] = await advance(weights, [float, ...names.map((name) => perturbed.get(name)!)]);
    float.splice(0, float.length, ...first!);
    names.forEach((name, i) => perturbed.set(name, others[i]!));
    for (const [name, streams] of fresh) perturbed.set(name, streams);
    inputs.onLayer?.(layer + 1, config.layers + 1);
  }
  const runner = await openModule(buildHead(config, weights, window), open);
  try {
    return await compareHeads(runner, config, window, float, perturbed);
  } finally {
    await runner.close();
    inputs.onLayer?.(config.layers + 1, config.layers + 1);
  }
}

/** The final norm and the head as a graph of their own: stream f32 [1, window, hidden] in, logits out. */
function buildHead(config: DecoderConfig, weights: DecoderWeights, window: number): Module {
  const ends = new Map([...weights].filter(([name]) => !name.startsWith('model.layers.')));
  const module = buildPlainDecoder({ ...config, layers: 0 }, ends, window, window + 1);
  const graph = module.graph();
  const lookup = graph.find('embedding')!;
  const stream = graph.addInput('stream', tensorType('f32', [1, window, config.hiddenSize]));
  graph.replaceUses(lookup, stream);
  graph.prune();
  for (const input of [...graph.inputs]) {
    if (input.consumers.length > 0) continue;
    graph.inputs.splice(graph.inputs.indexOf(input), 1);
    graph.removeValue(input);
  }
  return module;
}

async function compareHeads(
  runner: Runner,
  config: DecoderConfig,
  window: number,
  float: readonly Float32Array[],
  perturbed: ReadonlyMap<string, readonly Float32Array[]>,
): Promise<Map<string, number>> {
  const run = async (stream: Float32Array): Promise<Float32Array> => {
    const shape = [1, window, config.hiddenSize];
    return toFloats((await runner.run({ stream: { dtype: 'f32', shape, data: stream } }, ['logits'])).logits!);
  };
  const sums = new Map([...perturbed.keys()].map((name) => [name, 0]));
  for (const [index, stream] of float.entries()) {
    const expected = await run(stream);
    logSoftmax(expected, config.vocabSize);
    for (const [name, streams] of perturbed) {
      const got = await run(streams[index]!);
      logSoftmax(got, config.vocabSize);
      let sum = 0;
      for (let i = 0; i < expected.length; i++) {
        const p = Math.exp(expected[i]!);
        if (p > 0) sum += p * (expected[i]! - got[i]!);
      }
      sums.set(name, sums.get(name)! + sum);
    }
  }
  const tokens = float.length * window;
  return new Map([...sums].map(([name, sum]) => [name, Math.max(0, sum / tokens)]));
}

/** Logarithms of probabilities, in place, row by row. */
function logSoftmax(logits: Float32Array, width: number): void {
  for (let start = 0; start < logits.length; start += width) {
    const row = logits.subarray(start, start + width);
    let most = Number.NEGATIVE_INFINITY;
    for (const value of row) if (value > most) most = value;
    let sum = 0;
    for (const value of row) sum += Math.exp(value - most);
    const norm = most + Math.log(sum);
    for (let i = 0; i < row.length; i++) row[i] = row[i]! - norm;
  }
}

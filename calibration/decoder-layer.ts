import type { DecoderConfig } from '../compiler/import/huggingface/config.ts';
import type { DecoderWeights } from '../compiler/import/huggingface/llama.ts';
import { intsAttribute, type Module, tensorType, type Value } from '../compiler/ir/graph.ts';
import type { TensorData } from '../compiler/ir/tensor.ts';
import { MASK_VALUE } from '../compiler/runtime/decoder-session.ts';
import type { Runner, Tensors } from '../compiler/runtime/runner.ts';
import { plainContract } from '../passes/io-contract.ts';
import { buildPlainDecoder } from './decoder-statistics.ts';

const STREAM = 'embedding';

/** One layer of a decoder as a graph of its own, so that a model of any size is calibrated a layer at a time. */
export interface DecoderLayer {
  readonly module: Module;
  /** The residual stream behind the layer, f32 [1, window, hidden]. */
  readonly output: string;
  /** What linear layers read, with the weights (by the whole model's names) that read it. */
  readonly inputs: readonly { readonly value: string; readonly weights: readonly string[] }[];
}

/**
 * Cuts layer `layer` out of the decoder in the plain contract, for windows of `window` tokens that start at position 0:
 * stream in, stream out. With `moments`, X^T X of every linear layer's input is an output too, [1, K, K] named `<value>#moments`.
 */
export function buildDecoderLayer(
  config: DecoderConfig,
  weights: DecoderWeights,
  layer: number,
  window: number,
  moments: boolean,
): DecoderLayer {
  const [here, there] = [`model.layers.${layer}.`, 'model.layers.0.'];
  const one = new Map([...weights].filter(([name]) => !name.startsWith('model.layers.')));
  for (const [name, tensor] of weights) if (name.startsWith(here)) one.set(there + name.slice(here.length), tensor);
  const module = buildPlainDecoder({ ...config, layers: 1 }, one, window, window + 1);
  const graph = module.graph();
  const lookup = graph.find(STREAM)!;
  const stream = graph.addInput('stream', lookup.type);
  graph.replaceUses(lookup, stream);
  const output = graph.find('layers.0.mlp_residual')!;
  const readers = new Map<Value, string[]>();
  for (const node of graph.nodes) {
    const weight = node.op === 'MatMul' && node.inputs[1]?.data ? node.input(1).name : '';
    if (!weight.startsWith(there)) continue;
    const input = node.input(0);
    readers.set(input, [...(readers.get(input) ?? []), here + weight.slice(there.length)]);
  }
  graph.states.clear();
  module.states.clear();
  graph.outputs.splice(0, graph.outputs.length, output);
  if (moments) {
    for (const input of readers.keys()) {
      const [, tokens, width] = input.dims as [number, number, number];
      const turned = graph.emit('Transpose', [input], {
        name: `${input.name}#turned`,
        type: tensorType('f32', [1, width, tokens]),
        attributes: { perm: intsAttribute([0, 2, 1]) },
      });
      const type = tensorType('f32', [1, width, width]);
      graph.outputs.push(graph.emit('MatMul', [turned, input], { name: momentsOf(input.name), type }));
    }
  }
  graph.prune();
  // What fed the lookup and the head has no reader now.
  for (const input of [...graph.inputs]) {
    if (input.consumers.length > 0) continue;
    graph.inputs.splice(graph.inputs.indexOf(input), 1);
    graph.removeValue(input);
  }
  return {
    module,
    output: output.name,
    inputs: [...readers].map(([value, names]) => ({ value: value.name, weights: names })),
  };
}

/** Name of the output that carries the second moments of a value. */
export function momentsOf(value: string): string {
  return `${value}#moments`;
}

/** Everything a layer reads besides the stream: positions from 0, a causal mask that hides the one empty slot of the cache. */
export function layerFeeds(config: DecoderConfig, window: number): Tensors {
  const { names } = plainContract;
  const mask = new Float32Array(window * (window + 1)).fill(MASK_VALUE);
  for (let row = 0; row < window; row++) mask.fill(0, row * (window + 1) + 1, row * (window + 1) + row + 2);
  const empty: TensorData = {
    dtype: 'f32',
    shape: [1, config.keyValueHeads, 1, config.headDim],
    data: new Float32Array(config.keyValueHeads * config.headDim),
  };
  return {
    [names.mask]: { dtype: 'f32', shape: [1, 1, window, window + 1], data: mask },
    [names.positions!]: { dtype: 'i32', shape: [1, window], data: Int32Array.from({ length: window }, (_, i) => i) },
    [names.pastKey(0)]: empty,
    [names.pastValue(0)]: empty,
  };
}

/** Runs a layer over streams [window, hidden] one after the other. */
export async function runLayer(
  runner: Runner,
  feeds: Tensors,
  stream: Float32Array,
  window: number,
  outputs: readonly string[],
): Promise<Record<string, TensorData>> {
  const shape = [1, window, stream.length / window];
  return runner.run({ ...feeds, stream: { dtype: 'f32', shape, data: stream } }, outputs);
}

import { prepareGraph } from '../calibration/plan.ts';
import { planWeights } from '../calibration/plan-weights.ts';
import { planPrecision } from '../calibration/precision.ts';
import { cacheBits, hasFloatActivations, type NumberFormat, type Recipe } from '../calibration/recipe.ts';
import type { ValueStatistics } from '../calibration/statistics.ts';
import { buildDecoder } from '../compiler/import/decoder-model.ts';
import type { DecoderConfig } from '../compiler/import/huggingface/config.ts';
import type { DecoderWeights } from '../compiler/import/huggingface/llama.ts';
import type { Graph, Value } from '../compiler/ir/graph.ts';
import { MASK_VALUE } from '../compiler/runtime/decoder-session.ts';
import { applyIoContract } from '../passes/apply-io-contract.ts';
import type { IoContract } from '../passes/io-contract.ts';
import { planArena } from './plan-arena.ts';
import { measureStages, type StageLoad } from './qnn/plan-compile.ts';

/** What decides how the values of a decoder are stored. */
export interface MemoryRequest {
  readonly config: DecoderConfig;
  readonly weights: DecoderWeights;
  readonly recipe: Recipe;
  readonly format: NumberFormat;
  readonly contract: IoContract;
  /** Whether inputs and outputs are integers. */
  readonly integerPorts: boolean;
}

/** Bytes of one graph beside its weights. */
export interface GraphMemory {
  readonly tokens: number;
  readonly cache: number;
  /** Values inside the graph, laid out by when they are needed. */
  readonly arenaBytes: number;
  /** Keys and values that go in: the cache less the new tokens. */
  readonly pastBytes: number;
  readonly newBytes: number;
  /** All other inputs and outputs. */
  readonly ioBytes: number;
  /** Nodes of the whole graph, counted from those of its layers. */
  readonly nodes: number;
  /** Bytes alive in the arena while each node runs: embedding, a first, a middle and a last layer, head. */
  readonly alive: readonly number[];
}

/** Bytes of the weights, once. */
export interface WeightMemory {
  /** Matrices of the layers and the head with their scales, norms and biases. */
  readonly weightBytes: number;
  /** The embedding table, in the graphs or beside them. */
  readonly embeddingBytes: number;
  /** Whether it is in the graphs. */
  readonly embeddingInGraph: boolean;
  /** How many numbers the graphs have, and those of them that are in blocks of two-level scales. */
  readonly weights: number;
  readonly blockWeights: number;
  /** Output channels of all quantized matrices: each has a scale. */
  readonly channels: number;
  readonly stages: readonly StageLoad[];
}

const OPSET = 24;
const EMBEDDING = 'model.embed_tokens.weight';
/** A first, a middle and a last layer have the arena of any number: only the residual stream passes from one to the next. */
const ENOUGH_LAYERS = 3;

/** The decoder's graph for a shape as a target gets it, lowered and with the conversions of its number formats. */
function lowerGraph(request: MemoryRequest, layers: number, tokens: number, cache: number): Graph {
  const { config, weights, contract, recipe, format } = request;
  const module = buildDecoder({ ...config, layers }, weights, cache, true);
  applyIoContract(module, contract, { tokens, cache });
  prepareGraph(module.graph(), OPSET, recipe, format, unseen(contract));
  return module.graph();
}

/** Before calibration only the mask's range is known; what statistics would promote to 16 bits counts with the scheme's bits. */
function unseen({ names }: IoContract): ReadonlyMap<string, ValueStatistics> {
  return new Map([[names.mask, { min: MASK_VALUE, max: 0, typical: -MASK_VALUE }]]);
}

/**
 * Bytes of a graph's values, from its liveness and the number formats alone: nothing is calibrated.
 * @param layers of the decoder that is laid out; the default is enough, all of them give the same arena
 */
export function planGraphMemory(
  request: MemoryRequest,
  tokens: number,
  cache: number,
  layers: number = Math.min(ENOUGH_LAYERS, request.config.layers),
): GraphMemory {
  const { config, recipe, format, integerPorts } = request;
  const graph = lowerGraph(request, layers, tokens, cache);
  const precision = planPrecision(graph, OPSET, recipe, format, unseen(request.contract));
  const elementBits = (value: Value): number => {
    if (value.type?.kind !== 'tensor' || value.type.dtype !== 'f32') return 32;
    // Half floats inside; weights that are quantized alone leave the values floats.
    if (hasFloatActivations(recipe)) return recipe.scheme === 'fp16' ? 16 : 32;
    const group = precision.groups.get(value);
    return group && (group.cache || group.why !== '') ? group.bits : 32;
  };
  const count = (value: Value): number => value.dims.reduce((product, dim) => product * dim, 1);
  const { bytes, alive } = planArena(graph, (value) => (count(value) * elementBits(value)) / 8);
  const integers = integerPorts && !hasFloatActivations(recipe);
  const portBytes = (value: Value): number => (count(value) * (integers ? elementBits(value) : 32)) / 8;
  const sum = (values: readonly Value[]): number => values.reduce((total, value) => total + portBytes(value), 0);
  const states = [...graph.states.values()];
  const caches = new Set(states.flatMap(({ input, output }) => [input, output]));
  const scale = config.layers / layers;
  return {
    tokens,
    cache,
    arenaBytes: bytes,
    pastBytes: scale * sum(states.map(({ input }) => input)),
    newBytes: scale * sum(states.map(({ output }) => output)),
    nodes: Math.ceil(scale * graph.nodes.length),
    ioBytes: sum([...graph.inputs, ...graph.outputs].filter((value) => !caches.has(value))),
    alive,
  };
}

/** Keys and values of so many slots in every layer, as the host keeps them. */
export function cacheBytes({ config, recipe, format, integerPorts }: MemoryRequest, slots: number): number {
  const bits = hasFloatActivations(recipe) || !integerPorts ? 32 : cacheBits(recipe, format);
  return (2 * config.layers * config.keyValueHeads * config.headDim * bits * slots) / 8;
}

/**
 * Bytes of the weights as they are written, scales included, from their forms.
 * @param tableBytes of a table beside the graphs, where the contract takes rows
 */
export function planWeightMemory(request: MemoryRequest, tableBytes: number): WeightMemory {
  const { config, contract, recipe, format } = request;
  const graph = lowerGraph(request, config.layers, 1, 2);
  const float = recipe.scheme === 'fp16';
  const forms = float ? new Map<string, never>() : planWeights(graph, recipe, format, []);
  const stages = measureStages(graph, forms, recipe);
  const sum = (key: 'weights' | 'bytes' | 'blockWeights'): number =>
    stages.reduce((total, stage) => total + stage[key], 0);
  const channels = [...forms.keys()].reduce((total, name) => total + graph.find(name)!.dims.at(-1)!, 0);
  const counts = { weights: sum('weights'), blockWeights: sum('blockWeights'), channels, stages };
  const table = graph.find(EMBEDDING);
  if (!table) return { ...counts, weightBytes: sum('bytes'), embeddingBytes: tableBytes, embeddingInGraph: false };
  const { size } = table.data!;
  const rows = !float && format.table === 'row';
  // A table with a scale per row has 8 bits; any other one has those of the residual stream, which an 8-bit scheme keeps at 16.
  const bits = float
    ? 16
    : (planPrecision(graph, OPSET, recipe, format, unseen(contract)).groups.get(table)?.bits ?? 16);
  return {
    ...counts,
    weightBytes: sum('bytes') - (size * (float ? 16 : recipe.activation)) / 8,
    embeddingBytes: rows ? size + 4 * config.vocabSize : (size * bits) / 8,
    embeddingInGraph: true,
  };
}

/** Bytes of a node in a file, by target: its name, tensors and, where there are integers, its conversions and small scales. */
const NODE_BYTES = { tflite: 220, onnx: { floats: 240, integers: 1000 } } as const;
/** A TFLite graph has its own scale (4 bytes) and zero point (8) for every channel. */
const CHANNEL_BYTES = 12;

/** Bytes of the files of a target that are not the HTP's: weights once, and what every graph adds. */
export function planFileBytes(
  target: 'onnx' | 'tflite',
  { recipe }: MemoryRequest,
  { weightBytes, embeddingBytes, channels }: WeightMemory,
  graphs: readonly GraphMemory[],
): number {
  const nodes = graphs.reduce((total, graph) => total + graph.nodes, 0);
  if (target === 'onnx') {
    return weightBytes + embeddingBytes + nodes * NODE_BYTES.onnx[hasFloatActivations(recipe) ? 'floats' : 'integers'];
  }
  return weightBytes + embeddingBytes + channels * (CHANNEL_BYTES * graphs.length - 4) + nodes * NODE_BYTES.tflite;
}

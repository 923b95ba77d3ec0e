import {
  cacheBits,
  hasFloatActivations,
  type NumberFormat,
  type Recipe,
  takesBlocks,
} from '../../calibration/recipe.ts';
import type { DecoderConfig } from '../../compiler/import/huggingface/config.ts';
import { graphRequests, type ShapeRequest } from '../../targets/graph-requests.ts';
import { formatOf } from '../../targets/index.ts';
import type { CompilePart } from '../../targets/qnn/plan-compile.ts';
import type { EmbeddingChoice, TargetName } from '../../targets/target.ts';

/** Bytes of one target's artifact and of its cache, from the configuration alone. */
export interface TargetSizes {
  /** Linear layers and head as they will be written, scales included. */
  readonly weightBytes: number;
  readonly headBytes: number;
  readonly embeddingBytes: number;
  /** Keys and values of every layer, by cache size. */
  readonly cacheBytes: Readonly<Record<number, number>>;
}

export interface PlannedGraph {
  readonly name: string;
  readonly tokens: number;
  readonly cache: number;
  /** Keys and values that go into a run and come out of it, by target. */
  readonly pastBytes: Readonly<Partial<Record<TargetName, number>>>;
  readonly newBytes: Readonly<Partial<Record<TargetName, number>>>;
}

export interface SizePlan {
  readonly parameters: number;
  /** Graphs that will be made. */
  readonly graphs: readonly PlannedGraph[];
  readonly targets: Readonly<Partial<Record<TargetName, TargetSizes>>>;
  /** Estimated peaks of memory on this machine while compiling, bytes. */
  readonly memory: { readonly process: number; readonly qnnCompiler?: number };
}

/** What this process holds beside the weights, and per weight: measured on SmolLM2-135M (docs/simulator.md). */
const PROCESS_BASE = 0.35e9;
const PROCESS_PER_WEIGHT = 20;
/** Without an evaluation the float model is never whole in memory (calibration/stream-decoder.ts): measured on 1.2 billion weights. */
const STREAMED_WEIGHTS = 2 ** 28;
const STREAMED_PER_WEIGHT = 14;

/**
 * Sizes of a decoder under a recipe.
 * @param parts what the HTP compiler will be given
 * @param embedding where the HTP's graphs have theirs
 * @param evaluated whether the float model will be run beside the artifacts
 */
export function planSizes(
  config: DecoderConfig,
  recipe: Recipe,
  shapes: ShapeRequest,
  targets: readonly TargetName[],
  parts: readonly CompilePart[] = [],
  evaluated = true,
  embedding: EmbeddingChoice = 'in-graph',
): SizePlan {
  const slots = targets.map((name) => [name, slotBytes(config, recipe, formatOf(name).format)] as const);
  const graphs = graphRequests(shapes).map(({ name, tokens, cache }) => ({
    name,
    tokens,
    cache,
    pastBytes: Object.fromEntries(slots.map(([target, bytes]) => [target, bytes * (cache - tokens)])),
    newBytes: Object.fromEntries(slots.map(([target, bytes]) => [target, bytes * tokens])),
  }));
  const linears = layerShapes(config);
  const perLayer = linears.reduce((sum, [inputs, outputs]) => sum + inputs * outputs, 0) + 2 * config.hiddenSize;
  const tables = config.vocabSize * config.hiddenSize * (config.tiedEmbeddings ? 1 : 2);
  const parameters = config.layers * perLayer + config.hiddenSize + tables;
  const streamed = Math.min(parameters, Math.max(STREAMED_WEIGHTS, config.vocabSize * config.hiddenSize));
  return {
    parameters,
    graphs,
    targets: Object.fromEntries(
      targets.map((name) => {
        if (name === 'hf') return [name, floatSizes(config, shapes)];
        const sizes = sizesFor(config, recipe, shapes, formatOf(name).format);
        const table = name === 'qnn' ? tableBytes(config, embedding) : undefined;
        return [name, { ...sizes, ...(table === undefined ? {} : { embeddingBytes: table }) }];
      }),
    ),
    memory: {
      process: PROCESS_BASE + (evaluated ? parameters * PROCESS_PER_WEIGHT : streamed * STREAMED_PER_WEIGHT),
      ...(parts.length > 0 ? { qnnCompiler: Math.max(...parts.map(({ peakBytes }) => peakBytes)) } : {}),
    },
  };
}

/** [inputs, outputs] of the linear layers of one block. */
function layerShapes(config: DecoderConfig): (readonly [number, number])[] {
  const { hiddenSize: d, intermediateSize: f, headDim, heads, keyValueHeads } = config;
  return [
    [d, heads * headDim],
    [d, keyValueHeads * headDim],
    [d, keyValueHeads * headDim],
    [heads * headDim, d],
    [d, f],
    [d, f],
    [f, d],
  ];
}

function sizesFor(config: DecoderConfig, recipe: Recipe, { caches }: ShapeRequest, format: NumberFormat): TargetSizes {
  const float = recipe.scheme === 'fp16';
  const bytesOf = (inputs: number, outputs: number, bits: number, wanted: number): number => {
    if (float) return inputs * outputs * 2;
    const block = takesBlocks(recipe.weight, format) ? wanted : 0;
    const blocked = block > 0 && inputs % block === 0;
    const width = block > 0 && !blocked ? 8 : bits;
    return (
      Math.ceil((inputs * outputs * width) / 8) +
      outputs * 4 +
      (blocked ? (inputs / block) * outputs * (recipe.weight.scales === 'f16' ? 2 : 1) : 0)
    );
  };
  const perLayer = layerShapes(config).reduce(
    (sum, [inputs, outputs]) => sum + bytesOf(inputs, outputs, recipe.weight.bits, recipe.weight.block),
    0,
  );
  const headBytes = bytesOf(config.hiddenSize, config.vocabSize, recipe.head.bits, recipe.head.block);
  const elements = config.vocabSize * config.hiddenSize;
  const table = format.table === 'row' ? elements + config.vocabSize * 4 : (elements * recipe.activation) / 8;
  const slot = slotBytes(config, recipe, format);
  return {
    weightBytes: config.layers * perLayer + headBytes,
    headBytes,
    embeddingBytes: float ? elements * 2 : table,
    cacheBytes: Object.fromEntries(caches.map((cache) => [cache, slot * cache])),
  };
}

/** A checkpoint in f32 with a head of its own; its cache is whatever loads it has, in floats. */
function floatSizes(config: DecoderConfig, { caches }: ShapeRequest): TargetSizes {
  const perLayer = layerShapes(config).reduce((sum, [inputs, outputs]) => sum + inputs * outputs, 0);
  const table = config.vocabSize * config.hiddenSize * 4;
  const slot = 2 * config.layers * config.keyValueHeads * config.headDim * 4;
  return {
    weightBytes: config.layers * perLayer * 4 + table,
    headBytes: table,
    embeddingBytes: table,
    cacheBytes: Object.fromEntries(caches.map((cache) => [cache, slot * cache])),
  };
}

/** Keys and values of one token in every layer. */
function slotBytes(config: DecoderConfig, recipe: Recipe, format: NumberFormat): number {
  const bits = hasFloatActivations(recipe) ? 32 : cacheBits(recipe, format);
  return (2 * config.layers * config.keyValueHeads * config.headDim * bits) / 8;
}

/** A table beside the graphs (targets/embedding-file.ts). */
function tableBytes({ vocabSize, hiddenSize }: DecoderConfig, embedding: EmbeddingChoice): number | undefined {
  if (embedding === 'in-graph') return undefined;
  return embedding === 'lut-f16' ? 8 + vocabSize * hiddenSize * 2 : 8 + vocabSize * (hiddenSize + 4);
}

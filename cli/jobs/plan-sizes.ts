import {
  cacheBits,
  hasFloatActivations,
  type NumberFormat,
  type Recipe,
  takesBlocks,
} from '../../calibration/recipe.ts';
import { NpucError } from '../../compiler/errors.ts';
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
/** Per element of the second moments of a layer's widest input, in every form that they have at once: measured at 2,048 channels. */
const MOMENT_BYTES = 56;

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
      process: planMemory(config, { whole: evaluated, rounding: recipe.rounding }).process,
      ...(parts.length > 0 ? { qnnCompiler: Math.max(...parts.map(({ peakBytes }) => peakBytes)) } : {}),
    },
  };
}

/** The memory of this process while it compiles a decoder, and what it could be. */
export interface MemoryPlan {
  /** Estimated peak, bytes. */
  readonly process: number;
  /** The least that any limit can bring it to. */
  readonly least: number;
  /** Bytes of float weights that calibration may have open at a time. */
  readonly weightBytes: number;
}

/** What memory depends on, beside the shape of the decoder. */
export interface MemoryNeeds {
  /** Whether the float model runs as a whole: for an evaluation, or to measure recipes against each other. */
  readonly whole: boolean;
  readonly rounding: Recipe['rounding'];
}

/**
 * The memory of a compile, within a limit where there is one: float weights stream through calibration in parts of at most a
 * gibibyte, or as much less as the limit asks for, down to the largest of a layer, the embedding and the head. Rounding with
 * error feedback needs the second moments of the widest input of a layer.
 */
export function planMemory(
  config: DecoderConfig,
  { whole, rounding }: MemoryNeeds,
  limit = Number.POSITIVE_INFINITY,
): MemoryPlan {
  const shapes = layerShapes(config);
  const perLayer = shapes.reduce((sum, [inputs, outputs]) => sum + inputs * outputs, 0);
  const table = config.vocabSize * config.hiddenSize;
  const parameters =
    config.layers * (perLayer + 2 * config.hiddenSize) + config.hiddenSize + table * (config.tiedEmbeddings ? 1 : 2);
  const smallest = Math.min(parameters, Math.max(perLayer, table));
  const most = Math.min(parameters, Math.max(STREAMED_WEIGHTS, smallest));
  const room = Math.floor((limit - PROCESS_BASE) / STREAMED_PER_WEIGHT);
  const streamed = Math.max(smallest, Math.min(most, room));
  const widest = Math.max(...shapes.map(([inputs]) => inputs));
  const moments =
    rounding === 'gptq' ? PROCESS_BASE + perLayer * STREAMED_PER_WEIGHT + widest * widest * MOMENT_BYTES : 0;
  const all = whole ? PROCESS_BASE + parameters * PROCESS_PER_WEIGHT : 0;
  const peakOf = (weights: number): number => Math.max(all, moments, PROCESS_BASE + weights * STREAMED_PER_WEIGHT);
  return { process: peakOf(streamed), least: peakOf(smallest), weightBytes: 4 * streamed };
}

/** @throws QT150 naming the smallest limit that works, and what would work with less */
export function requireMemory(config: DecoderConfig, needs: MemoryNeeds, limit: number): void {
  const mebibytes = (bytes: number): string => `${Math.ceil(bytes / 2 ** 20)}MiB`;
  const leastOf = (less: Partial<MemoryNeeds>): number => planMemory(config, { ...needs, ...less }, limit).least;
  const least = leastOf({});
  if (least <= limit) return;
  const ways: [string, Partial<MemoryNeeds>][] = [
    ['without an evaluation (--evaluate none, and no --effort best)', { whole: false }],
    ['with --rounding nearest as well', { whole: false, rounding: 'nearest' }],
  ];
  const cheaper = ways
    .map(([way, less]) => ({ way, bytes: leastOf(less) }))
    .filter(({ bytes }, i, all) => bytes < (all[i - 1]?.bytes ?? least))
    .map(({ way, bytes }) => `; ${way} ${mebibytes(bytes)}`);
  throw new NpucError('QT150', {
    message: `compiling needs about ${mebibytes(least)} of memory, --max-memory allows ${mebibytes(limit)}`,
    hint: `--max-memory ${mebibytes(least)} is the smallest that works${cheaper.join('')}`,
  });
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

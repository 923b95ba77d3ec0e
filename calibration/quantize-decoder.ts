import { buildDecoder, type DecoderModel, lookUpRows } from '../compiler/import/decoder-model.ts';
import type { DecoderConfig } from '../compiler/import/huggingface/config.ts';
import type { DecoderWeights } from '../compiler/import/huggingface/llama.ts';
import type { TakenWeight } from '../compiler/import/quantized/stored-weight.ts';
import type { Encoding } from '../compiler/ir/encoding.ts';
import type { Graph, Module } from '../compiler/ir/graph.ts';
import type { Tensor } from '../compiler/ir/tensor.ts';
import { createKernelPool, type KernelPool } from '../compiler/kernels/index.ts';
import type { Kernels } from '../compiler/kernels/kernels.ts';
import { runPasses } from '../compiler/pass.ts';
import { applyIoContract } from '../passes/apply-io-contract.ts';
import { type IoContract, plainContract } from '../passes/io-contract.ts';
import { storeWeightsF16 } from '../passes/store-weights-f16.ts';
import { adoptEncodings, adoptWeights, widthsOf } from './adopt-encodings.ts';
import { compensateDecoder } from './compensate-decoder.ts';
import { addHistograms, type CollectOptions, translateStatistics } from './decoder-statistics.ts';
import { type Decision, describeDecisions } from './describe-decisions.ts';
import { decoderSites, type Migration, migrateOutliers } from './migrate-outliers.ts';
import { applyPlan, type Plan, planQuantization, prepareGraph } from './plan.ts';
import type { GivenEncodings } from './read-encodings.ts';
import { hasFloatActivations, type NumberFormat, type Recipe } from './recipe.ts';
import { cachedRounding } from './rounding-cache.ts';
import { cachedEncodings, cachedMigration, type SearchKey } from './search-cache.ts';
import type { Statistics, ValueStatistics } from './statistics.ts';
import type { StatisticsKey } from './statistics-cache.ts';
import { adoptFitted, describeLoss, fitWeights, requireFit } from './take-weights.ts';
import { encodeWeights } from './weights.ts';

/** Shapes and logits of one graph to stamp out. */
export interface GraphRequest {
  readonly name: string;
  readonly tokens: number;
  readonly cache: number;
  /** The longest context of any graph of the decoder, where that is another one: rotary tables are made for it. */
  readonly context?: number;
  readonly logits?: 'all' | 'none';
}

/** A decoder quantized for one target: plan and weight encodings, from which graphs of any shape are stamped out. */
export interface QuantizedDecoder {
  readonly config: DecoderConfig;
  /** Embedding rows of token ids, as its graphs take them, f32 [ids.length, hidden]. */
  readonly embed: DecoderModel['embed'];
  readonly contract: IoContract;
  readonly recipe: Recipe;
  readonly format: NumberFormat;
  readonly plan: Plan;
  readonly weightEncodings: ReadonlyMap<string, Encoding>;
  readonly migration: Migration;
  /** How every encoding came about. */
  explain(): Decision[];
  /** A module with one lowered, prepared and encoded graph; weights are shared between calls by tensor identity. */
  stamp(request: GraphRequest): Module;
  /** The same graph in float, outliers migrated as in the quantized one: the reference for values. */
  lowerFloat(request: GraphRequest): Module;
}

export interface QuantizeInputs {
  readonly config: DecoderConfig;
  readonly weights: DecoderWeights;
  /** Of the plain contract (collectDecoderStatistics). */
  readonly statistics: Statistics;
  readonly windows: readonly (readonly number[])[];
  readonly recipe: Recipe;
  readonly format: NumberFormat;
  readonly contract: IoContract;
  readonly kernels: Kernels;
  /** Threads of the scale searches (1 by default); the result does not depend on them. */
  readonly threads?: number;
  readonly onWeight?: (done: number, total: number) => void;
  readonly calibration?: CollectOptions;
  /** Encodings to use in the place of calibrated ones, by the names of the decoder's own values. */
  readonly given?: GivenEncodings;
  /** Integers of a checkpoint that is quantized already: they are written as they are. */
  readonly taken?: ReadonlyMap<string, TakenWeight>;
  /** Whether such integers are rounded again where the target cannot hold them. */
  readonly requantize?: boolean;
  /** Embedding rows of token ids, f32 [ids.length, hidden]; by default looked up in the weights. */
  readonly embed?: DecoderModel['embed'];
  /** What the statistics depend on: chosen integers are then kept in the cache folder. */
  readonly cacheKey?: StatisticsKey;
  readonly onLayer?: (done: number, total: number) => void;
}

/** Weights below which threads cost more to start than they save. */
const POOLED_WEIGHTS = 8e6;

/** Embedding rows that are read at a time. */
const WINDOW_ROWS = 4096;

/** TensorScatter, which one contract needs, is of 24. */
const OPSET = 24;
const EMBEDDING = 'model.embed_tokens.weight';
const EMBEDDINGS: ReadonlySet<string> = new Set([EMBEDDING]);

/** Decides every encoding of a decoder for one target; nothing is written yet. */
export async function quantizeDecoder(inputs: QuantizeInputs): Promise<QuantizedDecoder> {
  const { config, format, contract, kernels, given } = inputs;
  const fit = fitWeights(
    inputs.recipe.scheme === 'fp16' ? new Map() : (inputs.taken ?? new Map()),
    format,
    inputs.recipe,
  );
  if (!inputs.requantize) requireFit(fit, format);
  const asked = given ? withWidths(inputs, given) : inputs.recipe;
  // Scale that moves into a weight would lift its integers off their grid.
  const recipe: Recipe = fit.fitted.size > 0 ? { ...asked, migration: 0 } : asked;
  // Encodings and integers from elsewhere are not part of what the searches depend on.
  const search: SearchKey | undefined =
    inputs.cacheKey && !given && fit.fitted.size === 0
      ? { ...inputs.cacheKey, recipe, format: format.name, contract: contract.name }
      : undefined;
  const migration = await cachedMigration(search, (known) =>
    migrateOutliers(inputs.weights, decoderSites(config.layers), inputs.statistics, recipe, format, kernels, known),
  );
  let plain: Map<string, ValueStatistics> = migration.statistics;
  if (recipe.range !== 'min-max' && recipe.activation === 8) {
    plain = await addHistograms(config, migration.weights, inputs.windows, plain, kernels, inputs.calibration);
  }
  const statistics = translateStatistics(plain, contract, config.layers);
  if (contract.embedding === 'embeds' && format.table === 'tensor' && !hasFloatActivations(recipe)) {
    // As with a table inside the graph: rows of tokens that the calibration text does not have must not be cut off.
    const rows = statistics.get(contract.names.tokens)!;
    const { min, max } = rangeOfTable(migration.weights.get(EMBEDDING)!);
    statistics.set(contract.names.tokens, { ...rows, min: Math.min(rows.min, min), max: Math.max(rows.max, max) });
  }
  const lowerFloat = (request: GraphRequest, weights: DecoderWeights): Module => {
    const module = buildDecoder(config, weights, request.context ?? request.cache, true);
    applyIoContract(module, contract, request);
    module.graph().name = request.name;
    return module;
  };
  const lower = (request: GraphRequest): Module => {
    const module = lowerFloat(request, migration.weights);
    prepareGraph(module.graph(), OPSET, recipe, format, statistics);
    return module;
  };
  // Encodings do not depend on shapes; the smallest graph holds every value there is. Of those that update their caches
  // themselves it is the smallest chunk, which pads them.
  const tokens = contract.update === 'in-graph' ? 2 : 1;
  const model = lower({ name: 'plan', tokens, cache: 2 * tokens, logits: 'all' });
  const graph = model.graph();
  const own = planQuantization(graph, OPSET, recipe, format, statistics, EMBEDDINGS);
  // A target may have no place for some values of another one's contract: they are known all the same.
  const planned = adoptFitted(given ? adoptEncodings(given, graph, own, format, knownNames(inputs)) : own, fit);
  const weightEncodings = await cachedEncodings(search, () => {
    const pool = openPool(inputs);
    return encodeWeights(model.graph(), planned, statistics, kernels, inputs.onWeight, pool, fit.fitted).finally(() =>
      pool?.close(),
    );
  });
  if (given) adoptWeights(given, graph, planned, format, weightEncodings);
  const embed = inputs.embed ?? lookUpRows(inputs.weights.get('model.embed_tokens.weight')!);
  const free = new Map([...weightEncodings].filter(([name]) => !fit.fitted.has(name)));
  const rounded = new Map(await roundWeights({ ...inputs, embed }, migration, free));
  const lost = describeLoss(fit, migration.weights, weightEncodings, rounded);
  const plan = { ...planned, remarks: [...planned.remarks, ...lost] };
  for (const [name, { values, encoding }] of fit.fitted) {
    if (!plan.weights.has(name)) continue;
    rounded.set(name, values);
    weightEncodings.set(name, encoding);
  }
  return {
    config,
    embed,
    contract,
    recipe,
    format,
    plan,
    weightEncodings,
    migration,
    explain: () =>
      describeDecisions({
        ...{ graph, opset: OPSET, plan, recipe, format, statistics, weightEncodings, migration },
        compensated: new Set([...rounded.keys()].filter((name) => !fit.fitted.has(name))),
        taken: new Set(fit.fitted.keys()),
        layers: config.layers,
      }),
    lowerFloat: (request) => lowerFloat(request, migration.weights),
    stamp: (request) => {
      const module = lower(request);
      if (recipe.scheme === 'fp16') runPasses(module, [storeWeightsF16(EMBEDDINGS)], { inferShapes: false });
      else applyPlan(module.graph(), OPSET, plan, weightEncodings);
      for (const [name, integers] of rounded) {
        const weight = module.graph().find(name);
        if (weight) weight.payload = integers;
      }
      return module;
    },
  };
}

/** The graph of the plain contract, in float: its names are those of an encodings file. */
function plainGraph({ config, weights }: QuantizeInputs): Graph {
  const module = buildDecoder(config, weights, 2, true);
  applyIoContract(module, plainContract, { tokens: 1, cache: 2, logits: 'all' });
  return module.graph();
}

const knownNames = (inputs: QuantizeInputs): Set<string> =>
  new Set([...plainGraph(inputs).values].map(({ name }) => name));

/** The recipe with the widths that a file asks for. */
function withWidths(inputs: QuantizeInputs, given: GivenEncodings): Recipe {
  const { recipe } = inputs;
  return { ...recipe, overrides: [...recipe.overrides, ...widthsOf(given, plainGraph(inputs), recipe)] };
}

/** The range of all rows, a window of them in memory at a time. */
function rangeOfTable(table: Tensor): { min: number; max: number } {
  const look = lookUpRows(table);
  const rows = table.shape[0]!;
  let [min, max] = [0, 0];
  for (let start = 0; start < rows; start += WINDOW_ROWS) {
    const ids = Array.from({ length: Math.min(WINDOW_ROWS, rows - start) }, (_, i) => start + i);
    for (const element of look(ids)) {
      if (element < min) min = element;
      if (element > max) max = element;
    }
  }
  return { min, max };
}

function openPool({ weights, threads = 1 }: QuantizeInputs): KernelPool | undefined {
  const total = [...weights.values()].reduce((sum, tensor) => sum + tensor.size, 0);
  return threads > 1 && total >= POOLED_WEIGHTS ? createKernelPool(threads) : undefined;
}

/** Integers of the 4-bit weights where the recipe wants others than the nearest. */
async function roundWeights(
  inputs: QuantizeInputs & { readonly embed: DecoderModel['embed'] },
  migration: Migration,
  weightEncodings: ReadonlyMap<string, Encoding>,
): Promise<ReadonlyMap<string, Tensor>> {
  const { config, windows, kernels, cacheKey, calibration, onLayer } = inputs;
  const encodings = new Map([...weightEncodings].filter(([, { dtype }]) => dtype === 'i4'));
  if (inputs.recipe.rounding === 'nearest' || encodings.size === 0) return new Map();
  const compute = (): Promise<Map<string, Tensor>> =>
    compensateDecoder({
      config,
      weights: migration.weights,
      encodings,
      embed: inputs.embed,
      windows,
      kernels,
      ...(calibration?.open ? { open: calibration.open } : {}),
      ...(onLayer ? { onLayer } : {}),
    });
  if (!cacheKey) return compute();
  return cachedRounding({ ...cacheKey, encodings, exponents: migration.exponents }, compute);
}

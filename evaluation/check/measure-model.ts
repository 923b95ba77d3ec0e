import { createHash } from 'node:crypto';
import { type QuantizedGraph, quantizeGraph } from '../../calibration/quantize-graph.ts';
import type { NumberFormat, Recipe } from '../../calibration/recipe.ts';
import type { Samples } from '../../calibration/samples.ts';
import { cloneModule } from '../../compiler/ir/clone.ts';
import { type Encoding, encodingBits } from '../../compiler/ir/encoding.ts';
import type { Module } from '../../compiler/ir/graph.ts';
import { toFloats } from '../../compiler/ir/tensor.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import {
  cosineSimilarity,
  createDifferenceSums,
  type DifferenceSums,
  signalToNoise,
} from '../../compiler/kernels/kernels.ts';
import { type OpenEngine, openModule } from '../../compiler/runtime/engine.ts';
import type { Runner, Tensors } from '../../compiler/runtime/runner.ts';
import { groupByBytes, runTaps, tapModule } from '../../compiler/runtime/taps.ts';
import type { TargetName } from '../../targets/target.ts';
import { comparedNames } from '../compare-model-values.ts';
import { compareResults, runSamples, worstSqnr } from '../compare-runs.ts';
import { attributeNoise, comparedInputs } from '../compare-values.ts';
import type { StageValue, Subject } from './find-culprit.ts';
import { describeForm, meanScale, widen } from './measure-decoder.ts';
import type { MeasuredValue, MeasuredWeight, Measurement } from './measurement.ts';
import { type Patch, patchModule } from './patch-module.ts';

/** The module as it is after a pass that changed it. */
export interface Snapshot {
  readonly pass: string;
  readonly module: Module;
}

/** An ONNX model with its samples, ready to be measured. */
export interface ModelInputs {
  readonly name: string;
  readonly digest: string;
  /** The user's own file, untouched. */
  readonly path: string;
  /** Frozen, simplified and fused. */
  readonly module: Module;
  /** Every state on the way there, made anew when asked for. */
  readonly trace: () => readonly Snapshot[];
  /** Rewrites a module in place for the target. */
  readonly lower: (module: Module) => void;
  readonly calibration: Samples;
  readonly evaluation: Samples;
  readonly recipe: Recipe;
  readonly format: NumberFormat;
  readonly target: TargetName;
  readonly npuc: string;
  readonly open: OpenEngine;
}

/** Samples that values inside are compared on. */
const VALUE_SAMPLES = 4;

const SIMPLIFY = 'simplify and fuse';

/** Quantizes an ONNX model and measures the target's QDQ graph against the untouched model, both on ONNX Runtime. */
export async function measureModel(inputs: ModelInputs): Promise<Subject> {
  const names = inputs.module.graph().outputs.map(({ name }) => name);
  const { results: reference, engine } = await runFile(inputs, names);
  const lowered = cloneModule(inputs.module);
  inputs.lower(lowered);
  const quantize = async (recipe: Recipe): Promise<QuantizedGraph> =>
    await quantizeGraph({
      module: lowered,
      feeds: inputs.calibration.feeds,
      recipe,
      format: inputs.format,
      kernels: wasmKernels,
      open: inputs.open,
    });
  const graph = await quantize(inputs.recipe);
  const run = async (patch: Patch, recipe?: Recipe): Promise<Pick<Measurement, 'predictions' | 'series'>> => {
    const { module } = recipe ? await quantize(recipe) : graph;
    const results = await runModule(inputs, patchModule(cloneModule(module), patch), names);
    return {
      predictions: results.map(() => 1),
      series: { noise: results.map((result, i) => worstNoise(names, reference[i]!, result)) },
    };
  };
  const values = async (patch: Patch, only?: ReadonlySet<string>, recipe?: Recipe): Promise<MeasuredValue[]> =>
    await measureInside(inputs, recipe ? await quantize(recipe) : graph, patch, only);
  const weights = listWeights(graph.module, inputs.module);
  const measurement: Measurement = {
    kind: 'model',
    model: { name: inputs.name, digest: inputs.digest },
    npuc: inputs.npuc,
    engine,
    target: inputs.target,
    recipe: inputs.recipe,
    text: {
      digest: inputs.evaluation.digest,
      windows: inputs.evaluation.feeds.length,
      tokens: inputs.evaluation.feeds.length,
    },
    calibration: { digest: inputs.calibration.digest, windows: inputs.calibration.feeds.length },
    bytes: { weights: weights.reduce((sum, { bytes }) => sum + bytes, 0) },
    ...(await run({})),
    stages: [
      {
        name: SIMPLIFY,
        sqnr: worstSqnr(compareResults(names, reference, await runModule(inputs, inputs.module, names), wasmKernels)),
      },
      {
        name: `lower for ${inputs.target}`,
        sqnr: worstSqnr(compareResults(names, reference, await runModule(inputs, lowered, names), wasmKernels)),
      },
    ],
    values: await values({}),
    weights: weights.map(({ bytes, encoding, ...weight }) => weight),
  };
  return {
    measurement,
    activations: graph.plan.activations,
    weightEncodings: new Map(weights.map(({ name, encoding }) => [name, encoding])),
    run,
    values,
    lookInto: async (stage) => (stage === SIMPLIFY ? await findPass(inputs, names, reference) : undefined),
  };
}

async function runFile(inputs: ModelInputs, names: readonly string[]): Promise<{ results: Tensors[]; engine: string }> {
  const runner = await inputs.open(inputs.path);
  return { results: await runAll(runner, inputs, names), engine: runner.engine };
}

async function runModule(inputs: ModelInputs, module: Module, names: readonly string[]): Promise<Tensors[]> {
  return await runAll(await openModule(module, inputs.open), inputs, names);
}

async function runAll(runner: Runner, { evaluation }: ModelInputs, names: readonly string[]): Promise<Tensors[]> {
  try {
    return await runSamples(runner, evaluation.feeds, names);
  } finally {
    await runner.close();
  }
}

/** Noise over signal of the worst output of one sample. */
function worstNoise(names: readonly string[], reference: Tensors, other: Tensors): number {
  const shares = names.map((name) => {
    const sums = createDifferenceSums();
    wasmKernels.accumulateDifference(toFloats(reference[name]!), toFloats(other[name]!), sums);
    return sums.difference2 === 0 ? 0 : sums.difference2 / sums.reference2;
  });
  return Math.max(...shares);
}

interface EncodedWeight extends MeasuredWeight {
  readonly bytes: number;
  readonly encoding: Encoding;
}

function listWeights(module: Module, imported: Module): EncodedWeight[] {
  return [...module.graph().values].flatMap(({ name, data, encoding }) => {
    // Vectors of a norm, and biases, are no weights that anyone chooses a form for.
    if (!data || !encoding || data.shape.length < 2) return [];
    // Calibration moves scale between weights and rounds them: as imported they are those of the file.
    const source = imported.graph().find(name)?.data;
    const floats = source?.toFloats() ?? new Float32Array();
    const digest = createHash('sha256').update(new Uint8Array(floats.buffer, floats.byteOffset, floats.byteLength));
    const written = Math.ceil((data.size * encodingBits(encoding.dtype)) / 8);
    return [
      {
        name,
        form: describeForm(encoding),
        scale: meanScale(encoding),
        digest: source ? digest.digest('hex').slice(0, 8) : '',
        bytes: written + encoding.scale.length * 4,
        encoding,
      },
    ];
  });
}

async function measureInside(
  inputs: ModelInputs,
  quantized: QuantizedGraph,
  patch: Patch,
  only: ReadonlySet<string> | undefined,
): Promise<MeasuredValue[]> {
  const names = comparedNames(quantized).filter((name) => !only || only.has(name));
  const graph = quantized.module.graph();
  const sums = new Map<string, DifferenceSums>(names.map((name) => [name, createDifferenceSums()]));
  const ranges = new Map<string, [number, number]>(names.map((name) => [name, [Infinity, -Infinity]]));
  const float = await openModule(tapModule(quantized.float, names), inputs.open);
  try {
    const patched = patchModule(cloneModule(quantized.module), patch);
    const other = await openModule(tapModule(patched, names), inputs.open);
    try {
      const feeds = inputs.evaluation.feeds.slice(0, VALUE_SAMPLES);
      await runTaps(float, other, groupByBytes(graph, names), feeds, (name, expected, got) => {
        const real = toFloats(expected[name]!);
        wasmKernels.accumulateDifference(real, toFloats(got[name]!), sums.get(name)!);
        widen(ranges.get(name)!, real);
      });
    } finally {
      await other.close();
    }
  } finally {
    await float.close();
  }
  const comparisons = names.map((name) => {
    const sum = sums.get(name)!;
    return {
      name,
      from: graph.find(name)!.producer?.from ?? [],
      sqnr: signalToNoise(sum),
      cosine: cosineSimilarity(sum),
      maxError: sum.maxDifference,
      maxSteps: undefined,
    };
  });
  return attributeNoise(comparisons, comparedInputs(graph, new Set(names))).map((value): MeasuredValue => {
    const sum = sums.get(value.name)!;
    const encoding = graph.find(value.name)!.encoding!;
    return {
      name: value.name,
      from: value.from,
      sqnr: value.sqnr,
      cosine: value.cosine,
      rms: Math.sqrt(sum.reference2 / sum.count),
      range: ranges.get(value.name)!,
      ...(value.noiseAdded === undefined ? {} : { noiseAdded: value.noiseAdded }),
      ...(encoding.scale.length === 1
        ? { encoding: { dtype: encoding.dtype, scale: encoding.scale[0]!, zero: encoding.zeroPoint?.[0] ?? 0 } }
        : {}),
    };
  });
}

/** dB that a pass must keep to be no suspect. */
const SUSPECT_DB = 90;

/** The first pass behind which the outputs are no longer the untouched model's, by bisection over all that changed something. */
async function findPass(
  inputs: ModelInputs,
  names: readonly string[],
  reference: readonly Tensors[],
): Promise<StageValue | undefined> {
  const snapshots = inputs.trace();
  const judge = async ({ module }: Snapshot): Promise<number> =>
    worstSqnr(compareResults(names, reference, await runModule(inputs, module, names), wasmKernels));
  let [good, bad] = [-1, snapshots.length - 1];
  let sqnr = bad < 0 ? Infinity : await judge(snapshots[bad]!);
  if (sqnr >= SUSPECT_DB) return undefined;
  while (bad - good > 1) {
    const middle = (good + bad) >> 1;
    const got = await judge(snapshots[middle]!);
    if (got >= SUSPECT_DB) good = middle;
    else [bad, sqnr] = [middle, got];
  }
  const { pass, module } = snapshots[bad]!;
  const value = good < 0 ? undefined : await findParting(inputs, snapshots[good]!.module, module);
  return { pass, name: value?.name ?? names[0]!, from: value?.from ?? [], sqnr: value?.sqnr ?? sqnr };
}

/** The first value that both modules have, in order of computation, and do not agree on. */
async function findParting(
  inputs: ModelInputs,
  before: Module,
  after: Module,
): Promise<{ name: string; from: readonly string[]; sqnr: number } | undefined> {
  const old = before.graph();
  const shared = after
    .graph()
    .nodes.flatMap((node) => node.outputs.map((value) => ({ node, value })))
    .filter(({ value }) => value?.dtype === 'f32' && old.find(value.name)?.producer);
  const names = shared.map(({ value }) => value!.name);
  const feeds = inputs.evaluation.feeds.slice(0, 1);
  const [a, b] = [
    await openModule(tapModule(before, names), inputs.open),
    await openModule(tapModule(after, names), inputs.open),
  ];
  try {
    const [expected, got] = [await a.run(feeds[0]!, names), await b.run(feeds[0]!, names)];
    for (const { node, value } of shared) {
      const sums = createDifferenceSums();
      wasmKernels.accumulateDifference(toFloats(expected[value!.name]!), toFloats(got[value!.name]!), sums);
      const sqnr = signalToNoise(sums);
      if (!(sqnr >= SUSPECT_DB)) return { name: value!.name, from: node.from, sqnr };
    }
    return undefined;
  } finally {
    await a.close();
    await b.close();
  }
}

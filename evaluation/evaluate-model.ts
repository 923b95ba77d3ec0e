import type { QuantizedGraph } from '../calibration/quantize-graph.ts';
import type { Samples } from '../calibration/samples.ts';
import { NpucError } from '../compiler/errors.ts';
import type { Module } from '../compiler/ir/graph.ts';
import { wasmKernels } from '../compiler/kernels/index.ts';
import type { Progress } from '../compiler/progress.ts';
import { openModule, pickJavaScriptEngine } from '../compiler/runtime/engine.ts';
import { openWithJavaScript } from '../compiler/runtime/onnxruntime.ts';
import type { Runner, Tensors } from '../compiler/runtime/runner.ts';
import { tapModule } from '../compiler/runtime/taps.ts';
import type { ManifestFile } from '../targets/manifest.ts';
import type { ModelTarget, ModelTargetManifest, OpenModelOptions } from '../targets/model-target.ts';
import type { Soc } from '../targets/socs.ts';
import { comparedNames, compareModelValues, compareTaps } from './compare-model-values.ts';
import { compareResults, type OutputComparison, runSamples, worstSqnr } from './compare-runs.ts';
import type { ValueComparison } from './compare-values.ts';
import { listFiles } from './merge-plans.ts';
import type { ModelTargetReport } from './model-report.ts';
import { firstDiverging } from './rank-values.ts';

/** Values under this SQNR are where a run is said to part from the float model. */
export const DIVERGENCE_DB = 20;
/** Samples that every value inside is compared on; outputs are compared on all. */
const VALUE_SAMPLES = 4;
/** Outputs that agree less with the twin make the values inside worth a look. */
const SUSPICIOUS_TWIN_DB = 25;

/** The float model's outputs on the evaluation samples: what every artifact is compared with. */
export interface Reference {
  readonly results: readonly Tensors[];
  /** Outputs of the simplified graph against the untouched model's, where that could be run. */
  readonly simplified?: readonly OutputComparison[];
  readonly remarks: readonly string[];
}

/**
 * Runs the user's own file, untouched, and the frozen float graph beside it: that passes changed nothing is shown, not
 * believed. Where the runtime refuses the file, the frozen graph is the reference.
 */
export async function runReference(path: string, module: Module, samples: Samples): Promise<Reference> {
  const names = module.graph().outputs.map(({ name }) => name);
  const frozen = await openModule(module);
  let results: Tensors[];
  try {
    results = await runSamples(frozen, samples.feeds, names);
  } finally {
    await frozen.close();
  }
  let original: Runner;
  try {
    original = await openWithJavaScript(path, pickJavaScriptEngine());
  } catch (error) {
    if (!(error instanceof NpucError)) throw error;
    return {
      results,
      remarks: [`the untouched model cannot be run, the frozen one is the reference: ${error.message}`],
    };
  }
  try {
    const expected = await runSamples(original, samples.feeds, names);
    return { results: expected, simplified: compareResults(names, expected, results, wasmKernels), remarks: [] };
  } catch (error) {
    if (!(error instanceof NpucError)) throw error;
    return {
      results,
      remarks: [`the untouched model does not run, the frozen one is the reference: ${error.message}`],
    };
  } finally {
    await original.close();
  }
}

/** Every encoded value of a graph against float, on the first samples; none where nothing is encoded. */
export async function compareInside(quantized: QuantizedGraph, samples: Samples): Promise<ValueComparison[]> {
  if (quantized.plan.activations.size === 0) return [];
  return await compareModelValues(quantized, samples.feeds.slice(0, VALUE_SAMPLES));
}

export interface EvaluateModelInputs {
  readonly target: ModelTarget;
  readonly manifest: ModelTargetManifest;
  readonly quantized: QuantizedGraph;
  /** What compareInside gives. */
  readonly values: readonly ValueComparison[];
  readonly reference: Reference;
  readonly samples: Samples;
  /** The output folder being written. */
  readonly folder: string;
  readonly soc: Soc;
  readonly files: readonly ManifestFile[];
  readonly options: OpenModelOptions;
  readonly progress: Progress;
}

/** Executes an artifact on the samples and compares it with the float model, with its twin, and inside. */
export async function evaluateModel(inputs: EvaluateModelInputs): Promise<ModelTargetReport> {
  const { target, manifest, quantized, values, reference, samples, folder } = inputs;
  const names = manifest.outputs.map(({ name }) => name);
  const runner = await target.open(folder, manifest, inputs.options);
  let results: Tensors[];
  const started = performance.now();
  try {
    results = await runSamples(runner, samples.feeds, names);
  } finally {
    await runner.close();
  }
  const seconds = (performance.now() - started) / 1000 / samples.feeds.length;
  const outputs = compareResults(names, reference.results, results, wasmKernels);
  const twin = target.openTwin && (await runTwin(inputs, names));
  const agreement = twin && compareResults(names, twin, results, wasmKernels);
  const encoded = quantized.plan.activations.size > 0;
  const notes: string[] = [];
  if (agreement && encoded && worstSqnr(agreement) < SUSPICIOUS_TWIN_DB)
    notes.push(await locateParting(inputs, samples.feeds.slice(0, VALUE_SAMPLES)));
  const diverged = firstDiverging(values, DIVERGENCE_DB);
  const files = listFiles(manifest, inputs.files);
  return {
    engine: runner.engine,
    execution: manifest.execution,
    bytes: files.filter(({ role }) => role !== 'source').reduce((sum, file) => sum + file.bytes, 0),
    files,
    outputs,
    ...(agreement && twin
      ? { twin: agreement, twinOutputs: compareResults(names, reference.results, twin, wasmKernels) }
      : {}),
    values,
    ...(diverged ? { firstDivergence: diverged.name } : {}),
    seconds,
    notes,
  };
}

async function runTwin(inputs: EvaluateModelInputs, names: readonly string[]): Promise<Tensors[]> {
  const twin = await inputs.target.openTwin!(inputs.folder, inputs.manifest);
  try {
    return await runSamples(twin, inputs.samples.feeds, names);
  } finally {
    await twin.close();
  }
}

/** Where an engine parts from ONNX Runtime on the same integers: every value inside, through taps in both. */
async function locateParting(inputs: EvaluateModelInputs, feeds: readonly Tensors[]): Promise<string> {
  const { target, quantized, soc, options } = inputs;
  const tapped = tapModule(quantized.module, comparedNames(quantized));
  try {
    const engine = await target.openModule!(tapped, soc, options);
    try {
      const twin = await openModule(tapModule(quantized.module, comparedNames(quantized)));
      try {
        const values = await compareTaps(quantized, twin, engine, feeds);
        const first = firstDiverging(values, SUSPICIOUS_TWIN_DB);
        if (!first) return 'with taps inside, the engine computes as its QDQ twin: only the untapped graph differs';
        const at = first.from.length > 0 ? `${first.name} (${first.from.join(', ')})` : first.name;
        return `the engine parts from its QDQ twin at ${at}, ${first.sqnr.toFixed(1)} dB; taps can change what it fuses`;
      } finally {
        await twin.close();
      }
    } finally {
      await engine.close();
    }
  } catch (error) {
    if (!(error instanceof NpucError)) throw error;
    return `the values inside could not be compared: ${error.message.split('\n')[0]}`;
  }
}

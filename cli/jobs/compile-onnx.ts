import { rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { type QuantizedGraph, quantizeGraph } from '../../calibration/quantize-graph.ts';
import type { NumberFormat, Recipe } from '../../calibration/recipe.ts';
import { randomSamples, readSamples, type Samples, samplePorts } from '../../calibration/samples.ts';
import { defaultText } from '../../calibration/texts.ts';
import { NpucError } from '../../compiler/errors.ts';
import { openOnnx } from '../../compiler/import/onnx.ts';
import { cloneModule } from '../../compiler/ir/clone.ts';
import type { Module } from '../../compiler/ir/graph.ts';
import { toFloats } from '../../compiler/ir/tensor.ts';
import { printType } from '../../compiler/ir/text.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import type { NpuReport } from '../../evaluation/compare-npu.ts';
import type { ValueComparison } from '../../evaluation/compare-values.ts';
import { compareInside, DIVERGENCE_DB, evaluateModel, runReference } from '../../evaluation/evaluate-model.ts';
import { formatReal } from '../../evaluation/format-figures.ts';
import { mergePlans } from '../../evaluation/merge-plans.ts';
import type { ModelReport, ModelTargetReport } from '../../evaluation/model-report.ts';
import { describeRandom, renderModel } from '../../evaluation/render-model.ts';
import { writeModelReport } from '../../evaluation/write-report.ts';
import { modelTargets } from '../../targets/index.ts';
import { describeFile, type ModelManifest, writeManifest } from '../../targets/manifest.ts';
import type { ModelTarget, ModelTargetManifest } from '../../targets/model-target.ts';
import { addDlc } from '../../targets/qnn/dump-dlc.ts';
import { findToolchain, requireToolchain, type Toolchain } from '../../targets/qnn/toolchain.ts';
import type { TargetName } from '../../targets/target.ts';
import { addModelNpu, npuVersions, withNpu } from './add-npu.ts';
import type { CompileOptions } from './compile-decoder.ts';
import { writeDecisions } from './explain-value.ts';
import { openModel } from './open-model.ts';
import { openOutputFolder } from './output-folder.ts';
import { npuFlags, quote } from './reproduce-command.ts';
import { version } from './version.ts';

export interface CompileModelResult {
  readonly manifest: ModelManifest;
  readonly report: ModelReport;
  /** The report as plain text. */
  readonly text: string;
}

/** What a dry run of an ONNX model prints. */
export interface ModelPlan {
  readonly inputs: ModelReport['inputs'];
  readonly outputs: ModelReport['inputs'];
  /** Nodes after simplifying. */
  readonly nodes: number;
  readonly weights: number;
  /** As they are, in floats. */
  readonly weightBytes: number;
  readonly targets: readonly TargetName[];
  readonly recipe: Recipe;
  readonly remarks: readonly string[];
}

/** Samples that are made up where the user gives none; the seeds differ, so that nothing is evaluated on what it was fitted to. */
const RANDOM_CALIBRATION = { count: 8, seed: 1 };
const RANDOM_EVALUATION = { count: 2, seed: 2 };

/**
 * The plan of a compile without doing it: the model as it will be frozen and simplified.
 * @throws as compileOnnx, for what the model and the bindings can be wrong in
 */
export function planOnnx(options: CompileOptions, bind: readonly string[]): ModelPlan {
  const { targets } = options;
  const { module, remarks: said } = openModel(options.source, bind);
  const graph = module.graph();
  const weights = [...module.weights];
  return {
    inputs: graph.inputs.map(({ name, type }) => ({ name, type: printType(type) })),
    outputs: graph.outputs.map(({ name, type }) => ({ name, type: printType(type) })),
    nodes: graph.nodes.length,
    weights: weights.reduce((sum, tensor) => sum + tensor.size, 0),
    weightBytes: weights.reduce((sum, tensor) => sum + tensor.byteLength, 0),
    targets,
    recipe: options.recipe,
    remarks: said,
  };
}

/**
 * Compiles an ONNX model of any kind for every asked target, runs what was written, and compares it with the float model.
 * The output folder appears at the end, whole; on any error nothing is left.
 * @param bind `name=number` for symbolic dimensions, `input=1x3x224x224` for whole shapes
 * @throws CL001 for a binding that cannot be read, PS110 naming dimensions without one, PS111 for one that fits nothing,
 *   QT120 for samples that do not fit, TF201 and TF202 when TFLite is asked for and has no form for an operator, QN010 and
 *   QN011 when HTP is asked for and refuses
 */
export async function compileOnnx(options: CompileOptions, bind: readonly string[]): Promise<CompileModelResult> {
  const { progress, recipe, soc } = options;
  const targets = options.targets.flatMap((name) => (name === 'hf' ? [] : [modelTargets[name]]));
  const remarks: string[] = [];
  progress.stage('read model');
  const { module, digest, bindings, remarks: said } = openModel(options.source, bind);
  remarks.push(...said);
  const output = openOutputFolder(options.out, options.force, [
    options.source,
    options.calibrationText,
    options.evaluation.text,
  ]);
  try {
    const samples = readAllSamples(options, module);
    const warnings = describeRandom({
      calibration: sampleReport(samples.calibration),
      evaluation: sampleReport(samples.evaluation),
    });
    warnings.push(...compareSampleRanges(module, samples));
    for (const warning of warnings) progress.note(`WARNING: ${warning}`);
    progress.stage('run float model');
    const reference = await runReference(options.source, module, samples.evaluation);
    remarks.push(...reference.remarks);
    const toolchain = findToolchain('qnn');
    const manifests: Partial<Record<TargetName, ModelTargetManifest>> = {};
    const graphs = new Map<TargetName, QuantizedGraph>();
    const plain: QuantizedGraph[] = [];
    const npu: NpuReport[] = [];
    for (const target of targets) {
      try {
        const { graph, manifest } = await emitTarget(
          target,
          module,
          samples.calibration,
          options,
          output.partial,
          toolchain,
          plain,
        );
        graphs.set(target.name, graph);
        manifests[target.name] = manifest;
        if (target.name === 'tflite' && options.outputs.npu) {
          const inputs = { npu: options.outputs.npu, out: output.partial, progress };
          const added = await addModelNpu(manifest, graph, samples.evaluation.feeds, inputs);
          manifests[target.name] = added.manifest;
          npu.push(...added.reports);
        }
      } catch (error) {
        if (options.targetsAsked || !(error instanceof NpucError) || !REFUSALS.has(error.code)) throw error;
        rmSync(join(output.partial, target.name), { recursive: true, force: true });
        remarks.push(`${target.name} is left out: ${error.message}`);
        progress.note(`${target.name} is left out: ${error.message}`);
      }
    }
    const files = [...Object.values(manifests).flatMap(({ files }) => files), writeDecisions(output.partial, graphs)]
      .sort()
      .map((path) => describeFile(output.partial, path));
    const reports: Partial<Record<TargetName, ModelTargetReport>> = {};
    const inside = new Map<QuantizedGraph, ValueComparison[]>();
    for (const target of targets) {
      const manifest = manifests[target.name];
      if (!manifest) continue;
      const quantized = graphs.get(target.name)!;
      progress.stage(`evaluate ${target.name}`);
      if (!inside.has(quantized)) inside.set(quantized, await compareInside(quantized, samples.evaluation));
      reports[target.name] = await evaluateModel({
        target,
        manifest,
        quantized,
        values: inside.get(quantized)!,
        reference,
        samples: samples.evaluation,
        folder: output.partial,
        soc,
        files,
        options: toolchain ? { toolchain } : {},
        progress,
      });
    }
    const versions = { ...(manifests.qnn && toolchain?.versions), ...npuVersions(options.outputs.npu) };
    const manifest: ModelManifest = {
      format: 1,
      kind: 'model',
      npuc: version(),
      source: { name: basename(options.source), digest },
      soc: { name: soc.name, arch: `v${soc.arch}` },
      recipe,
      bindings,
      calibration: {
        digest: samples.calibration.digest,
        samples: samples.calibration.feeds.length,
        random: samples.calibration.random,
        ...(options.outputs.given ? { encodings: options.outputs.given.digest } : {}),
      },
      toolchain: versions,
      targets: manifests,
      files,
    };
    writeManifest(output.partial, manifest);
    const report: ModelReport = {
      format: 1,
      kind: 'model',
      source: basename(options.source),
      soc: soc.name,
      scheme: recipe.scheme,
      inputs: module.graph().inputs.map(({ name, type }) => ({ name, type: printType(type) })),
      calibration: sampleReport(samples.calibration),
      evaluation: sampleReport(samples.evaluation),
      ...(reference.simplified ? { simplified: reference.simplified } : {}),
      targets: withNpu(reports, npu),
      plan: mergePlans(graphs),
      warnings,
      remarks: [...new Set([...remarks, ...[...graphs.values()].flatMap(({ plan }) => plan.remarks)])],
      divergenceThreshold: DIVERGENCE_DB,
      command: reproduceModelCommand(options, bind),
      versions: { npuc: version(), ...versions },
    };
    writeModelReport(output.partial, report);
    progress.finish();
    writeFileSync(join(output.partial, 'timings.json'), `${JSON.stringify(progress.stages, undefined, 1)}\n`);
    output.commit();
    return { manifest, report, text: renderModel(report) };
  } catch (error) {
    output.discard();
    throw error;
  }
}

/** What targets say to a graph that they do not take: without being asked for, the target is then left out. */
const REFUSALS: ReadonlySet<string> = new Set(['QN010', 'QN011', 'TF201', 'TF202', 'TG002']);

interface AllSamples {
  readonly calibration: Samples;
  readonly evaluation: Samples;
}

/** The user's samples; evaluation falls back to those of calibration, and both to random ones. */
function readAllSamples(options: CompileOptions, module: Module): AllSamples {
  const graph = module.graph();
  const ports = samplePorts(graph);
  const asked = (path: string, kind: 'calibration' | 'evaluation'): Samples | undefined =>
    path === defaultText(kind) ? undefined : readSamples(path, ports);
  const calibration = asked(options.calibrationText, 'calibration');
  const evaluation = asked(options.evaluation.text, 'evaluation');
  return {
    calibration: calibration ?? randomSamples(graph, RANDOM_CALIBRATION.count, RANDOM_CALIBRATION.seed),
    evaluation: evaluation ?? calibration ?? randomSamples(graph, RANDOM_EVALUATION.count, RANDOM_EVALUATION.seed),
  };
}

/** How much less of its calibrated range an input may use before it looks as if it had been scaled otherwise. */
const NARROW = 1 / 16;

/** Evaluation samples that were scaled otherwise than those of calibration: their figures would be those of another model. */
function compareSampleRanges(module: Module, { calibration, evaluation }: AllSamples): string[] {
  if (calibration === evaluation) return [];
  const rangeOf = (samples: Samples, name: string): { min: number; max: number } =>
    samples.feeds
      .map((feed) => wasmKernels.findRange(toFloats(feed[name]!)))
      .reduce((a, b) => ({ min: Math.min(a.min, b.min), max: Math.max(a.max, b.max), skipped: 0 }));
  return module.graph().inputs.flatMap((input) => {
    if (input.dtype !== 'f32') return [];
    const [calibrated, seen] = [rangeOf(calibration, input.name), rangeOf(evaluation, input.name)];
    const size = (range: { min: number; max: number }): number => Math.max(-range.min, range.max, 1e-9);
    const ratio = size(seen) / size(calibrated);
    if (ratio >= NARROW && ratio <= 1 / NARROW) return [];
    const show = ({ min, max }: { min: number; max: number }): string => `${formatReal(min)} to ${formatReal(max)}`;
    return [
      `${input.name} was calibrated on ${show(calibrated)} and is evaluated on ${show(seen)}: were the samples scaled alike?`,
    ];
  });
}

function sampleReport({ source, feeds, random }: Samples): ModelReport['calibration'] {
  return { source, samples: feeds.length, random };
}

async function emitTarget(
  target: ModelTarget,
  module: Module,
  calibration: Samples,
  options: CompileOptions,
  out: string,
  toolchain: Toolchain | undefined,
  plain: QuantizedGraph[],
): Promise<{ graph: QuantizedGraph; manifest: ModelTargetManifest }> {
  const { progress, recipe, soc } = options;
  const { given } = options.outputs;
  progress.stage(`quantize for ${target.name}`);
  const lowered = cloneModule(module);
  const isPlain = target.lower(lowered, soc, recipe).changed.length === 0;
  const format = target.format(soc);
  // Targets of one number format that need no rewriting get the very same integers.
  const same = isPlain ? plain.find((other) => servesAlike(other, module, format)) : undefined;
  const graph =
    same ??
    (await quantizeGraph({
      module: lowered,
      feeds: calibration.feeds,
      recipe,
      format,
      kernels: wasmKernels,
      ...(given ? { given: { encodings: given, known: namesOf(options.source) } } : {}),
      onProgress: (count, total) => progress.update(count, total),
    }));
  if (isPlain && !same) plain.push(graph);
  progress.stage(`emit ${target.name}`);
  const made = await target.emit(graph, {
    out,
    soc,
    threads: options.threads,
    io: options.io,
    encodings: options.outputs.encodings,
    ...(toolchain ? { toolchain } : {}),
  });
  if (target.name !== 'qnn' || !options.outputs.dlc) return { graph, manifest: made };
  progress.stage('write DLC');
  return { graph, manifest: await addDlc(toolchain ?? requireToolchain('qnn'), made, out, { soc }) };
}

/** The names of everything in a model as it is before it is simplified. */
function namesOf(source: string): Set<string> {
  return new Set([...openOnnx(source).graph().values].map(({ name }) => name));
}

/** Whether a graph that was quantized for one target is what quantizing a module for another format would give. */
function servesAlike(done: QuantizedGraph, module: Module, format: NumberFormat): boolean {
  const ops = new Set(module.graph().nodes.map(({ op }) => op));
  const relevant = ({ name, table, widths, ...rest }: NumberFormat): string =>
    JSON.stringify([rest, Object.entries(widths).filter(([op]) => ops.has(op))]);
  return relevant(done.format) === relevant(format);
}

/** The command line that makes a compile's artifacts and report again. */
function reproduceModelCommand(options: CompileOptions, bind: readonly string[]): string {
  const { recipe, evaluation } = options;
  const flags = ['--soc', options.soc.name, '--scheme', recipe.scheme, '--range', recipe.range];
  if (recipe.scheme === 'w4a16') flags.push('--block', String(recipe.weight.block));
  flags.push('--target', options.targets.join(','));
  for (const each of bind) flags.push('--bind', each);
  if (options.calibrationText !== defaultText('calibration')) flags.push('--calibrate', options.calibrationText);
  const { dlc, encodings, given, npu } = options.outputs;
  if (given) flags.push('--encodings-in', given.path);
  if (options.io !== 'float') flags.push('--io', options.io);
  if (encodings !== '1.0') flags.push('--encodings', encodings);
  if (dlc) flags.push('--dlc');
  for (const [name, value] of npuFlags(npu)) flags.push(`--${name}`, ...(value === '' ? [] : [value]));
  if (evaluation.text !== defaultText('evaluation')) flags.push('--evaluate', evaluation.text);
  return `npuc compile ${[options.source, ...flags, '--out', options.out].map(quote).join(' ')}`;
}

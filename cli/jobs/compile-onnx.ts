import { createHash } from 'node:crypto';
import { rmSync, writeFileSync } from 'node:fs';
import { basename, dirname, join, relative } from 'node:path';
import { type QuantizedGraph, quantizeGraph } from '../../calibration/quantize-graph.ts';
import { randomSamples, readSamples, type Samples, samplePorts } from '../../calibration/samples.ts';
import { defaultText } from '../../calibration/texts.ts';
import { NpucError } from '../../compiler/errors.ts';
import { openOnnx } from '../../compiler/import/onnx.ts';
import { cloneModule } from '../../compiler/ir/clone.ts';
import type { Module } from '../../compiler/ir/graph.ts';
import { printType } from '../../compiler/ir/text.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { runPasses } from '../../compiler/pass.ts';
import { DIVERGENCE_DB, evaluateModel, runReference } from '../../evaluation/evaluate-model.ts';
import { mergePlans } from '../../evaluation/merge-plans.ts';
import type { ModelReport, ModelTargetReport } from '../../evaluation/model-report.ts';
import { describeRandom, renderModel } from '../../evaluation/render-model.ts';
import { serializeReport } from '../../evaluation/write-report.ts';
import { type FreezeOptions, freezeShapes } from '../../passes/freeze-shapes.ts';
import { liftOpset } from '../../passes/lift-opset.ts';
import { fuse, simplify } from '../../passes/pipelines.ts';
import { modelTargets } from '../../targets/index.ts';
import { describeFile, type ModelManifest, writeManifest } from '../../targets/manifest.ts';
import type { ModelTarget, ModelTargetManifest } from '../../targets/model-target.ts';
import { findToolchain, type Toolchain } from '../../targets/qnn/toolchain.ts';
import type { TargetName } from '../../targets/target.ts';
import type { CompileOptions } from './compile-decoder.ts';
import { openOutputFolder } from './output-folder.ts';
import { quote } from './reproduce-command.ts';
import { version } from './version.ts';

export interface CompileModelResult {
  readonly manifest: ModelManifest;
  readonly report: ModelReport;
  /** The report as plain text. */
  readonly text: string;
}

/** Samples that are made up where the user gives none; the seeds differ, so that nothing is evaluated on what it was fitted to. */
const RANDOM_CALIBRATION = { count: 8, seed: 1 };
const RANDOM_EVALUATION = { count: 2, seed: 2 };
/** Quantization in blocks and in 4 and 16 bits, and HardSwish, Gelu and LayerNormalization as one node each. */
const OPSET = 21;

/**
 * Compiles an ONNX model of any kind for every asked target, runs what was written, and compares it with the float model.
 * The output folder appears at the end, whole; on any error nothing is left.
 * @param bind `name=number` for symbolic dimensions, `input=1x3x224x224` for whole shapes
 * @throws CL001 for a binding that cannot be read, PS110 naming dimensions without one, PS111 for one that fits nothing,
 *   QT120 for samples that do not fit, TF203 when TFLite is asked for, QN010 and QN011 when HTP is asked for and refuses
 */
export async function compileOnnx(options: CompileOptions, bind: readonly string[]): Promise<CompileModelResult> {
  const { progress, recipe, soc } = options;
  const freeze = readBindings(bind);
  const { targets, remarks } = pickTargets(options);
  progress.stage('read model');
  const module = openOnnx(options.source);
  const digest = digestModel(options.source, module);
  const output = openOutputFolder(options.out, options.force, [
    options.source,
    options.calibrationText,
    options.evaluation.text,
  ]);
  try {
    progress.stage('simplify');
    remarks.push(...freezeModel(module, freeze));
    const samples = readAllSamples(options, module);
    const warnings = describeRandom({
      calibration: sampleReport(samples.calibration),
      evaluation: sampleReport(samples.evaluation),
    });
    for (const warning of warnings) progress.note(`WARNING: ${warning}`);
    progress.stage('run float model');
    const reference = await runReference(options.source, module, samples.evaluation);
    remarks.push(...reference.remarks);
    const toolchain = findToolchain('qnn');
    const manifests: Partial<Record<TargetName, ModelTargetManifest>> = {};
    const graphs = new Map<TargetName, QuantizedGraph>();
    for (const target of targets) {
      try {
        const { graph, manifest } = await emitTarget(
          target,
          module,
          samples.calibration,
          options,
          output.partial,
          toolchain,
        );
        graphs.set(target.name, graph);
        manifests[target.name] = manifest;
      } catch (error) {
        if (options.targetsAsked || !(error instanceof NpucError) || !REFUSALS.has(error.code)) throw error;
        rmSync(join(output.partial, target.name), { recursive: true, force: true });
        remarks.push(`${target.name} is left out: ${error.message}`);
        progress.note(`${target.name} is left out: ${error.message}`);
      }
    }
    const files = Object.values(manifests)
      .flatMap((manifest) => manifest.files)
      .sort()
      .map((path) => describeFile(output.partial, path));
    const reports: Partial<Record<TargetName, ModelTargetReport>> = {};
    for (const target of targets) {
      const manifest = manifests[target.name];
      if (!manifest) continue;
      progress.stage(`evaluate ${target.name}`);
      reports[target.name] = await evaluateModel({
        target,
        manifest,
        quantized: graphs.get(target.name)!,
        reference,
        samples: samples.evaluation,
        folder: output.partial,
        soc,
        files,
        options: toolchain ? { toolchain } : {},
        progress,
      });
    }
    const manifest: ModelManifest = {
      format: 1,
      kind: 'model',
      npuc: version(),
      source: { name: basename(options.source), digest },
      soc: { name: soc.name, arch: `v${soc.arch}` },
      recipe,
      bindings: { ...freeze.bindings, ...freeze.inputs },
      calibration: {
        digest: samples.calibration.digest,
        samples: samples.calibration.feeds.length,
        random: samples.calibration.random,
      },
      toolchain: (manifests.qnn && toolchain?.versions) ?? {},
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
      targets: reports,
      plan: mergePlans(graphs),
      remarks: [...new Set([...warnings, ...remarks, ...[...graphs.values()].flatMap(({ plan }) => plan.remarks)])],
      divergenceThreshold: DIVERGENCE_DB,
      command: reproduceModelCommand(options, bind),
      versions: { npuc: version(), ...toolchain?.versions },
    };
    writeFileSync(join(output.partial, 'report.json'), serializeReport(report));
    progress.finish();
    writeFileSync(join(output.partial, 'timings.json'), `${JSON.stringify(progress.stages, undefined, 1)}\n`);
    output.commit();
    return { manifest, report, text: renderModel(report) };
  } catch (error) {
    output.discard();
    throw error;
  }
}

/** What HTP says to a graph that it does not take: without being asked for, the target is then left out. */
const REFUSALS: ReadonlySet<string> = new Set(['QN010', 'QN011', 'TG002']);

/** `name=number` and `input=1x3x224x224`. @throws CL001 */
export function readBindings(bind: readonly string[]): FreezeOptions {
  const bindings: Record<string, number> = {};
  const inputs: Record<string, readonly number[]> = {};
  for (const each of bind) {
    // Names may hold an equals sign themselves; what follows the last one is the length.
    const at = each.lastIndexOf('=');
    const [name, value] = [each.slice(0, at), each.slice(at + 1)];
    if (at < 1 || !/^\d+(x\d+)*$/.test(value)) {
      throw new NpucError('CL001', {
        message: `--bind ${each} is not understood`,
        hint: '--bind name=number for a symbolic dimension, --bind input=1x3x224x224 for the shape of an input',
      });
    }
    const lengths = value.split('x').map(Number);
    if (lengths.length === 1) bindings[name] = lengths[0]!;
    else inputs[name] = lengths;
  }
  return { bindings, inputs };
}

function pickTargets(options: CompileOptions): { targets: ModelTarget[]; remarks: string[] } {
  const targets: ModelTarget[] = [];
  const remarks: string[] = [];
  for (const name of options.targets) {
    const target = modelTargets[name];
    if (target) targets.push(target);
    else if (options.targetsAsked) {
      throw new NpucError('TF203', {
        message: `${name} artifacts are made from checkpoints, not yet from ONNX models`,
        where: options.source,
        hint: `--target ${Object.keys(modelTargets).join(',')}`,
      });
    } else remarks.push(`${name} is left out: it is not yet made from ONNX models`);
  }
  return { targets, remarks };
}

/** Simplifies, freezes and fuses a module in place. @returns what the passes have to say that matters to the user */
function freezeModel(module: Module, freeze: FreezeOptions): string[] {
  runPasses(module, simplify, { untilStable: true });
  runPasses(module, [freezeShapes(freeze)]);
  runPasses(module, simplify, { untilStable: true });
  const lifted = runPasses(module, [liftOpset(OPSET)]);
  runPasses(module, [...fuse, ...simplify], { untilStable: true });
  return lifted.remarks.map(({ where, text }) => `${where}: ${text}`);
}

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
): Promise<{ graph: QuantizedGraph; manifest: ModelTargetManifest }> {
  const { progress, recipe, soc } = options;
  progress.stage(`quantize for ${target.name}`);
  const lowered = cloneModule(module);
  target.lower(lowered, soc);
  const graph = await quantizeGraph({
    module: lowered,
    feeds: calibration.feeds,
    recipe,
    format: target.format(soc),
    kernels: wasmKernels,
    onProgress: (done, total) => progress.update(done, total),
  });
  progress.stage(`emit ${target.name}`);
  const manifest = await target.emit(graph, {
    out,
    soc,
    threads: options.threads,
    ...(toolchain ? { toolchain } : {}),
  });
  return { graph, manifest };
}

/** SHA-256 of the model file; with external data, of the digests of all files. */
function digestModel(path: string, module: Module): string {
  const folder = dirname(path);
  const own = describeFile(folder, basename(path)).sha256;
  const others = [...module.weights]
    .flatMap(({ storage }) => (storage.kind === 'file' ? [relative(folder, storage.file.path)] : []))
    .filter((name) => name !== basename(path));
  if (others.length === 0) return own;
  const hash = createHash('sha256').update(own);
  for (const name of [...new Set(others)].sort()) hash.update(`${name} ${describeFile(folder, name).sha256}`);
  return hash.digest('hex');
}

/** The command line that makes a compile's artifacts and report again. */
function reproduceModelCommand(options: CompileOptions, bind: readonly string[]): string {
  const { recipe, evaluation } = options;
  const flags = ['--soc', options.soc.name, '--scheme', recipe.scheme, '--range', recipe.range];
  if (recipe.scheme === 'w4a16') flags.push('--block', String(recipe.weight.block));
  flags.push('--target', options.targets.filter((name) => modelTargets[name]).join(','));
  for (const each of bind) flags.push('--bind', each);
  if (options.calibrationText !== defaultText('calibration')) flags.push('--calibrate', options.calibrationText);
  if (evaluation.text !== defaultText('evaluation')) flags.push('--evaluate', evaluation.text);
  return `npuc compile ${[options.source, ...flags, '--out', options.out].map(quote).join(' ')}`;
}

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Budget } from '../../calibration/budget.ts';
import { calibrationShape, cutWindows } from '../../calibration/decoder-statistics.ts';
import type { Effort } from '../../calibration/effort.ts';
import { planWeights } from '../../calibration/plan-weights.ts';
import { type QuantizedDecoder, quantizeDecoder } from '../../calibration/quantize-decoder.ts';
import type { Recipe } from '../../calibration/recipe.ts';
import type { StatisticsKey } from '../../calibration/statistics-cache.ts';
import { defaultText, readChatTokens, readTokens, startTokens, type TokenText } from '../../calibration/texts.ts';
import { NpucError } from '../../compiler/errors.ts';
import { openCheckpoint } from '../../compiler/import/checkpoint.ts';
import {
  buildDecoder,
  type DecoderModel,
  readDecoderModel,
  requireTokenizer,
} from '../../compiler/import/decoder-model.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import type { Progress } from '../../compiler/progress.ts';
import { pickJavaScriptEngine } from '../../compiler/runtime/engine.ts';
import { describeEngine } from '../../compiler/runtime/onnxruntime.ts';
import type { NpuReport } from '../../evaluation/compare-npu.ts';
import { type EvaluationOptions, evaluateTargets } from '../../evaluation/evaluate-targets.ts';
import type { Report } from '../../evaluation/report.ts';
import { writeReport } from '../../evaluation/write-report.ts';
import { applyIoContract } from '../../passes/apply-io-contract.ts';
import { checkShapes, largestCache, type ShapeRequest } from '../../targets/graph-requests.ts';
import { decoderTargets, formatOf } from '../../targets/index.ts';
import { describeFile, type Manifest, type ManifestFile, writeManifest } from '../../targets/manifest.ts';
import { addDlc } from '../../targets/qnn/dump-dlc.ts';
import {
  type CompilePart,
  countGraphs,
  measureStages,
  planCompile,
  type SplitRequest,
} from '../../targets/qnn/plan-compile.ts';
import { findToolchain } from '../../targets/qnn/toolchain.ts';
import { type Soc, socSupports } from '../../targets/socs.ts';
import type { EmbeddingChoice, ManifestTarget, Profile, TargetName } from '../../targets/target.ts';
import type { OutputOptions } from '../output-options.ts';
import { addDecoderNpu, npuVersions, withNpu } from './add-npu.ts';
import { type CalibratedDecoder, calibrateDecoder } from './calibrate-decoder.ts';
import { writeDecisions } from './explain-value.ts';
import { type BudgetReport, checkBudget, describeBudget, meetBudget, writeBudget } from './meet-budget.ts';
import { openOutputFolder } from './output-folder.ts';
import { planMemory, planSizes, requireMemory, type SizePlan } from './plan-sizes.ts';
import { reproduceCommand } from './reproduce-command.ts';
import { version } from './version.ts';

export interface CompileOptions {
  readonly source: string;
  readonly out: string;
  readonly soc: Soc;
  readonly targets: readonly TargetName[];
  /** The targets were asked for by name, not taken because this machine can make them: one that fails is an error. */
  readonly targetsAsked: boolean;
  readonly recipe: Recipe;
  readonly shapes: ShapeRequest;
  readonly allowExtrapolation: boolean;
  /** Whether integers of a checkpoint that a target cannot hold are rounded again. */
  readonly requantize: boolean;
  readonly calibrationText: string;
  readonly effort: Effort;
  /** Most bytes of all weights. */
  readonly budget?: Budget;
  readonly calibrationWindows: number;
  readonly evaluation: EvaluationOptions;
  readonly threads: number;
  readonly io: 'float' | 'quantized';
  /** Where the HTP's graphs have their embedding. */
  readonly embedding: EmbeddingChoice;
  /** What TFLite graphs are for. */
  readonly profile: Profile;
  /** How the HTP binary is cut. */
  readonly split: SplitRequest;
  readonly outputs: OutputOptions;
  readonly force: boolean;
  readonly progress: Progress;
}

export interface CompileResult {
  readonly manifest: Manifest;
  /** Absent where the evaluation text is `none`. */
  readonly report?: Report;
  /** Peak resident set of this process, bytes. */
  readonly peakRssBytes: number;
}

/** In the place of a held-out text: nothing is run, and there is no report. */
export const NO_EVALUATION = 'none';

/** What a dry run prints: decisions and sizes, nothing written. */
export interface DryRun {
  readonly sizes: SizePlan;
  /** What the HTP compiler will be given, where that target is made. */
  readonly parts?: readonly CompilePart[];
  readonly recipe: Recipe;
}

/** Checks everything that can be checked before work starts. @throws IM and CL errors */
export async function openDecoder(
  options: Pick<CompileOptions, 'source' | 'shapes' | 'allowExtrapolation' | 'progress'>,
): Promise<DecoderModel> {
  const checkpoint = await openCheckpoint(options.source, {
    progress: (done, total, file) => options.progress.update(done, total, file),
  });
  const model = readDecoderModel(checkpoint);
  checkShapes(options.shapes);
  buildDecoder(model.config, model.weights, largestCache(options.shapes), options.allowExtrapolation);
  requireTokenizer(checkpoint);
  return model;
}

/** The plan of a compile without doing it. */
export async function planDecoder(options: CompileOptions): Promise<DryRun> {
  const model = await openDecoder(options);
  const parts = planParts(model, options);
  return {
    sizes: planSizes(
      model.config,
      options.recipe,
      options.shapes,
      options.targets,
      parts,
      options.evaluation.text !== NO_EVALUATION,
      options.embedding,
    ),
    ...(parts ? { parts } : {}),
    recipe: options.recipe,
  };
}

/** How the HTP binary will be cut: it depends on the forms of the weights, not on statistics. @throws QN017 */
function planParts(model: DecoderModel, options: CompileOptions): readonly CompilePart[] | undefined {
  if (!options.targets.includes('qnn')) return undefined;
  const { recipe } = adaptRecipe(options.recipe, options.soc, 'qnn');
  const { contract, format } = formatOf('qnn', options.embedding);
  const module = buildDecoder(model.config, model.weights, 2, true);
  applyIoContract(module, contract, { tokens: 1, cache: 2 });
  const graph = module.graph();
  const forms = recipe.scheme === 'fp16' ? new Map<string, never>() : planWeights(graph, recipe, format, []);
  const counts = countGraphs(options.shapes, socSupports(options.soc, 'weight-sharing'));
  return planCompile(measureStages(graph, forms, recipe), counts, options.split).parts;
}

/**
 * Compiles a checkpoint for every asked target, runs what was written, and compares it with the float model.
 * The output folder appears at the end, whole; on any error nothing is left.
 */
export async function compileDecoder(options: CompileOptions): Promise<CompileResult> {
  const { progress } = options;
  progress.stage('read checkpoint');
  const model = await openDecoder(options);
  const { checkpoint, config } = model;
  planParts(model, options);
  checkBudgets(model, options);
  const weightBytes = checkMemory(model, options);
  const evaluated = options.evaluation.text !== NO_EVALUATION;
  const output = openOutputFolder(options.out, options.force, [
    options.source,
    options.calibrationText,
    ...(evaluated ? [options.evaluation.text] : []),
  ]);
  try {
    const digest = await checkpoint.digest({ progress: (done, total) => progress.update(done, total) });
    const { calibration, heldOut } = splitCalibration(options, model);
    const evaluation = evaluated ? readEvaluation(options, model) : undefined;
    const key: StatisticsKey = {
      checkpoint: digest,
      windows: calibration.windows,
      engine: await describeEngine(pickJavaScriptEngine()),
    };
    const { source, remarks } =
      heldOut.length === 0
        ? { source: await calibrateDecoder(model, key, { ...options, weightBytes }), remarks: [] }
        : await chooseSource(model, key, heldOut, options);
    const { recipe } = source;
    // Artifacts that the toolchain has no part in do not depend on whether it is installed.
    const toolchain = options.targets.includes('qnn') ? findToolchain('qnn') : undefined;
    const targets: Partial<Record<TargetName, ManifestTarget>> = {};
    const decoders = new Map<TargetName, QuantizedDecoder>();
    const budgets = new Map<TargetName, BudgetReport>();
    const npu: NpuReport[] = [];
    for (const name of inOrder(options.targets)) {
      const target = decoderTargets[name];
      // A checkpoint that is written holds the weights of the first artifact beside it.
      const [followed] = name === 'hf' ? decoders.keys() : [];
      if (followed === undefined) progress.stage(`quantize for ${name}`);
      const decoder =
        followed === undefined
          ? await quantizeWithin(source, options, name, remarks, budgets)
          : decoders.get(followed)!;
      decoders.set(name, decoder);
      progress.stage(`emit ${name}`);
      const made = await target.emit(decoder, {
        out: output.partial,
        soc: options.soc,
        shapes: options.shapes,
        threads: options.threads,
        io: options.io,
        embedding: options.embedding === 'lut-u8' ? 'i8-per-row' : 'f16',
        split: options.split,
        encodings: options.outputs.encodings,
        progress,
        checkpoint,
        ...(followed === undefined ? {} : { follows: { name: followed, target: targets[followed]! } }),
        ...(toolchain ? { toolchain } : {}),
      });
      const dlc = name === 'qnn' && options.outputs.dlc;
      if (dlc) progress.stage('write DLC');
      const emitted = dlc
        ? await addDlc(toolchain!, made, output.partial, {
            soc: options.soc,
            ...(options.split.maxMemory === undefined ? {} : { memoryLimit: options.split.maxMemory }),
          })
        : made;
      targets[name] = evaluated ? emitted : { ...emitted, execution: 'read-back-only' };
      if (name !== 'tflite' || !options.outputs.npu) continue;
      const ids = evaluation && [...startTokens(checkpoint.tokenizer!), ...evaluation.ids];
      const added = await addDecoderNpu(
        targets[name],
        decoder,
        { shapes: options.shapes, split: options.split.split },
        ids,
        {
          npu: options.outputs.npu,
          out: output.partial,
          progress,
        },
      );
      targets[name] = added.manifest;
      npu.push(...added.reports);
    }
    const tokenizer = writeTokenizer(checkpoint.tokenizerFiles, output.partial);
    if (evaluated) progress.stage('evaluate');
    const side = [
      writeDecisions(output.partial, decoders),
      ...(budgets.size > 0 ? [writeBudget(output.partial, budgets)] : []),
    ];
    const files = [...Object.values(targets).flatMap((target) => target.files), ...tokenizer, ...side]
      .sort()
      .map((path) => describeFile(output.partial, path));
    const report =
      evaluation &&
      (await evaluateTargets({
        model,
        decoders,
        targets,
        open: (name) =>
          decoderTargets[name].open(output.partial, targets[name]!, {
            soc: options.soc,
            ...(toolchain ? { toolchain } : {}),
          }),
        bytes: shippedBytes(targets, files),
        files,
        shapes: options.shapes,
        soc: options.soc.name,
        folder: output.partial,
        prefix: startTokens(model.checkpoint.tokenizer!),
        text: evaluation,
        options: options.evaluation,
        progress,
      }));
    const versions = { ...toolchain?.versions, ...npuVersions(options.outputs.npu) };
    const manifest: Manifest = {
      format: 2,
      npuc: version(),
      source: { name: checkpoint.name, digest, architecture: config.architecture },
      soc: { name: options.soc.name, arch: `v${options.soc.arch}` },
      recipe,
      shapes: { tokens: options.shapes.tokens, cache: options.shapes.caches },
      calibration: {
        digest: calibration.text.digest,
        chat: calibration.chat,
        windows: calibration.windows.length,
        windowTokens: calibration.windows[0]?.length ?? 0,
        ...(options.outputs.given ? { encodings: options.outputs.given.digest } : {}),
      },
      toolchain: versions,
      targets,
      tokenizer,
      files,
    };
    writeManifest(output.partial, manifest);
    const full: Report | undefined = report && {
      ...report,
      targets: withNpu(report.targets, npu),
      command: reproduceCommand(options),
      versions: { npuc: version(), ...versions },
    };
    if (full) writeReport(output.partial, full);
    progress.finish();
    writeFileSync(join(output.partial, 'timings.json'), `${JSON.stringify(progress.stages, undefined, 1)}\n`);
    output.commit();
    const peakRssBytes = Math.max(...progress.stages.map((stage) => stage.peakRssBytes));
    return { manifest, peakRssBytes, ...(full ? { report: full } : {}) };
  } catch (error) {
    output.discard();
    throw error;
  } finally {
    checkpoint.close();
  }
}

/** What follows another target comes after it. */
function inOrder(targets: readonly TargetName[]): TargetName[] {
  return [...targets.filter((name) => name !== 'hf'), ...targets.filter((name) => name === 'hf')];
}

/** Bytes that go to the phone: without the sources that a target keeps beside its artifact. */
function shippedBytes(
  targets: Partial<Record<TargetName, ManifestTarget>>,
  files: readonly ManifestFile[],
): Partial<Record<TargetName, number>> {
  const bytes = new Map(files.map((file) => [file.path, file.bytes]));
  return Object.fromEntries(
    Object.entries(targets).map(([name, target]) => [
      name,
      target.files
        .filter((path) => !/\/(qdq|dlc)\//.test(path) && !target.npu?.some(({ file }) => file === path))
        .reduce((sum, path) => sum + bytes.get(path)!, 0),
    ]),
  );
}

export interface Calibration {
  readonly text: TokenText;
  /** Whether half of it is in the chat template. */
  readonly chat: boolean;
  readonly windows: readonly (readonly number[])[];
}

export function readCalibration(options: CompileOptions, model: DecoderModel): Calibration {
  const tokenizer = model.checkpoint.tokenizer!;
  const shape = calibrationShape(model.config);
  // The user's own text is taken as it is; the default one is put into the checkpoint's chat template where it has one.
  const chat = options.calibrationText === defaultText('calibration') && tokenizer.chatTemplate !== undefined;
  const read = chat ? readChatTokens : readTokens;
  const text = read(options.calibrationText, tokenizer, options.calibrationWindows * shape.window, shape.window);
  const prefix = startTokens(model.checkpoint.tokenizer!);
  return { text, chat, windows: cutWindows(text.ids, shape, options.calibrationWindows, prefix) };
}

/** What the evaluation reads, checked before there is anything to evaluate. @throws QT110, RT102 and RT103 for the prompt */
function readEvaluation({ evaluation, shapes }: CompileOptions, model: DecoderModel): TokenText {
  const tokenizer = model.checkpoint.tokenizer!;
  const least = Math.max(2, Math.min(evaluation.tokens, 64));
  const prompt = [
    ...startTokens(model.checkpoint.tokenizer!),
    ...tokenizer.encode(evaluation.prompt, { addSpecialTokens: false }),
  ];
  if (prompt.length === 0) throw new NpucError('RT103', { message: '--prompt gives no tokens' });
  const cache = largestCache(shapes);
  if (prompt.length > cache) {
    throw new NpucError('RT102', {
      message: `--prompt has ${prompt.length} tokens, --cache ${cache} is the whole context`,
      hint: 'give a shorter prompt or a larger cache',
    });
  }
  return readTokens(evaluation.text, tokenizer, evaluation.tokens, least);
}

/** Windows of calibration text on which the recipes of `--effort best` are measured. */
const HELD_OUT_WINDOWS = 4;

/** The text to calibrate on; with `--effort best` its last windows are held out. @throws QT110 when it is too short for both */
function splitCalibration(
  options: CompileOptions,
  model: DecoderModel,
): { calibration: Calibration; heldOut: Calibration['windows'] } {
  if (options.effort !== 'best' || options.recipe.scheme === 'fp16')
    return { calibration: readCalibration(options, model), heldOut: [] };
  const wanted = options.calibrationWindows + HELD_OUT_WINDOWS;
  const all = readCalibration({ ...options, calibrationWindows: wanted }, model);
  const held = Math.min(HELD_OUT_WINDOWS, Math.floor(all.windows.length / 2));
  if (held === 0) {
    throw new NpucError('QT110', {
      message: `the calibration text is one window of ${all.windows[0]?.length ?? 0} tokens: --effort best holds some of it out`,
      where: options.calibrationText,
      hint: 'give a longer text, or another effort',
    });
  }
  return { calibration: { ...all, windows: all.windows.slice(0, -held) }, heldOut: all.windows.slice(-held) };
}

/** Tries several recipes for the first target and takes the one that is closest to the float model. */
async function chooseSource(
  model: DecoderModel,
  key: StatisticsKey,
  heldOut: Calibration['windows'],
  options: CompileOptions,
): Promise<{ source: CalibratedDecoder; remarks: string[] }> {
  const { progress } = options;
  const { describeChoice, tryRecipes } = await import('./choose-recipe.ts');
  const tried = await tryRecipes({
    model,
    recipe: options.recipe,
    heldOut,
    prefix: startTokens(model.checkpoint.tokenizer!).length,
    calibrate: (recipe) => calibrateDecoder(model, key, { ...options, recipe }),
    quantize: (source) => {
      progress.stage(`try rotation ${source.recipe.rotation}, migration ${source.recipe.migration}`);
      return quantize(source, options, inOrder(options.targets)[0]!);
    },
  });
  return { source: tried[0]!.source, remarks: [describeChoice(tried, heldOut.length)] };
}

/** Bytes of float weights that calibration may have open. @throws QT150 where --max-memory is too small, before any work */
function checkMemory({ config }: DecoderModel, { evaluation, effort, recipe, split }: CompileOptions): number {
  const needs = { whole: evaluation.text !== NO_EVALUATION || effort === 'best', rounding: recipe.rounding };
  if (split.maxMemory !== undefined) requireMemory(config, needs, split.maxMemory);
  return planMemory(config, needs, split.maxMemory).weightBytes;
}

/** @throws QT140 and CL001 for a budget that a target cannot meet, before any work */
function checkBudgets(model: DecoderModel, options: CompileOptions): void {
  for (const name of options.budget ? options.targets : [])
    checkBudget(options.budget!, model, options.recipe, formatOf(name, options.embedding, options.profile));
}

/** Decides every encoding for one target; within a budget, 4-bit weights get 8 bits where those buy the most. */
async function quantizeWithin(
  source: CalibratedDecoder,
  options: CompileOptions,
  name: TargetName,
  remarks: readonly string[],
  budgets: Map<TargetName, BudgetReport>,
): Promise<QuantizedDecoder> {
  const decoder = await quantize(source, options, name, remarks);
  const { budget, progress } = options;
  if (!budget) return decoder;
  progress.stage(`measure what 8 bits buy for ${name}`);
  const { overrides, report } = await meetBudget(budget, decoder, source.key.windows, (done, total) =>
    progress.update(done, total),
  );
  budgets.set(name, report);
  const { recipe } = source;
  const within = { ...source, recipe: { ...recipe, overrides: [...recipe.overrides, ...overrides] } };
  return quantize(within, options, name, [...remarks, describeBudget(report)]);
}

/** Decides every encoding of a calibrated decoder for one target. */
export async function quantize(
  source: CalibratedDecoder,
  options: CompileOptions,
  name: TargetName,
  said: readonly string[] = [],
): Promise<QuantizedDecoder> {
  const { progress } = options;
  const { recipe, remarks } = adaptRecipe(source.recipe, options.soc, name);
  const decoder = await quantizeDecoder({
    config: source.config,
    weights: source.weights,
    embed: source.embed,
    statistics: source.statistics,
    ...(source.taken ? { taken: source.taken } : {}),
    requantize: options.requantize,
    windows: source.key.windows,
    cacheKey: source.key,
    recipe,
    ...formatOf(name, options.embedding, options.profile),
    kernels: wasmKernels,
    threads: options.threads,
    ...(options.outputs.given ? { given: options.outputs.given } : {}),
    onWeight: (done, total) => progress.update(done, total),
    onLayer: (done, total) => progress.update(done, total, 'round'),
  });
  return { ...decoder, plan: { ...decoder.plan, remarks: [...said, ...remarks, ...decoder.plan.remarks] } };
}

/** What a SoC cannot do is changed where that costs only accuracy, and said. */
export function adaptRecipe(recipe: Recipe, soc: Soc, name: TargetName): { recipe: Recipe; remarks: string[] } {
  if (name !== 'qnn' || recipe.scheme === 'fp16' || recipe.cache === 8) return { recipe, remarks: [] };
  if (socSupports(soc, 'kv-s16')) return { recipe, remarks: [] };
  return {
    recipe: { ...recipe, cache: 8 },
    remarks: [
      `key/value cache: 8 bits, ${soc.name} (v${soc.arch}) cannot multiply 16-bit activations with a 16-bit cache`,
    ],
  };
}

/** Tokenizer files beside the artifact, so that it runs without the checkpoint. */
function writeTokenizer(files: ReadonlyMap<string, string>, out: string): string[] {
  for (const [name, text] of files) writeFileSync(join(out, name), text);
  return [...files.keys()];
}

import { constants, copyFileSync, linkSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { NpucError } from '../../compiler/errors.ts';
import { removeAtExit } from '../../compiler/runtime/native-process.ts';
import {
  NativeHost,
  type NativeSession,
  type NativeToolchain,
  type SessionOptions,
} from '../../compiler/runtime/ort-native.ts';
import { explainQnnText } from '../../compiler/runtime/qnn-codes.ts';
import type { Soc } from '../socs.ts';
import { checkGraphPorts } from './check-ports.ts';
import { keepLog } from './keep-log.ts';
import { renameGraphs, renameInModel } from './name-graphs.ts';
import { parseCompilerErrors, parseRefusals, REFUSAL_SUMMARY, type Refusal } from './parse-log.ts';
import type { ContextInfo } from './read-context.ts';

/** One graph to compile: an ONNX file in the form that the QNN plugin takes. */
export interface ContextModel {
  /**
   * Names the files, `<name>_ctx.onnx` and `<name>_ctx_qnn.bin`, and the graph inside the binary. At most 60 characters.
   */
  readonly name: string;
  readonly path: string;
  /** External data files of the model, relative to its folder. */
  readonly externalData?: readonly string[];
}

/** What is needed to say why a compile failed. */
export interface FailureOptions {
  readonly soc: Soc;
  /** Where the compile that gives the reasons works. */
  readonly outputFolder: string;
  /** QNN provider options as the vendor spells them, beyond the SoC. */
  readonly providerOptions?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal;
}

export interface CompileOptions extends FailureOptions {
  /** One binary for all graphs, with equal weights stored once. */
  readonly share: boolean;
  /** The folder that receives the files; made when absent. Files of the same names are replaced. */
  readonly outputFolder: string;
  /** Threads that prepare the graph; the bytes do not depend on it. */
  readonly threads?: number;
  /** Resident bytes above which a compile process is ended. */
  readonly memoryLimit?: number;
}

/** One compiled graph: the EPContext ONNX model refers to its binary by name, so both stay in one folder. */
export interface ContextFiles {
  readonly name: string;
  readonly onnx: string;
  readonly binary: string;
  /** The graph's name inside the binary: that of the model. */
  readonly graph: string;
}

export interface CompiledContext {
  /** In the order of the models; shared graphs name the same binary. */
  readonly files: readonly ContextFiles[];
  /** What was read back from each binary, by path. */
  readonly contexts: ReadonlyMap<string, ContextInfo>;
  /** Peak resident memory of the largest compile process. */
  readonly peakRssBytes: number;
  /** Processor time of all compile processes. */
  readonly cpuSeconds: number;
  readonly seconds: number;
  /** Warnings of the vendor's compiler. */
  readonly log: string;
}

// The vendor's own names, which are written over, have 64 characters and more.
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$/;
const DIAGNOSIS_POLL_MS = 200;
const FAILED_WITH = /<E> Failed to .* with err \d+/g;
/** Begins the last line of an error's message. */
const KEPT_LOG = '  log: ';

/**
 * Compiles models to HTP context binaries. Each compile runs in a child process whose working folder is a temporary one
 * inside the output folder, with fixed relative file names: the vendor hashes the model's path into the binary, and
 * this way the same model gives the same bytes in every folder. Files appear in the output folder only when everything
 * has succeeded and was read back.
 * @throws QN010 when a graph is not taken whole by the HTP (with the refused nodes and reasons), QN011 when the vendor's
 *   compiler fails, QN012 when the binary is for another SoC than asked for, QN013 when
 *   its ports are not those of the model, RT202 when the compile process dies,
 *   RT203 when it outgrows its limit.
 */
export async function compileContext(
  toolchain: NativeToolchain,
  models: readonly ContextModel[],
  options: CompileOptions,
): Promise<CompiledContext> {
  checkModels(models);
  const started = performance.now();
  const outputFolder = resolve(options.outputFolder);
  mkdirSync(outputFolder, { recursive: true });
  const work = mkdtempSync(join(outputFolder, '.compile-'));
  const removeWork = removeAtExit(work);
  try {
    const groups = options.share ? [models] : models.map((model) => [model]);
    const done: GroupResult[] = [];
    for (const group of groups) done.push(await compileGroup(toolchain, group, work, options));
    const contexts = new Map<string, ContextInfo>();
    const files = groups.flatMap((group, index) => {
      const binary = join(outputFolder, binaryName(group[0]!));
      renameSync(join(work, basename(binary)), binary);
      contexts.set(binary, done[index]!.context);
      return group.map((model) => {
        const onnx = join(outputFolder, contextName(model));
        renameSync(join(work, basename(onnx)), onnx);
        return { name: model.name, onnx, binary, graph: model.name };
      });
    });
    return {
      files,
      contexts,
      peakRssBytes: Math.max(...done.map((group) => group.peakRssBytes)),
      cpuSeconds: done.reduce((sum, group) => sum + group.cpuSeconds, 0),
      seconds: (performance.now() - started) / 1000,
      log: done.map((group) => group.log).join(''),
    };
  } finally {
    removeWork();
  }
}

interface GroupResult {
  readonly context: ContextInfo;
  readonly peakRssBytes: number;
  readonly cpuSeconds: number;
  readonly log: string;
}

const contextName = (model: ContextModel) => `${model.name}_ctx.onnx`;
const binaryName = (model: ContextModel) => `${model.name}_ctx_qnn.bin`;

async function compileGroup(
  toolchain: NativeToolchain,
  group: readonly ContextModel[],
  work: string,
  options: CompileOptions,
): Promise<GroupResult> {
  const host = await NativeHost.start(toolchain, {
    workFolder: work,
    ...pickSignal(options),
    ...(options.memoryLimit === undefined ? {} : { memoryLimit: options.memoryLimit }),
  });
  try {
    const sessions = new Map<string, NativeSession>();
    for (const [index, model] of group.entries()) {
      placeModel(model, host.folder);
      // All sessions of a shared binary stay open until the last one has written it.
      sessions.set(model.name, await openForCompile(host, model, sessionOptions(group, index, options), options));
    }
    const peakRssBytes = await host.peakRssBytes();
    const cpuSeconds = await host.cpuSeconds();
    const binary = binaryName(group[0]!);
    const written = await host.readContext(join(host.folder, binary));
    checkContext(written, group, options.soc);
    nameGraphs(written, group, host.folder);
    const context = await host.readContext(join(host.folder, binary));
    checkNames(context, group);
    for (const graph of context.graphs) checkGraphPorts(graph, sessions.get(graph.name)!, group[0]!.path);
    for (const name of [binary, ...group.map(contextName)]) renameSync(join(host.folder, name), join(work, name));
    return { context, peakRssBytes, cpuSeconds, log: host.log() };
  } catch (error) {
    // Who interrupted it needs no log.
    throw options.signal?.aborted ? error : withLog(error, group[0]!, options.soc, host.log());
  } finally {
    await host.close();
  }
}

function sessionOptions(group: readonly ContextModel[], index: number, options: CompileOptions): SessionOptions {
  const { soc, providerOptions, threads } = options;
  const shared = group.length > 1;
  return {
    provider: 'qnn',
    soc: soc.number,
    providerOptions: {
      ...(threads === undefined ? {} : { num_graph_prepare_threads: String(threads) }),
      ...providerOptions,
    },
    sessionConfig: {
      'ep.context_enable': '1',
      'ep.context_file_path': contextName(group[index]!),
      'ep.context_embed_mode': '0',
      ...(shared ? { 'ep.share_ep_contexts': '1' } : {}),
      ...(shared && index === group.length - 1 ? { 'ep.stop_share_ep_contexts': '1' } : {}),
    },
  };
}

/**
 * Opens a model in the plugin, which compiles it.
 * @throws QN010 with the refused nodes and reasons, QN011 when the compiler fails: both with the place of its log
 */
export async function openForCompile(
  host: NativeHost,
  model: ContextModel,
  session: SessionOptions,
  options: FailureOptions,
): Promise<NativeSession> {
  try {
    return await host.openSession(`./${model.name}.onnx`, session);
  } catch (error) {
    if (!(error instanceof NpucError) || error.code !== 'RT110') throw error;
    const log = await diagnose(host.toolchain, model, options);
    const refused = error.message.includes('fallback to CPU EP has been explicitly disabled');
    throw addLog(
      refused
        ? refusalError(model, options.soc, parseRefusals(log), error)
        : compilerError(model, options.soc, parseCompilerErrors(log), error, log),
      keepLog(`${model.name}-${options.soc.name}`, log),
    );
  }
}

/**
 * The verbose log of compiling a model that failed: only there the plugin gives its reasons. It comes from a process of
 * its own, which is ended as soon as they are written; always writing such logs would take hundreds of megabytes.
 */
async function diagnose(toolchain: NativeToolchain, model: ContextModel, options: FailureOptions): Promise<string> {
  const workFolder = resolve(options.outputFolder);
  const host = await NativeHost.start(toolchain, { logSeverity: 0, workFolder, ...pickSignal(options) });
  try {
    placeModel(model, host.folder);
    const { soc, providerOptions = {} } = options;
    let finished = false;
    const opening = host
      .openSession(`./${model.name}.onnx`, { provider: 'qnn', soc: soc.number, providerOptions })
      // It is expected to fail, or is killed below.
      .catch(() => undefined)
      .finally(() => {
        finished = true;
      });
    // The plugin judges the graph twice, before and after the layout pass; the second verdict is the one that counts.
    while (!finished && host.log().split(REFUSAL_SUMMARY).length < 3)
      await Promise.race([opening, sleep(DIAGNOSIS_POLL_MS)]);
    return host.log();
  } finally {
    await host.kill();
  }
}

function refusalError(model: ContextModel, soc: Soc, refusals: readonly Refusal[], cause: Error): NpucError {
  const shown = refusals.slice(0, 10).map((refusal) => `  ${refusal.node} (${refusal.op}): ${refusal.reason}`);
  const more = refusals.length > 10 ? [`  and ${refusals.length - 10} more`] : [];
  const count = refusals.length === 1 ? '1 node' : `${refusals.length} nodes`;
  return new NpucError('QN010', {
    message: [`the HTP of ${soc.name} (v${soc.arch}) does not take ${count} of ${model.name}`, ...shown, ...more].join(
      '\n',
    ),
    where: model.path,
    hint: 'the whole graph must run on the NPU: rewrite or remove these nodes',
    cause,
  });
}

function compilerError(
  model: ContextModel,
  soc: Soc,
  details: readonly string[],
  cause: NpucError,
  log: string,
): NpucError {
  const said = (cause.cause as Error).message;
  return new NpucError('QN011', {
    message: [
      `the HTP compiler for ${soc.name} (v${soc.arch}) failed on ${model.name}: ${said}`,
      ...details.slice(0, 5).map((detail) => `  ${detail}`),
    ].join('\n'),
    where: model.path,
    hint: hintFor(said, log),
    cause,
  });
}

function hintFor(said: string, log: string): string {
  if (said.includes('Failed to write context cache'))
    return 'the graph compiled, but the disk has no room for the binary';
  // The engine's sentence often has no number; the compiler's last failure in the log has.
  const explained = explainQnnText(said) ?? explainQnnText(log.match(FAILED_WITH)?.at(-1) ?? '');
  if (explained) return explained;
  return 'every node passed the validation, the graph as a whole did not compile for this SoC';
}

/** The vendor library compiles for a default SoC, without an error, when it does not know the one asked for. */
function checkContext(context: ContextInfo, group: readonly ContextModel[], soc: Soc): void {
  if (context.soc !== soc.number || context.dspArch !== soc.arch)
    throw new NpucError('QN012', {
      message: `asked for ${soc.name} (soc ${soc.number}, v${soc.arch}), the binary is for soc ${context.soc}, v${context.dspArch}`,
      hint: 'this toolchain version does not know the SoC',
    });
  if (context.graphs.length !== group.length)
    throw new NpucError('QN011', {
      message: `${group.length} graphs were compiled, the binary holds ${context.graphs.length}`,
      where: group[0]!.path,
      hint: 'a graph was cut into several partitions',
    });
}

/** Puts the models' names in the place of the vendor's hashes, in the binary and in the models that refer to it. */
function nameGraphs(context: ContextInfo, group: readonly ContextModel[], folder: string): void {
  const names = new Map<string, string>();
  for (const model of group) {
    const path = join(folder, contextName(model));
    const found = findGraph(context, path);
    names.set(found, model.name);
    renameInModel(path, found, model.name);
  }
  renameGraphs(join(folder, binaryName(group[0]!)), names);
}

/** @throws QN013 when the binary does not have the names that were written into it */
function checkNames(context: ContextInfo, group: readonly ContextModel[]): void {
  const found = context.graphs.map(({ name }) => name).sort();
  const wanted = group.map(({ name }) => name).sort();
  if (found.join() === wanted.join()) return;
  throw new NpucError('QN013', {
    message: `the binary has the graphs ${found.join(', ')}, not ${wanted.join(', ')}`,
    where: group[0]!.path,
    exitCode: 70,
  });
}

/** The error with the place of the vendor's log, which would go with the child's folder. */
function withLog(error: unknown, model: ContextModel, soc: Soc, log: string): unknown {
  if (!(error instanceof NpucError) || error.message.includes(KEPT_LOG)) return error;
  return addLog(error, keepLog(`${model.name}-${soc.name}`, log));
}

function addLog(error: NpucError, path: string | undefined): NpucError {
  if (path === undefined) return error;
  return new NpucError(error.code, {
    message: `${error.message}\n${KEPT_LOG}${path}`,
    ...(error.where === undefined ? {} : { where: error.where }),
    ...(error.hint === undefined ? {} : { hint: error.hint }),
    exitCode: error.exitCode as 1 | 2 | 70,
    cause: error,
  });
}

/** Which graph of the binary an EPContext model names: the name stands in its `partition_name` attribute as plain text. */
function findGraph(context: ContextInfo, contextModel: string): string {
  const bytes = readFileSync(contextModel);
  const found = context.graphs.filter((graph) => bytes.includes(graph.name));
  if (found.length !== 1)
    throw new NpucError('QN011', {
      message: `${basename(contextModel)} names ${found.length} graphs of its binary`,
      hint: 'a graph was cut into several partitions',
    });
  return found[0]!.name;
}

function checkModels(models: readonly ContextModel[]): void {
  if (models.length === 0) throw new NpucError('XX001', { message: 'no model to compile' });
  const names = new Set(models.map((model) => model.name));
  if (names.size !== models.length || ![...names].every((name) => NAME.test(name)))
    throw new NpucError('XX001', { message: `model names must be distinct file names: ${[...names].join(', ')}` });
}

/** Puts a model and its data under fixed names into the child's folder, without copying where the disk allows. */
export function placeModel(model: ContextModel, folder: string): void {
  const source = dirname(resolve(model.path));
  const pairs: [string, string][] = [
    [resolve(model.path), join(folder, `${model.name}.onnx`)],
    ...(model.externalData ?? []).map((file): [string, string] => [join(source, file), join(folder, file)]),
  ];
  for (const [from, to] of pairs) {
    mkdirSync(dirname(to), { recursive: true });
    // Graphs of one bundle often share a data file.
    rmSync(to, { force: true });
    try {
      linkSync(from, to);
    } catch {
      try {
        copyFileSync(from, to, constants.COPYFILE_FICLONE);
      } catch (cause) {
        const reads = (cause as NodeJS.ErrnoException).code === 'ENOENT';
        throw new NpucError(reads ? 'IO001' : 'IO002', {
          message: `${from} cannot be placed for the compiler: ${(cause as Error).message}`,
          where: reads ? from : to,
          cause,
        });
      }
    }
  }
}

function pickSignal(options: { readonly signal?: AbortSignal }): { readonly signal?: AbortSignal } {
  return options.signal ? { signal: options.signal } : {};
}

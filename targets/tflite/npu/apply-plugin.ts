import { copyFileSync, existsSync, linkSync, renameSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { NpucError } from '../../../compiler/errors.ts';
import { FileSource } from '../../../compiler/ir/tensor.ts';
import { makeTemporaryFolder } from '../../../compiler/runtime/engine.ts';
import { type ProgramResult, runProgram } from '../../../compiler/runtime/native-process.ts';
import { keepLog } from '../../qnn/keep-log.ts';
import type { InstalledToolchain, Toolchain } from '../../qnn/toolchain.ts';
import { readTflite } from '../read.ts';
import { parseErrors, parseRefusals, type Refusals, selectedNothing } from './parse-plugin-log.ts';
import { type DispatchedSignature, readDispatch } from './read-dispatch.ts';
import { writeStandIns } from './stand-ins.ts';
import { type NpuRequest, VENDOR_FACTS } from './vendors.ts';

export interface PluginOptions {
  readonly litert: InstalledToolchain<'litert'>;
  /** Qualcomm's compiler, for its plugin. */
  readonly qnn?: Toolchain;
  /** A folder with the vendor's own libraries. */
  readonly sdk?: string;
  /** `claims` only asks which operators the plugin takes; nothing is compiled. */
  readonly stage: 'compile' | 'claims';
}

/** What a plugin made of a file. */
export interface Applied {
  readonly signatures: readonly DispatchedSignature[];
  readonly refusals: Refusals;
}

const [INPUT, OUTPUT] = ['model.tflite', 'compiled.tflite'];

/** Ends a log line that names what a plugin could not load. */
const UNLOADABLE = /(?:Failed to load|Could not load shared library|cannot open shared object file)[^\n]*/;

/**
 * Compiles a TFLite file with a vendor's LiteRT plugin: LiteRT's own driver, in a child process of its own folder with fixed
 * names, so that the same file gives the same bytes everywhere.
 * @param source the file; it is not changed
 * @param target where the compiled file goes; in the stage `claims` nothing is written there
 * @throws TF301 when the plugin takes no operator at all, TF302 when the vendor's compiler fails, TF303 when a library of the
 *   vendor's is missing, RT202 when the driver crashes
 */
export async function applyPlugin(
  source: string,
  target: string,
  request: NpuRequest,
  options: PluginOptions,
): Promise<Applied> {
  const folder = makeTemporaryFolder();
  try {
    place(source, join(folder.path, INPUT));
    const result = await runPlugin(folder.path, request, options);
    const output = join(folder.path, OUTPUT);
    const refusals = parseRefusals(result.stderr, result.stdout);
    // A driver that failed leaves an empty file.
    if (result.code !== 0 || !existsSync(output) || statSync(output).size === 0) {
      if (selectedNothing(result.stderr)) throw nothingTaken(request, refusals);
      throw describeFailure(request, result, options);
    }
    // A file that is only partitioned has lost the bodies of its composites.
    const signatures = readCompiled(output, options.stage === 'claims');
    if (signatures.every(({ partitions }) => partitions.length === 0)) throw nothingTaken(request, refusals);
    if (options.stage === 'compile') move(output, target);
    return { signatures, refusals };
  } finally {
    folder.release();
  }
}

/** The signatures of a compiled file. @throws IO003 */
export function readCompiled(path: string, unchecked = false): DispatchedSignature[] {
  const file = new FileSource(path);
  try {
    return readDispatch(readTflite(file, path, { unchecked }), file.size);
  } finally {
    file.close();
  }
}

async function runPlugin(
  folder: string,
  { vendor, soc }: NpuRequest,
  { litert, qnn, sdk, stage }: PluginOptions,
): Promise<ProgramResult> {
  const { manufacturer, folder: name } = VENDOR_FACTS[vendor];
  const standIns = join(folder, 'stand-ins');
  const { preload } = writeStandIns(standIns, vendor, stage === 'claims');
  const plugins = join(litert.vendorFolder, name, 'compiler');
  const qualcomm = vendor === 'qualcomm' ? qnn?.qnnLibraryFolder : undefined;
  const search = [sdk, standIns, qualcomm, plugins, vendor === 'openvino' ? litert.openvinoFolder : undefined];
  return await runProgram(
    litert.applyPlugin,
    [
      `--cmd=${stage === 'compile' ? 'apply' : 'partition'}`,
      `--model=${INPUT}`,
      `--o=${OUTPUT}`,
      `--soc_manufacturer=${manufacturer}`,
      `--soc_model=${soc}`,
      `--libs=${plugins}`,
      ...(qualcomm ? [`--qualcomm_qnn_lib_dir=${qualcomm}`, '--qualcomm_log_level=error'] : []),
      // The NPU's own compiler is in its driver: on other machines its CPU device compiles the same graph.
      ...(vendor === 'openvino' ? ['--intel_openvino_graph_backends=cpu'] : []),
      // Else the plugin asks MediaTek's compiler, which is a stand-in here.
      ...(vendor === 'mediatek' && stage === 'claims' ? ['--mediatek_use_get_supported_operations=false'] : []),
    ],
    folder,
    {
      LD_LIBRARY_PATH: [...search, process.env.LD_LIBRARY_PATH].filter(Boolean).join(':'),
      ...(preload.length > 0 ? { LD_PRELOAD: preload.join(':') } : {}),
      // MediaTek's plugin would leave folders in the system's.
      TMPDIR: folder,
    },
  );
}

function describeFailure(request: NpuRequest, result: ProgramResult, { stage }: PluginOptions): NpucError {
  const { vendor, soc } = request;
  const log = keepLog(`${vendor}-${soc}`, `${result.stderr}\n${result.stdout}`);
  const kept = log ? `\n  log: ${log}` : '';
  if (result.signal) {
    return new NpucError('RT202', {
      message: `LiteRT's plugin of ${vendor} ended by ${result.signal}${kept}`,
      hint: "this is a crash inside the vendor's libraries; a smaller graph or another scheme may avoid it",
      exitCode: 70,
    });
  }
  const unloadable = UNLOADABLE.exec(result.stderr)?.[0];
  if (unloadable) {
    const { compiler } = VENDOR_FACTS[vendor];
    return new NpucError('TF303', {
      message: compiler
        ? `the compiler of ${vendor} is missing: ${compiler} is part of the vendor's own SDK (${unloadable})${kept}`
        : `a library of ${vendor} cannot be loaded: ${unloadable}${kept}`,
      hint: compiler
        ? `give the folder that has it with --npu-sdk, or ask only what the plugin takes with --npu-claims`
        : 'install the toolchains again: npuc toolchain install litert; npuc toolchain install qnn --accept-licence',
    });
  }
  const said = parseErrors(result.stderr).slice(-3);
  return new NpucError('TF302', {
    message:
      `LiteRT's plugin of ${vendor} failed ${stage === 'compile' ? `to compile for ${soc}` : `to partition for ${soc}`}` +
      `${said.length > 0 ? `: ${said.join('; ')}` : ''}${kept}`,
    hint: 'that a plugin claims an operator proves nothing: another scheme, or another form of the model, may compile',
  });
}

function nothingTaken({ vendor, soc }: NpuRequest, refusals: Refusals): NpucError {
  const shown = [...refusals].slice(0, 5).map(([output, reason]) => `  ${output}: ${reason}`);
  const more = refusals.size > 5 ? [`  and ${refusals.size - 5} more`] : [];
  return new NpucError('TF301', {
    message: [`LiteRT's plugin of ${vendor} takes no operator for ${soc}`, ...shown, ...more].join('\n'),
    hint: 'compile with a static scheme, such as --scheme w8a16',
  });
}

/** Where the plugin does not say why. */
export const NO_FORM = 'the plugin has no form for it';

function place(from: string, to: string): void {
  try {
    linkSync(from, to);
  } catch {
    copyFileSync(from, to);
  }
}

function move(from: string, to: string): void {
  try {
    renameSync(from, to);
  } catch {
    // The temporary folder is often on another file system.
    copyFileSync(from, to);
  }
}

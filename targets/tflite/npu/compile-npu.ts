import { statSync } from 'node:fs';
import { join } from 'node:path';
import { NpucError } from '../../../compiler/errors.ts';
import { FileSource } from '../../../compiler/ir/tensor.ts';
import { makeTemporaryFolder } from '../../../compiler/runtime/engine.ts';
import { NativeHost } from '../../../compiler/runtime/ort-native.ts';
import { requireToolchain } from '../../qnn/toolchain.ts';
import { findSoc } from '../../socs.ts';
import type { Execution } from '../../target.ts';
import type { TfliteModel } from '../model.ts';
import { readTflite } from '../read.ts';
import { writeTflite } from '../write.ts';
import { applyPlugin, NO_FORM, type PluginOptions } from './apply-plugin.ts';
import { readPartition } from './open-partition.ts';
import type { DispatchedSignature } from './read-dispatch.ts';
import { type NpuRequest, type NpuVendor, VENDOR_FACTS } from './vendors.ts';

/** An operator that runs on the CPU, beside the NPU. */
export interface FallbackOperator {
  readonly op: string;
  /** Its output's name in the file. */
  readonly output: string;
  readonly reason: string;
}

/** What a vendor's plugin took of one signature. */
export interface NpuSignature {
  readonly name: string;
  readonly operators: number;
  readonly claimed: number;
  readonly partitions: number;
  readonly fallback: readonly FallbackOperator[];
}

/** A TFLite file that a vendor's plugin compiled, or what the plugin would take where only that was asked. */
export interface ManifestNpu extends NpuRequest {
  /** Which shard of the decoder, such as `1of4`; absent where it is whole. */
  readonly shard?: string;
  /** Relative to the output folder; absent where only the claims were asked. */
  readonly file?: string;
  readonly execution: Execution | 'claims-only';
  readonly signatures: readonly NpuSignature[];
}

/** What is asked of `npuc compile --npu`. */
export interface NpuOptions {
  readonly requests: readonly NpuRequest[];
  /** Ask only what the plugins take. */
  readonly claims: boolean;
  /** A folder with the vendor's own libraries. */
  readonly sdk?: string;
}

/** A file for a vendor's plugin, as it is given to it and as it came out. */
export interface CompiledNpu {
  readonly manifest: ManifestNpu;
  /** What was compiled; LiteRT runs it. */
  readonly source: string;
  /** The compiled file; absent where only the claims were asked. */
  readonly path?: string;
  readonly dispatched: readonly DispatchedSignature[];
}

/** The file that a vendor's plugin makes of a model or shard: beside the plain one, with vendor and SoC in its name. */
export function npuFile({ vendor, soc }: NpuRequest, shard: string): string {
  return `tflite/model.${vendor}-${soc.toLowerCase()}${shard === '' ? '' : `.${shard}`}.tflite`;
}

/**
 * Everything that can be known to be missing before work starts.
 * @throws QN001, QN002 for toolchains, TF303 for a vendor's compiler that nobody may download
 */
export function checkNpu({ requests, claims, sdk }: NpuOptions): void {
  for (const { vendor } of requests) {
    requireToolchain('litert');
    if (vendor === 'qualcomm') requireToolchain('qnn');
    const { compiler } = VENDOR_FACTS[vendor];
    if (!compiler || claims || sdk !== undefined) continue;
    throw new NpucError('TF303', {
      message: `the compiler of ${vendor} is missing: ${compiler} is part of the vendor's own SDK, which is not public`,
      hint: 'give the folder that has it with --npu-sdk, or ask only what the plugin takes with --npu-claims',
    });
  }
}

/**
 * Compiles a model for a vendor's NPU.
 * @param part a model in the ports that the vendor's facts ask for, and which shard it is, or ''
 * @param out the output folder
 * @param work a folder for what is compiled, which must live as long as the result is used
 * @throws as applyPlugin; QN012 when Qualcomm's byte code is for another SoC
 */
export async function compileForNpu(
  { label, model }: { readonly label: string; readonly model: TfliteModel },
  request: NpuRequest,
  { claims, sdk }: NpuOptions,
  out: string,
  work: string,
): Promise<CompiledNpu> {
  const source = join(work, `${request.vendor}${label}.tflite`);
  writeTflite(source, VENDOR_FACTS[request.vendor].rewrite?.(model) ?? model);
  const file = npuFile(request, label);
  const plugin: PluginOptions = {
    litert: requireToolchain('litert'),
    stage: claims ? 'claims' : 'compile',
    ...(request.vendor === 'qualcomm' ? { qnn: requireToolchain('qnn') } : {}),
    ...(sdk === undefined ? {} : { sdk }),
  };
  const path = join(out, file);
  const { signatures, refusals } = await applyPlugin(source, path, request, plugin);
  if (!claims) {
    checkByteCode(signatures, request.vendor);
    if (request.vendor === 'qualcomm') await checkSoc(path, signatures, request);
  }
  const counts = countOperators(source);
  return {
    manifest: {
      ...request,
      ...(label === '' ? {} : { shard: label }),
      ...(claims ? {} : { file }),
      execution: claims ? 'claims-only' : 'read-back-only',
      signatures: signatures.map(({ name, partitions, left }) => ({
        name,
        operators: counts.get(name)!,
        claimed: counts.get(name)! - left.length,
        partitions: partitions.length,
        fallback: left.map(({ op, output }) => ({ op, output, reason: refusals.get(output) ?? NO_FORM })),
      })),
    },
    source,
    ...(claims ? {} : { path }),
    dispatched: signatures,
  };
}

/** A compiler that does nothing leaves partitions without byte code, and no error. */
function checkByteCode(signatures: readonly DispatchedSignature[], vendor: NpuVendor): void {
  const empty = signatures.flatMap(({ partitions }) => partitions).find(({ size }) => size === 0);
  if (!empty) return;
  throw new NpucError('TF302', {
    message: `the compiler of ${vendor} gave no byte code for ${empty.name}`,
    hint: "--npu-sdk must name the vendor's own library",
  });
}

/** @throws QN012 where the byte code is for another SoC: the vendor's library has a default for what it does not know */
async function checkSoc(path: string, signatures: readonly DispatchedSignature[], { soc }: NpuRequest): Promise<void> {
  const asked = findSoc(soc);
  const folder = makeTemporaryFolder();
  const host = await NativeHost.start(requireToolchain('qnn'));
  try {
    const first = signatures.flatMap(({ partitions }) => partitions)[0]!;
    const context = await readPartition(host, path, first, folder.path);
    if (context.soc === asked.number && context.dspArch === asked.arch) return;
    throw new NpucError('QN012', {
      message: `asked for ${soc} (soc ${asked.number}, v${asked.arch}), the byte code is for soc ${context.soc}, v${context.dspArch}`,
      where: path,
    });
  } finally {
    await host.close();
    folder.release();
  }
}

/** Operators of each signature of a file. */
function countOperators(path: string): Map<string, number> {
  const file = new FileSource(path);
  try {
    const model = readTflite(file, path);
    return new Map(model.signatures.map(({ key, subgraph }) => [key, model.subgraphs[subgraph]!.operators.length]));
  } finally {
    file.close();
  }
}

/** Bytes of a compiled file, for reports. */
export function npuBytes({ path }: CompiledNpu): number {
  return path === undefined ? 0 : statSync(path).size;
}

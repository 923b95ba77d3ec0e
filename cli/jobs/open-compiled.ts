import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { NpucError } from '../../compiler/errors.ts';
import type { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { loadTokenizer, type Tokenizer } from '../../compiler/runtime/tokenizer.ts';
import { decoderTargets, TARGET_NAMES } from '../../targets/index.ts';
import { checkFiles, type Manifest, readManifest } from '../../targets/manifest.ts';
import { checkMadeWith } from '../../targets/qnn/check-toolchain.ts';
import { findToolchain, requireToolchain } from '../../targets/qnn/toolchain.ts';
import type { OpenOptions, TargetName } from '../../targets/target.ts';

export interface OpenedFolder {
  readonly manifest: Manifest;
  readonly target: TargetName;
  readonly session: DecoderSession;
  readonly tokenizer: Tokenizer;
}

/**
 * Opens one target of an output folder for running; no checkpoint is needed.
 * @throws TG110, TG111 when the folder is not whole, CL001 when it has no such target, QN015 when it is newer than the toolchain
 */
export async function openCompiled(
  folder: string,
  wanted: string | undefined,
  engine?: NativeEngine,
): Promise<OpenedFolder> {
  const manifest = readManifest(folder);
  checkFiles(folder, manifest);
  const names = TARGET_NAMES.filter((name) => manifest.targets[name] !== undefined);
  const target = wanted === undefined ? names[0] : names.find((name) => name === wanted);
  if (!target) {
    throw new NpucError('CL001', {
      message: `${folder} has no target ${wanted ?? ''}`,
      where: folder,
      hint: `it has ${names.join(', ')}`,
    });
  }
  const toolchain = findToolchain('qnn');
  const note = target === 'qnn' && toolchain && checkMadeWith(manifest.toolchain, toolchain, folder);
  if (note) process.stderr.write(`WARNING: ${note}\n`);
  const session = await decoderTargets[target].open(folder, manifest.targets[target]!, {
    ...(toolchain ? { toolchain } : {}),
    ...(engine ? { litert: nativeLitert(engine) } : {}),
  });
  return { manifest, target, session, tokenizer: readTokenizer(folder) };
}

/** Toolchains whose libraries run TFLite files in the place of LiteRT.js. */
export const NATIVE_ENGINES = ['litert', 'litert-lm'] as const;
export type NativeEngine = (typeof NATIVE_ENGINES)[number];

/** @throws QN001 when the toolchain is not installed */
function nativeLitert(engine: NativeEngine): NonNullable<OpenOptions['litert']> {
  if (engine === 'litert') {
    const { runtimeLibrary: library, version } = requireToolchain('litert');
    return { library, engine: `LiteRT ${version}` };
  }
  const { library, version } = requireToolchain('litert-lm');
  return { library, engine: `LiteRT of LiteRT-LM ${version}` };
}

function readTokenizer(folder: string): Tokenizer {
  const read = (name: string): Record<string, unknown> | undefined =>
    existsSync(join(folder, name))
      ? (JSON.parse(readFileSync(join(folder, name), 'utf8')) as Record<string, unknown>)
      : undefined;
  const tokenizer = read('tokenizer.json');
  if (!tokenizer) throw new NpucError('TG111', { message: 'tokenizer.json is missing', where: folder });
  const generationConfig = read('generation_config.json');
  const template = join(folder, 'chat_template.jinja');
  return loadTokenizer(tokenizer, read('tokenizer_config.json') ?? {}, {
    where: folder,
    ...(generationConfig ? { generationConfig } : {}),
    ...(existsSync(template) ? { chatTemplate: readFileSync(template, 'utf8') } : {}),
  });
}

import { createHash } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Recipe } from '../calibration/recipe.ts';
import { NpucError } from '../compiler/errors.ts';
import { FileSource } from '../compiler/ir/tensor.ts';
import type { ModelTargetManifest } from './model-target.ts';
import type { ManifestTarget, TargetName } from './target.ts';

/** Raised to 2 when a decoder could have several caches: a reader that knows one would mix their graphs up. */
const FORMATS = { decoder: 2, model: 1 } as const;

/** `manifest.json` of an output folder: the same bytes for the same input, recipe and version; no clock, no path. */
export interface Manifest {
  readonly format: typeof FORMATS.decoder;
  readonly npuc: string;
  readonly source: { readonly name: string; readonly digest: string; readonly architecture: string };
  readonly soc: { readonly name: string; readonly arch: string };
  readonly recipe: Recipe;
  /** As asked for: tokens per run (1 is always there too), and caches, from small to large. */
  readonly shapes: { readonly tokens: readonly number[]; readonly cache: readonly number[] };
  readonly calibration: {
    readonly digest: string;
    readonly chat: boolean;
    readonly windows: number;
    readonly windowTokens: number;
    /** SHA-256 of the file of encodings that took the place of calibrated ones. */
    readonly encodings?: string;
  };
  readonly toolchain: Readonly<Record<string, string>>;
  readonly targets: Readonly<Partial<Record<TargetName, ManifestTarget>>>;
  /** Tokenizer files, copied from the checkpoint so that the folder runs on its own. */
  readonly tokenizer: readonly string[];
  readonly files: readonly ManifestFile[];
}

export interface ManifestFile {
  /** Relative to the output folder, with forward slashes. */
  readonly path: string;
  readonly bytes: number;
  readonly sha256: string;
}

const NAME = 'manifest.json';

/** Size and digest of a written file, streamed. */
export function describeFile(folder: string, path: string): ManifestFile {
  const file = new FileSource(join(folder, path));
  try {
    const hash = createHash('sha256');
    for (let offset = 0; offset < file.size; offset += 8 << 20)
      hash.update(file.read(offset, Math.min(8 << 20, file.size - offset)));
    return { path, bytes: file.size, sha256: hash.digest('hex') };
  } finally {
    file.close();
  }
}

export function writeManifest(folder: string, manifest: Manifest | ModelManifest): void {
  writeFileSync(join(folder, NAME), `${JSON.stringify(manifest, undefined, 1)}\n`);
}

/** Whether a folder was made by npuc, whatever its version: only such a folder is replaced. */
export function isOutputFolder(folder: string): boolean {
  try {
    // Web applications have a file of this name too: ours says who wrote it.
    return typeof (JSON.parse(readFileSync(join(folder, NAME), 'utf8')) as { npuc?: unknown }).npuc === 'string';
  } catch {
    return false;
  }
}

/**
 * The manifest of a compiled checkpoint.
 * @throws TG110 when there is none, it is not one, or it is that of a compiled ONNX model
 */
export function readManifest(folder: string): Manifest {
  const manifest = readAnyManifest(folder);
  if (!isModelManifest(manifest)) return manifest;
  throw new NpucError('TG110', {
    message: `${folder} holds a compiled ONNX model, not a language model`,
    where: join(folder, NAME),
    hint: 'npuc inspect says what it holds',
  });
}

/** The manifest of an output folder of either kind. @throws TG110 when there is none or it is not one */
export function readAnyManifest(folder: string): Manifest | ModelManifest {
  const where = join(folder, NAME);
  let manifest: Partial<Manifest> | null;
  try {
    manifest = JSON.parse(readFileSync(where, 'utf8')) as Partial<Manifest> | null;
  } catch (cause) {
    throw new NpucError('TG110', {
      message: `${folder} holds no compiled model: ${(cause as Error).message}`,
      where,
      hint: 'give the --out folder of npuc compile',
      cause,
    });
  }
  const refuse = (message: string, hint: string): never => {
    throw new NpucError('TG110', { message, where, hint });
  };
  if (typeof manifest?.npuc !== 'string') {
    return refuse(
      `${folder} holds no compiled model: its ${NAME} is not npuc's`,
      'give the --out folder of npuc compile',
    );
  }
  if ('kind' in manifest && manifest.kind === 'genie-bundle')
    return refuse(`${folder} is a Genie bundle`, 'give the folder that the bundle was made from');
  const format: number = 'kind' in manifest && manifest.kind === 'model' ? FORMATS.model : FORMATS.decoder;
  if (manifest.format !== format) {
    return refuse(
      `${folder} was compiled by npuc ${manifest.npuc}, whose format this version does not read`,
      'compile again',
    );
  }
  if (!manifest.targets || !Array.isArray(manifest.files)) return refuse(`${where} is not whole`, 'compile again');
  return manifest as Manifest | ModelManifest;
}

export function isModelManifest(manifest: Manifest | ModelManifest): manifest is ModelManifest {
  return 'kind' in manifest && manifest.kind === 'model';
}

/** Checks that the files are those the manifest lists. @throws TG111 naming the first that is not */
export function checkFiles(folder: string, manifest: Manifest | ModelManifest): void {
  for (const file of manifest.files) {
    if (!existsSync(join(folder, file.path)))
      throw new NpucError('TG111', { message: `${file.path} is missing`, where: folder });
    const now = describeFile(folder, file.path);
    if (now.sha256 !== file.sha256) {
      throw new NpucError('TG111', {
        message: `${file.path} was changed after it was compiled`,
        where: folder,
        hint: 'compile again',
      });
    }
  }
}

/** `manifest.json` of a compiled ONNX model, under the same rules: the same bytes for the same input, no clock, no path. */
export interface ModelManifest {
  readonly format: typeof FORMATS.model;
  readonly kind: 'model';
  readonly npuc: string;
  readonly source: { readonly name: string; readonly digest: string };
  readonly soc: { readonly name: string; readonly arch: string };
  readonly recipe: Recipe;
  /** Lengths given to symbolic dimensions and shapes given to inputs. */
  readonly bindings: Readonly<Record<string, number | readonly number[]>>;
  readonly calibration: {
    readonly digest: string;
    readonly samples: number;
    readonly random: boolean;
    /** SHA-256 of the file of encodings that took the place of calibrated ones. */
    readonly encodings?: string;
  };
  readonly toolchain: Readonly<Record<string, string>>;
  readonly targets: Readonly<Partial<Record<TargetName, ModelTargetManifest>>>;
  readonly files: readonly ManifestFile[];
}

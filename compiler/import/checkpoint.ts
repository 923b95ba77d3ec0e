import { createHash } from 'node:crypto';
import { readdirSync, statSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { NpucError } from '../errors.ts';
import { FileSource, type Tensor } from '../ir/tensor.ts';
import { checkVocabulary, loadTokenizer, type Tokenizer } from '../runtime/tokenizer.ts';
import { openGguf } from './gguf.ts';
import { ggufToCheckpoint } from './gguf-checkpoint.ts';
import { ggufToTokenizer } from './gguf-tokenizer.ts';
import { fetchHubModel, type HubOptions, isHubReference, parseHubReference } from './hub.ts';
import { type JsonObject, readJsonObject } from './json.ts';
import { closeSafetensors, listSafetensorsFiles, openSafetensors } from './safetensors.ts';

/** A checkpoint opened for reading: weights stay in their files. */
export interface Checkpoint {
  /** Short name for reports: the folder's or file's, or `org/name`. */
  readonly name: string;
  /** Where messages say that something is wrong. */
  readonly where: string;
  /** config.json with Hugging Face's keys; other formats are translated to them. */
  readonly config: JsonObject;
  readonly generationConfig: JsonObject | undefined;
  /** Weights under their Hugging Face names. */
  readonly tensors: ReadonlyMap<string, Tensor>;
  readonly tokenizer: Tokenizer | undefined;
  readonly chatTemplate: string | undefined;
  /** The tokenizer's files by name, as text: what an artifact needs to run without the checkpoint. */
  readonly tokenizerFiles: ReadonlyMap<string, string>;
  /** SHA-256 over the bytes of every file that was read, independent of where they lie. Streamed once, then kept. */
  digest(options?: DigestOptions): Promise<string>;
  /** Closes the weight files; reading a tensor later opens them again. */
  close(): void;
}

export interface DigestOptions {
  readonly progress?: (doneBytes: number, totalBytes: number) => void;
  readonly signal?: AbortSignal;
}

/**
 * Opens a checkpoint: a Hugging Face folder, a .safetensors (or its index) beside a config.json, a .gguf, or a folder with
 * nothing but one .gguf, or a model of the hub (`hf:org/name`, see fetchHubModel), which is downloaded into the cache.
 * @throws IM110 nothing usable is there, IM111 only pickled weights, IM130 the tokenizer is another model's, IM131 it is not
 *   usable, and what the reader of each format and the hub throw
 */
export async function openCheckpoint(source: string, options: HubOptions = {}): Promise<Checkpoint> {
  if (isHubReference(source)) {
    const { repo } = parseHubReference(source);
    return { ...(await openCheckpoint(await fetchHubModel(source, options))), name: repo };
  }
  const path = resolve(source);
  const stat = readable(path, () => statSync(path, { throwIfNoEntry: false }));
  if (!stat) {
    throw new NpucError('IM110', {
      message: `there is no file or folder ${source}`,
      where: source,
      hint: 'a Hugging Face model is named hf:org/name',
    });
  }
  if (stat.isDirectory()) {
    const weights = findWeights(path);
    return weights.endsWith('.gguf') ? openGgufCheckpoint(weights) : openFolder(path, weights);
  }
  if (path.endsWith('.gguf')) return openGgufCheckpoint(path);
  if (path.endsWith('.safetensors') || path.endsWith('.safetensors.index.json')) return openFolder(dirname(path), path);
  throw new NpucError('IM110', {
    message: `${basename(path)} is not a checkpoint`,
    where: source,
    hint: 'give a Hugging Face folder, a .safetensors beside its config.json, a .gguf, or hf:org/name',
  });
}

/** @throws IO001 when the system refuses: no permission, links in a circle */
function readable<T>(path: string, read: () => T): T {
  try {
    return read();
  } catch (cause) {
    throw new NpucError('IO001', { message: `cannot read ${path}: ${(cause as Error).message}`, where: path, cause });
  }
}

/** The weights of a folder: the index of the shards, model.safetensors, the only .safetensors, the only .gguf. */
function findWeights(folder: string): string {
  const files = readable(folder, () => readdirSync(folder));
  const found =
    ['model.safetensors.index.json', 'model.safetensors'].find((name) => files.includes(name)) ??
    onlyOne(files, '.safetensors.index.json', folder) ??
    onlyOne(files, '.safetensors', folder) ??
    onlyOne(files, '.gguf', folder);
  if (found) return join(folder, found);
  const pickled = files.find((name) => /\.(bin|pt|pth|ckpt)$/.test(name));
  if (pickled) {
    throw new NpucError('IM111', {
      message: `the weights are pickled (${pickled}), which can run any code when it is loaded`,
      where: folder,
      hint: "convert them once: transformers' save_pretrained writes safetensors",
    });
  }
  throw new NpucError('IM110', {
    message: 'the folder holds no weights (.safetensors or .gguf)',
    where: folder,
    hint: files.includes('adapter_config.json') ? 'merge the adapter into its base model first' : undefined,
  });
}

function onlyOne(files: readonly string[], suffix: string, folder: string): string | undefined {
  const matching = files.filter((name) => name.endsWith(suffix));
  if (matching.length > 1) {
    throw new NpucError('IM110', {
      message: `the folder holds ${matching.length} files *${suffix}`,
      where: folder,
      hint: `name one of them: ${matching.slice(0, 3).join(', ')}`,
    });
  }
  return matching[0];
}

function openFolder(folder: string, weights: string): Checkpoint {
  const file = (name: string): string | undefined => {
    const path = join(folder, name);
    return statSync(path, { throwIfNoEntry: false })?.isFile() ? path : undefined;
  };
  const json = (name: string): JsonObject | undefined => {
    const path = file(name);
    return path === undefined ? undefined : readJsonObject(path);
  };
  const config = json('config.json');
  if (!config) {
    throw new NpucError('IM110', { message: 'there is no config.json beside the weights', where: folder });
  }
  const generationConfig = json('generation_config.json');
  const chatTemplate = readText(file('chat_template.jinja'));
  const tokenizerJson = json('tokenizer.json');
  const tokenizer =
    tokenizerJson &&
    loadTokenizer(tokenizerJson, json('tokenizer_config.json'), {
      config,
      generationConfig,
      chatTemplate,
      where: join(folder, 'tokenizer.json'),
    });
  const tensors = openSafetensors(weights);
  const side = [
    'config.json',
    'generation_config.json',
    'tokenizer.json',
    'tokenizer_config.json',
    'chat_template.jinja',
  ];
  const files = [...side.flatMap((name) => file(name) ?? []), ...listSafetensorsFiles(weights)];
  const close = (): void => closeSafetensors(tensors);
  const name = basename(folder);
  const tokenizerFiles = new Map(
    side.slice(1).flatMap((each): [string, string][] => {
      const text = readText(file(each));
      return text === undefined ? [] : [[each, text]];
    }),
  );
  const parts = { name, where: folder, config, generationConfig, tensors, tokenizer, tokenizerFiles };
  return makeCheckpoint(parts, files, close);
}

function openGgufCheckpoint(path: string): Checkpoint {
  const gguf = openGguf(path);
  try {
    const { config, generationConfig, tensors } = ggufToCheckpoint(gguf, path);
    const made = ggufToTokenizer(gguf.metadata, path);
    const tokenizer =
      made && loadTokenizer(made.tokenizerJson, made.tokenizerConfig, { config, generationConfig, where: path });
    const name = basename(path, '.gguf');
    const written = {
      'tokenizer.json': made?.tokenizerJson,
      'tokenizer_config.json': made?.tokenizerConfig,
      'generation_config.json': generationConfig,
    };
    const tokenizerFiles = new Map(
      Object.entries(written).flatMap(([file, json]): [string, string][] =>
        json ? [[file, JSON.stringify(json)]] : [],
      ),
    );
    const parts = { name, where: path, config, generationConfig, tensors, tokenizer, tokenizerFiles };
    return makeCheckpoint(parts, [path], gguf.close);
  } catch (error) {
    gguf.close();
    throw error;
  }
}

function readText(path: string | undefined): string | undefined {
  if (path === undefined) return undefined;
  const file = new FileSource(path);
  try {
    return Buffer.from(file.read(0, file.size)).toString('utf8');
  } finally {
    file.close();
  }
}

function makeCheckpoint(
  parts: Omit<Checkpoint, 'chatTemplate' | 'digest' | 'close'>,
  files: readonly string[],
  close: () => void,
): Checkpoint {
  const { tokenizer, config, where } = parts;
  try {
    if (tokenizer && typeof config.vocab_size === 'number') checkVocabulary(tokenizer, config.vocab_size, where);
  } catch (error) {
    close();
    throw error;
  }
  let digest: string | undefined;
  return {
    ...parts,
    chatTemplate: tokenizer?.chatTemplate,
    async digest(options) {
      digest ??= await digestFiles(files, options);
      return digest;
    },
    close,
  };
}

const WINDOW_BYTES = 8 << 20;

/** SHA-256 over each file's length and bytes, in the given order. Names are left out: renaming a file is no other input. */
async function digestFiles(files: readonly string[], options: DigestOptions = {}): Promise<string> {
  const hash = createHash('sha256');
  const sizes = files.map((path) => statSync(path).size);
  const total = sizes.reduce((sum, size) => sum + size, 0);
  let done = 0;
  for (const [i, path] of files.entries()) {
    const file = new FileSource(path);
    try {
      hash.update(`${sizes[i]}\n`);
      for (let offset = 0; offset < file.size; offset += WINDOW_BYTES) {
        options.signal?.throwIfAborted();
        const bytes = file.read(offset, Math.min(WINDOW_BYTES, file.size - offset));
        hash.update(bytes);
        done += bytes.length;
        options.progress?.(done, total);
        // Gives timers and signals a turn between windows.
        await new Promise((next) => setImmediate(next));
      }
    } finally {
      file.close();
    }
  }
  return hash.digest('hex');
}

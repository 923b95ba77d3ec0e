import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { NpucError } from '../../compiler/errors.ts';
import { FileSource } from '../../compiler/ir/tensor.ts';
import { loadTokenizer, type Tokenizer } from '../../compiler/runtime/tokenizer.ts';
import type { Manifest } from '../manifest.ts';
import type { ManifestTarget } from '../target.ts';
import { SourceBytes } from './byte-source.ts';
import { type BundleSection, type WrittenBundle, writeLitertLm } from './litertlm-file.ts';
import { encodeLlmMetadata, type LlmMetadata, type SamplerSettings } from './litertlm-metadata.ts';
import { encodeHfTokenizer } from './litertlm-tokenizer.ts';

/** What a section of the graphs is called: prefill and decode in one file. */
export const MODEL_TYPE = 'tf_lite_prefill_decode';

/** What a checkpoint without a chat template is asked with: the texts as they are, one after the other. */
const PLAIN_TEMPLATE = '{% for message in messages %}{{ message.content }}{% endfor %}';

/**
 * LiteRT-LM hands messages over with their content in parts, [{ type, text }]; most templates join texts with `+` and fail on
 * a list (measured: "tried to use + operator on unsupported types string and sequence").
 */
const FLATTEN = [
  '{%- set flat = namespace(messages=[]) -%}',
  '{%- for message in messages -%}',
  '{%- if message.content is string -%}',
  '{%- set flat.messages = flat.messages + [message] -%}',
  '{%- else -%}',
  "{%- set flat.messages = flat.messages + [dict(message, content=message.content | map(attribute='text') | join(''))] -%}",
  '{%- endif -%}',
  '{%- endfor -%}',
  '{%- set messages = flat.messages -%}',
].join('');

/**
 * A checkpoint's template as LiteRT-LM has to see it: messages of plain texts, and the special tokens as variables, which the
 * runtime does not give. The start token is empty where the runtime puts it before the text itself.
 */
function adaptTemplate(tokenizer: Tokenizer, hasStart: boolean): string {
  const tokens = Object.entries(tokenizer.specialTokens).map(([name, text]) => {
    const value = name === 'bos_token' && hasStart ? '' : text;
    return `{%- set ${name} = ${JSON.stringify(value)} -%}`;
  });
  return [...tokens, FLATTEN, tokenizer.chatTemplate ?? PLAIN_TEMPLATE].join('');
}

export interface LitertLmOptions {
  /** A tokenizer to put into the bundle instead of the folder's: a tokenizer.json, or a SentencePiece model. */
  readonly tokenizer?: string;
  /** The version of this tool, for the file's own description. */
  readonly npuc: string;
}

/** What went into a bundle. */
export interface LitertLmBundle extends WrittenBundle {
  readonly metadata: LlmMetadata;
  readonly tokenizer: 'hf' | 'sentencepiece';
}

/** The tflite target of a compiled folder, where LiteRT-LM can drive it. @throws TF401 */
export function requireLitertLmTarget(folder: string, manifest: Manifest): ManifestTarget {
  const target = manifest.targets.tflite;
  const refuse = (message: string): never => {
    throw new NpucError('TF401', { message, where: folder, hint });
  };
  const hint = 'compile with --target tflite --profile litert-lm';
  if (!target) return refuse(`${folder} has no tflite target`);
  if (target.contract !== 'litert-lm')
    return refuse(`the tflite target of ${folder} is for ${target.contract}, not for LiteRT-LM`);
  if (new Set(target.graphs.map(({ file }) => file)).size > 1 || target.graphs.some(({ parts }) => parts))
    return refuse(`the model of ${folder} is in several files, LiteRT-LM takes one: leave --split out`);
  return target;
}

/**
 * Writes the .litertlm file of a compiled folder: LlmMetadata, tokenizer, model. Nothing of the graphs changes: the model
 * section is the very file of the folder.
 * @param folder output folder of a compile, its files already checked
 * @throws TF401 when the folder has nothing for LiteRT-LM, IO001 for a tokenizer that cannot be read, IO002
 */
export function writeLitertLmBundle(
  folder: string,
  manifest: Manifest,
  out: string,
  options: LitertLmOptions,
): LitertLmBundle {
  const target = requireLitertLmTarget(folder, manifest);
  const { tokenizer, generation, json } = readTokenizer(folder);
  const metadata = describeModel(target, tokenizer, generation, folder);
  const given = options.tokenizer === undefined ? undefined : readGiven(options.tokenizer);
  const tokenizerSection: BundleSection =
    given && !given.isJson
      ? { type: 'sentencepiece-tokenizer', items: {}, bytes: given.bytes }
      : { type: 'hf-tokenizer', items: {}, bytes: encodeHfTokenizer(given ? given.bytes.toString('utf8') : json) };
  const path = join(folder, target.graphs[0]!.file);
  const file = new FileSource(path);
  try {
    const integers = Object.keys(target.ports).length > 0;
    const written = writeLitertLm(out, { producer: `npuc ${options.npuc}`, model_name: manifest.source.name }, [
      { type: 'llm-metadata', items: {}, bytes: encodeLlmMetadata(metadata) },
      tokenizerSection,
      {
        type: 'tflite-model',
        // Integer graphs were run on CPUs only; a GPU would compute them in half floats or refuse them.
        items: { model_type: MODEL_TYPE, ...(integers ? { backend_constraint: 'cpu' } : {}) },
        bytes: new SourceBytes(file, 0, file.size),
      },
    ]);
    return { ...written, metadata, tokenizer: tokenizerSection.type === 'hf-tokenizer' ? 'hf' : 'sentencepiece' };
  } finally {
    file.close();
  }
}

/**
 * The same model behind a tokenizer whose tokens are spelled `<id>`, so that what LiteRT-LM reads and writes can be compared
 * id by id. It has no start token: prompts spell it out.
 */
export function writeIdBundle(folder: string, manifest: Manifest, out: string): void {
  const target = requireLitertLmTarget(folder, manifest);
  const { vocabSize, cache } = target.protocol;
  const vocab = Object.fromEntries(Array.from({ length: vocabSize }, (_, id) => [`<${id}>`, id]));
  const split = { type: 'Split', pattern: { Regex: '<[0-9]+>' }, behavior: 'Isolated', invert: false };
  const tokenizer = {
    version: '1.0',
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: split,
    post_processor: null,
    decoder: { type: 'Fuse' },
    model: { type: 'WordLevel', vocab, unk_token: '<0>' },
  };
  const { tokenizer: real } = readTokenizer(folder);
  const metadata: LlmMetadata = {
    stopTokens: real.eosIds.map((id) => [id]),
    sampler: { topK: 1, topP: 1, temperature: 1 },
    maxTokens: cache,
  };
  const file = new FileSource(join(folder, target.graphs[0]!.file));
  try {
    writeLitertLm(out, {}, [
      { type: 'llm-metadata', items: {}, bytes: encodeLlmMetadata(metadata) },
      { type: 'hf-tokenizer', items: {}, bytes: encodeHfTokenizer(JSON.stringify(tokenizer)) },
      { type: 'tflite-model', items: { model_type: MODEL_TYPE }, bytes: new SourceBytes(file, 0, file.size) },
    ]);
  } finally {
    file.close();
  }
}

function describeModel(
  target: ManifestTarget,
  tokenizer: Tokenizer,
  generation: Readonly<Record<string, unknown>>,
  folder: string,
): LlmMetadata {
  const added = tokenizer.encode('', { addSpecialTokens: true });
  if (added.length > 1) {
    throw new NpucError('TF401', {
      message: `the tokenizer adds ${added.length} tokens to every text, LiteRT-LM one at most: ${added.join(', ')}`,
      where: folder,
    });
  }
  return {
    ...(added.length === 1 ? { startToken: added } : {}),
    stopTokens: tokenizer.eosIds.map((id) => [id]),
    sampler: samplerOf(generation),
    maxTokens: target.protocol.cache,
    modelType: 'generic_model',
    template: adaptTemplate(tokenizer, added.length === 1),
  };
}

/** What generation_config.json asks for; without sampling the best token each time. */
function samplerOf(generation: Readonly<Record<string, unknown>>): SamplerSettings {
  const number = (key: string, fallback: number): number => {
    const value = generation[key];
    return typeof value === 'number' ? value : fallback;
  };
  if (generation.do_sample !== true) return { topK: 1, topP: 1, temperature: 1 };
  return { topK: number('top_k', 50), topP: number('top_p', 1), temperature: number('temperature', 1) };
}

interface TokenizerFiles {
  readonly tokenizer: Tokenizer;
  readonly generation: Readonly<Record<string, unknown>>;
  readonly json: string;
}

function readTokenizer(folder: string): TokenizerFiles {
  const text = (name: string): string | undefined =>
    existsSync(join(folder, name)) ? readFileSync(join(folder, name), 'utf8') : undefined;
  const parse = (name: string): Record<string, unknown> => JSON.parse(text(name) ?? '{}') as Record<string, unknown>;
  const json = text('tokenizer.json');
  if (json === undefined) throw new NpucError('TG111', { message: 'tokenizer.json is missing', where: folder });
  const generation = parse('generation_config.json');
  const template = text('chat_template.jinja');
  const tokenizer = loadTokenizer(JSON.parse(json) as Record<string, unknown>, parse('tokenizer_config.json'), {
    where: folder,
    generationConfig: generation,
    ...(template === undefined ? {} : { chatTemplate: template }),
  });
  return { tokenizer, generation, json };
}

/** A tokenizer that the user names: JSON, or anything else, which is taken for SentencePiece. @throws IO001 */
function readGiven(path: string): { readonly bytes: Buffer; readonly isJson: boolean } {
  try {
    return { bytes: readFileSync(path), isJson: path.endsWith('.json') };
  } catch (cause) {
    throw new NpucError('IO001', { message: `cannot read ${path}: ${(cause as Error).message}`, where: path, cause });
  }
}

import { Tokenizer as HubTokenizer } from '@huggingface/tokenizers';
import { NpucError } from '../errors.ts';
import { type ChatMessage, type ChatOptions, renderChatTemplate } from './chat-template.ts';
import { type DecodeStream, streamDecode } from './decode-stream.ts';
import { type EngineDecoder, mendDecoder, mendTokenizerJson } from './mend-tokenizer.ts';

type JsonObject = Readonly<Record<string, unknown>>;

export interface EncodeOptions {
  /** Adds what the tokenizer's post-processor adds, such as Llama's <s> (default true). */
  readonly addSpecialTokens?: boolean;
}

export interface DecodeOptions {
  /** Leaves special tokens such as </s> out (default true). */
  readonly skipSpecialTokens?: boolean;
}

/** Text to ids and back, for one checkpoint. */
export interface Tokenizer {
  /** The highest id that the tokenizer can give, plus one. Models may pad their vocabulary beyond it. */
  readonly vocabSize: number;
  readonly bosId: number | undefined;
  /** Every id that ends a text; none is possible. */
  readonly eosIds: readonly number[];
  /** `bos_token`, `eos_token` and their kin by name. */
  readonly specialTokens: Readonly<Record<string, string>>;
  readonly chatTemplate: string | undefined;
  encode(text: string, options?: EncodeOptions): number[];
  /** Ids without a token (a padded vocabulary has some) are left out. */
  decode(ids: Iterable<number>, options?: DecodeOptions): string;
  /** Decodes ids one by one; the pieces join to what `decode` gives. */
  stream(options?: DecodeOptions): DecodeStream;
  /** The token of an id as the vocabulary spells it. */
  tokenOf(id: number): string | undefined;
  idOf(token: string): number | undefined;
  /** The prompt for a conversation. Encode it with `addSpecialTokens: false`: templates write the special tokens themselves. */
  applyChatTemplate(messages: readonly ChatMessage[], options?: ChatOptions): string;
}

export interface TokenizerSources {
  /** generation_config.json: its `eos_token_id` (one or several) is what ends a generated text. */
  readonly generationConfig?: JsonObject;
  /** config.json, asked where generation_config.json is silent. */
  readonly config?: JsonObject;
  /** A template that takes the place of tokenizer_config.json's (chat_template.jinja). */
  readonly chatTemplate?: string;
  /** The file or folder that messages name. */
  readonly where?: string;
}

/** What is used of @huggingface/tokenizers' class (its type declarations do not resolve under nodenext). */
interface Engine {
  readonly model: { readonly vocab: readonly string[] };
  readonly decoder: EngineDecoder | null;
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[] };
  decode(ids: number[], options: { skip_special_tokens: boolean; clean_up_tokenization_spaces: boolean }): string;
  token_to_id(token: string): number | undefined;
  id_to_token(id: number): string | undefined;
}

/**
 * Makes a tokenizer from the contents of tokenizer.json and tokenizer_config.json.
 * @throws IM131 tokenizer.json is not usable
 */
export function loadTokenizer(
  tokenizerJson: JsonObject,
  tokenizerConfig: JsonObject = {},
  sources: TokenizerSources = {},
): Tokenizer {
  const refuse = (message: string, cause?: unknown): never => {
    throw new NpucError('IM131', { message: `tokenizer.json: ${message}`, where: sources.where, cause });
  };
  let engine: Engine;
  try {
    engine = new HubTokenizer(mendTokenizerJson(tokenizerJson), tokenizerConfig) as Engine;
    mendDecoder(engine.decoder);
  } catch (cause) {
    if (cause instanceof NpucError) throw cause;
    return refuse((cause as Error).message, cause);
  }
  const vocabSize = engine.model.vocab.length;
  if (vocabSize === 0) refuse('the vocabulary is empty');

  const encode = (text: string, addSpecialTokens: boolean): number[] => {
    // A lone surrogate is no Unicode text; UTF-8 writes it as U+FFFD, so what is tokenized is what would be written.
    const { ids } = engine.encode(Buffer.from(text, 'utf8').toString('utf8'), { add_special_tokens: addSpecialTokens });
    return ids;
  };
  const decode = (ids: Iterable<number>, skipSpecialTokens: boolean): string => {
    const known = Array.from(ids).filter((id) => engine.id_to_token(id) !== undefined);
    if (known.length === 0) return '';
    return engine.decode(known, { skip_special_tokens: skipSpecialTokens, clean_up_tokenization_spaces: false });
  };
  try {
    if (!encode('a b', true).every(Number.isInteger)) refuse('a token that it adds to every text has no id');
  } catch (cause) {
    if (cause instanceof NpucError) throw cause;
    refuse((cause as Error).message, cause);
  }

  const specialTokens = readSpecialTokens(tokenizerConfig);
  const firstId = (...candidates: unknown[]): readonly number[] =>
    candidates.map(readIds).find((ids) => ids.length) ?? [];
  const idOf = (token: string | undefined): number | undefined =>
    token === undefined ? undefined : engine.token_to_id(token);
  const chatTemplate = sources.chatTemplate ?? readChatTemplate(tokenizerConfig.chat_template);
  return {
    vocabSize,
    bosId: firstId(idOf(specialTokens.bos_token), sources.config?.bos_token_id)[0],
    eosIds: firstId(
      sources.generationConfig?.eos_token_id,
      sources.config?.eos_token_id,
      idOf(specialTokens.eos_token),
    ),
    specialTokens,
    chatTemplate,
    encode: (text, options) => encode(text, options?.addSpecialTokens ?? true),
    decode: (ids, options) => decode(ids, options?.skipSpecialTokens ?? true),
    stream: (options) => streamDecode((ids) => decode(ids, options?.skipSpecialTokens ?? true)),
    tokenOf: (id) => engine.id_to_token(id),
    idOf,
    applyChatTemplate(messages, options) {
      if (chatTemplate === undefined) {
        throw new NpucError('IM133', {
          message: 'the checkpoint has no chat template',
          where: sources.where,
          hint: 'pass a raw prompt instead',
        });
      }
      return renderChatTemplate(chatTemplate, messages, specialTokens, options);
    },
  };
}

/**
 * Checks that every id the tokenizer can give has a row in the model's embedding. A model may have more rows than tokens.
 * @throws IM130 when it does not
 */
export function checkVocabulary(tokenizer: Tokenizer, modelVocabSize: number, where?: string): void {
  const tooMany = tokenizer.vocabSize > modelVocabSize;
  const ends = tokenizer.eosIds.find((id) => id >= modelVocabSize);
  if (!tooMany && ends === undefined) return;
  throw new NpucError('IM130', {
    message: tooMany
      ? `the tokenizer gives ids up to ${tokenizer.vocabSize - 1}, the model has ${modelVocabSize} tokens`
      : `the end-of-text id is ${ends}, the model has ${modelVocabSize} tokens`,
    where,
    hint: 'tokenizer.json or generation_config.json belongs to another model',
  });
}

function readIds(value: unknown): readonly number[] {
  const list = Array.isArray(value) ? value : [value];
  return list.filter((id): id is number => Number.isSafeInteger(id) && id >= 0);
}

/** Special tokens are strings, or AddedToken objects with the string as `content`. */
function readSpecialTokens(config: JsonObject): Record<string, string> {
  const tokens: Record<string, string> = {};
  for (const name of ['bos_token', 'eos_token', 'unk_token', 'pad_token', 'sep_token', 'cls_token', 'mask_token']) {
    const value = config[name];
    const content = typeof value === 'object' && value !== null ? (value as JsonObject).content : value;
    if (typeof content === 'string') tokens[name] = content;
  }
  return tokens;
}

/** One template, or a list of named ones of which `default` is taken. */
function readChatTemplate(value: unknown): string | undefined {
  if (typeof value === 'string') return value;
  if (!Array.isArray(value)) return undefined;
  const named = value as readonly { name?: unknown; template?: unknown }[];
  const chosen = named.find((entry) => entry?.name === 'default') ?? named[0];
  return typeof chosen?.template === 'string' ? chosen.template : undefined;
}

import { NpucError } from '../errors.ts';
import type { GgufValue } from './gguf.ts';
import type { JsonObject } from './json.ts';

/** The contents of tokenizer.json and tokenizer_config.json, made from GGUF metadata. */
export interface GgufTokenizer {
  readonly tokenizerJson: JsonObject;
  readonly tokenizerConfig: JsonObject;
}

/** llama.cpp's kinds of tokens (`llama_token_type`). */
const NORMAL = 1;
const UNKNOWN = 2;
const CONTROL = 3;
const USER_DEFINED = 4;

const LLAMA3_PATTERN =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const QWEN2_PATTERN = LLAMA3_PATTERN.replace('\\p{N}{1,3}', '\\p{N}');

interface Splitting {
  readonly preTokenizer: JsonObject;
  readonly normalizer?: JsonObject;
  /** A word that is a token as a whole is taken as it is. */
  readonly ignoreMerges?: boolean;
  /** Where the file does not say: whether a text begins with the bos token. */
  readonly addBos?: boolean;
}

const BYTES_ONLY = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false };
const GPT2_BYTES = { ...BYTES_ONLY, use_regex: true };

function splitThenBytes(pattern: string): JsonObject {
  const split = { type: 'Split', pattern: { Regex: pattern }, behavior: 'Isolated', invert: false };
  return { type: 'Sequence', pretokenizers: [split, BYTES_ONLY] };
}

const LLAMA3: Splitting = { preTokenizer: splitThenBytes(LLAMA3_PATTERN), ignoreMerges: true, addBos: true };

/** How text is split before BPE, by `tokenizer.ggml.pre`; each as the tokenizer.json of that model family has it. */
const SPLITTINGS: ReadonlyMap<string, Splitting> = new Map([
  ['gpt-2', { preTokenizer: GPT2_BYTES }],
  [
    'smollm',
    { preTokenizer: { type: 'Sequence', pretokenizers: [{ type: 'Digits', individual_digits: true }, GPT2_BYTES] } },
  ],
  ['llama-bpe', LLAMA3],
  ['llama3', LLAMA3],
  ['llama-v3', LLAMA3],
  ['qwen2', { preTokenizer: splitThenBytes(QWEN2_PATTERN), normalizer: { type: 'NFC' } }],
]);

interface Vocabulary {
  readonly tokens: readonly string[];
  readonly types: readonly number[];
}

/**
 * Makes a tokenizer from `tokenizer.ggml.*` and `tokenizer.chat_template`: byte-level BPE (`gpt2`) and SentencePiece
 * (`llama`), the latter as BPE with byte fallback, as Hugging Face converts it.
 * @returns undefined when the file has no tokenizer
 * @throws IM131 the tokenizer is of another kind or contradicts itself
 */
export function ggufToTokenizer(metadata: ReadonlyMap<string, GgufValue>, where: string): GgufTokenizer | undefined {
  const refuse = (message: string): never => {
    throw new NpucError('IM131', {
      message,
      where,
      hint: 'take the model in Hugging Face form, whose tokenizer.json says everything',
    });
  };
  const kind = metadata.get('tokenizer.ggml.model');
  if (kind === undefined) return undefined;
  const tokens = readStrings(metadata.get('tokenizer.ggml.tokens'));
  if (!tokens) return refuse('tokenizer.ggml.tokens is not a list of strings');
  const types = readNumbers(metadata.get('tokenizer.ggml.token_type')) ?? tokens.map(() => NORMAL);
  if (types.length !== tokens.length) return refuse(`${types.length} token types for ${tokens.length} tokens`);
  const vocabulary = { tokens, types };
  const pre = metadata.get('tokenizer.ggml.pre');
  if (kind === 'llama') {
    const scores = readNumbers(metadata.get('tokenizer.ggml.scores'));
    if (scores?.length !== tokens.length) return refuse(`${scores?.length ?? 'no'} scores for ${tokens.length} tokens`);
    return finish(metadata, vocabulary, sentencePieceParts(metadata, vocabulary, scores), true, refuse);
  }
  if (kind === 'gpt2') {
    const splitting = SPLITTINGS.get(String(pre));
    if (!splitting) {
      return refuse(
        `the pre-tokenizer ${pre ?? '(none named)'} is not supported (${[...SPLITTINGS.keys()].join(', ')} are)`,
      );
    }
    const merges = readStrings(metadata.get('tokenizer.ggml.merges'));
    if (!merges) return refuse('tokenizer.ggml.merges is not a list of strings');
    return finish(
      metadata,
      vocabulary,
      byteLevelParts(vocabulary, splitting, merges),
      splitting.addBos ?? false,
      refuse,
    );
  }
  return refuse(`the tokenizer model ${kind} is not supported (gpt2 and llama are)`);
}

/** What differs between the two kinds. */
interface Parts {
  readonly normalizer: JsonObject | null;
  readonly preTokenizer: JsonObject | null;
  readonly decoder: JsonObject;
  readonly model: JsonObject;
}

function byteLevelParts({ tokens }: Vocabulary, splitting: Splitting, merges: readonly string[]): Parts {
  return {
    normalizer: splitting.normalizer ?? null,
    preTokenizer: splitting.preTokenizer,
    decoder: { ...GPT2_BYTES, add_prefix_space: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: splitting.ignoreMerges ?? false,
      vocab: vocabOf(tokens),
      merges,
    },
  };
}

function sentencePieceParts(
  metadata: ReadonlyMap<string, GgufValue>,
  vocabulary: Vocabulary,
  scores: readonly number[],
): Parts {
  const { tokens, types } = vocabulary;
  const prefixed = metadata.get('tokenizer.ggml.add_space_prefix') !== false;
  const space = '▁';
  const replaceSpaces = { type: 'Replace', pattern: { String: ' ' }, content: space };
  const decoders = [
    { type: 'Replace', pattern: { String: space }, content: ' ' },
    { type: 'ByteFallback' },
    { type: 'Fuse' },
    ...(prefixed ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
  ];
  return {
    normalizer: prefixed
      ? { type: 'Sequence', normalizers: [{ type: 'Prepend', prepend: space }, replaceSpaces] }
      : replaceSpaces,
    preTokenizer: null,
    decoder: { type: 'Sequence', decoders },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: tokens[types.indexOf(UNKNOWN)] ?? null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab: vocabOf(tokens),
      merges: mergesFromScores(vocabulary, scores),
    },
  };
}

/**
 * SentencePiece joins the neighbours that make the token with the highest score. As BPE merges: every way to cut a token into
 * two tokens, the highest score first, then by the ids of the parts (transformers' SentencePieceExtractor).
 */
function mergesFromScores({ tokens, types }: Vocabulary, scores: readonly number[]): readonly (readonly string[])[] {
  const ids = new Map<string, number>();
  tokens.forEach((token, id) => {
    if (types[id] === NORMAL) ids.set(token, id);
  });
  const merges: { parts: readonly [string, string]; order: readonly number[] }[] = [];
  for (const [token, id] of ids) {
    const chars = Array.from(token);
    for (let cut = 1, at = 0; cut < chars.length; cut++) {
      at += chars[cut - 1].length;
      const [left, right] = [token.slice(0, at), token.slice(at)];
      const [leftId, rightId] = [ids.get(left), ids.get(right)];
      if (leftId === undefined || rightId === undefined) continue;
      merges.push({ parts: [left, right], order: [-scores[id], id, leftId, rightId] });
    }
  }
  merges.sort((a, b) => {
    const differing = a.order.findIndex((value, i) => value !== b.order[i]);
    return differing < 0 ? 0 : a.order[differing] - b.order[differing];
  });
  return merges.map(({ parts }) => parts);
}

/** Object.fromEntries, unlike assignment, makes a property even of a token named __proto__. */
function vocabOf(tokens: readonly string[]): JsonObject {
  return Object.fromEntries(tokens.map((token, id) => [token, id]));
}

function finish(
  metadata: ReadonlyMap<string, GgufValue>,
  { tokens, types }: Vocabulary,
  parts: Parts,
  addBosDefault: boolean,
  refuse: (message: string) => never,
): GgufTokenizer {
  const tokenAt = (name: string): string | undefined => {
    const id = metadata.get(`tokenizer.ggml.${name}_token_id`);
    if (id === undefined) return undefined;
    return tokens[Number(id)] ?? refuse(`${name}_token_id is ${id}, there are ${tokens.length} tokens`);
  };
  const special = {
    bos_token: tokenAt('bos'),
    eos_token: tokenAt('eos'),
    unk_token: tokenAt('unknown'),
    pad_token: tokenAt('padding'),
  };
  const flag = (name: string, otherwise: boolean): boolean => {
    const value = metadata.get(`tokenizer.ggml.${name}`);
    return typeof value === 'boolean' ? value : otherwise;
  };
  const begin = flag('add_bos_token', addBosDefault) ? special.bos_token : undefined;
  const end = flag('add_eos_token', false) ? special.eos_token : undefined;
  const addedTokens = tokens.flatMap((content, id) => {
    const kind = types[id];
    if (kind !== CONTROL && kind !== USER_DEFINED && kind !== UNKNOWN) return [];
    const isSpecial = kind !== USER_DEFINED;
    return { id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: isSpecial };
  });
  const template = metadata.get('tokenizer.chat_template');
  return {
    tokenizerJson: {
      version: '1.0',
      truncation: null,
      padding: null,
      added_tokens: addedTokens,
      normalizer: parts.normalizer,
      pre_tokenizer: parts.preTokenizer,
      post_processor: begin || end ? templateOf(tokens, begin, end) : null,
      decoder: parts.decoder,
      model: parts.model,
    },
    tokenizerConfig: {
      ...Object.fromEntries(Object.entries(special).filter(([, token]) => token !== undefined)),
      clean_up_tokenization_spaces: false,
      ...(typeof template === 'string' ? { chat_template: template } : {}),
    },
  };
}

/** A post-processor that puts one text between these tokens. */
function templateOf(tokens: readonly string[], begin: string | undefined, end: string | undefined): JsonObject {
  const special = (id: string): JsonObject => ({ SpecialToken: { id, type_id: 0 } });
  const text = (id: string): JsonObject => ({ Sequence: { id, type_id: 0 } });
  const around = (inner: JsonObject[]): JsonObject[] => [
    ...(begin ? [special(begin)] : []),
    ...inner,
    ...(end ? [special(end)] : []),
  ];
  const used = [begin, end].filter((token) => token !== undefined);
  return {
    type: 'TemplateProcessing',
    single: around([text('A')]),
    pair: around([text('A'), text('B')]),
    special_tokens: Object.fromEntries(
      used.map((token) => [token, { id: token, ids: [tokens.indexOf(token)], tokens: [token] }]),
    ),
  };
}

function readStrings(value: GgufValue | undefined): readonly string[] | undefined {
  return Array.isArray(value) && value.every((item) => typeof item === 'string') ? (value as string[]) : undefined;
}

function readNumbers(value: GgufValue | undefined): readonly number[] | undefined {
  return Array.isArray(value) && value.every((item) => typeof item === 'number') ? (value as number[]) : undefined;
}

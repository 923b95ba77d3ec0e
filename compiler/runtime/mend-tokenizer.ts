import { NpucError } from '../errors.ts';

type JsonObject = Readonly<Record<string, unknown>>;

/** GPT-2's pattern, as the Rust tokenizers' ByteLevel holds it. */
const BYTE_LEVEL_PATTERN = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

const MAX_IDS = 1 << 24;

/**
 * Rewrites a tokenizer.json so that @huggingface/tokenizers 0.2.0 gives the ids that the Rust tokenizers give. Left alone it
 * differs in these places; fixtures/tokenizers/splits.json has a case for each:
 *  - absent `normalizer`, `pre_tokenizer`, `post_processor`, `decoder`, `added_tokens` and `model.type` are refused;
 *  - `Digits` splits at ASCII digits only, not at every Unicode number;
 *  - `ByteLevel`'s own pattern uses JavaScript's \s, which has U+FEFF and lacks U+0085;
 *  - `Split` ignores every behavior but Removed and Isolated, and keeps a removed string;
 *  - `Metaspace` ignores `split`.
 * @throws IM131 a part that cannot be expressed
 */
export function mendTokenizerJson(json: JsonObject): JsonObject {
  const model = json.model as JsonObject | undefined;
  const added = Array.isArray(json.added_tokens) ? (json.added_tokens as { id?: unknown }[]) : [];
  const ids = Array.isArray(model?.vocab) ? [] : Object.values(model?.vocab ?? {});
  for (const id of [...ids, ...added.map((token) => token?.id)]) {
    // Ids index arrays: a wild one would make an array of its size.
    if (!Number.isSafeInteger(id) || (id as number) < 0 || (id as number) >= MAX_IDS)
      throw refuse(`the token id ${id}`);
  }
  return {
    normalizer: null,
    post_processor: null,
    decoder: null,
    ...json,
    added_tokens: added,
    pre_tokenizer: mendPreTokenizer(json.pre_tokenizer ?? null),
    model: model && model.type === undefined && Array.isArray(model.merges) ? { ...model, type: 'BPE' } : model,
  };
}

function mendPreTokenizer(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value;
  const part = value as JsonObject;
  switch (part.type) {
    case 'Sequence':
      return { ...part, pretokenizers: ((part.pretokenizers as unknown[]) ?? []).map(mendPreTokenizer) };
    case 'Digits':
      return isolate(part.individual_digits ? '\\p{N}' : '\\p{N}+');
    case 'ByteLevel':
      return mendByteLevel(part);
    case 'Split':
      return mendSplit(part);
    case 'Metaspace':
      return mendMetaspace(part);
    default:
      return part;
  }
}

function mendByteLevel(part: JsonObject): JsonObject {
  // A prefix space goes before the whole text, the pattern then splits it: with both, the order cannot be kept.
  if (part.use_regex === false || part.add_prefix_space === true) return part;
  return sequence(isolate(BYTE_LEVEL_PATTERN), { ...part, use_regex: false });
}

/** Older files say `add_prefix_space` for `prepend_scheme` and lack `split`, whose default is true. */
function mendMetaspace(part: JsonObject): JsonObject {
  const scheme = part.prepend_scheme ?? (part.add_prefix_space === false ? 'never' : 'always');
  const marked = { ...part, prepend_scheme: scheme };
  return part.split === false
    ? marked
    : sequence(marked, mergeWithNext(escapePattern(String(part.replacement ?? '▁'))));
}

function mendSplit(part: JsonObject): JsonObject {
  const pattern = part.pattern as { String?: string; Regex?: string } | undefined;
  const source = pattern?.Regex ?? (pattern?.String === undefined ? undefined : escapePattern(pattern.String));
  const behavior = String(part.behavior ?? 'Isolated').toLowerCase();
  if (source === undefined || behavior === 'isolated') return part;
  if (behavior === 'removed') return { ...part, pattern: { Regex: source } };
  if (part.invert) throw refuse(`Split with behavior ${part.behavior} and invert`);
  if (behavior === 'mergedwithprevious')
    return keep(`(?:(?!${source})[\\s\\S])*(?:${source})|(?:(?!${source})[\\s\\S])+`);
  if (behavior === 'mergedwithnext') return mergeWithNext(source);
  if (behavior === 'contiguous') return isolate(`(?:${source})+`);
  throw refuse(`Split with behavior ${part.behavior}`);
}

function refuse(what: string): NpucError {
  return new NpucError('IM131', { message: `tokenizer.json: ${what} is not supported` });
}

function sequence(...pretokenizers: JsonObject[]): JsonObject {
  return { type: 'Sequence', pretokenizers };
}

/** Splits so that each match stands alone and what is between matches too. */
function isolate(source: string): JsonObject {
  return { type: 'Split', pattern: { Regex: source }, behavior: 'Isolated', invert: false };
}

/** Splits into the matches, which must cover the text. */
function keep(source: string): JsonObject {
  return { type: 'Split', pattern: { Regex: source }, behavior: 'Removed', invert: true };
}

function mergeWithNext(source: string): JsonObject {
  return keep(`(?:${source})(?:(?!${source})[\\s\\S])*|(?:(?!${source})[\\s\\S])+`);
}

function escapePattern(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
}

/** What is used of a decoder of @huggingface/tokenizers (its type declarations do not resolve under nodenext). */
export interface EngineDecoder {
  /** The parts of a Sequence. */
  readonly decoders?: readonly EngineDecoder[];
  /** ByteFallback and ByteLevel have one. */
  text_decoder?: InstanceType<typeof TextDecoder>;
}

/**
 * Lets the decoder of byte tokens (<0xEF>...) keep a U+FEFF, which TextDecoder takes for a byte order mark. One difference
 * stays: a run of byte tokens that is not UTF-8 becomes U+FFFD only where it is wrong; Rust gives one for each byte of the
 * whole run, so that there a finished character could still vanish while a text is streamed.
 */
export function mendDecoder(decoder: EngineDecoder | null): void {
  for (const part of decoder?.decoders ?? []) mendDecoder(part);
  if (decoder?.text_decoder) decoder.text_decoder = new TextDecoder('utf-8', { ignoreBOM: true });
}

import { NpucError } from '../errors.ts';

type JsonObject = Readonly<Record<string, unknown>>;

/** GPT-2's pattern, as the Rust tokenizers' ByteLevel holds it. */
const BYTE_LEVEL_PATTERN = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/**
 * Rewrites a tokenizer.json so that @huggingface/tokenizers 0.2.0 gives the ids that the Rust tokenizers give. It differs in
 * these places, each found by reading both and held by a test:
 *  - absent `normalizer`, `pre_tokenizer`, `post_processor`, `decoder`, `added_tokens` and `model.type` are refused;
 *  - `Digits` splits at ASCII digits only, not at every Unicode number;
 *  - `ByteLevel`'s own pattern uses JavaScript's \s, which has U+FEFF and lacks U+0085;
 *  - `Split` ignores every behavior but Removed and Isolated;
 *  - `Metaspace` ignores `split`.
 * @throws IM131 a part that cannot be expressed
 */
export function mendTokenizerJson(json: JsonObject): JsonObject {
  const model = json.model as JsonObject | undefined;
  return {
    normalizer: null,
    post_processor: null,
    decoder: null,
    ...json,
    added_tokens: json.added_tokens ?? [],
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
      // Older files lack `split`; its default is true.
      if (part.split === false) return part;
      return sequence(part, mergeWithNext(escapePattern(String(part.replacement ?? '▁'))));
    default:
      return part;
  }
}

function mendByteLevel(part: JsonObject): JsonObject {
  // A prefix space goes before the whole text, the pattern then splits it: with both, the order cannot be kept.
  if (part.use_regex === false || part.add_prefix_space === true) return part;
  return sequence(isolate(BYTE_LEVEL_PATTERN), { ...part, use_regex: false });
}

function mendSplit(part: JsonObject): JsonObject {
  const pattern = part.pattern as { String?: string; Regex?: string } | undefined;
  const source = pattern?.Regex ?? (pattern?.String === undefined ? undefined : escapePattern(pattern.String));
  const behavior = String(part.behavior ?? 'Isolated').toLowerCase();
  if (source === undefined || behavior === 'isolated' || behavior === 'removed') return part;
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

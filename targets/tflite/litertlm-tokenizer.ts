import { inflateSync } from 'node:zlib';
import { NpucError } from '../../compiler/errors.ts';
import { BytesSource, decodeMessage, type Field, type Schema, WireReader } from '../../compiler/import/protobuf.ts';

/** A stored block of DEFLATE holds so many bytes. */
const STORED = 0xffff;
/** Tokenizers are tens of megabytes; a section that claims more is damaged. */
const LARGEST = 1 << 30;

/**
 * tokenizer.json as a section: its length (u64), then a zlib stream. The stream's blocks are stored, not compressed: what a
 * compressor writes depends on its version and on the CPU, and the same input must give the same bytes.
 */
export function encodeHfTokenizer(json: string): Uint8Array {
  const text = Buffer.from(json, 'utf8');
  const blocks = Math.max(1, Math.ceil(text.length / STORED));
  const out = new Uint8Array(8 + 2 + blocks * 5 + text.length + 4);
  const view = new DataView(out.buffer);
  view.setBigUint64(0, BigInt(text.length), true);
  // CMF and FLG (RFC 1950): DEFLATE with a 32 KiB window, the least effort.
  out.set([0x78, 0x01], 8);
  let at = 10;
  for (let block = 0; block < blocks; block++) {
    const part = text.subarray(block * STORED, (block + 1) * STORED);
    out[at] = block === blocks - 1 ? 1 : 0;
    view.setUint16(at + 1, part.length, true);
    view.setUint16(at + 3, part.length ^ 0xffff, true);
    out.set(part, at + 5);
    at += 5 + part.length;
  }
  view.setUint32(at, adler32(text));
  return out;
}

function adler32(bytes: Uint8Array): number {
  let [a, b] = [1, 0];
  for (const byte of bytes) {
    a = (a + byte) % 65521;
    b = (b + a) % 65521;
  }
  return b * 65536 + a;
}

/** The text of tokenizer.json. @throws IO003 when the section is not what it should be */
export function decodeHfTokenizer(section: Uint8Array): string {
  const fail = (message: string, cause?: unknown): never => {
    throw new NpucError('IO003', { message: `the tokenizer section ${message}`, cause });
  };
  if (section.byteLength < 8) return fail('is too short');
  const view = new DataView(section.buffer, section.byteOffset, section.byteLength);
  const length = Number(view.getBigUint64(0, true));
  if (length > LARGEST) return fail(`claims ${length} bytes`);
  let text: Uint8Array;
  try {
    text = inflateSync(section.subarray(8), { maxOutputLength: length + 1 });
  } catch (cause) {
    return fail(`is no zlib stream: ${(cause as Error).message}`, cause);
  }
  if (text.byteLength !== length) return fail(`says ${length} bytes and holds ${text.byteLength}`);
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(text);
  } catch (cause) {
    return fail('is not UTF-8', cause);
  }
}

function schemaOf(title: string, fields: readonly Field[]): Schema {
  return { title, fields, byNumber: new Map(fields.map((field) => [field.number, field])), keepsSpan: false };
}

// sentencepiece_model.proto: ModelProto.pieces, .trainer_spec; SentencePiece.piece, .type; TrainerSpec.model_type.
const PIECE = schemaOf('SentencePiece', [
  { number: 1, name: 'piece', kind: 'string' },
  { number: 3, name: 'type', kind: 'int' },
]);
const TRAINER = schemaOf('TrainerSpec', [{ number: 3, name: 'modelType', kind: 'int' }]);
const MODEL = schemaOf('ModelProto', [
  { number: 1, name: 'pieces', kind: 'messages', schema: PIECE },
  { number: 2, name: 'trainer', kind: 'message', schema: TRAINER },
]);

/** The pieces of a SentencePiece model, in the order of their ids. @throws IO003 when it is none */
export function readSentencePieces(bytes: Uint8Array, where: string): readonly string[] {
  const message = decodeMessage(new WireReader(new BytesSource(bytes, where)), MODEL, bytes.byteLength) as {
    readonly pieces?: readonly { readonly piece?: string }[];
  };
  const pieces = (message.pieces ?? []).map(({ piece = '' }) => piece);
  if (pieces.length > 0) return pieces;
  throw new NpucError('IO003', { message: 'the SentencePiece model has no pieces', where });
}

/**
 * Parts of tokenizer.json that the runtime's tokenizer (Hugging Face's own, in Rust) knows, by place. Another part ends the
 * load of the whole file.
 */
const KNOWN: Readonly<Record<string, readonly string[]>> = {
  model: ['BPE', 'WordPiece', 'WordLevel', 'Unigram'],
  normalizer: [
    'BertNormalizer',
    'ByteLevel',
    'Lowercase',
    'NFC',
    'NFD',
    'NFKC',
    'NFKD',
    'Nmt',
    'Precompiled',
    'Prepend',
    'Replace',
    'Sequence',
    'Strip',
    'StripAccents',
  ],
  pre_tokenizer: [
    'BertPreTokenizer',
    'ByteLevel',
    'CharDelimiterSplit',
    'Digits',
    'FixedLength',
    'Metaspace',
    'Punctuation',
    'Sequence',
    'Split',
    'UnicodeScripts',
    'Whitespace',
    'WhitespaceSplit',
  ],
  post_processor: ['BertProcessing', 'ByteLevel', 'RobertaProcessing', 'Sequence', 'TemplateProcessing'],
  decoder: [
    'BPEDecoder',
    'ByteFallback',
    'ByteLevel',
    'CTC',
    'Fuse',
    'Metaspace',
    'Replace',
    'Sequence',
    'Strip',
    'WordPiece',
  ],
};

type Json = Readonly<Record<string, unknown>>;

/** What of a tokenizer.json the runtime cannot take, in words; nothing is none. */
export function refuseHfTokenizer(json: Json): string[] {
  const wrong: string[] = [];
  for (const [place, types] of Object.entries(KNOWN)) {
    const part = json[place] as Json | null | undefined;
    if (place === 'model' && typeof part !== 'object') {
      wrong.push('the tokenizer has no model');
      continue;
    }
    for (const type of typesOf(part)) {
      // Old files do not name the model's type: it is known by what it holds.
      if (type === undefined ? place !== 'model' : !types.includes(type))
        wrong.push(`the tokenizer's ${place} has the type ${type ?? '(none)'}, which LiteRT-LM does not know`);
    }
  }
  return wrong;
}

/** The types of a part and, where it is a sequence, of its members. */
function typesOf(part: Json | null | undefined): (string | undefined)[] {
  if (!part) return [];
  const type = typeof part.type === 'string' ? part.type : undefined;
  const members = ['normalizers', 'pretokenizers', 'processors', 'decoders'].flatMap((key) =>
    Array.isArray(part[key]) ? (part[key] as Json[]) : [],
  );
  return [type, ...members.flatMap(typesOf)];
}

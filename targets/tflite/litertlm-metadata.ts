import { encodeMessage } from '../../compiler/export/protobuf.ts';
import { BytesSource, decodeMessage, type Field, type Schema, WireReader } from '../../compiler/import/protobuf.ts';

/** How LiteRT-LM chooses tokens unless it is told otherwise. It has greedy sampling only as the best 1 of `TOP_P`. */
export interface SamplerSettings {
  readonly topK: number;
  readonly topP: number;
  readonly temperature: number;
}

/** A token of the metadata: ids, or a text that the runtime encodes. */
export type MetadataToken = readonly number[] | string;

/** What LiteRT-LM has to know beside the graphs. */
export interface LlmMetadata {
  /** Put before every text. */
  readonly startToken?: MetadataToken;
  /** Each of them ends a text. */
  readonly stopTokens: readonly MetadataToken[];
  readonly sampler?: SamplerSettings;
  /** The whole context. */
  readonly maxTokens?: number;
  /** A family that the runtime has code of its own for; `generic_model` is any other. */
  readonly modelType?: string;
  /** Jinja, of the chat. */
  readonly template?: string;
}

/** SamplerParameters.Type: GREEDY (3) is refused by the runtime ("not implemented yet"). */
const TOP_P = 2;

/** LlmModelType's members by field number. */
const MODEL_TYPES: Readonly<Record<number, string>> = {
  1: 'generic_model',
  2: 'gemma3n',
  3: 'function_gemma',
  4: 'gemma3',
  5: 'qwen3',
  7: 'qwen2p5',
  8: 'gemma4',
  9: 'fast_vlm',
  11: 'lfm2',
  12: 'minicpm5',
  13: 'minicpmv4',
};

function schemaOf(title: string, fields: readonly Field[]): Schema {
  return { title, fields, byNumber: new Map(fields.map((field) => [field.number, field])), keepsSpan: false };
}

// Field numbers: the descriptors inside litert-lm-builder 0.18.1 (runtime/proto).
const TOKEN_IDS = schemaOf('TokenIds', [{ number: 1, name: 'ids', kind: 'ints' }]);
const TOKEN = schemaOf('TokenUnion', [
  { number: 1, name: 'tokenIds', kind: 'message', schema: TOKEN_IDS },
  { number: 2, name: 'tokenStr', kind: 'string' },
]);
const SAMPLER = schemaOf('SamplerParameters', [
  { number: 1, name: 'type', kind: 'int' },
  { number: 2, name: 'k', kind: 'int' },
  { number: 3, name: 'p', kind: 'float' },
  { number: 4, name: 'temperature', kind: 'float' },
]);
const MODEL_TYPE = schemaOf(
  'LlmModelType',
  Object.entries(MODEL_TYPES).map(([number, name]) => ({
    number: Number(number),
    name,
    kind: 'message',
    schema: schemaOf(name, []),
  })),
);
const METADATA = schemaOf('LlmMetadata', [
  { number: 1, name: 'startToken', kind: 'message', schema: TOKEN },
  { number: 2, name: 'stopTokens', kind: 'messages', schema: TOKEN },
  { number: 4, name: 'sampler', kind: 'message', schema: SAMPLER },
  { number: 5, name: 'maxTokens', kind: 'int' },
  { number: 6, name: 'modelType', kind: 'message', schema: MODEL_TYPE },
  { number: 7, name: 'template', kind: 'string' },
]);

/** The LlmMetadata message. */
export function encodeLlmMetadata(metadata: LlmMetadata): Uint8Array {
  const { startToken, stopTokens, sampler, maxTokens, modelType, template } = metadata;
  const token = (value: MetadataToken): object =>
    typeof value === 'string' ? { tokenStr: value } : { tokenIds: { ids: [...value] } };
  return encodeMessage(METADATA, {
    ...(startToken === undefined ? {} : { startToken: token(startToken) }),
    stopTokens: stopTokens.map(token),
    ...(sampler
      ? { sampler: { type: TOP_P, k: sampler.topK, p: sampler.topP, temperature: sampler.temperature } }
      : {}),
    ...(maxTokens === undefined ? {} : { maxTokens }),
    modelType: { [modelType ?? 'generic_model']: {} },
    ...(template === undefined ? {} : { template }),
  }).toBytes();
}

interface TokenMessage {
  readonly tokenIds?: { readonly ids?: readonly (number | bigint)[] };
  readonly tokenStr?: string;
}

/** Reads what `LlmMetadata` has a place for and leaves the rest aside. @throws IO003 for bytes that are no such message */
export function decodeLlmMetadata(bytes: Uint8Array, where: string): LlmMetadata {
  const message = decodeMessage(new WireReader(new BytesSource(bytes, where)), METADATA, bytes.byteLength) as {
    readonly startToken?: TokenMessage;
    readonly stopTokens?: readonly TokenMessage[];
    readonly sampler?: { readonly k?: number; readonly p?: number; readonly temperature?: number };
    readonly maxTokens?: number | bigint;
    readonly modelType?: Readonly<Record<string, unknown>>;
    readonly template?: string;
  };
  const token = ({ tokenIds, tokenStr }: TokenMessage): MetadataToken => tokenStr ?? (tokenIds?.ids ?? []).map(Number);
  const { startToken, stopTokens = [], sampler, maxTokens, modelType, template } = message;
  const family = Object.keys(modelType ?? {}).find((name) => name !== 'unknown');
  return {
    ...(startToken ? { startToken: token(startToken) } : {}),
    stopTokens: stopTokens.map(token),
    // Absent numbers are 0 in protobuf.
    ...(sampler
      ? { sampler: { topK: Number(sampler.k ?? 0), topP: sampler.p ?? 0, temperature: sampler.temperature ?? 0 } }
      : {}),
    ...(maxTokens === undefined ? {} : { maxTokens: Number(maxTokens) }),
    ...(family === undefined ? {} : { modelType: family }),
    ...(template === undefined ? {} : { template }),
  };
}

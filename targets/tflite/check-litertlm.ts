import { NpucError } from '../../compiler/errors.ts';
import { FileSource } from '../../compiler/ir/tensor.ts';
import { refuseChatTemplate } from '../../compiler/runtime/chat-template.ts';
import { loadTokenizer } from '../../compiler/runtime/tokenizer.ts';
import type { ByteSource } from './byte-source.ts';
import { MODEL_TYPE } from './litertlm-bundle.ts';
import { type LitertLmFile, type ReadSection, readLitertLm } from './litertlm-file.ts';
import { decodeLlmMetadata, type LlmMetadata, type MetadataToken } from './litertlm-metadata.ts';
import { decodeHfTokenizer, readSentencePieces, refuseHfTokenizer } from './litertlm-tokenizer.ts';
import type { TfliteModel, TflitePort } from './model.ts';
import { readTflite } from './read.ts';
import { TensorType, tensorTypeName } from './schema-enums.ts';

/** What a check found. */
export interface LitertLmFindings {
  /** What makes LiteRT-LM fail, or write nonsense. */
  readonly errors: readonly string[];
  /** What may be meant. */
  readonly warnings: readonly string[];
}

/** Sections of which every bundle of a language model has one. */
const REQUIRED = ['llm-metadata', 'tflite-model'] as const;

/**
 * Checks a .litertlm file without running it: its sections, whether LiteRT-LM can take the tokenizer, whether vocabularies
 * agree, whether the signatures are what its executor asks for, stop tokens and the prompt template. LiteRT-LM itself says
 * little: a wrong vocabulary ends it in an index out of bounds, a missing stop token in endless text.
 * @param name what messages call the file
 * @throws IO003 or TF105 when the file or a section cannot be read at all
 */
export function checkLitertLm(path: string, name: string = path): LitertLmFindings {
  const file = new FileSource(path);
  try {
    return checkSections(readLitertLm(file), name);
  } finally {
    file.close();
  }
}

/** As checkLitertLm. @throws TF402 with every error that was found */
export function requireWholeLitertLm(path: string, name: string = path): readonly string[] {
  const { errors, warnings } = checkLitertLm(path, name);
  if (errors.length === 0) return warnings;
  throw new NpucError('TF402', {
    message: [`${name} cannot run in LiteRT-LM:`, ...errors.map((error) => `  ${error}`)].join('\n'),
    where: name,
    hint: 'make the bundle again from a compiled folder: npuc bundle litertlm',
  });
}

function checkSections(bundle: LitertLmFile, path: string): LitertLmFindings {
  const errors: string[] = [];
  const warnings: string[] = [];
  for (const type of REQUIRED) {
    const count = bundle.sections.filter((section) => section.type === type).length;
    if (count === 0) errors.push(`there is no ${type} section`);
    if (type === 'llm-metadata' && count > 1) errors.push(`there are ${count} ${type} sections`);
  }
  const tokenizers = bundle.sections.filter(
    ({ type }) => type === 'hf-tokenizer' || type === 'sentencepiece-tokenizer',
  );
  if (tokenizers.length !== 1) errors.push(`there are ${tokenizers.length || 'no'} tokenizer sections`);
  const find = (type: ReadSection['type']): ReadSection | undefined =>
    bundle.sections.find((section) => section.type === type);
  const section = find('llm-metadata');
  const metadata = section && decodeLlmMetadata(bytesOf(section), path);
  const modelSection = bundle.sections.find(
    ({ type, items }) => type === 'tflite-model' && items.model_type === MODEL_TYPE,
  );
  if (find('tflite-model') && !modelSection) errors.push(`no tflite-model section has the model_type ${MODEL_TYPE}`);
  const model = modelSection && readTflite(modelSection.source, path);
  const graphs = model && checkGraphs(model, errors);
  const vocabulary = tokenizers[0] && readVocabulary(tokenizers[0], path, errors);
  if (metadata) checkMetadata(metadata, graphs, errors, warnings);
  if (vocabulary && graphs) checkVocabularies(vocabulary, graphs.vocabSize, metadata, errors, warnings);
  return { errors, warnings };
}

/** What the checks of the metadata need to know of the graphs. */
interface GraphFacts {
  readonly context: number;
  readonly vocabSize: number;
}

type Port = { readonly name: string; readonly type: number; readonly shape: readonly number[] };

/** Signatures as LiteRT-LM's executor asks for them (facts litert 4). */
function checkGraphs(model: TfliteModel, errors: string[]): GraphFacts | undefined {
  const portsOf = (subgraph: number, ports: readonly TflitePort[]): Map<string, Port> =>
    new Map(
      ports.map(({ name, tensor }) => {
        const { type, shape } = model.subgraphs[subgraph]!.tensors[tensor]!;
        return [name, { name, type, shape }];
      }),
    );
  const decode = model.signatures.find(({ key }) => key === 'decode');
  const prefills = model.signatures.filter(({ key }) => key.startsWith('prefill'));
  if (!decode) errors.push('the model has no signature decode');
  if (prefills.length === 0) errors.push('the model has no signature that begins with prefill');
  let facts: GraphFacts | undefined;
  let caches: Map<string, Port> | undefined;
  for (const signature of [...(decode ? [decode] : []), ...prefills]) {
    const { key, subgraph } = signature;
    const wrong = (message: string): number => errors.push(`signature ${key}: ${message}`);
    const inputs = portsOf(subgraph, signature.inputs);
    const outputs = portsOf(subgraph, signature.outputs);
    const need = (name: string, type: number, rank: number): Port | undefined => {
      const port = inputs.get(name);
      if (!port) wrong(`there is no input ${name}`);
      else if (port.type !== type) wrong(`${name} is ${tensorTypeName(port.type)}, not ${tensorTypeName(type)}`);
      else if (port.shape.length !== rank) wrong(`${name} has the shape [${port.shape}], not one of rank ${rank}`);
      else return port;
      return undefined;
    };
    const tokens = need('tokens', TensorType.INT32, 2);
    const positions = need('input_pos', TensorType.INT32, 1);
    const mask = need('mask', TensorType.FLOAT32, 4);
    if (tokens && positions && tokens.shape[1] !== positions.shape[0])
      wrong(`tokens has ${tokens.shape[1]} places, input_pos ${positions.shape[0]}`);
    if (tokens && mask && mask.shape[2] !== tokens.shape[1])
      wrong(`tokens has ${tokens.shape[1]} places, mask ${mask.shape[2]} rows`);
    const own = new Map([...inputs].filter(([name]) => name.startsWith('kv_cache_')));
    if (own.size === 0) wrong('there is no input kv_cache_k_0');
    for (const [name, port] of own) {
      const output = outputs.get(name);
      if (!output) wrong(`the cache ${name} goes in and does not come out`);
      else if (!sameForm(port, output))
        wrong(`the cache ${name} goes in as ${formOf(port)}, comes out as ${formOf(output)}`);
      const first = caches?.get(name);
      if (caches && !first) wrong(`the cache ${name} is not in ${decode?.key ?? prefills[0]!.key}`);
      if (first && !sameForm(first, port)) wrong(`the cache ${name} is ${formOf(port)}, elsewhere ${formOf(first)}`);
    }
    caches ??= own;
    if (key !== 'decode') continue;
    const logits = outputs.get('logits');
    if (logits?.type !== TensorType.FLOAT32) wrong('there is no output logits of floats');
    else if (mask) facts = { context: mask.shape[3]!, vocabSize: logits.shape.at(-1)! };
  }
  return facts;
}

function sameForm(a: Port, b: Port): boolean {
  return formOf(a) === formOf(b);
}

function formOf({ type, shape }: Port): string {
  return `${tensorTypeName(type)}[${shape.join(',')}]`;
}

/** The tokens of a tokenizer section, by id; undefined where it cannot be said. */
interface Vocabulary {
  readonly size: number;
  has(token: string): boolean;
}

function readVocabulary(section: ReadSection, path: string, errors: string[]): Vocabulary | undefined {
  if (section.type === 'sentencepiece-tokenizer') {
    const pieces = readSentencePieces(bytesOf(section), path);
    return { size: pieces.length, has: (token) => pieces.includes(token) };
  }
  let json: Record<string, unknown>;
  try {
    json = JSON.parse(decodeHfTokenizer(bytesOf(section))) as Record<string, unknown>;
  } catch (cause) {
    if (cause instanceof NpucError) throw cause;
    errors.push(`the tokenizer is no JSON: ${(cause as Error).message}`);
    return undefined;
  }
  const refused = refuseHfTokenizer(json);
  errors.push(...refused);
  if (refused.length > 0) return undefined;
  try {
    const tokenizer = loadTokenizer(json, {}, { where: path });
    return { size: tokenizer.vocabSize, has: (token) => tokenizer.idOf(token) !== undefined };
  } catch (cause) {
    errors.push((cause as Error).message);
    return undefined;
  }
}

function checkMetadata(
  { stopTokens, maxTokens, template, sampler }: LlmMetadata,
  graphs: GraphFacts | undefined,
  errors: string[],
  warnings: string[],
): void {
  if (stopTokens.length === 0) errors.push('there is no stop token: a text would go on until the cache is full');
  if (graphs && maxTokens !== undefined && maxTokens > graphs.context)
    errors.push(`max_num_tokens is ${maxTokens}, the graphs' cache has ${graphs.context} slots`);
  if (sampler && sampler.topK < 1) errors.push(`the sampler's k is ${sampler.topK}`);
  if (template === undefined) {
    warnings.push('there is no prompt template: a chat is put together by the runtime');
    return;
  }
  const refused = refuseChatTemplate(template);
  if (refused !== undefined) errors.push(`the prompt template cannot be parsed: ${refused}`);
}

function checkVocabularies(
  vocabulary: Vocabulary,
  vocabSize: number,
  metadata: LlmMetadata | undefined,
  errors: string[],
  warnings: string[],
): void {
  if (vocabulary.size > vocabSize)
    errors.push(`the tokenizer gives ids up to ${vocabulary.size - 1}, the model has ${vocabSize} tokens`);
  if (vocabulary.size < vocabSize)
    warnings.push(
      `the model has ${vocabSize} tokens, the tokenizer ${vocabulary.size}: padding, if it is the right one`,
    );
  const check = (what: string, token: MetadataToken): void => {
    if (typeof token === 'string') {
      if (!vocabulary.has(token)) errors.push(`the ${what} ${JSON.stringify(token)} is no token of the tokenizer`);
      return;
    }
    for (const id of token) if (id < 0 || id >= vocabSize) errors.push(`the ${what} is ${id}, of ${vocabSize} tokens`);
  };
  if (metadata?.startToken !== undefined) check('start token', metadata.startToken);
  for (const token of metadata?.stopTokens ?? []) check('stop token', token);
}

function bytesOf({ source }: { readonly source: ByteSource }): Uint8Array {
  return source.read(0, source.size);
}

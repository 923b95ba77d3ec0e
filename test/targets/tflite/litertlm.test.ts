import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inflateSync } from 'node:zlib';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { NpucError } from '../../../compiler/errors.ts';
import { MemorySource } from '../../../targets/tflite/byte-source.ts';
import { checkLitertLm, requireWholeLitertLm } from '../../../targets/tflite/check-litertlm.ts';
import { type BundleSection, readLitertLm, writeLitertLm } from '../../../targets/tflite/litertlm-file.ts';
import { decodeLlmMetadata, encodeLlmMetadata, type LlmMetadata } from '../../../targets/tflite/litertlm-metadata.ts';
import {
  decodeHfTokenizer,
  encodeHfTokenizer,
  readSentencePieces,
  refuseHfTokenizer,
} from '../../../targets/tflite/litertlm-tokenizer.ts';
import type { TfliteModel, TflitePort, TfliteTensor } from '../../../targets/tflite/model.ts';
import { TensorType } from '../../../targets/tflite/schema-enums.ts';
import { encodeTflite } from '../../../targets/tflite/write.ts';

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-litertlm-'));
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

const METADATA: LlmMetadata = {
  startToken: [1],
  stopTokens: [[2], [5, 6], '</s>'],
  sampler: { topK: 40, topP: 0.5, temperature: 0.25 },
  maxTokens: 16,
  modelType: 'generic_model',
  template: '{% for message in messages %}{{ message.content }}{% endfor %}',
};

const TOKENIZER = {
  version: '1.0',
  added_tokens: [],
  normalizer: null,
  pre_tokenizer: { type: 'WhitespaceSplit' },
  post_processor: null,
  decoder: null,
  model: {
    type: 'WordLevel',
    vocab: Object.fromEntries(['<unk>', '<s>', '</s>', 'a', 'b', 'c', 'd', 'e'].map((token, id) => [token, id])),
    unk_token: '<unk>',
  },
};

type Shapes = Readonly<Record<string, readonly [type: number, shape: readonly number[]]>>;

const CACHE: Shapes = {
  kv_cache_k_0: [TensorType.INT8, [1, 2, 16, 4]],
  kv_cache_v_0: [TensorType.INT8, [1, 2, 16, 4]],
};
const inputs = (tokens: number): Shapes => ({
  tokens: [TensorType.INT32, [1, tokens]],
  input_pos: [TensorType.INT32, [tokens]],
  mask: [TensorType.FLOAT32, [1, 1, tokens, 16]],
  ...CACHE,
});

/** Signatures alone: a checker does not look at operators. */
function modelOf(signatures: Readonly<Record<string, readonly [Shapes, Shapes]>>): TfliteModel {
  const subgraphs = Object.entries(signatures).map(([key, [taken, given]]) => {
    const tensors: TfliteTensor[] = [];
    const add = (side: string, shapes: Shapes): TflitePort[] =>
      Object.entries(shapes).map(([name, [type, shape]]) => {
        tensors.push({ name: `${key}/${side}/${name}`, type: type as TfliteTensor['type'], shape, buffer: 0 });
        return { name, tensor: tensors.length - 1 };
      });
    const [left, right] = [add('in', taken), add('out', given)];
    return { key, left, right, tensors };
  });
  return {
    version: 3,
    buffers: [undefined],
    metadata: [],
    subgraphs: subgraphs.map(({ key, left, right, tensors }) => ({
      name: key,
      tensors,
      inputs: left.map(({ tensor }) => tensor),
      outputs: right.map(({ tensor }) => tensor),
      operators: [],
    })),
    signatures: subgraphs.map(({ key, left, right }, subgraph) => ({ key, subgraph, inputs: left, outputs: right })),
  };
}

const LOGITS: Shapes = { logits: [TensorType.FLOAT32, [1, 1, 8]] };
const MODEL = modelOf({ prefill_4: [inputs(4), CACHE], decode: [inputs(1), { ...LOGITS, ...CACHE }] });

interface Parts {
  readonly metadata?: LlmMetadata | null;
  readonly tokenizer?: object | Uint8Array | null;
  readonly model?: TfliteModel | null;
  readonly modelType?: string;
}

function sectionsOf({ metadata = METADATA, tokenizer = TOKENIZER, model = MODEL, modelType }: Parts): BundleSection[] {
  const sections: BundleSection[] = [];
  if (metadata) sections.push({ type: 'llm-metadata', items: {}, bytes: encodeLlmMetadata(metadata) });
  if (tokenizer instanceof Uint8Array) sections.push({ type: 'sentencepiece-tokenizer', items: {}, bytes: tokenizer });
  else if (tokenizer)
    sections.push({ type: 'hf-tokenizer', items: {}, bytes: encodeHfTokenizer(JSON.stringify(tokenizer)) });
  if (model) {
    const items = { model_type: modelType ?? 'tf_lite_prefill_decode' };
    sections.push({ type: 'tflite-model', items, bytes: encodeTflite(model, { foreign: true }) });
  }
  return sections;
}

let count = 0;
function bundle(parts: Parts): string {
  const path = join(work, `${count++}.litertlm`);
  writeLitertLm(path, { producer: 'a test' }, sectionsOf(parts));
  return path;
}

describe('the container', () => {
  test('holds what was written, each section at a multiple of 16 KiB, and the same sections give the same bytes', () => {
    const sections = sectionsOf({});
    const paths = [join(work, 'a.litertlm'), join(work, 'b.litertlm')];
    const [first, second] = paths.map((path) => writeLitertLm(path, { producer: 'a test' }, sections));
    expect(first).toEqual(second);
    const bytes = readFileSync(paths[0]!);
    expect(bytes.equals(readFileSync(paths[1]!))).toBe(true);
    expect(bytes.subarray(0, 8).toString('latin1')).toBe('LITERTLM');
    expect([8, 12, 16].map((at) => bytes.readUInt32LE(at))).toEqual([1, 7, 0]);
    const read = readLitertLm(new MemorySource(bytes));
    expect(read.version).toBe('1.7.0');
    expect(read.system).toMatchObject({
      producer: 'a test',
      uuid: expect.stringMatching(/^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/),
    });
    expect(read.sections.map(({ type, items }) => ({ type, items }))).toEqual(
      sections.map(({ type, items }) => ({ type, items })),
    );
    read.sections.forEach(({ offset, byteLength, source }, i) => {
      expect(offset % 16384).toBe(0);
      expect(Buffer.from(source.read(0, byteLength)).equals(Buffer.from(sections[i]!.bytes as Uint8Array))).toBe(true);
    });
  });

  test('another content gets another id', () => {
    const uuid = (path: string) => readLitertLm(new MemorySource(readFileSync(path))).system.uuid;
    expect(uuid(bundle({}))).toBe(uuid(bundle({})));
    expect(uuid(bundle({ metadata: { ...METADATA, maxTokens: 8 } }))).not.toBe(uuid(bundle({})));
  });

  test('what is none, is cut, is newer or has sections outside of it is refused', () => {
    const bytes = readFileSync(bundle({}));
    const read = (change: (copy: Buffer) => Uint8Array | undefined) => {
      const copy = Buffer.from(bytes);
      return () => readLitertLm(new MemorySource(change(copy) ?? copy));
    };
    const code = (expected: string) => expect.objectContaining({ code: expected });
    expect(read(() => new Uint8Array(0))).toThrow(code('IO003'));
    expect(read((copy) => copy.subarray(0, 20))).toThrow(code('IO003'));
    expect(read((copy) => copy.subarray(0, 20_000))).toThrow(code('IO003'));
    expect(read((copy) => void copy.write('NOTHING!', 0))).toThrow(code('IO003'));
    expect(read((copy) => void copy.writeUInt32LE(2, 8))).toThrow(code('TF105'));
    expect(read((copy) => void copy.writeBigUInt64LE(1n << 40n, 24))).toThrow(code('IO003'));
  });

  test('mutated files are read or refused, never more', () => {
    const bytes = readFileSync(bundle({}));
    // All that a reader follows lies in the header, the metadata and the start of the tokenizer.
    const places = fc.oneof(fc.nat({ max: 600 }), fc.integer({ min: 16384, max: 16384 + 120 }), fc.nat({ max: 33000 }));
    const mutation = fc.array(fc.tuple(places, fc.integer({ min: 0, max: 255 })), { minLength: 1, maxLength: 6 });
    fc.assert(
      fc.property(mutation, (changes) => {
        const copy = Buffer.from(bytes);
        for (const [at, value] of changes) copy[at] = value;
        const path = join(work, 'mutated.litertlm');
        writeFileSync(path, copy);
        try {
          checkLitertLm(path);
        } catch (error) {
          expect(error).toBeInstanceOf(NpucError);
          expect(['IO003', 'TF105']).toContain((error as NpucError).code);
        }
      }),
      { numRuns: 1000, seed: 1 },
    );
  });
});

describe('sections', () => {
  test('metadata reads back, numbers that are zero and absent fields too', () => {
    expect(decodeLlmMetadata(encodeLlmMetadata(METADATA), 'x')).toEqual(METADATA);
    const least: LlmMetadata = { stopTokens: [[0]], modelType: 'qwen3' };
    expect(decodeLlmMetadata(encodeLlmMetadata(least), 'x')).toEqual(least);
  });

  test.each([0, 1, 65535, 65536, 200_000])('a tokenizer of %i bytes is a zlib stream of stored blocks', (length) => {
    const text = 'x€'.repeat(length).slice(0, length);
    const section = encodeHfTokenizer(text);
    expect(inflateSync(section.subarray(8)).toString('utf8')).toBe(text);
    expect(decodeHfTokenizer(section)).toBe(text);
  });

  test('SentencePiece models are read to their pieces', () => {
    // pieces: { piece: "<unk>", score: 0, type: UNKNOWN }, { piece: "a" }
    const model = Uint8Array.of(10, 14, 10, 5, 60, 117, 110, 107, 62, 21, 0, 0, 0, 0, 24, 2, 10, 3, 10, 1, 97);
    expect(readSentencePieces(model, 'x')).toEqual(['<unk>', 'a']);
    expect(() => readSentencePieces(Uint8Array.of(0x12, 0), 'x')).toThrow(expect.objectContaining({ code: 'IO003' }));
  });

  test('parts of a tokenizer that the runtime does not know are named', () => {
    expect(refuseHfTokenizer(TOKENIZER)).toEqual([]);
    const odd = { ...TOKENIZER, normalizer: { type: 'Sequence', normalizers: [{ type: 'NFC' }, { type: 'Rot13' }] } };
    expect(refuseHfTokenizer(odd)).toEqual([expect.stringContaining('Rot13')]);
    expect(refuseHfTokenizer({})).toEqual(['the tokenizer has no model']);
  });
});

describe('the check', () => {
  test('a whole bundle has nothing against it', () => {
    expect(checkLitertLm(bundle({ metadata: { ...METADATA, stopTokens: [[2]] } }))).toEqual({
      errors: [],
      warnings: [],
    });
  });

  const decodeWith = (taken: Shapes, given: Shapes = { ...LOGITS, ...CACHE }): TfliteModel =>
    modelOf({ prefill_4: [inputs(4), CACHE], decode: [taken, given] });
  const without = (shapes: Shapes, name: string): Shapes =>
    Object.fromEntries(Object.entries(shapes).filter(([key]) => key !== name));
  const CASES: readonly (readonly [string, Parts, RegExp])[] = [
    ['no metadata', { metadata: null }, /no llm-metadata section/],
    ['no tokenizer', { tokenizer: null }, /no tokenizer sections/],
    ['no model', { model: null }, /no tflite-model section/],
    ['another kind of model', { modelType: 'tf_lite_embedder' }, /no tflite-model section has the model_type/],
    ['no stop token', { metadata: { ...METADATA, stopTokens: [] } }, /no stop token/],
    ['a stop token that is none', { metadata: { ...METADATA, stopTokens: [[8]] } }, /stop token is 8, of 8 tokens/],
    ['a stop text that is none', { metadata: { ...METADATA, stopTokens: ['<end>'] } }, /"<end>" is no token/],
    ['a start token that is none', { metadata: { ...METADATA, startToken: [-1] } }, /start token is -1/],
    ['more context than slots', { metadata: { ...METADATA, maxTokens: 17 } }, /max_num_tokens is 17/],
    ['a sampler of nothing', { metadata: { ...METADATA, sampler: { topK: 0, topP: 1, temperature: 1 } } }, /k is 0/],
    ['a template that is none', { metadata: { ...METADATA, template: '{% for %}' } }, /template cannot be parsed/],
    [
      'a tokenizer that LiteRT-LM cannot take',
      { tokenizer: { ...TOKENIZER, decoder: { type: 'Magic' } } },
      /decoder has the type Magic/,
    ],
    [
      'a tokenizer with more tokens than the model',
      { tokenizer: { ...TOKENIZER, model: { ...TOKENIZER.model, vocab: { ...TOKENIZER.model.vocab, f: 8 } } } },
      /ids up to 8, the model has 8 tokens/,
    ],
    ['no decode', { model: modelOf({ prefill_4: [inputs(4), CACHE] }) }, /no signature decode/],
    ['no prefill', { model: modelOf({ decode: [inputs(1), { ...LOGITS, ...CACHE }] }) }, /begins with prefill/],
    ['no mask', { model: decodeWith(without(inputs(1), 'mask')) }, /signature decode: there is no input mask/],
    [
      'an integer mask',
      { model: decodeWith({ ...inputs(1), mask: [TensorType.INT8, [1, 1, 1, 16]] }) },
      /mask is INT8, not FLOAT32/,
    ],
    ['no logits', { model: decodeWith(inputs(1), CACHE) }, /no output logits/],
    [
      'a cache that does not come out',
      { model: decodeWith(inputs(1), { ...LOGITS, ...without(CACHE, 'kv_cache_v_0') }) },
      /kv_cache_v_0 goes in and does not come out/,
    ],
    [
      'caches that differ',
      {
        model: modelOf({
          prefill_4: [
            { ...inputs(4), kv_cache_k_0: [TensorType.INT16, [1, 2, 16, 4]] },
            { ...CACHE, kv_cache_k_0: [TensorType.INT16, [1, 2, 16, 4]] },
          ],
          decode: [inputs(1), { ...LOGITS, ...CACHE }],
        }),
      },
      /signature prefill_4: the cache kv_cache_k_0 is INT16\[1,2,16,4\], elsewhere INT8/,
    ],
    [
      'lengths that differ',
      { model: decodeWith({ ...inputs(1), input_pos: [TensorType.INT32, [2]] }) },
      /tokens has 1 places, input_pos 2/,
    ],
  ];
  test.each(CASES)('%s', (_, parts, message) => {
    const path = bundle(parts);
    expect(checkLitertLm(path).errors).toEqual(expect.arrayContaining([expect.stringMatching(message)]));
    expect(() => requireWholeLitertLm(path)).toThrow(expect.objectContaining({ code: 'TF402', exitCode: 2 }));
  });

  test('fewer tokens than the model has, and no template, are notes', () => {
    const { d: _, e: __, ...vocab } = TOKENIZER.model.vocab as Record<string, number>;
    const tokenizer = { ...TOKENIZER, model: { ...TOKENIZER.model, vocab } };
    const { template: ___, ...metadata } = { ...METADATA, stopTokens: [[2]] };
    const { errors, warnings } = checkLitertLm(bundle({ tokenizer, metadata }));
    expect(errors).toEqual([]);
    expect(warnings).toEqual([
      expect.stringContaining('no prompt template'),
      expect.stringContaining('the tokenizer 6'),
    ]);
  });
});

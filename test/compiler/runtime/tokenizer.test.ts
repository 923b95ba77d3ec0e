import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { openCheckpoint } from '../../../compiler/import/checkpoint.ts';
import type { GgufValue } from '../../../compiler/import/gguf.ts';
import { ggufToTokenizer } from '../../../compiler/import/gguf-tokenizer.ts';
import { checkVocabulary, loadTokenizer, type Tokenizer } from '../../../compiler/runtime/tokenizer.ts';
import { hasMaterial, materialPath } from '../../material.ts';
import { hasSmolLM2, smolLM2Path } from '../../smollm2.ts';

interface Expectation {
  cases: { ids: number[]; plain?: number[]; decoded: string; decodedAll?: string }[];
  files: { file: string; bytes: number; count: number; sha256: string }[];
  shuffled: { ids: number[]; decoded: string };
}

const fixtures = join(import.meta.dirname, '../../../fixtures/tokenizers');
const readJson = (path: string) => JSON.parse(readFileSync(path, 'utf8'));
const texts: string[] = readJson(join(fixtures, 'texts.json'));

function readMerges(path: string): string[] {
  const lines = readFileSync(path, 'utf8').split('\n');
  return lines.filter((line) => line && !line.startsWith('#version'));
}

/** A byte-level tokenizer from vocab.json and merges.txt, by way of GGUF metadata. */
function fromVocabulary(folder: string, pre: string): Tokenizer {
  const tokens: string[] = [];
  for (const [token, id] of Object.entries(readJson(join(folder, 'vocab.json')))) tokens[id as number] = token;
  const metadata = new Map<string, GgufValue>([
    ['tokenizer.ggml.model', 'gpt2'],
    ['tokenizer.ggml.pre', pre],
    ['tokenizer.ggml.tokens', tokens],
    ['tokenizer.ggml.merges', readMerges(join(folder, 'merges.txt'))],
    ['tokenizer.ggml.add_bos_token', false],
  ]);
  const made = ggufToTokenizer(metadata, folder)!;
  return loadTokenizer(made.tokenizerJson, made.tokenizerConfig);
}

function compare(tokenizer: Tokenizer, name: string): void {
  const expected: Expectation = readJson(join(fixtures, `${name}.json`));
  expect(expected.cases.length).toBe(texts.length);
  texts.forEach((text, i) => {
    const { ids, plain, decoded, decodedAll } = expected.cases[i];
    const got = {
      ids: tokenizer.encode(text),
      plain: tokenizer.encode(text, { addSpecialTokens: false }),
      decoded: tokenizer.decode(ids),
      decodedAll: tokenizer.decode(ids, { skipSpecialTokens: false }),
    };
    expect(got, JSON.stringify(text)).toEqual({ ids, plain: plain ?? ids, decoded, decodedAll: decodedAll ?? decoded });
  });
  for (const { file, bytes, count, sha256 } of expected.files) {
    const text = readFileSync(materialPath(file))
      .subarray(0, bytes)
      .toString('utf8')
      .replace(/\uFFFD+$/, '');
    const ids = tokenizer.encode(text);
    expect(ids.length, file).toBe(count);
    expect(
      createHash('sha256')
        .update(new Uint8Array(Int32Array.from(ids).buffer))
        .digest('hex'),
      file,
    ).toBe(sha256);
  }
  // Rust replaces every byte of a run of byte tokens that is not UTF-8, see mendDecoder.
  if (name !== 'stories260k') {
    const { ids, decoded } = expected.shuffled;
    expect(tokenizer.decode(ids, { skipSpecialTokens: false })).toBe(decoded);
  }
}

/** Pieces of a stream join to the decoded whole, for texts and for ids that no text has. */
function checkStream(tokenizer: Tokenizer): void {
  const join = (ids: readonly number[], skipSpecialTokens: boolean): string => {
    const stream = tokenizer.stream({ skipSpecialTokens });
    return ids.map((id) => stream.push(id)).join('') + stream.flush();
  };
  const check = (ids: readonly number[]): void => {
    for (const skip of [true, false]) {
      expect(join(ids, skip)).toBe(tokenizer.decode(ids, { skipSpecialTokens: skip }));
    }
  };
  for (const text of texts) check(tokenizer.encode(text));
  const anyId = fc.integer({ min: 0, max: tokenizer.vocabSize - 1 });
  fc.assert(fc.property(fc.array(anyId, { maxLength: 24 }), check), { numRuns: 200, seed: 11 });
}

describe.skipIf(!hasMaterial)('tokenizers of the material against the Rust tokenizers', () => {
  const load = (path: string) => loadTokenizer(readJson(materialPath(path)));
  const tokenizers: Record<string, () => Tokenizer> = {
    stories260k: () => load('stories260k/hf/tokenizer.json'),
    phi3: () => load('tokenizers/phi3/tokenizer.json'),
    gpt2: () => load('tokenizers/gpt2/tokenizer.json'),
    'qwen2.5': () => fromVocabulary(materialPath('tokenizers/qwen2.5'), 'qwen2'),
    'gpt2-split-as-llama3': () => fromVocabulary(materialPath('tokenizers/gpt2'), 'llama-bpe'),
  };
  test.each(Object.keys(tokenizers))('%s', (name) => {
    const tokenizer = tokenizers[name]();
    compare(tokenizer, name);
    checkStream(tokenizer);
  });

  test('llama SentencePiece scores become the merges of tokenizer.json', () => {
    const { tokens, scores } = readLlama2c(materialPath('stories260k/tok512.bin'));
    // The file spells the space as it is and byte tokens too; kinds are 2 unknown, 3 control, 6 byte, 1 normal.
    const metadata = new Map<string, GgufValue>([
      ['tokenizer.ggml.model', 'llama'],
      ['tokenizer.ggml.tokens', tokens],
      ['tokenizer.ggml.scores', scores],
      ['tokenizer.ggml.token_type', tokens.map((_, id) => (id === 0 ? 2 : id < 3 ? 3 : id < 259 ? 6 : 1))],
      ['tokenizer.ggml.bos_token_id', 1],
      ['tokenizer.ggml.eos_token_id', 2],
    ]);
    const made = ggufToTokenizer(metadata, 'tok512.bin')!;
    compare(loadTokenizer(made.tokenizerJson, made.tokenizerConfig), 'stories260k');
  });
});

/** llama2.c's tokenizer file: the longest length, then score, length and bytes of each token. */
function readLlama2c(path: string): { tokens: string[]; scores: number[] } {
  const bytes = readFileSync(path);
  const tokens: string[] = [];
  const scores: number[] = [];
  for (let at = 4; at < bytes.length; ) {
    scores.push(bytes.readFloatLE(at));
    const length = bytes.readInt32LE(at + 4);
    tokens.push(bytes.toString('utf8', at + 8, at + 8 + length).replaceAll(' ', '▁'));
    at += 8 + length;
  }
  return { tokens: tokens.map((token, id) => (id < 3 ? token.trim() : token)), scores };
}

describe.skipIf(!hasSmolLM2)('SmolLM2 from GGUF', () => {
  test('ids, texts and chat template', async () => {
    const { tokenizer } = await openCheckpoint(smolLM2Path());
    compare(tokenizer!, 'smollm2');
    checkStream(tokenizer!);
    expect(tokenizer!.eosIds).toEqual([2]);
    expect(tokenizer!.bosId).toBe(1);
    const chat = tokenizer!.applyChatTemplate([{ role: 'user', content: 'Hi' }]);
    expect(chat).toMatchInlineSnapshot(`
      "<|im_start|>system
      You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
      <|im_start|>user
      Hi<|im_end|>
      <|im_start|>assistant
      "
    `);
    expect(tokenizer!.encode(chat, { addSpecialTokens: false }).slice(0, 2)).toEqual([1, 9690]);
    expect(
      tokenizer!.applyChatTemplate([{ role: 'user', content: 'Hi' }], { addGenerationPrompt: false }),
    ).not.toContain('assistant\n');
  });
});

describe('what @huggingface/tokenizers does otherwise than Rust', () => {
  const cases: { name: string; tokenizer: object; texts: string[]; ids: number[][] }[] = readJson(
    join(fixtures, 'splits.json'),
  );
  test.each(cases)('$name', ({ tokenizer, texts, ids }) => {
    const loaded = loadTokenizer(tokenizer as Record<string, unknown>);
    expect(texts.map((text) => loaded.encode(text))).toEqual(ids);
  });
});

/** Letters and byte tokens, Llama's way of decoding. */
function tinyLlama(extra: Record<string, unknown> = {}): Record<string, unknown> {
  const bytes = Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`);
  const tokens = ['<unk>', '<s>', '</s>', ...bytes, '▁', 'a', 'b', 'ab'];
  return {
    added_tokens: [0, 1, 2].map((id) => ({ id, content: tokens[id], special: true })),
    normalizer: {
      type: 'Sequence',
      normalizers: [
        { type: 'Prepend', prepend: '▁' },
        { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
      ],
    },
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        { type: 'Strip', content: ' ', start: 1, stop: 0 },
      ],
    },
    model: {
      type: 'BPE',
      unk_token: '<unk>',
      fuse_unk: true,
      byte_fallback: true,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: [['a', 'b']],
    },
    ...extra,
  };
}

describe('decoding one by one', () => {
  const tokenizer = loadTokenizer(tinyLlama());
  const id = (token: string) => tokenizer.idOf(token)!;

  test('a character over four byte tokens appears when it is whole', () => {
    const stream = tokenizer.stream();
    expect([0xf0, 0x9f, 0x98, 0x80].map((byte) => stream.push(3 + byte))).toEqual(['', '', '', '😀']);
  });

  test('only the first space of a text is stripped', () => {
    const stream = tokenizer.stream();
    const pieces = ['▁', 'a', '▁', '▁', 'b'].map((token) => stream.push(id(token)));
    expect(pieces).toEqual(['', 'a', ' ', ' ', 'b']);
  });

  test('a special token in between shows nothing and strips nothing', () => {
    const stream = tokenizer.stream();
    expect(['▁', 'a', '</s>', '▁', 'b'].map((token) => stream.push(id(token)))).toEqual(['', 'a', '', ' ', 'b']);
  });

  test('an unfinished character comes out at the end, and the stream starts anew', () => {
    const stream = tokenizer.stream();
    expect([stream.push(id('a')), stream.push(3 + 0xe2), stream.flush()]).toEqual(['a', '', '\uFFFD']);
    expect(['▁', 'b'].map((token) => stream.push(id(token)))).toEqual(['', 'b']);
  });

  test('U+FEFF stays', () => {
    expect(tokenizer.decode(tokenizer.encode('\uFEFFa'))).toBe('\uFEFFa');
  });

  test('ids without a token are left out', () => {
    expect(tokenizer.decode([id('a'), 9999, id('b')])).toBe('ab');
    expect(tokenizer.decode([])).toBe('');
  });

  test('pieces join to the whole for any bytes', () => checkStream(tokenizer));
});

describe('ids that end a text', () => {
  const config = { bos_token: '<s>', eos_token: { content: '</s>' } };
  test('generation_config.json comes first and may name several', () => {
    const sources = { generationConfig: { eos_token_id: [2, 7] }, config: { eos_token_id: 5 } };
    expect(loadTokenizer(tinyLlama(), config, sources).eosIds).toEqual([2, 7]);
  });
  test('then config.json, then the token of tokenizer_config.json', () => {
    expect(loadTokenizer(tinyLlama(), config, { config: { eos_token_id: 5 } }).eosIds).toEqual([5]);
    expect(loadTokenizer(tinyLlama(), config).eosIds).toEqual([2]);
    expect(loadTokenizer(tinyLlama(), config).bosId).toBe(1);
    expect(loadTokenizer(tinyLlama()).eosIds).toEqual([]);
  });
});

describe('chat templates', () => {
  const template =
    '{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}';
  const load = (chat_template: unknown) => loadTokenizer(tinyLlama(), { bos_token: '<s>', chat_template });
  const messages = [{ role: 'user', content: ' a ' }];

  test('string, list of named ones, and one that takes its place', () => {
    const list = [
      { name: 'tool_use', template: 'no' },
      { name: 'default', template },
    ];
    for (const tokenizer of [load(template), load(list)]) {
      expect(tokenizer.applyChatTemplate(messages)).toBe('<s>[user]a[assistant]');
    }
    const replaced = loadTokenizer(tinyLlama(), { chat_template: 'no' }, { chatTemplate: 'yes' });
    expect(replaced.applyChatTemplate(messages)).toBe('yes');
  });

  test('the day is fixed unless given, in English and UTC', () => {
    const dated = load("{{ strftime_now('%d %b %Y, %B %H:%M %%') }}");
    expect(dated.applyChatTemplate(messages)).toBe('26 Jul 2024, July 00:00 %');
    expect(dated.applyChatTemplate(messages, { today: new Date('2026-01-02T03:04:05Z') })).toBe(
      '02 Jan 2026, January 03:04 %',
    );
  });

  test.each([
    ['it refuses the messages', "{{ raise_exception('no system role') }}", 'no system role'],
    ['it cannot be parsed', '{% for x in %}', ''],
    ['it asks for a huge range', '{% for i in range(10000000000) %}x{% endfor %}', 'range()'],
  ])('%s', (_, text, part) => {
    const run = () => load(text).applyChatTemplate(messages);
    expect(run).toThrow(expect.objectContaining({ code: 'IM133', message: expect.stringContaining(part) }));
  });

  test('there is none', () => {
    expect(() => load(undefined).applyChatTemplate(messages)).toThrow(expect.objectContaining({ code: 'IM133' }));
  });
});

describe('bad input', () => {
  const badJson: [string, Record<string, unknown>][] = [
    ['empty', {}],
    ['no model', tinyLlama({ model: null })],
    ['unknown model', tinyLlama({ model: { type: 'Oracle' } })],
    ['empty vocabulary', tinyLlama({ model: { type: 'BPE', vocab: {}, merges: [] }, added_tokens: [] })],
    ['wild ids', tinyLlama({ model: { type: 'BPE', vocab: { a: 4e9 }, merges: [] } })],
    ['negative ids', tinyLlama({ model: { type: 'BPE', vocab: { a: -1 }, merges: [] } })],
    ['ids that are no numbers', tinyLlama({ model: { type: 'BPE', vocab: { a: 'b' }, merges: [] } })],
    ['merges that are none', tinyLlama({ model: { type: 'BPE', vocab: { a: 0 }, merges: [1, 2] } })],
    ['an added token without id', tinyLlama({ added_tokens: [{ content: 'x' }] })],
    ['unknown normalizer', tinyLlama({ normalizer: { type: 'Magic' } })],
    ['unknown pre-tokenizer', tinyLlama({ pre_tokenizer: { type: 'Magic' } })],
    ['unknown decoder', tinyLlama({ decoder: { type: 'Magic' } })],
    ['unknown behavior', tinyLlama({ pre_tokenizer: { type: 'Split', pattern: { String: '-' }, behavior: 'Other' } })],
    ['broken pattern', tinyLlama({ pre_tokenizer: { type: 'Split', pattern: { Regex: '(' }, behavior: 'Isolated' } })],
    [
      'a template with a token that is not there',
      tinyLlama({
        post_processor: { type: 'TemplateProcessing', single: [{ SpecialToken: { id: '<x>' } }], pair: [] },
      }),
    ],
  ];
  test.each(badJson)('%s', (_, json) => {
    const model = json.model as { unk_token?: string } | undefined;
    if (model) model.unk_token = undefined;
    expect(() => loadTokenizer(json, {}, { where: 'x' })).toThrow(expect.objectContaining({ code: 'IM131' }));
  });

  test('a tokenizer that does not fit the model', () => {
    const tokenizer = loadTokenizer(tinyLlama(), { eos_token: '</s>' });
    expect(() => checkVocabulary(tokenizer, tokenizer.vocabSize)).not.toThrow();
    expect(() => checkVocabulary(tokenizer, tokenizer.vocabSize + 57)).not.toThrow();
    expect(() => checkVocabulary(tokenizer, tokenizer.vocabSize - 1, 'x')).toThrow(
      expect.objectContaining({
        code: 'IM130',
        message: 'the tokenizer gives ids up to 262, the model has 262 tokens',
      }),
    );
    const wild = loadTokenizer(tinyLlama(), {}, { generationConfig: { eos_token_id: 300 } });
    expect(() => checkVocabulary(wild, 280)).toThrow(expect.objectContaining({ code: 'IM130' }));
  });

  test('text that is no Unicode', () => {
    const tokenizer = loadTokenizer(tinyLlama());
    expect(tokenizer.decode(tokenizer.encode('a\uD800b'))).toBe('a\uFFFDb');
  });
});

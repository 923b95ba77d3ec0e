import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { type GgufFile, type GgufValue, openGguf } from '../../../compiler/import/gguf.ts';
import { ggufToCheckpoint } from '../../../compiler/import/gguf-checkpoint.ts';
import { ggufToTokenizer } from '../../../compiler/import/gguf-tokenizer.ts';
import { loadTokenizer } from '../../../compiler/runtime/tokenizer.ts';
import { hasSmolLM2, smolLM2Path } from '../../smollm2.ts';
import {
  ARRAY,
  BOOL,
  encodeGguf,
  F32,
  type GgufSpec,
  type GgufTensorSpec,
  I32,
  STRING,
  U32,
  U64,
} from './write-gguf.ts';

const folder = mkdtempSync(join(tmpdir(), 'npuc-gguf-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const fixtures = join(import.meta.dirname, '../../../fixtures');

function write(bytes: Uint8Array, name = 'model.gguf'): string {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
}

const open = (spec: GgufSpec): GgufFile => openGguf(write(encodeGguf(spec)));
const coded = (code: string, part = '') =>
  expect.objectContaining({ name: 'NpucError', code, message: expect.stringContaining(part) });
const bytesOf = (...values: number[]) => new Uint8Array(Float32Array.from(values).buffer);
const f32 = (name: string, dims: number[], ...values: number[]): GgufTensorSpec => ({
  name,
  dims,
  type: 0,
  data: bytesOf(...values),
});

describe('the container', () => {
  test.each([2, 3])('version %i: metadata of every type', (version) => {
    const { metadata } = open({
      version,
      metadata: [
        ['u8', 0, 250],
        ['i8', 1, -3],
        ['u16', 2, 65000],
        ['i16', 3, -30000],
        ['u32', U32, 4_000_000_000],
        ['i32', I32, -7],
        ['f32', F32, 0.5],
        ['bool', BOOL, true],
        ['string', STRING, 'naïve 😀'],
        ['array', ARRAY, [STRING, ['a', '']]],
        [
          'nested',
          ARRAY,
          [
            ARRAY,
            [
              [U32, [1, 2]],
              [U32, []],
            ],
          ],
        ],
        ['u64', U64, 2n ** 40n],
        ['big', U64, 2n ** 63n],
        ['i64', 11, -5n],
        ['f64', 12, 0.1],
      ],
    });
    expect(Object.fromEntries(metadata)).toEqual({
      u8: 250,
      i8: -3,
      u16: 65000,
      i16: -30000,
      u32: 4_000_000_000,
      i32: -7,
      f32: 0.5,
      bool: true,
      string: 'naïve 😀',
      array: ['a', ''],
      nested: [[1, 2], []],
      u64: 2 ** 40,
      big: 2n ** 63n,
      i64: -5,
      f64: 0.1,
    });
  });

  test('plain tensors are ranges of the file, dims outermost first', () => {
    const half = { name: 'h', dims: [2], type: 1, data: Uint8Array.of(0, 0x3c, 0, 0xc0) };
    const bfloat = { name: 'b', dims: [1, 2], type: 30, data: Uint8Array.of(0x80, 0x3f, 0, 0xc0) };
    const { tensors, typeNames } = open({ tensors: [f32('f', [3, 2], 1, 2, 3, 4, 5, 6), half, bfloat] });
    expect([...tensors].map(([name, { dtype, shape }]) => [name, dtype, shape])).toEqual([
      ['f', 'f32', [2, 3]],
      ['h', 'f16', [2]],
      ['b', 'bf16', [2, 1]],
    ]);
    expect([...tensors.values()].every(({ storage }) => storage.kind === 'file')).toBe(true);
    expect(Array.from(tensors.get('f')!.toFloats())).toEqual([1, 2, 3, 4, 5, 6]);
    expect(Array.from(tensors.get('h')!.toFloats())).toEqual([1, -2]);
    expect(Array.from(tensors.get('b')!.toFloats())).toEqual([1, -2]);
    expect([...typeNames.values()]).toEqual(['F32', 'F16', 'BF16']);
  });

  test.each([1, 8, 4096])('an alignment of %i', (alignment) => {
    const metadata = [['general.alignment', U32, alignment]] as const;
    const { tensors } = open({ alignment, metadata, tensors: [f32('a', [1], 4), f32('b', [1], 5)] });
    expect([...tensors.values()].map((tensor) => tensor.toNumbers())).toEqual([[4], [5]]);
  });
});

describe('blocks', () => {
  const blocks: Record<string, { code: number; blocks: string; sha256: string; first: number[] }> = JSON.parse(
    readFileSync(join(fixtures, 'gguf/blocks.json'), 'utf8'),
  );
  test.each(Object.keys(blocks))('%s decodes to the bits that the gguf package gives', (name) => {
    const { code, blocks: base64, sha256, first } = blocks[name];
    const data = new Uint8Array(Buffer.from(base64, 'base64'));
    const { tensors } = open({ tensors: [{ name: 'x', dims: [256, 2], type: code, data }] });
    const tensor = tensors.get('x')!;
    expect([tensor.dtype, tensor.shape, tensor.storage.kind]).toEqual(['f32', [2, 256], 'derived']);
    expect(Array.from(tensor.toFloats().subarray(0, 4))).toEqual(first);
    expect(createHash('sha256').update(tensor.read()).digest('hex')).toBe(sha256);
  });

  test('a tensor larger than a window', () => {
    const rows = 9000;
    const block = new Uint8Array(34);
    const data = new Uint8Array(rows * 16 * 34);
    for (let i = 0; i < rows * 16; i++) {
      // Scale 1 and one value that tells the block.
      block.set([0, 0x3c, i & 127]);
      data.set(block, i * 34);
    }
    const floats = open({ tensors: [{ name: 'x', dims: [512, rows], type: 8, data }] })
      .tensors.get('x')!
      .toFloats();
    expect(data.length).toBeGreaterThan(4 << 20);
    for (let i = 0; i < rows * 16; i++)
      if (floats[i * 32] !== (i & 127)) expect(floats[i * 32], `block ${i}`).toBe(i & 127);
    expect(floats.length).toBe(rows * 512);
  });
});

describe('headers that lie', () => {
  const tensors = [f32('a', [2], 1, 2), f32('b', [2], 3, 4)];
  const whole = encodeGguf({ metadata: [['key', STRING, 'value']], tensors });
  const change = (at: number, ...values: number[]) => {
    const bytes = Uint8Array.from(whole);
    bytes.set(values, at);
    return bytes;
  };
  const cases: [string, Uint8Array, string, string?][] = [
    ['an empty file', new Uint8Array(0), 'IO003', 'too few'],
    ['another format', Buffer.alloc(64, 'PK'), 'IM120', 'GGUF'],
    ['version 1', encodeGguf({ version: 1 }), 'IM120', 'version 1'],
    ['version 4', encodeGguf({ version: 4 }), 'IM120', 'version 4'],
    ['big-endian', encodeGguf({ version: 0x03000000 }), 'IM120', 'big-endian'],
    ['2^60 tensors', encodeGguf({ tensors, tensorCount: 2n ** 60n }), 'IM120', '1152921504606846976'],
    ['1000 tensors', encodeGguf({ tensors, tensorCount: 1000n }), 'IM120', '1000 tensors'],
    ['2^20 keys', encodeGguf({ tensors, metadataCount: 2n ** 20n }), 'IM120', 'keys'],
    ['one key too many', encodeGguf({ metadata: [['k', U32, 1]], metadataCount: 2n }), 'IM120', 'name'],
    ['one tensor too many', encodeGguf({ tensors, tensorCount: 3n }), 'IM120', 'name'],
    ['a string of 2^63 bytes', change(24, 0, 0, 0, 0, 0, 0, 0, 128), 'IM120', 'size'],
    ['a key of 70,000 bytes', change(24, 0x70, 0x11, 1), 'IM120', 'string'],
    ['a value beyond the file', change(39, 0, 0x10), 'IO003', 'ends at'],
    ['a string that is no UTF-8', change(47, 0xff), 'IM120', 'UTF-8'],
    ['an unknown type of metadata', change(35, 13), 'IM120', 'type 13'],
    [
      'a key twice',
      encodeGguf({
        metadata: [
          ['k', U32, 1],
          ['k', U32, 2],
        ],
      }),
      'IM120',
      'twice',
    ],
    ['a tensor twice', encodeGguf({ tensors: [tensors[0], tensors[0]] }), 'IM120', 'twice'],
    ['an array of unknown elements', encodeGguf({ metadata: [['k', ARRAY, [13, []]]] }), 'IM120', 'type 13'],
    ['an array that is too long', change(35, 9, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0), 'IM120', 'room'],
    ['arrays in arrays', encodeGguf({ metadata: [['k', ARRAY, nest(9)]] }), 'IM120', 'nested'],
    ['five dimensions', encodeGguf({ tensors: [f32('a', [1, 1, 1, 1, 1], 1)] }), 'IM120', '5 dimensions'],
    ['dims beyond 2^53', encodeGguf({ tensors: [{ ...tensors[0], dims: [2 ** 40, 2 ** 40] }] }), 'IM120', 'shape'],
    ['a tensor past the end', encodeGguf({ tensors: [{ ...tensors[0], dims: [200] }] }), 'IO003', 'tensor a'],
    ['an offset past the end', encodeGguf({ tensors: [{ ...tensors[0], offset: 3200 }] }), 'IO003', 'tensor a'],
    ['an odd offset', encodeGguf({ tensors: [{ ...tensors[0], offset: 4 }] }), 'IM120', 'multiple of 32'],
    ['overlapping tensors', encodeGguf({ tensors: [tensors[0], { ...tensors[1], offset: 0 }] }), 'IM120', 'overlap'],
    ['rows that are no blocks', encodeGguf({ tensors: [{ ...tensors[0], type: 2 }] }), 'IM120', 'multiple of 32'],
    [
      'a type nobody can read',
      encodeGguf({ tensors: [{ ...tensors[0], type: 16 }] }),
      'IM121',
      'a has the type IQ2_XXS',
    ],
    ['an unknown type', encodeGguf({ tensors: [{ ...tensors[0], type: 99 }] }), 'IM121', 'number 99'],
    ['a wild alignment', encodeGguf({ metadata: [['general.alignment', U32, 48]] }), 'IM120', '48'],
    ['an alignment of zero', encodeGguf({ metadata: [['general.alignment', U32, 0]] }), 'IM120', 'power of two'],
    [
      'an alignment that is text',
      encodeGguf({ metadata: [['general.alignment', STRING, '32']] }),
      'IM120',
      'power of two',
    ],
  ];
  test.each(cases)('%s', (_, bytes, code, part) => {
    expect(() => openGguf(write(bytes))).toThrow(coded(code, part));
  });

  test('the hint says what can be read', () => {
    const bytes = encodeGguf({ tensors: [{ ...tensors[0], type: 10 }] });
    expect(() => openGguf(write(bytes))).toThrow(
      expect.objectContaining({ hint: expect.stringContaining('Q4_0, Q4_1'), where: join(folder, 'model.gguf') }),
    );
  });

  test('a file cut anywhere', () => {
    for (let length = 0; length < whole.length - 24; length++) {
      expect(() => openGguf(write(whole.subarray(0, length))), `${length} bytes`).toThrow(
        expect.objectContaining({ code: expect.stringMatching(/^(IO003|IM120)$/) }),
      );
    }
  });

  test('flipped bytes give tensors or a coded error, never anything else', () => {
    const spec = { ...llamaSpec(), tensors: [...llamaTensors(), ...tensors] };
    const good = encodeGguf(spec);
    const header = good.length - spec.tensors.reduce((sum, { data }) => sum + ((data.length + 31) & ~31), 0);
    const flips = fc.array(fc.tuple(fc.nat(header - 1), fc.integer({ min: 1, max: 255 })), {
      minLength: 1,
      maxLength: 3,
    });
    fc.assert(
      fc.property(flips, (changes) => {
        const bytes = Uint8Array.from(good);
        for (const [at, value] of changes) bytes[at] ^= value;
        try {
          const gguf = openGguf(write(bytes));
          for (const tensor of ggufToCheckpoint(gguf, 'x').tensors.values()) tensor.read();
          const made = ggufToTokenizer(gguf.metadata, 'x');
          if (made) loadTokenizer(made.tokenizerJson, made.tokenizerConfig);
        } catch (error) {
          expect(error).toMatchObject({ name: 'NpucError', code: expect.not.stringMatching('XX') });
        }
      }),
      { numRuns: 500, seed: 9 },
    );
  });
});

function nest(depth: number): unknown {
  return depth === 0 ? [U32, [1]] : [ARRAY, [nest(depth - 1)]];
}

/** One layer, two heads of four dimensions, one key/value head; q_proj's rows say their own number in llama.cpp's order. */
function llamaTensors(): GgufTensorSpec[] {
  const filled = (name: string, dims: number[], value = 1) =>
    f32(name, dims, ...new Array(dims.reduce((a, b) => a * b, 1)).fill(value));
  const rows = (name: string, count: number) =>
    f32(name, [8, count], ...Array.from({ length: count * 8 }, (_, i) => i >> 3));
  return [
    filled('token_embd.weight', [8, 5]),
    filled('output_norm.weight', [8]),
    filled('blk.0.attn_norm.weight', [8]),
    filled('blk.0.ffn_norm.weight', [8]),
    rows('blk.0.attn_q.weight', 8),
    f32('blk.0.attn_q.bias', [8], 0, 1, 2, 3, 4, 5, 6, 7),
    rows('blk.0.attn_k.weight', 4),
    rows('blk.0.attn_v.weight', 4),
    filled('blk.0.attn_output.weight', [8, 8]),
    filled('blk.0.ffn_gate.weight', [8, 12]),
    filled('blk.0.ffn_up.weight', [8, 12]),
    filled('blk.0.ffn_down.weight', [12, 8]),
  ];
}

function llamaSpec(
  more: readonly (readonly [string, number, unknown])[] = [],
): Required<Pick<GgufSpec, 'metadata' | 'tensors'>> {
  const metadata = [
    ['general.architecture', STRING, 'llama'],
    ['llama.block_count', U32, 1],
    ['llama.context_length', U32, 64],
    ['llama.embedding_length', U32, 8],
    ['llama.feed_forward_length', U32, 12],
    ['llama.attention.head_count', U32, 2],
    ['llama.attention.head_count_kv', U32, 1],
    ['llama.attention.layer_norm_rms_epsilon', F32, 1e-5],
    ['llama.rope.freq_base', F32, 500000],
    ['tokenizer.ggml.model', STRING, 'llama'],
    ['tokenizer.ggml.tokens', ARRAY, [STRING, ['<unk>', '<s>', '</s>', 'a', '<eot>']]],
    ['tokenizer.ggml.scores', ARRAY, [F32, [0, 0, 0, -1, 0]]],
    ['tokenizer.ggml.token_type', ARRAY, [I32, [2, 3, 3, 1, 3]]],
    ['tokenizer.ggml.bos_token_id', U32, 1],
    ['tokenizer.ggml.eos_token_id', U32, 2],
    ['tokenizer.ggml.eot_token_id', U32, 4],
  ] as const;
  const changed = new Set(more.map(([key]) => key));
  return { metadata: [...metadata.filter(([key]) => !changed.has(key)), ...more], tensors: llamaTensors() };
}

describe('in Hugging Face form', () => {
  test('configuration, names, and the rows of q_proj and k_proj', () => {
    const { config, generationConfig, tensors } = ggufToCheckpoint(open(llamaSpec()), 'x');
    expect(config).toEqual({
      architectures: ['LlamaForCausalLM'],
      model_type: 'llama',
      hidden_size: 8,
      intermediate_size: 12,
      num_hidden_layers: 1,
      num_attention_heads: 2,
      num_key_value_heads: 1,
      head_dim: 4,
      vocab_size: 5,
      max_position_embeddings: 64,
      rms_norm_eps: 1e-5,
      rope_theta: 500000,
      rope_scaling: null,
      hidden_act: 'silu',
      attention_bias: true,
      mlp_bias: false,
      tie_word_embeddings: true,
      bos_token_id: 1,
      eos_token_id: 2,
    });
    expect(generationConfig).toEqual({ bos_token_id: 1, eos_token_id: [2, 4] });
    expect([...tensors.keys()].sort()).toEqual([
      'model.embed_tokens.weight',
      'model.layers.0.input_layernorm.weight',
      'model.layers.0.mlp.down_proj.weight',
      'model.layers.0.mlp.gate_proj.weight',
      'model.layers.0.mlp.up_proj.weight',
      'model.layers.0.post_attention_layernorm.weight',
      'model.layers.0.self_attn.k_proj.weight',
      'model.layers.0.self_attn.o_proj.weight',
      'model.layers.0.self_attn.q_proj.bias',
      'model.layers.0.self_attn.q_proj.weight',
      'model.layers.0.self_attn.v_proj.weight',
      'model.norm.weight',
    ]);
    const firsts = (name: string) => {
      const tensor = tensors.get(`model.layers.0.self_attn.${name}`)!;
      const step = tensor.shape[1] ?? 1;
      return Array.from(tensor.toFloats()).filter((_, i) => i % step === 0);
    };
    // Pairs (0,1) (2,3) of each head become first halves, then second halves.
    expect(firsts('q_proj.weight')).toEqual([0, 2, 1, 3, 4, 6, 5, 7]);
    expect(firsts('q_proj.bias')).toEqual([0, 2, 1, 3, 4, 6, 5, 7]);
    expect(firsts('k_proj.weight')).toEqual([0, 2, 1, 3]);
    expect(firsts('v_proj.weight')).toEqual([0, 1, 2, 3]);
  });

  test('an untied head', () => {
    const spec = llamaSpec();
    const head = f32('output.weight', [8, 5], ...new Array(40).fill(0));
    const { config, tensors } = ggufToCheckpoint(open({ ...spec, tensors: [...spec.tensors, head] }), 'x');
    expect(config.tie_word_embeddings).toBe(false);
    expect(tensors.get('lm_head.weight')!.shape).toEqual([5, 8]);
  });

  test('linear rotary scaling', () => {
    const scaling = [
      ['llama.rope.scaling.type', STRING, 'linear'],
      ['llama.rope.scaling.factor', F32, 2.5],
    ] as const;
    expect(ggufToCheckpoint(open(llamaSpec(scaling)), 'x').config.rope_scaling).toEqual({
      rope_type: 'linear',
      factor: 2.5,
    });
  });

  test("Llama 3's rotary factors are recognised, others are refused", () => {
    const spec = llamaSpec([['llama.rope.dimension_count', U32, 4]]);
    const withFactors = (...factors: number[]) =>
      open({ ...spec, tensors: [...spec.tensors, f32('rope_freqs.weight', [2], ...factors)] });
    // theta 500000 and head size 4: wavelengths 6.28 (kept) and 4443 (between 2048 and 8192).
    const smooth = (8192 / (2 * Math.PI * 500000 ** 0.5) - 1) / 3;
    const middle = 1 / ((1 - smooth) / 8 + smooth);
    expect(() => ggufToCheckpoint(withFactors(1, 2), 'x')).toThrow(coded('IM122', 'rope_freqs'));
    expect(() => ggufToCheckpoint(withFactors(1, middle), 'x')).toThrow(coded('IM122', 'rope_freqs'));
    expect(ggufToCheckpoint(withFactors(1, 1), 'x').config.rope_scaling).toBeNull();
    const long = llamaSpec([
      ['llama.rope.dimension_count', U32, 4],
      ['llama.rope.freq_base', F32, 1e8],
    ]);
    const factors = f32('rope_freqs.weight', [2], 1, 32);
    expect(ggufToCheckpoint(open({ ...long, tensors: [...long.tensors, factors] }), 'x').config.rope_scaling).toEqual({
      rope_type: 'llama3',
      factor: 32,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 8192,
    });
  });

  const refused: [string, readonly (readonly [string, number, unknown])[], string, string][] = [
    ['another architecture', [['general.architecture', STRING, 'mamba']], 'IM401', 'mamba'],
    ['an architecture that is a number', [['general.architecture', U32, 1]], 'IM122', 'not a string'],
    ['a head count per layer', [['llama.attention.head_count', ARRAY, [U32, [2]]]], 'IM122', 'head_count'],
    ['experts', [['llama.expert_count', U32, 8]], 'IM122', 'experts'],
    ['a part of a split model', [['split.count', U32, 3]], 'IM122', 'split'],
    ['partial rotary embedding', [['llama.rope.dimension_count', U32, 2]], 'IM122', '2 of 4'],
    [
      'yarn',
      [
        ['llama.rope.scaling.type', STRING, 'yarn'],
        ['llama.rope.scaling.factor', F32, 4],
      ],
      'IM122',
      'yarn',
    ],
    [
      'heads that do not divide the rows',
      [
        ['llama.attention.head_count', U32, 3],
        ['llama.attention.key_length', U32, 4],
      ],
      'IM122',
      'attn_q',
    ],
  ];
  test.each(refused)('refuses %s', (_, more, code, part) => {
    expect(() => ggufToCheckpoint(open(llamaSpec(more)), 'x')).toThrow(coded(code, part));
  });

  test('refuses a tensor that Llama does not have, and missing keys', () => {
    const spec = llamaSpec();
    const gate = f32('blk.0.ffn_gate_inp.weight', [8, 2], ...new Array(16).fill(0));
    expect(() => ggufToCheckpoint(open({ ...spec, tensors: [...spec.tensors, gate] }), 'x')).toThrow(
      coded('IM122', 'ffn_gate_inp'),
    );
    const metadata = spec.metadata.filter(([key]) => key !== 'llama.block_count');
    expect(() => ggufToCheckpoint(open({ ...spec, metadata }), 'x')).toThrow(coded('IM122', 'llama.block_count'));
  });
});

describe('tokenizers', () => {
  const base: [string, GgufValue][] = [
    ['tokenizer.ggml.model', 'gpt2'],
    ['tokenizer.ggml.pre', 'gpt-2'],
    ['tokenizer.ggml.tokens', ['a', 'b', 'ab', '<e>', 'user', '__proto__']],
    ['tokenizer.ggml.token_type', [1, 1, 1, 3, 4, 1]],
    ['tokenizer.ggml.merges', ['a b']],
    ['tokenizer.ggml.eos_token_id', 3],
  ];
  const make = (...changes: [string, GgufValue | undefined][]) => {
    const metadata = new Map<string, GgufValue>(base);
    for (const [key, value] of changes) value === undefined ? metadata.delete(key) : metadata.set(key, value);
    return ggufToTokenizer(metadata, 'x');
  };

  test('control and user-defined tokens, begin and end of text, template', () => {
    const made = make(
      ['tokenizer.ggml.bos_token_id', 3],
      ['tokenizer.ggml.add_bos_token', true],
      ['tokenizer.ggml.add_eos_token', true],
      ['tokenizer.chat_template', '{{ eos_token }}!'],
    )!;
    const tokenizer = loadTokenizer(made.tokenizerJson, made.tokenizerConfig);
    expect(tokenizer.encode('abuser')).toEqual([3, 2, 4, 3]);
    expect(tokenizer.encode('ab', { addSpecialTokens: false })).toEqual([2]);
    expect(tokenizer.decode([3, 2, 4, 3])).toBe('abuser');
    expect(tokenizer.idOf('__proto__')).toBe(5);
    expect(tokenizer.eosIds).toEqual([3]);
    expect(tokenizer.applyChatTemplate([])).toBe('<e>!');
  });

  test('no tokenizer at all', () => expect(make(['tokenizer.ggml.model', undefined])).toBeUndefined());

  const refused: [string, [string, GgufValue | undefined][], string][] = [
    ['another model', [['tokenizer.ggml.model', 'bert']], 'bert'],
    ['another pre-tokenizer', [['tokenizer.ggml.pre', 'deepseek-llm']], 'deepseek-llm'],
    ['no pre-tokenizer', [['tokenizer.ggml.pre', undefined]], 'none named'],
    ['no tokens', [['tokenizer.ggml.tokens', undefined]], 'tokens'],
    ['tokens that are numbers', [['tokenizer.ggml.tokens', [1, 2]]], 'tokens'],
    ['no merges', [['tokenizer.ggml.merges', undefined]], 'merges'],
    ['types of another number', [['tokenizer.ggml.token_type', [1]]], '1 token types for 6'],
    ['an eos id beyond the tokens', [['tokenizer.ggml.eos_token_id', 6]], 'eos_token_id is 6'],
    ['llama without scores', [['tokenizer.ggml.model', 'llama']], 'no scores'],
  ];
  test.each(refused)('refuses %s', (_, changes, part) => {
    expect(() => make(...changes)).toThrow(coded('IM131', part));
  });
});

describe.skipIf(!hasSmolLM2)('SmolLM2-135M-Instruct', () => {
  test('equals the reference converter bit for bit', () => {
    const gguf = openGguf(smolLM2Path());
    const { config, tensors } = ggufToCheckpoint(gguf, smolLM2Path());
    let elements = 0;
    for (const tensor of tensors.values()) elements += tensor.size;
    expect([tensors.size, elements]).toEqual([272, 134_515_008]);
    expect([config.vocab_size, config.rms_norm_eps, config.rope_theta]).toEqual([49152, 1e-5, 100000]);
    // SHA-256 of the f32 bytes that material/tools/convert_gguf_llama.py writes, each tensor's digest in the order of names.
    const hash = createHash('sha256');
    for (const name of [...tensors.keys()].sort()) {
      hash.update(createHash('sha256').update(tensors.get(name)!.read()).digest('hex'));
    }
    expect(hash.digest('hex')).toBe('3fc6e8dc53c41220fb18fcf6e7784f0e5e101546e526646fa6bbc2382a975343');
    gguf.close();
  });
});

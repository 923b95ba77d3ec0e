import { NpucError } from '../errors.ts';
import { Tensor } from '../ir/tensor.ts';
import type { GgufFile, GgufValue } from './gguf.ts';
import type { JsonObject } from './json.ts';

/** What a GGUF file says in Hugging Face's terms. */
export interface GgufCheckpoint {
  readonly config: JsonObject;
  readonly generationConfig: JsonObject;
  readonly tensors: ReadonlyMap<string, Tensor>;
}

/** ggml's names of the tensors of a block, without `blk.<n>.` and `.weight` / `.bias`. */
const BLOCK_NAMES: Readonly<Record<string, string>> = {
  attn_norm: 'input_layernorm',
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
  attn_output: 'self_attn.o_proj',
  ffn_norm: 'post_attention_layernorm',
  ffn_gate: 'mlp.gate_proj',
  ffn_up: 'mlp.up_proj',
  ffn_down: 'mlp.down_proj',
};

const OUTER_NAMES: Readonly<Record<string, string>> = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
};

/** Llama 3's frequency factors, and rotary tables that old converters wrote. */
const ROPE_FREQUENCIES = 'rope_freqs.weight';
const IGNORED = /^blk\.\d+\.attn_rot_embd$/;

/**
 * Translates a GGUF file of the Llama family: names, config.json's keys, and the rows of q_proj and k_proj, which llama.cpp
 * stores in the order of interleaved rotary pairs.
 * @throws IM122 another architecture, a key or tensor that Llama does not have, or one that is missing
 */
export function ggufToCheckpoint(gguf: GgufFile, where: string): GgufCheckpoint {
  const read = new MetadataReader(gguf.metadata, where);
  const architecture = read.string('general.architecture');
  if (architecture !== 'llama') {
    throw new NpucError('IM401', {
      message: `the GGUF architecture ${architecture} is not supported`,
      where,
      hint: 'supported: llama; or take the model in Hugging Face form',
    });
  }
  if ((read.optionalNumber('split.count') ?? 1) > 1) {
    read.refuse('it is one part of a split model', 'join the parts with llama-gguf-split --merge');
  }
  if ((read.optionalNumber('llama.expert_count') ?? 0) > 0) read.refuse('mixtures of experts are not supported');
  const hidden = read.number('llama.embedding_length');
  const heads = read.number('llama.attention.head_count');
  const keyValueHeads = read.optionalNumber('llama.attention.head_count_kv') ?? heads;
  const headDim = read.optionalNumber('llama.attention.key_length') ?? hidden / heads;
  const rotary = read.optionalNumber('llama.rope.dimension_count') ?? headDim;
  if (rotary !== headDim) read.refuse(`rotary embedding of ${rotary} of ${headDim} dimensions is not supported`);
  const tensors = renameTensors(gguf, heads, keyValueHeads, read);
  const theta = read.optionalNumber('llama.rope.freq_base') ?? 10000;
  const config = {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    hidden_size: hidden,
    intermediate_size: read.number('llama.feed_forward_length'),
    num_hidden_layers: read.number('llama.block_count'),
    num_attention_heads: heads,
    num_key_value_heads: keyValueHeads,
    head_dim: headDim,
    vocab_size: tensors.get('model.embed_tokens.weight')?.shape[0] ?? read.number('llama.vocab_size'),
    max_position_embeddings: read.number('llama.context_length'),
    rms_norm_eps: shortest(read.number('llama.attention.layer_norm_rms_epsilon')),
    rope_theta: theta,
    rope_scaling: readRopeScaling(gguf, read, headDim, theta),
    hidden_act: 'silu',
    attention_bias: tensors.has('model.layers.0.self_attn.q_proj.bias'),
    mlp_bias: tensors.has('model.layers.0.mlp.down_proj.bias'),
    tie_word_embeddings: !tensors.has('lm_head.weight'),
    bos_token_id: read.optionalNumber('tokenizer.ggml.bos_token_id'),
    eos_token_id: read.optionalNumber('tokenizer.ggml.eos_token_id'),
  };
  const ends = ['eos', 'eot', 'eom'].flatMap((kind) => read.optionalNumber(`tokenizer.ggml.${kind}_token_id`) ?? []);
  return { config, generationConfig: { bos_token_id: config.bos_token_id, eos_token_id: [...new Set(ends)] }, tensors };
}

function renameTensors(
  gguf: GgufFile,
  heads: number,
  keyValueHeads: number,
  read: MetadataReader,
): ReadonlyMap<string, Tensor> {
  const tensors = new Map<string, Tensor>();
  for (const [name, tensor] of gguf.tensors) {
    if (name === ROPE_FREQUENCIES || IGNORED.test(name)) continue;
    const outer = OUTER_NAMES[name];
    if (outer) {
      tensors.set(outer, tensor);
      continue;
    }
    const [, layer, part, kind] = /^blk\.(\d+)\.([a-z_]+)\.(weight|bias)$/.exec(name) ?? [];
    const inner = part !== undefined && Object.hasOwn(BLOCK_NAMES, part) ? BLOCK_NAMES[part] : undefined;
    if (!inner) return read.refuse(`the tensor ${name} has no place in a Llama model`);
    const rotated = part === 'attn_q' ? heads : part === 'attn_k' ? keyValueHeads : undefined;
    tensors.set(`model.layers.${layer}.${inner}.${kind}`, rotated ? splitPairs(tensor, rotated, name, read) : tensor);
  }
  return tensors;
}

/**
 * Undoes llama.cpp's order of the rows of a head: rotary pairs lie side by side there (0, hd/2, 1, hd/2 + 1, ...), Hugging
 * Face has the first elements of all pairs, then the second ones.
 */
function splitPairs(tensor: Tensor, heads: number, name: string, read: MetadataReader): Tensor {
  const rows = tensor.shape[0] ?? 0;
  if (rows % (2 * heads) !== 0) read.refuse(`the tensor ${name} has ${rows} rows for ${heads} heads`);
  const half = rows / heads / 2;
  const rowBytes = tensor.byteLength / rows;
  const compute = (): Uint8Array => {
    const from = tensor.read();
    const to = new Uint8Array(from.byteLength);
    for (let head = 0; head < heads; head++) {
      for (let pair = 0; pair < half; pair++) {
        for (let side = 0; side < 2; side++) {
          const source = (head * half + pair) * 2 + side;
          const target = (head * 2 + side) * half + pair;
          to.set(from.subarray(source * rowBytes, (source + 1) * rowBytes), target * rowBytes);
        }
      }
    }
    return to;
  };
  return new Tensor(tensor.dtype, tensor.shape, { kind: 'derived', compute });
}

function readRopeScaling(gguf: GgufFile, read: MetadataReader, headDim: number, theta: number): JsonObject | null {
  const factors = gguf.tensors.get(ROPE_FREQUENCIES);
  if (factors) return recogniseLlama3(factors.toFloats(), headDim, theta, read);
  const type = read.optionalString('llama.rope.scaling.type') ?? 'none';
  const factor = read.optionalNumber('llama.rope.scaling.factor') ?? 1;
  if (type === 'none' || factor === 1) return null;
  if (type !== 'linear') read.refuse(`rotary scaling of the type ${type} is not supported (none and linear are)`);
  return { rope_type: 'linear', factor: shortest(factor) };
}

/**
 * Llama 3's scaling comes as one factor per frequency, without the numbers it was made from. Every model of that family has
 * low_freq_factor 1, high_freq_factor 4 and 8192 original positions, and the largest factor is `factor`; the factors that
 * follow from these must be the ones in the file.
 */
function recogniseLlama3(
  factors: Float32Array,
  headDim: number,
  theta: number,
  read: MetadataReader,
): JsonObject | null {
  if (factors.every((factor) => factor === 1)) return null;
  const factor = Math.max(...factors);
  const [low, high, original] = [1, 4, 8192];
  const expected = Array.from({ length: headDim / 2 }, (_, i) => {
    const wavelength = 2 * Math.PI * theta ** ((2 * i) / headDim);
    if (wavelength < original / high) return 1;
    if (wavelength > original / low) return factor;
    const smooth = (original / wavelength - low) / (high - low);
    return 1 / ((1 - smooth) / factor + smooth);
  });
  const same =
    factors.length === expected.length && expected.every((value, i) => Math.abs(value - factors[i]) <= 1e-3 * value);
  if (!same) read.refuse(`${ROPE_FREQUENCIES} does not hold Llama 3's factors`);
  return {
    rope_type: 'llama3',
    factor: shortest(factor),
    low_freq_factor: low,
    high_freq_factor: high,
    original_max_position_embeddings: original,
  };
}

/** The shortest decimal that rounds to this f32: GGUF keeps 1e-5 as 0.00000999999974737875. */
function shortest(value: number): number {
  for (let digits = 1; digits < 9; digits++) {
    const candidate = Number(value.toPrecision(digits));
    if (Math.fround(candidate) === Math.fround(value)) return candidate;
  }
  return value;
}

/** Typed access to metadata. */
class MetadataReader {
  readonly #metadata: ReadonlyMap<string, GgufValue>;
  readonly #where: string;

  constructor(metadata: ReadonlyMap<string, GgufValue>, where: string) {
    this.#metadata = metadata;
    this.#where = where;
  }

  refuse(message: string, hint?: string): never {
    throw new NpucError('IM122', { message, where: this.#where, hint });
  }

  optionalNumber(key: string): number | undefined {
    const value = this.#metadata.get(key);
    if (value === undefined) return undefined;
    if (typeof value !== 'number') return this.refuse(`${key} is not one number`);
    return value;
  }

  number(key: string): number {
    return this.optionalNumber(key) ?? this.refuse(`the metadata lack ${key}`);
  }

  optionalString(key: string): string | undefined {
    const value = this.#metadata.get(key);
    if (value === undefined) return undefined;
    if (typeof value !== 'string') return this.refuse(`${key} is not a string`);
    return value;
  }

  string(key: string): string {
    return this.optionalString(key) ?? this.refuse(`the metadata lack ${key}`);
  }
}

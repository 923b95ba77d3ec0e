// Writes a Llama checkpoint of random weights, any shape, for measurements of time and memory: its text means nothing.
// node bench/make-checkpoint.mjs <folder> [--layers 16 --hidden 2048 --ffn 8192 --heads 32 --kv-heads 8 --head-dim 64
//   --vocab 128256 --positions 131072 --untied --seed 1]
// The defaults are the shapes of Llama-3.2-1B (1.24 billion weights, 2.5 GB of bf16). Weights are drawn from a normal
// distribution of deviation 0.02, every 200th input channel six times as large; the same arguments give the same bytes.
// They are streamed: memory does not grow with the model. The tokenizer is the demo model's.
import { closeSync, copyFileSync, mkdirSync, openSync, renameSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const text = (value) => ({ type: 'string', default: String(value) });
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    layers: text(16),
    hidden: text(2048),
    ffn: text(8192),
    heads: text(32),
    'kv-heads': text(8),
    'head-dim': text(64),
    vocab: text(128256),
    positions: text(131072),
    untied: { type: 'boolean', default: false },
    seed: text(1),
  },
});
const folder = positionals[0];
if (!folder) throw new Error('node bench/make-checkpoint.mjs <folder> [--layers n ..]');
const number = (name) => {
  const value = Number(values[name]);
  if (!Number.isSafeInteger(value) || value < 1) throw new Error(`--${name} takes a whole number above 0`);
  return value;
};
const [layers, hidden, ffn, heads] = ['layers', 'hidden', 'ffn', 'heads'].map(number);
const [keyValueHeads, headDim, vocab] = ['kv-heads', 'head-dim', 'vocab'].map(number);

const DEVIATION = 0.02;
const OUTLIERS = { every: 200, factor: 6 };
const CHUNK = 1 << 21;

/** [name, shape] of every tensor, in the order of the file. */
const tensors = [['model.embed_tokens.weight', [vocab, hidden]]];
for (let layer = 0; layer < layers; layer++) {
  const at = `model.layers.${layer}`;
  tensors.push(
    [`${at}.input_layernorm.weight`, [hidden]],
    [`${at}.self_attn.q_proj.weight`, [heads * headDim, hidden]],
    [`${at}.self_attn.k_proj.weight`, [keyValueHeads * headDim, hidden]],
    [`${at}.self_attn.v_proj.weight`, [keyValueHeads * headDim, hidden]],
    [`${at}.self_attn.o_proj.weight`, [hidden, heads * headDim]],
    [`${at}.post_attention_layernorm.weight`, [hidden]],
    [`${at}.mlp.gate_proj.weight`, [ffn, hidden]],
    [`${at}.mlp.up_proj.weight`, [ffn, hidden]],
    [`${at}.mlp.down_proj.weight`, [hidden, ffn]],
  );
}
tensors.push(['model.norm.weight', [hidden]]);
if (values.untied) tensors.push(['lm_head.weight', [vocab, hidden]]);

const view = new DataView(new ArrayBuffer(4));
/** The nearest bf16, ties to even. */
function toBfloat(value) {
  view.setFloat32(0, value);
  const bits = view.getUint32(0);
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

/** Normal numbers by table: sums of twelve uniform ones, drawn once; index them with random bits. */
function normalTable(deviation) {
  const draw = uniform(1);
  return Uint16Array.from({ length: 1 << 16 }, () => {
    let sum = -6;
    for (let i = 0; i < 12; i++) sum += draw();
    return toBfloat(sum * deviation);
  });
}

function uniform(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

const plain = normalTable(DEVIATION);
const large = normalTable(DEVIATION * OUTLIERS.factor);
const one = toBfloat(1);

const count = (shape) => shape.reduce((product, dim) => product * dim, 1);
const header = { __metadata__: { format: 'pt' } };
let end = 0;
for (const [name, shape] of tensors) {
  header[name] = { dtype: 'BF16', shape, data_offsets: [end, end + 2 * count(shape)] };
  end += 2 * count(shape);
}
const json = JSON.stringify(header);
const head = Buffer.from(json.padEnd(Math.ceil(json.length / 8) * 8));
const length = Buffer.alloc(8);
length.writeBigUInt64LE(BigInt(head.length));

mkdirSync(folder, { recursive: true });
const path = join(folder, 'model.safetensors');
const partial = `${path}.partial`;
const file = openSync(partial, 'w');
const writeAll = (bytes) => {
  for (let done = 0; done < bytes.length; ) done += writeSync(file, bytes, done);
};
try {
  writeAll(length);
  writeAll(head);
  const buffer = new Uint16Array(CHUNK);
  for (const [index, [, shape]] of tensors.entries()) {
    let state = (number('seed') * 0x9e3779b1 + index * 0x85ebca6b) >>> 0 || 1;
    const columns = shape.at(-1);
    const total = count(shape);
    for (let start = 0; start < total; start += CHUNK) {
      const size = Math.min(CHUNK, total - start);
      let column = start % columns;
      for (let i = 0; i < size; i++) {
        state ^= state << 13;
        state ^= state >>> 17;
        state ^= state << 5;
        buffer[i] = shape.length === 1 ? one : (column % OUTLIERS.every === 0 ? large : plain)[(state >>> 7) & 0xffff];
        if (++column === columns) column = 0;
      }
      writeAll(new Uint8Array(buffer.buffer, 0, 2 * size));
    }
  }
  closeSync(file);
  renameSync(partial, path);
} catch (error) {
  rmSync(partial, { force: true });
  throw error;
}

const write = (name, value) => writeFileSync(join(folder, name), `${JSON.stringify(value, undefined, 2)}\n`);
write('config.json', {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  hidden_size: hidden,
  intermediate_size: ffn,
  num_hidden_layers: layers,
  num_attention_heads: heads,
  num_key_value_heads: keyValueHeads,
  head_dim: headDim,
  vocab_size: vocab,
  max_position_embeddings: number('positions'),
  rms_norm_eps: 1e-5,
  hidden_act: 'silu',
  rope_theta: 500000,
  tie_word_embeddings: !values.untied,
  attention_bias: false,
  mlp_bias: false,
  torch_dtype: 'bfloat16',
  bos_token_id: 0,
  eos_token_id: 1,
});
const demo = fileURLToPath(new URL('../fixtures/demo/', import.meta.url));
for (const name of ['tokenizer.json', 'tokenizer_config.json', 'generation_config.json'])
  copyFileSync(join(demo, name), join(folder, name));
console.log(`${path}: ${(end / 2).toLocaleString('en-US')} weights, ${end.toLocaleString('en-US')} bytes`);

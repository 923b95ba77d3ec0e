import type { DecoderConfig } from '../compiler/import/huggingface/config.ts';
import { Tensor } from '../compiler/ir/tensor.ts';
import { seededRandom } from '../compiler/runtime/generate.ts';

/** Random weights of a Llama under their Hugging Face names, f32, [outputs, inputs] as checkpoints have them. */
export function randomCheckpoint(
  config: DecoderConfig,
  options: { readonly seed?: number; readonly attentionBias?: boolean; readonly mlpBias?: boolean } = {},
): Map<string, Tensor> {
  const random = seededRandom(options.seed ?? 1);
  const tensors = new Map<string, Tensor>();
  const make = (name: string, shape: readonly number[], size: number, centre = 0): void => {
    const length = shape.reduce((a, b) => a * b, 1);
    // Sums of uniform numbers are near enough to normal ones.
    const values = Float32Array.from(
      { length },
      () => centre + size * (random() + random() + random() + random() - 2) * Math.sqrt(3),
    );
    tensors.set(name, Tensor.of('f32', shape, values));
  };
  const { hiddenSize, intermediateSize, headDim, heads, keyValueHeads, vocabSize } = config;
  const linear = (name: string, outputs: number, inputs: number, bias: boolean | undefined): void => {
    make(`${name}.weight`, [outputs, inputs], 1 / Math.sqrt(inputs));
    if (bias) make(`${name}.bias`, [outputs], 0.5);
  };
  make('model.embed_tokens.weight', [vocabSize, hiddenSize], 1);
  for (let layer = 0; layer < config.layers; layer++) {
    const at = `model.layers.${layer}`;
    make(`${at}.input_layernorm.weight`, [hiddenSize], 0.3, 1);
    make(`${at}.post_attention_layernorm.weight`, [hiddenSize], 0.3, 1);
    linear(`${at}.self_attn.q_proj`, heads * headDim, hiddenSize, options.attentionBias);
    linear(`${at}.self_attn.k_proj`, keyValueHeads * headDim, hiddenSize, options.attentionBias);
    linear(`${at}.self_attn.v_proj`, keyValueHeads * headDim, hiddenSize, options.attentionBias);
    linear(`${at}.self_attn.o_proj`, hiddenSize, heads * headDim, options.attentionBias);
    linear(`${at}.mlp.gate_proj`, intermediateSize, hiddenSize, options.mlpBias);
    linear(`${at}.mlp.up_proj`, intermediateSize, hiddenSize, options.mlpBias);
    linear(`${at}.mlp.down_proj`, hiddenSize, intermediateSize, options.mlpBias);
  }
  make('model.norm.weight', [hiddenSize], 0.3, 1);
  if (!config.tiedEmbeddings) linear('lm_head', vocabSize, hiddenSize, false);
  return tensors;
}

/**
 * Logits after every token, written straight down from the papers in float64, one position at a time: no cache, no chunks,
 * no mask, no graph.
 */
export function referenceLogits(
  config: DecoderConfig,
  tensors: ReadonlyMap<string, Tensor>,
  ids: readonly number[],
): Float64Array[] {
  return slidingLogits(config, tensors, ids, { cache: ids.length, chunk: 1, sinks: 0, positions: 'global' });
}

/** A cache that holds so many tokens, in chunks: the oldest behind the sinks go when the next chunk has no room. */
export interface SlidingCache {
  readonly cache: number;
  readonly chunk: number;
  readonly sinks: number;
  /** Whether a token's position is its place in the cache now, or its place in the text. */
  readonly positions: 'cache' | 'global';
}

/** The same through a cache that slides. Keys are kept unrotated and turned when they are read. */
export function slidingLogits(
  config: DecoderConfig,
  tensors: ReadonlyMap<string, Tensor>,
  ids: readonly number[],
  { cache: slots, chunk, sinks, positions }: SlidingCache,
): Float64Array[] {
  const { headDim, heads, keyValueHeads, hiddenSize, epsilon } = config;
  const floats = new Map([...tensors].map(([name, tensor]) => [name, tensor.toFloats()]));
  const linear = (name: string, x: ArrayLike<number>): Float64Array => {
    const weight = floats.get(`${name}.weight`)!;
    const bias = floats.get(`${name}.bias`);
    return Float64Array.from({ length: weight.length / x.length }, (_, n) => {
      let sum = bias?.[n] ?? 0;
      for (let k = 0; k < x.length; k++) sum += weight[n * x.length + k]! * x[k]!;
      return sum;
    });
  };
  const norm = (name: string, x: Float64Array): Float64Array => {
    const weight = floats.get(`${name}.weight`)!;
    const rms = Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / x.length + epsilon);
    return x.map((value, k) => (value / rms) * weight[k]!);
  };
  const rotate = (x: Float64Array, position: number): Float64Array => {
    const half = headDim / 2;
    return x.map((value, i) => {
      const at = i % headDim;
      const angle = position / config.rope.theta ** ((2 * (at % half)) / headDim);
      const partner = at < half ? -x[i + half]! : x[i - half]!;
      return value * Math.cos(angle) + partner * Math.sin(angle);
    });
  };
  const add = (a: Float64Array, b: Float64Array): Float64Array => a.map((value, i) => value + b[i]!);
  const cache = Array.from({ length: config.layers }, () => ({
    keys: [] as { readonly key: Float64Array; readonly position: number }[],
    values: [] as Float64Array[],
  }));
  return ids.map((id, position) => {
    const held = cache[0]!.keys.length;
    const excess = position % chunk === 0 ? held + chunk - slots : 0;
    if (excess > 0) {
      for (const { keys, values } of cache) {
        keys.splice(sinks, excess);
        values.splice(sinks, excess);
      }
    }
    let stream: Float64Array = Float64Array.from(
      floats.get('model.embed_tokens.weight')!.subarray(id * hiddenSize, (id + 1) * hiddenSize),
    );
    cache.forEach(({ keys, values }, layer) => {
      const at = `model.layers.${layer}`;
      const x = norm(`${at}.input_layernorm`, stream);
      keys.push({ key: linear(`${at}.self_attn.k_proj`, x), position });
      values.push(linear(`${at}.self_attn.v_proj`, x));
      const place = (slot: number): number => (positions === 'cache' ? slot : keys[slot]!.position);
      const query = rotate(linear(`${at}.self_attn.q_proj`, x), place(keys.length - 1));
      const turned = keys.map(({ key }, slot) => rotate(key, place(slot)));
      const mixed = new Float64Array(heads * headDim);
      for (let head = 0; head < heads; head++) {
        const shared = Math.floor(head / (heads / keyValueHeads));
        const scores = turned.map((key) => {
          let sum = 0;
          for (let i = 0; i < headDim; i++) sum += query[head * headDim + i]! * key[shared * headDim + i]!;
          return Math.exp(sum / Math.sqrt(headDim));
        });
        const total = scores.reduce((a, b) => a + b);
        for (let i = 0; i < headDim; i++) {
          mixed[head * headDim + i] = scores.reduce(
            (sum, score, t) => sum + (score / total) * values[t]![shared * headDim + i]!,
            0,
          );
        }
      }
      stream = add(stream, linear(`${at}.self_attn.o_proj`, mixed));
      const y = norm(`${at}.post_attention_layernorm`, stream);
      const gate = linear(`${at}.mlp.gate_proj`, y);
      const up = linear(`${at}.mlp.up_proj`, y);
      const product = gate.map((value, i) => (value / (1 + Math.exp(-value))) * up[i]!);
      stream = add(stream, linear(`${at}.mlp.down_proj`, product));
    });
    const last = norm('model.norm', stream);
    return linear(tensors.has('lm_head.weight') ? 'lm_head' : 'model.embed_tokens', last);
  });
}

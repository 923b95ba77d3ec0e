/**
 * What a runtime expects of a decoder graph: names, layouts, rotary form, cache protocol (DESIGN 5; each contract was
 * measured on the real runtime, none is a mixture of two). Data only; `apply-io-contract` does the rewriting and
 * `compiler/runtime/decoder-session` feeds it.
 */
export interface IoContract {
  readonly name: 'plain' | 'genie' | 'litert-npu' | 'litert-lm' | 'mediatek';
  /** Token ids looked up in the graph, or embedding rows looked up by the host. */
  readonly embedding: 'ids' | 'embeds';
  /**
   * Where cosine and sine come from: gathered in the graph by position, given as [1,1,t,hd/2] (half), or given as
   * [1,t,1,hd] with the sign folded into the sine (full: rot = concat(b, a)), or given as one input [1,2,t,hd] of cosines
   * and sines (stacked).
   */
  readonly rotary: 'in-graph' | 'half' | 'full' | 'stacked';
  /**
   * Who writes new keys and values into a cache: the host, from the new rows that a graph gives (the default), or the graph,
   * which takes whole caches and gives them back with the new rows written at the first new token's position (in-graph), or
   * put behind all others, which move forward and fall out at the front (shift: the last slot is the newest one).
   */
  readonly update?: 'host' | 'in-graph' | 'shift';
  /** What is added to the scores of a token that must not be seen, where it is not the usual one. */
  readonly masked?: number;
  /** Whether prefill graphs give logits for all positions or only decode graphs give them. */
  readonly logits: 'all' | 'decode';
  readonly names: {
    readonly tokens: string;
    readonly mask: string;
    readonly positions?: string;
    readonly cos?: string;
    readonly sin?: string;
    readonly rope?: string;
    readonly logits: string;
    readonly pastKey: (layer: number) => string;
    readonly pastValue: (layer: number) => string;
    readonly newKey: (layer: number) => string;
    readonly newValue: (layer: number) => string;
  };
  /** Layout of the key and value caches. */
  readonly key: CacheLayout;
  readonly value: CacheLayout;
  /** Leading dimensions of the attention products, batch and key/value heads, in the contract's order. */
  readonly lead: 'heads-first' | 'batch-first';
}

/** A cache layout as a permutation of [batch, token, head, dim]. */
export interface CacheLayout {
  readonly order: readonly [number, number, number, number];
  /** The axis of the permuted tensor along which tokens lie. */
  readonly timeAxis: number;
  /** The permutation from the cache's layout to the product's operand: keys [lead.., hd, CL], values [lead.., CL, hd]; absent: none. */
  readonly toOperand?: readonly number[];
}

/** Plain ONNX: ids in, tables in the graph, [1,kv,time,hd] caches, f32 additive mask. */
export const plainContract: IoContract = {
  name: 'plain',
  embedding: 'ids',
  rotary: 'in-graph',
  logits: 'all',
  names: {
    tokens: 'input_ids',
    mask: 'attention_mask',
    positions: 'position_ids',
    logits: 'logits',
    pastKey: (layer) => `past_key_${layer}`,
    pastValue: (layer) => `past_value_${layer}`,
    newKey: (layer) => `new_key_${layer}`,
    newValue: (layer) => `new_value_${layer}`,
  },
  key: { order: [0, 2, 1, 3], timeAxis: 2, toOperand: [0, 1, 3, 2] },
  value: { order: [0, 2, 1, 3], timeAxis: 2 },
  lead: 'batch-first',
};

/** Genie on QNN/HTP (facts genie-cnn A, qnn-htp 4): half-width tables as inputs, keys kept transposed. */
export const genieContract: IoContract = {
  name: 'genie',
  embedding: 'ids',
  rotary: 'half',
  logits: 'all',
  names: {
    tokens: 'input_ids',
    mask: 'attention_mask',
    cos: 'position_ids_cos',
    sin: 'position_ids_sin',
    logits: 'logits',
    pastKey: (layer) => `past_key_${layer}_in`,
    pastValue: (layer) => `past_value_${layer}_in`,
    newKey: (layer) => `past_key_${layer}_out`,
    newValue: (layer) => `past_value_${layer}_out`,
  },
  key: { order: [2, 0, 3, 1], timeAxis: 3 },
  value: { order: [2, 0, 1, 3], timeAxis: 2 },
  lead: 'heads-first',
};

/** Genie with embedding rows as input: it looks them up itself, in a table beside the graphs (facts genie-cnn A, "embedding"). */
export const genieRowsContract: IoContract = {
  ...genieContract,
  embedding: 'embeds',
  names: { ...genieContract.names, tokens: 'inputs_embeds' },
};

/** The op subset that every LiteRT NPU plugin takes in one partition (facts litert 5). */
export const litertNpuContract: IoContract = {
  name: 'litert-npu',
  embedding: 'embeds',
  rotary: 'full',
  logits: 'decode',
  names: {
    tokens: 'embeds',
    mask: 'mask',
    cos: 'pos_emb_cos',
    sin: 'pos_emb_sin',
    logits: 'logits',
    pastKey: (layer) => `kv_cache_k_${layer}`,
    pastValue: (layer) => `kv_cache_v_${layer}`,
    newKey: (layer) => `kv_slice_k_${layer}`,
    newValue: (layer) => `kv_slice_v_${layer}`,
  },
  key: { order: [0, 1, 2, 3], timeAxis: 1, toOperand: [0, 2, 3, 1] },
  value: { order: [0, 1, 2, 3], timeAxis: 1, toOperand: [0, 2, 1, 3] },
  lead: 'batch-first',
};

/**
 * LiteRT-LM's prefill_decode models (facts litert 4; names and padding also from its executor's source): ids and positions
 * in, one cache for both signatures under one name on either side, updated in the graph. Its mask is -45824 where a token must
 * not be seen (half floats hold it). Heads lie outside of tokens, so that no product has to turn the whole cache.
 */
export const litertLmContract: IoContract = {
  name: 'litert-lm',
  embedding: 'ids',
  rotary: 'in-graph',
  update: 'in-graph',
  masked: -45824,
  logits: 'decode',
  names: {
    tokens: 'tokens',
    mask: 'mask',
    positions: 'input_pos',
    logits: 'logits',
    pastKey: (layer) => `kv_cache_k_${layer}`,
    pastValue: (layer) => `kv_cache_v_${layer}`,
    // Values of a graph have names of their own; the signature's output has its input's.
    newKey: (layer) => `kv_cache_k_${layer}.updated`,
    newValue: (layer) => `kv_cache_v_${layer}.updated`,
  },
  key: { order: [0, 2, 1, 3], timeAxis: 2, toOperand: [0, 1, 3, 2] },
  value: { order: [0, 2, 1, 3], timeAxis: 2 },
  lead: 'batch-first',
};

/**
 * MediaTek's open language-model flow (facts edgeinfinite 4.1): embedding rows and one table of cosines and sines in, caches
 * of one size in every graph whose newest token is in the last slot. The graph looks at the whole cache and at its own
 * tokens, and gives the cache back without its oldest ones.
 */
export const mediatekContract: IoContract = {
  name: 'mediatek',
  embedding: 'embeds',
  rotary: 'stacked',
  update: 'shift',
  // What its runner writes into a float mask; in integers it is the lowest number, as -32768 is there.
  masked: -100,
  logits: 'all',
  names: {
    tokens: 'hidden',
    mask: 'mask',
    rope: 'rope',
    logits: 'logits',
    pastKey: (layer) => `cache_k_${layer}`,
    pastValue: (layer) => `cache_v_${layer}`,
    newKey: (layer) => `new_cache_k_${layer}`,
    newValue: (layer) => `new_cache_v_${layer}`,
  },
  key: { order: [0, 2, 1, 3], timeAxis: 2, toOperand: [0, 1, 3, 2] },
  value: { order: [0, 2, 1, 3], timeAxis: 2 },
  lead: 'batch-first',
};

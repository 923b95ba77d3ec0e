import { NpucError } from '../../errors.ts';
import type { DType } from '../../ir/dtype.ts';
import { floatAttribute, Graph, intAttribute, intsAttribute, Module, tensorType, type Value } from '../../ir/graph.ts';
import { Tensor, toFloats, transposeTensor } from '../../ir/tensor.ts';
import type { DecoderConfig } from './config.ts';
import { inverseFrequencies, rotaryTables } from './rope.ts';

/** The weights of a decoder as f32 tensors under their Hugging Face names; linear weights are [K, N], lazily transposed. */
export type DecoderWeights = ReadonlyMap<string, Tensor>;

/** Element types of weights; 8-bit floats and integers mean nothing without the scales of the format they belong to. */
const FLOATS: ReadonlySet<DType> = new Set(['f32', 'f16', 'bf16', 'f64']);

/** A tensor read as f32 whenever asked for; f32 tensors are returned as they are. */
export function floatTensor(source: Tensor): Tensor {
  if (source.dtype === 'f32') return source;
  return new Tensor('f32', source.shape, {
    kind: 'derived',
    compute: () => {
      const floats = toFloats(source.toData());
      return new Uint8Array(floats.buffer, floats.byteOffset, floats.byteLength);
    },
  });
}

/**
 * Finds every weight that the config calls for, checks its shape and prepares it lazily.
 * The attention scale 1 / sqrt(headDim) is folded into q_proj, since no NPU contract wants it as a node of its own.
 * @throws IM403 a tensor is missing, IM404 its shape does not fit the config, or its elements are no floats
 */
export function collectWeights(
  config: DecoderConfig,
  tensors: ReadonlyMap<string, Tensor>,
  where: string,
): DecoderWeights {
  const { hiddenSize, intermediateSize, headDim, heads, keyValueHeads, vocabSize } = config;
  const weights = new Map<string, Tensor>();
  const find = (name: string, shape: readonly number[]): Tensor => {
    const tensor = tensors.get(name);
    if (!tensor) {
      throw new NpucError('IM403', {
        message: `the checkpoint has no tensor ${name}`,
        where,
        hint:
          name === 'lm_head.weight'
            ? 'is every shard there? a head that is the embedding needs tie_word_embeddings in config.json'
            : 'is every shard there?',
      });
    }
    if (!FLOATS.has(tensor.dtype)) {
      throw new NpucError('IM404', {
        message: `${name} is ${tensor.dtype}: npuc starts from float weights`,
        where,
        hint: 'take the checkpoint that this one was quantized from',
      });
    }
    if (tensor.shape.length !== shape.length || tensor.shape.some((dim, i) => dim !== shape[i])) {
      throw new NpucError('IM404', {
        message: `${name} is [${tensor.shape}], config.json calls for [${shape}]`,
        where,
      });
    }
    return floatTensor(tensor);
  };
  const linear = (name: string, outputs: number, inputs: number, hasBias: boolean, scale = 1): void => {
    const rows = find(`${name}.weight`, [outputs, inputs]);
    weights.set(`${name}.weight`, transposeTensor(scale === 1 ? rows : scaleTensor(rows, scale)));
    if (hasBias || tensors.has(`${name}.bias`)) {
      const bias = find(`${name}.bias`, [outputs]);
      weights.set(`${name}.bias`, scale === 1 ? bias : scaleTensor(bias, scale));
    }
  };
  const embedding = find('model.embed_tokens.weight', [vocabSize, hiddenSize]);
  weights.set('model.embed_tokens.weight', embedding);
  for (let layer = 0; layer < config.layers; layer++) {
    const at = `model.layers.${layer}`;
    weights.set(`${at}.input_layernorm.weight`, find(`${at}.input_layernorm.weight`, [hiddenSize]));
    weights.set(`${at}.post_attention_layernorm.weight`, find(`${at}.post_attention_layernorm.weight`, [hiddenSize]));
    const { attentionBias = false, mlpBias = false } = config;
    linear(`${at}.self_attn.q_proj`, heads * headDim, hiddenSize, attentionBias, 1 / Math.sqrt(headDim));
    linear(`${at}.self_attn.k_proj`, keyValueHeads * headDim, hiddenSize, attentionBias);
    linear(`${at}.self_attn.v_proj`, keyValueHeads * headDim, hiddenSize, attentionBias);
    // Checkpoints of families without a bias here say attention_bias all the same.
    linear(`${at}.self_attn.o_proj`, hiddenSize, heads * headDim, false);
    linear(`${at}.mlp.gate_proj`, intermediateSize, hiddenSize, mlpBias);
    linear(`${at}.mlp.up_proj`, intermediateSize, hiddenSize, mlpBias);
    linear(`${at}.mlp.down_proj`, hiddenSize, intermediateSize, mlpBias);
  }
  weights.set('model.norm.weight', find('model.norm.weight', [hiddenSize]));
  const head = config.tiedEmbeddings ? embedding : find('lm_head.weight', [vocabSize, hiddenSize]);
  weights.set('lm_head.weight', transposeTensor(head));
  return weights;
}

function scaleTensor(source: Tensor, factor: number): Tensor {
  return new Tensor('f32', source.shape, {
    kind: 'derived',
    compute: () => {
      const floats = source.toFloats().slice();
      for (let i = 0; i < floats.length; i++) floats[i] = floats[i]! * factor;
      return new Uint8Array(floats.buffer);
    },
  });
}

/**
 * Builds the semantic decoder: standard ONNX ops with symbolic `tokens` and `past`, attention over appended states.
 *
 *     input_ids i32[1,tokens], position_ids i32[1,tokens], attention_mask f32[1,1,tokens,past+tokens] (added to the scores)
 *     past_key_<i>, past_value_<i> f32[1,kv,past,headDim]  ->  logits f32[1,tokens,vocab], the grown states
 *
 * `applyIoContract` turns it into what one target wants.
 * @param context the longest context that rotary tables must hold
 */
export function buildLlama(config: DecoderConfig, weights: DecoderWeights, context: number, name = 'decoder'): Module {
  const { heads, keyValueHeads, headDim, hiddenSize, vocabSize } = config;
  const module = new Module();
  module.opsets.set('', 23);
  module.irVersion = 11;
  const graph = new Graph(name);
  module.graphs.push(graph);
  const activation = (size: number): ReturnType<typeof tensorType> => tensorType('f32', [1, 'tokens', size]);
  const constant = (key: string): Value => graph.find(key) ?? graph.addConstant(key, weights.get(key)!);
  const table = (key: string, data: Tensor): Value => graph.find(key) ?? graph.addConstant(key, data);

  const ids = graph.addInput('input_ids', tensorType('i32', [1, 'tokens']));
  const positions = graph.addInput('position_ids', tensorType('i32', [1, 'tokens']));
  const mask = graph.addInput('attention_mask', tensorType('f32', [1, 1, 'tokens', 'past + tokens']));
  const frequencies = inverseFrequencies(config.rope, headDim, context);
  const tables = rotaryTables(
    frequencies,
    Array.from({ length: context }, (_, i) => i),
  );
  const cos = table('rotary_cos', Tensor.of('f32', [context, headDim / 2], tables.cos));
  const sin = table('rotary_sin', Tensor.of('f32', [context, headDim / 2], tables.sin));

  const emit = (
    op: string,
    role: string,
    inputs: (Value | undefined)[],
    type: ReturnType<typeof tensorType>,
    from: string,
    attributes = {},
  ): Value => graph.emit(op, inputs, { name: role, type, attributes, from: [from] });
  const linear = (role: string, input: Value, module: string, outputs: number): Value => {
    const weight = constant(`${module}.weight`);
    const bias = weights.get(`${module}.bias`);
    if (!bias) return emit('MatMul', role, [input, weight], activation(outputs), module);
    const product = emit('MatMul', `${role}.matmul`, [input, weight], activation(outputs), module);
    return emit('Add', role, [product, constant(`${module}.bias`)], activation(outputs), module);
  };
  const norm = (role: string, input: Value, module: string): Value =>
    emit('RMSNormalization', role, [input, constant(`${module}.weight`)], activation(hiddenSize), module, {
      axis: intAttribute(-1),
      epsilon: floatAttribute(config.epsilon),
    });

  /**
   * What the last channels of the gated product have beyond a bound, through down_proj: as a rule nothing at all, so that it
   * may have a coarse scale. The product itself is cut off there.
   */
  const beyondBound = (at: string, mlp: string, silu: Value, up: Value): Value => {
    const matrix = weights.get(`${mlp}.down_proj.outliers.weight`)!;
    const [count, all] = [matrix.shape[0]!, config.intermediateSize];
    const last = (whole: Value): Value =>
      emit(
        'Slice',
        `${whole.name}.last`,
        [
          whole,
          table(`last.${count}.start`, Tensor.of('i64', [1], [all - count])),
          table(`last.${count}.end`, Tensor.of('i64', [1], [all])),
          table(`last.${count}.axis`, Tensor.of('i64', [1], [2])),
        ],
        activation(count),
        mlp,
      );
    const role = `${at}.mlp_product.outliers`;
    const product = emit('Mul', `${role}.whole`, [last(silu), last(up)], activation(count), mlp);
    const bound = constant(`${mlp}.down_proj.outliers.bound`);
    const shifted = emit('Sub', `${role}.shifted`, [product, bound], activation(count), mlp);
    const excess = emit('Relu', role, [shifted], activation(count), mlp);
    return linear(`${at}.down_proj.outliers`, excess, `${mlp}.down_proj.outliers`, hiddenSize);
  };

  const bounds = (mlp: string): Value[] => {
    const key = `${mlp}.down_proj.outliers.bound`;
    const limit = weights.get(key)!.toFloats()[0]!;
    return [table(`${key}.low`, Tensor.of('f32', [], [-limit])), table(`${key}.high`, Tensor.of('f32', [], [limit]))];
  };
  /** What the layers behind the last anchor have added, and what to. */
  let base: Value | undefined;
  let updates: Value | undefined;
  const addToStream = (role: string, update: Value, from: string, outliers?: Value): Value => {
    const add = (name: string, terms: Value[]): Value =>
      emit('Add', `${role}_${name}`, terms, activation(hiddenSize), from);
    if (base) {
      if (outliers) base = add('base', [base, outliers]);
      updates = updates ? add('updates', [updates, update]) : update;
      return add('residual', [base, updates]);
    }
    return outliers ? add('residual', [add('inner', [stream, update]), outliers]) : add('residual', [stream, update]);
  };

  let stream = emit(
    'Gather',
    'embedding',
    [constant('model.embed_tokens.weight'), ids],
    activation(hiddenSize),
    'model.embed_tokens',
    {
      axis: intAttribute(0),
    },
  );
  for (let layer = 0; layer < config.layers; layer++) {
    const at = `layers.${layer}`;
    const module_ = `model.layers.${layer}`;
    const attention = `${module_}.self_attn`;
    const cacheType = (length: string): ReturnType<typeof tensorType> =>
      tensorType('f32', [1, keyValueHeads, length, headDim]);
    const split = (role: string, input: Value, count: number): Value => {
      const shape = table(`shape.heads_${count}`, Tensor.of('i64', [4], [1, -1, count, headDim]));
      const rows = emit(
        'Reshape',
        `${role}.heads`,
        [input, shape],
        tensorType('f32', [1, 'tokens', count, headDim]),
        attention,
      );
      return emit('Transpose', `${role}.by_head`, [rows], tensorType('f32', [1, count, 'tokens', headDim]), attention, {
        perm: intsAttribute([0, 2, 1, 3]),
      });
    };
    const rotate = (role: string, input: Value, count: number): Value =>
      emit(
        'RotaryEmbedding',
        role,
        [input, cos, sin, positions],
        tensorType('f32', [1, count, 'tokens', headDim]),
        attention,
      );

    const normed = norm(`${at}.attn_norm`, stream, `${module_}.input_layernorm`);
    const query = rotate(
      `${at}.q_rope`,
      split(`${at}.q_proj`, linear(`${at}.q_proj`, normed, `${attention}.q_proj`, heads * headDim), heads),
      heads,
    );
    const key = rotate(
      `${at}.k_rope`,
      split(
        `${at}.k_proj`,
        linear(`${at}.k_proj`, normed, `${attention}.k_proj`, keyValueHeads * headDim),
        keyValueHeads,
      ),
      keyValueHeads,
    );
    const value = split(
      `${at}.v_proj`,
      linear(`${at}.v_proj`, normed, `${attention}.v_proj`, keyValueHeads * headDim),
      keyValueHeads,
    );
    const pastKey = graph.addInput(`past_key_${layer}`, cacheType('past'));
    const pastValue = graph.addInput(`past_value_${layer}`, cacheType('past'));
    const context_ = graph.addValue(`${at}.context`, tensorType('f32', [1, heads, 'tokens', headDim]));
    const presentKey = graph.addValue(`present_key_${layer}`, cacheType('past + tokens'));
    const presentValue = graph.addValue(`present_value_${layer}`, cacheType('past + tokens'));
    graph.addNode({
      op: 'Attention',
      name: `${at}.attention`,
      inputs: [query, key, value, mask, pastKey, pastValue],
      outputs: [context_, presentKey, presentValue],
      attributes: { scale: floatAttribute(1) },
      from: [attention],
    });
    for (const [kind, input, output] of [
      ['key', pastKey, presentKey],
      ['value', pastValue, presentValue],
    ] as const) {
      const state = `${kind}_${layer}`;
      module.states.set(state, {
        name: state,
        dtype: 'f32',
        kind: 'append',
        axis: 2,
        capacity: [1, keyValueHeads, 'past + tokens', headDim],
        initial: 0,
      });
      graph.states.set(state, { input, output });
    }
    const rows = emit(
      'Transpose',
      `${at}.context.by_token`,
      [context_],
      tensorType('f32', [1, 'tokens', heads, headDim]),
      attention,
      {
        perm: intsAttribute([0, 2, 1, 3]),
      },
    );
    const merged = emit(
      'Reshape',
      `${at}.context.merged`,
      [rows, table('shape.merged', Tensor.of('i64', [3], [1, -1, heads * headDim]))],
      activation(heads * headDim),
      attention,
    );
    const attended = linear(`${at}.o_proj`, merged, `${attention}.o_proj`, hiddenSize);
    stream = addToStream(`${at}.attn`, attended, module_);

    const mlp = `${module_}.mlp`;
    const wide = activation(config.intermediateSize);
    const mlpNormed = norm(`${at}.mlp_norm`, stream, `${module_}.post_attention_layernorm`);
    const gate = linear(`${at}.gate_proj`, mlpNormed, `${mlp}.gate_proj`, config.intermediateSize);
    const up = linear(`${at}.up_proj`, mlpNormed, `${mlp}.up_proj`, config.intermediateSize);
    const sigmoid = emit('Sigmoid', `${at}.sigmoid`, [gate], wide, mlp);
    const silu = emit('Mul', `${at}.silu`, [gate, sigmoid], wide, mlp);
    const outliers = weights.has(`${mlp}.down_proj.outliers.weight`) ? beyondBound(at, mlp, silu, up) : undefined;
    const product = outliers
      ? emit(
          'Clip',
          `${at}.mlp_product`,
          [emit('Mul', `${at}.mlp_product.whole`, [silu, up], wide, mlp), ...bounds(mlp)],
          wide,
          mlp,
        )
      : emit('Mul', `${at}.mlp_product`, [silu, up], wide, mlp);
    const down = linear(`${at}.down_proj`, product, `${mlp}.down_proj`, hiddenSize);
    stream = addToStream(`${at}.mlp`, down, module_, outliers);
    if (config.anchors?.includes(layer)) [base, updates] = [stream, undefined];
  }
  const final = norm('final_norm', stream, 'model.norm');
  graph.outputs.push(linear('logits', final, 'lm_head', vocabSize));
  for (const port of graph.states.values()) graph.outputs.push(port.output);
  return module;
}

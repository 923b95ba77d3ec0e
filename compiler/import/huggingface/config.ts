import { z } from 'zod';
import { NpucError } from '../../errors.ts';

const positive = z.number().int().positive();

const ropeScaling = z
  .object({
    rope_type: z.string().optional(),
    type: z.string().optional(),
    factor: z.number().positive().optional(),
    low_freq_factor: z.number().positive().optional(),
    high_freq_factor: z.number().positive().optional(),
    original_max_position_embeddings: positive.optional(),
    rope_theta: z.number().positive().optional(),
  })
  .nullish();

/** The keys of a Hugging Face `config.json` that a Llama-family decoder needs; other keys are left alone. */
const llamaConfig = z.object({
  architectures: z.array(z.string()).optional(),
  model_type: z.string().optional(),
  hidden_size: positive,
  intermediate_size: positive,
  num_hidden_layers: positive,
  num_attention_heads: positive,
  num_key_value_heads: positive.optional(),
  head_dim: positive.nullish(),
  vocab_size: positive,
  max_position_embeddings: positive.default(2048),
  rms_norm_eps: z.number().positive().default(1e-6),
  hidden_act: z.string().default('silu'),
  rope_theta: z.number().positive().optional(),
  rope_scaling: ropeScaling,
  rope_parameters: ropeScaling,
  tie_word_embeddings: z.boolean().default(false),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
  quantization_config: z.looseObject({ quant_method: z.unknown() }).nullish(),
});

/** How rotary frequencies are made from the config (transformers' modeling_rope_utils names). */
export interface RopeConfig {
  readonly type: 'default' | 'linear' | 'dynamic' | 'llama3';
  readonly theta: number;
  readonly factor: number;
  readonly lowFrequencyFactor: number;
  readonly highFrequencyFactor: number;
  /** The context that the checkpoint was trained on before scaling. */
  readonly originalPositions: number;
}

/** The shape of a Llama-family decoder, with every default filled in. */
export interface DecoderConfig {
  readonly architecture: string;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly layers: number;
  readonly heads: number;
  readonly keyValueHeads: number;
  readonly headDim: number;
  readonly vocabSize: number;
  readonly maxPositions: number;
  readonly epsilon: number;
  readonly rope: RopeConfig;
  readonly tiedEmbeddings: boolean;
  /** Biases that must be there; others are taken where they are. */
  readonly attentionBias?: boolean;
  readonly mlpBias?: boolean;
  /**
   * Layers behind which the residual stream is kept as a sum of what it was there and of what later layers added. No checkpoint
   * says so: calibration chooses it (calibration/anchor-stream.ts).
   */
  readonly anchors?: readonly number[];
}

/** Architectures that build a decoder. */
export const ARCHITECTURES: readonly string[] = ['LlamaForCausalLM'];

/**
 * Checks a `config.json` and fills in the defaults that transformers would.
 * @throws IM401 unknown architecture, IM402 a key that is missing or out of range
 */
export function parseDecoderConfig(raw: unknown, where: string): DecoderConfig {
  const named = raw as { architectures?: unknown; model_type?: unknown } | null;
  const declared = Array.isArray(named?.architectures) ? String(named.architectures[0]) : undefined;
  const architecture =
    declared ?? (named?.model_type === 'llama' ? 'LlamaForCausalLM' : String(named?.model_type ?? 'nothing'));
  if (!ARCHITECTURES.includes(architecture)) {
    throw new NpucError('IM401', {
      message: `the architecture ${architecture} is not supported`,
      where,
      hint: `supported: ${ARCHITECTURES.join(', ')}; or export the model to ONNX and compile that`,
    });
  }
  const parsed = llamaConfig.safeParse(raw);
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!;
    throw new NpucError('IM402', { message: `config.json: ${issue.path.join('.')}: ${issue.message}`, where });
  }
  const config = parsed.data;
  const refuse = (message: string): never => {
    throw new NpucError('IM402', { message: `config.json: ${message}`, where });
  };
  if (config.quantization_config) {
    const method = String(config.quantization_config.quant_method ?? 'quantized');
    refuse(`the weights are quantized already (${method}): npuc starts from floats`);
  }
  if (config.hidden_act !== 'silu') refuse(`hidden_act ${config.hidden_act} is not supported (silu is)`);
  const heads = config.num_attention_heads;
  const keyValueHeads = config.num_key_value_heads ?? heads;
  if (heads % keyValueHeads !== 0) refuse(`${heads} attention heads cannot share ${keyValueHeads} key/value heads`);
  const headDim = config.head_dim ?? config.hidden_size / heads;
  if (!Number.isInteger(headDim) || headDim % 2 !== 0) refuse(`the head size ${headDim} is not an even number`);
  const scaling = config.rope_parameters ?? config.rope_scaling;
  const type = scaling?.rope_type ?? scaling?.type ?? 'default';
  if (type !== 'default' && type !== 'linear' && type !== 'dynamic' && type !== 'llama3') {
    return refuse(`rope_scaling type ${type} is not supported (default, linear, dynamic, llama3 are)`);
  }
  if (type !== 'default' && scaling?.factor === undefined) refuse(`rope_scaling type ${type} needs a factor`);
  return {
    architecture,
    hiddenSize: config.hidden_size,
    intermediateSize: config.intermediate_size,
    layers: config.num_hidden_layers,
    heads,
    keyValueHeads,
    headDim,
    vocabSize: config.vocab_size,
    maxPositions: config.max_position_embeddings,
    epsilon: config.rms_norm_eps,
    rope: {
      type,
      theta: scaling?.rope_theta ?? config.rope_theta ?? 10000,
      factor: scaling?.factor ?? 1,
      lowFrequencyFactor: scaling?.low_freq_factor ?? 1,
      highFrequencyFactor: scaling?.high_freq_factor ?? 4,
      originalPositions: scaling?.original_max_position_embeddings ?? config.max_position_embeddings,
    },
    tiedEmbeddings: config.tie_word_embeddings,
    attentionBias: config.attention_bias,
    mlpBias: config.mlp_bias,
  };
}

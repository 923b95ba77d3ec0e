import {
  buildPlainDecoder,
  calibrationShape,
  collectDecoderStatistics,
  cutWindows,
} from '../../calibration/decoder-statistics.ts';
import { type QuantizedDecoder, quantizeDecoder } from '../../calibration/quantize-decoder.ts';
import { makeRecipe, type RecipeOptions } from '../../calibration/recipe.ts';
import { defaultText, readTokens } from '../../calibration/texts.ts';
import { openCheckpoint } from '../../compiler/import/checkpoint.ts';
import { type DecoderModel, readDecoderModel } from '../../compiler/import/decoder-model.ts';
import type { DecoderConfig } from '../../compiler/import/huggingface/config.ts';
import type { DecoderWeights } from '../../compiler/import/huggingface/llama.ts';
import { Tensor, transposeTensor } from '../../compiler/ir/tensor.ts';
import { seededUniform } from '../../compiler/ir/text-data.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { createProgress } from '../../compiler/progress.ts';
import { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { openModule } from '../../compiler/runtime/engine.ts';
import { plainContract } from '../../passes/io-contract.ts';
import { makeProtocol } from '../../passes/protocol.ts';
import { formatOf } from '../../targets/index.ts';
import { findSoc } from '../../targets/socs.ts';
import type { EmitContext, Profile, TargetName } from '../../targets/target.ts';
import { demo } from '../cli/run-npuc.ts';
import { hasMaterial, materialPath } from '../material.ts';

/** A calibrated checkpoint, ready to be quantized in any way. */
export interface SmallDecoder {
  readonly config: DecoderConfig;
  readonly weights: DecoderWeights;
  /** Ids that stand before every text. */
  readonly prefix: readonly number[];
  /** Held-out token ids. */
  readonly text: readonly number[];
  /** Absent for a model made of random weights. */
  readonly model?: DecoderModel;
  quantize(scheme: string, target: TargetName, options?: RecipeOptions, profile?: Profile): Promise<QuantizedDecoder>;
  /** The float model on ONNX Runtime. */
  openFloat(tokens: number, cache: number): Promise<DecoderSession>;
}

/** The real small checkpoints: the demo model, and stories260k where the material is. */
export const CHECKPOINTS: readonly { readonly name: string; readonly source: () => string }[] = [
  { name: 'the demo model', source: () => demo },
  ...(hasMaterial ? [{ name: 'stories260k', source: () => materialPath('stories260k', 'hf') }] : []),
];

const WINDOWS = 4;
const HELD_OUT = 512;

export async function openSmallDecoder(source: string): Promise<SmallDecoder> {
  const model = readDecoderModel(await openCheckpoint(source));
  const tokenizer = model.checkpoint.tokenizer!;
  const shape = calibrationShape(model.config);
  const [first] = tokenizer.encode('', { addSpecialTokens: true });
  const prefix = first !== undefined && first === tokenizer.bosId ? [first] : [];
  const { ids } = readTokens(defaultText('calibration'), tokenizer, WINDOWS * shape.window, shape.window);
  const text = readTokens(defaultText('evaluation'), tokenizer, HELD_OUT, HELD_OUT).ids;
  const small = await calibrate(model.config, model.weights, cutWindows(ids, shape, WINDOWS, prefix), prefix, text);
  return { ...small, model };
}

/**
 * A two-layer Llama of random weights with biases on every attention projection, as Qwen2 has them: those of the keys are
 * large.
 */
export async function makeBiasedDecoder(): Promise<SmallDecoder> {
  const config: DecoderConfig = {
    architecture: 'LlamaForCausalLM',
    hiddenSize: 32,
    intermediateSize: 48,
    layers: 2,
    heads: 4,
    keyValueHeads: 2,
    headDim: 8,
    vocabSize: 64,
    maxPositions: 64,
    epsilon: 1e-6,
    rope: {
      type: 'default',
      theta: 10000,
      factor: 1,
      lowFrequencyFactor: 1,
      highFrequencyFactor: 4,
      originalPositions: 64,
    },
    tiedEmbeddings: false,
    attentionBias: true,
    mlpBias: false,
  };
  let seed = 1;
  const random = (shape: readonly number[], limit: number, offset = 0): Tensor => {
    const next = seededUniform(seed++);
    const size = shape.reduce((a, b) => a * b, 1);
    return Tensor.of(
      'f32',
      shape,
      Float32Array.from({ length: size }, () => offset + (next() * 2 - 1) * limit),
    );
  };
  const weights = new Map<string, Tensor>();
  weights.set('model.embed_tokens.weight', random([64, 32], 1));
  for (let layer = 0; layer < config.layers; layer++) {
    const at = `model.layers.${layer}`;
    const linear = (name: string, outputs: number, inputs: number, bias?: number): void => {
      weights.set(`${at}.${name}.weight`, transposeTensor(random([outputs, inputs], 1.5 / Math.sqrt(inputs))));
      if (bias !== undefined) weights.set(`${at}.${name}.bias`, random([outputs], bias));
    };
    weights.set(`${at}.input_layernorm.weight`, random([32], 0.3, 1));
    weights.set(`${at}.post_attention_layernorm.weight`, random([32], 0.3, 1));
    linear('self_attn.q_proj', 32, 32, 0.5);
    linear('self_attn.k_proj', 16, 32, 12);
    linear('self_attn.v_proj', 16, 32, 0.3);
    linear('self_attn.o_proj', 32, 32);
    linear('mlp.gate_proj', 48, 32);
    linear('mlp.up_proj', 48, 32);
    linear('mlp.down_proj', 32, 48);
  }
  weights.set('model.norm.weight', random([32], 0.3, 1));
  weights.set('lm_head.weight', transposeTensor(random([64, 32], 0.4)));
  const next = seededUniform(99);
  const ids = (count: number): number[] => Array.from({ length: count }, () => Math.floor(next() * 64));
  return calibrate(config, weights, [ids(64), ids(64)], [], ids(48));
}

async function calibrate(
  config: DecoderConfig,
  weights: DecoderWeights,
  windows: readonly (readonly number[])[],
  prefix: readonly number[],
  text: readonly number[],
): Promise<SmallDecoder> {
  const statistics = await collectDecoderStatistics(config, weights, windows);
  return {
    config,
    weights,
    prefix,
    text,
    quantize: (scheme, target, options, profile) =>
      quantizeDecoder({
        config,
        weights,
        statistics,
        windows,
        recipe: makeRecipe(scheme, options),
        ...formatOf(target, 'in-graph', profile),
        kernels: wasmKernels,
      }),
    openFloat: async (tokens, cache) => {
      const sizes = [tokens, 1];
      const modules = sizes.map((size) => buildPlainDecoder(config, weights, size, cache));
      const runners = await Promise.all(modules.map((module) => openModule(module)));
      return new DecoderSession({
        protocol: makeProtocol(config, plainContract, cache),
        graphs: new Map(sizes.map((size, i) => [size, runners[i]!])),
      });
    },
  };
}

/** What a target needs to emit a decoder into a folder. */
export function emitContext(out: string, tokens: number, cache: number, io: EmitContext['io'] = 'float'): EmitContext {
  return {
    out,
    soc: findSoc('SM8750'),
    shapes: { tokens: [tokens], caches: [cache] },
    threads: 1,
    io,
    progress: createProgress('quiet'),
  };
}

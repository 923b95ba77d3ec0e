import { describe, expect, test } from 'vitest';
import { type DecoderConfig, parseDecoderConfig } from '../../../compiler/import/huggingface/config.ts';
import { collectWeights } from '../../../compiler/import/huggingface/llama.ts';
import type { DType } from '../../../compiler/ir/dtype.ts';
import { Tensor } from '../../../compiler/ir/tensor.ts';
import { randomCheckpoint } from '../../reference-decoder.ts';

const raw = {
  architectures: ['LlamaForCausalLM'],
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  vocab_size: 12,
};
const parse = (more: object = {}): DecoderConfig => parseDecoderConfig({ ...raw, ...more }, 'config.json');
const code = (name: string) => expect.objectContaining({ code: name });

describe('what a checkpoint must hold', () => {
  test('a head, unless the config ties it to the embedding', () => {
    const tensors = randomCheckpoint(parse());
    tensors.delete('lm_head.weight');
    expect(() => collectWeights(parse(), tensors, 'model')).toThrowError(code('IM403'));
    expect(() => collectWeights(parse({ tie_word_embeddings: true }), tensors, 'model')).not.toThrow();
  });
  test.each([
    ['attention_bias', 'model.layers.0.self_attn.k_proj.bias'],
    ['mlp_bias', 'model.layers.0.mlp.down_proj.bias'],
  ])('the biases that %s announces', (key, name) => {
    const config = parse({ [key]: true });
    const tensors = randomCheckpoint(config, { attentionBias: true, mlpBias: true });
    expect(collectWeights(config, tensors, 'model').has(name)).toBe(true);
    tensors.delete(name);
    expect(() => collectWeights(config, tensors, 'model')).toThrowError(code('IM403'));
  });
  test.each<DType>(['f8e4m3fn', 'f8e5m2', 'i8', 'u8', 'i32', 'bool'])(
    'weights that are %s are a quantized checkpoint, not floats',
    (dtype) => {
      const tensors = randomCheckpoint(parse());
      const name = 'model.layers.0.mlp.up_proj.weight';
      const { shape, size } = tensors.get(name)!;
      tensors.set(name, Tensor.of(dtype, shape, new Array(size).fill(1)));
      expect(() => collectWeights(parse(), tensors, 'model')).toThrowError(code('IM404'));
    },
  );
  test('a quantized checkpoint is refused by its config', () => {
    expect(() => parse({ quantization_config: { quant_method: 'gptq', bits: 4 } })).toThrowError(
      expect.objectContaining({ code: 'IM402', message: expect.stringContaining('gptq') }),
    );
    expect(parse({ quantization_config: null }).vocabSize).toBe(12);
  });
});

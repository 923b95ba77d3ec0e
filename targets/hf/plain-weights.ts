import type { QuantizedDecoder } from '../../calibration/quantize-decoder.ts';
import { dequantizeLazily, quantizeLazily } from '../../compiler/export/quantize-constant.ts';
import type { StreamedTensor } from '../../compiler/export/safetensors.ts';
import { floatTensor } from '../../compiler/import/huggingface/llama.ts';
import type { Value } from '../../compiler/ir/graph.ts';
import { type Tensor, transposeTensor } from '../../compiler/ir/tensor.ts';

/** Embedding rows that are written at a time. */
const ROWS_AT_ONCE = 4096;

const EMBEDDING = 'model.embed_tokens.weight';

/**
 * The weights of a plain float Llama that computes what a quantized decoder computes but for its activations: every constant
 * as the artifact has it, integers times scale. f32 under Hugging Face's names, linear weights [outputs, inputs]; each is
 * computed when it is written.
 *
 * Scale that moved between layers, and rotations of the residual stream, stay where they are: such a model is a plain Llama
 * too, and taking them back would lift the weights off their grid. The embedding and the head are two tables then. Only the
 * attention scale, which q_proj carries inside, is taken out: exact where the head size is a power of 4, to the last bit of
 * f32 otherwise.
 * @param rows the embedding rows of an artifact whose graphs have none: a table beside them
 */
export function plainWeights(
  decoder: QuantizedDecoder,
  rows?: (ids: readonly number[]) => Float32Array,
): StreamedTensor[] {
  const graph = decoder.stamp({ name: 'weights', tokens: 1, cache: 2, logits: 'all' }).graph();
  const scale = Math.sqrt(decoder.config.headDim);
  return [...decoder.migration.weights].map(([name, weight]): StreamedTensor => {
    const value = graph.find(name);
    if (name === EMBEDDING && rows && !value) return streamRows(name, weight.shape, rows);
    const real = value?.data ? realWeight(value) : weight;
    const stored = isLinear(name) ? transposeTensor(real) : real;
    const factor = /\.q_proj\.(weight|bias)$/.test(name) ? scale : 1;
    return { name, dtype: 'f32', shape: stored.shape, pieces: () => [bytesOf(stored, factor)] };
  });
}

/** What a constant of an encoded graph stands for: its integers times their scale, or its floats. */
function realWeight({ name, data, encoding, payload }: Value): Tensor {
  if (!encoding) return floatTensor(data!);
  return dequantizeLazily(payload ?? quantizeLazily(data!, encoding, name), encoding);
}

function isLinear(name: string): boolean {
  return /(_proj|lm_head)\.weight$/.test(name);
}

function bytesOf(tensor: Tensor, factor: number): Uint8Array {
  if (factor === 1) return tensor.read();
  const floats = tensor.toFloats().map((value) => value * factor);
  return new Uint8Array(floats.buffer, floats.byteOffset, floats.byteLength);
}

function streamRows(
  name: string,
  shape: readonly number[],
  rows: (ids: readonly number[]) => Float32Array,
): StreamedTensor {
  const count = shape[0]!;
  return {
    name,
    dtype: 'f32',
    shape,
    *pieces() {
      for (let start = 0; start < count; start += ROWS_AT_ONCE) {
        const ids = Array.from({ length: Math.min(ROWS_AT_ONCE, count - start) }, (_, i) => start + i);
        const floats = rows(ids);
        yield new Uint8Array(floats.buffer, floats.byteOffset, floats.byteLength);
      }
    },
  };
}

import type { QuantizedDecoder } from '../../calibration/quantize-decoder.ts';
import { dequantizeLazily, quantizeLazily } from '../../compiler/export/quantize-constant.ts';
import type { StreamedTensor } from '../../compiler/export/safetensors.ts';
import { floatTensor } from '../../compiler/import/huggingface/llama.ts';
import type { Value } from '../../compiler/ir/graph.ts';
import { Tensor, transposeTensor } from '../../compiler/ir/tensor.ts';

/** Embedding rows that are written at a time. */
const ROWS_AT_ONCE = 4096;

const EMBEDDING = 'model.embed_tokens.weight';

/** Ends the name of a matrix of the last input channels of another one. */
const APART = '.outliers.weight';

/**
 * The weights of a plain float Llama that computes what a quantized decoder computes but for its activations: every constant
 * as the artifact has it, integers times scale. f32 under Hugging Face's names, linear weights [outputs, inputs]; each is
 * computed when it is written.
 *
 * Scale that moved between layers, rotations of the residual stream and the order of channels stay as they are: such a model
 * is a plain Llama too, and taking them back would lift the weights off their grid. The embedding and the head are two tables
 * then. Only the attention scale, which q_proj carries inside, is taken out: exact where the head size is a power of 4, to the
 * last bit of f32 otherwise.
 * @param rows the embedding rows of an artifact whose graphs have none: a table beside them
 */
export function plainWeights(
  decoder: QuantizedDecoder,
  rows?: (ids: readonly number[]) => Float32Array,
): StreamedTensor[] {
  const graph = decoder.stamp({ name: 'weights', tokens: 1, cache: 2, logits: 'all' }).graph();
  const scale = Math.sqrt(decoder.config.headDim);
  const { weights } = decoder.migration;
  const storedOf = (name: string): Tensor => {
    const value = graph.find(name);
    const real = value?.data ? realWeight(value) : weights.get(name)!;
    return isLinear(name) ? transposeTensor(real) : real;
  };
  return [...weights].flatMap(([name, weight]): StreamedTensor[] => {
    if (name.endsWith(APART)) return [];
    if (name === EMBEDDING && rows && !graph.find(name)) return [streamRows(name, weight.shape, rows)];
    const apart = name.replace(/\.weight$/, APART);
    const stored = weights.has(apart) ? joinColumns(storedOf(name), storedOf(apart)) : storedOf(name);
    const factor = /\.q_proj\.(weight|bias)$/.test(name) ? scale : 1;
    return [{ name, dtype: 'f32', shape: stored.shape, pieces: () => [bytesOf(stored, factor)] }];
  });
}

/** What a constant of an encoded graph stands for: its integers times their scale, or its floats. */
function realWeight({ name, data, encoding, payload }: Value): Tensor {
  if (!encoding) return floatTensor(data!);
  return dequantizeLazily(payload ?? quantizeLazily(data!, encoding, name), encoding);
}

function isLinear(name: string): boolean {
  return /(_proj|_proj\.outliers|lm_head)\.weight$/.test(name);
}

/** The matrix [N, K + L] of [N, K] and [N, L]. */
function joinColumns(left: Tensor, right: Tensor): Tensor {
  const [rows, a] = left.shape as [number, number];
  const b = right.shape[1]!;
  const compute = (): Uint8Array => {
    const [first, second] = [left.toFloats(), right.toFloats()];
    const joined = new Float32Array(rows * (a + b));
    for (let row = 0; row < rows; row++) {
      joined.set(first.subarray(row * a, (row + 1) * a), row * (a + b));
      joined.set(second.subarray(row * b, (row + 1) * b), row * (a + b) + a);
    }
    return new Uint8Array(joined.buffer);
  };
  return new Tensor('f32', [rows, a + b], { kind: 'derived', compute });
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

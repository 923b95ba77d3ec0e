import type { QuantizedDecoder } from '../../calibration/quantize-decoder.ts';
import { dequantizeLazily, quantizeLazily } from '../../compiler/export/quantize-constant.ts';
import type { StreamedTensor } from '../../compiler/export/safetensors.ts';
import { floatTensor } from '../../compiler/import/huggingface/llama.ts';
import type { Value } from '../../compiler/ir/graph.ts';
import { Tensor, transposeTensor } from '../../compiler/ir/tensor.ts';

/** Embedding rows that are written at a time. */
const ROWS_AT_ONCE = 4096;

const EMBEDDING = 'model.embed_tokens.weight';

/** What a decoder has of a matrix's last input channels apart from it (calibration/separate-outliers.ts). */
const APART = /\.outliers\.\w+$/;

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
    if (APART.test(name)) return [];
    if (name === EMBEDDING && rows && !graph.find(name)) return [streamRows(name, weight.shape, rows)];
    const apart = name.replace(/\.weight$/, '.outliers.weight');
    const joined = apart !== name && weights.has(apart);
    const stored = joined
      ? joinColumns(storedOf(name), storedOf(apart), decoder.config.intermediateSize)
      : storedOf(name);
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

/**
 * One matrix [N, columns] of a matrix and one of its last columns: behind those that it has, or in their place where it has all.
 * Outliers go through the columns that were taken apart, so those are the ones to keep.
 */
function joinColumns(left: Tensor, last: Tensor, columns: number): Tensor {
  const [rows, width] = left.shape as [number, number];
  const count = last.shape[1]!;
  const kept = columns - count;
  const compute = (): Uint8Array => {
    const [first, second] = [left.toFloats(), last.toFloats()];
    const joined = new Float32Array(rows * columns);
    for (let row = 0; row < rows; row++) {
      joined.set(first.subarray(row * width, row * width + kept), row * columns);
      joined.set(second.subarray(row * count, (row + 1) * count), row * columns + kept);
    }
    return new Uint8Array(joined.buffer);
  };
  return new Tensor('f32', [rows, columns], { kind: 'derived', compute });
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

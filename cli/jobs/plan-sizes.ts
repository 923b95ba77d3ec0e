import type { Recipe } from '../../calibration/recipe.ts';
import type { DecoderConfig } from '../../compiler/import/huggingface/config.ts';

/** Exact bytes of what a compile will make, from the configuration alone. */
export interface SizePlan {
  readonly parameters: number;
  /** Linear layers, head and embedding as they will be written, scales included. */
  readonly weightBytes: number;
  readonly embeddingBytes: number;
  readonly headBytes: number;
  readonly cacheBytes: number;
  /** Graphs that will be made, `tokens x cache`. */
  readonly graphs: readonly string[];
}

/** Sizes of a decoder under a recipe; the tables of an embedding count once, the head too when it is tied. */
export function planSizes(config: DecoderConfig, recipe: Recipe, tokens: readonly number[], cache: number): SizePlan {
  const { hiddenSize: d, intermediateSize: f, headDim, heads, keyValueHeads, vocabSize, layers } = config;
  const linears = [
    [d, heads * headDim],
    [d, keyValueHeads * headDim],
    [d, keyValueHeads * headDim],
    [heads * headDim, d],
    [d, f],
    [d, f],
    [f, d],
  ] as const;
  const float = recipe.scheme === 'fp16';
  const bytesOf = (inputs: number, outputs: number, bits: number, block: number): number => {
    if (float) return inputs * outputs * 2;
    const blocked = block > 0 && inputs % block === 0;
    const width = block > 0 && !blocked ? 8 : bits;
    return Math.ceil((inputs * outputs * width) / 8) + outputs * 4 + (blocked ? (inputs / block) * outputs : 0);
  };
  const layerBytes = linears.reduce(
    (sum, [inputs, outputs]) => sum + bytesOf(inputs, outputs, recipe.weight.bits, recipe.weight.block),
    0,
  );
  const headBytes = bytesOf(d, vocabSize, recipe.head.bits, recipe.head.block);
  const embeddingBytes = float ? vocabSize * d * 2 : vocabSize * d + vocabSize * 4;
  const layerParameters = linears.reduce((sum, [inputs, outputs]) => sum + inputs * outputs, 0) + 2 * d;
  const cacheWidth = float ? 2 : recipe.cache / 8;
  return {
    parameters: layers * layerParameters + d + vocabSize * d * (config.tiedEmbeddings ? 1 : 2),
    weightBytes: layers * layerBytes + headBytes + embeddingBytes,
    embeddingBytes,
    headBytes,
    cacheBytes: 2 * layers * keyValueHeads * headDim * cache * cacheWidth,
    graphs: [...new Set([...tokens, 1])].sort((a, b) => b - a).map((size) => `${size}x${cache}`),
  };
}

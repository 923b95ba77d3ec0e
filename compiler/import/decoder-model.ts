import { NpucError } from '../errors.ts';
import { byteLengthOf } from '../ir/dtype.ts';
import type { Module } from '../ir/graph.ts';
import { Tensor } from '../ir/tensor.ts';
import type { Tokenizer } from '../runtime/tokenizer.ts';
import type { Checkpoint } from './checkpoint.ts';
import type { DecoderConfig } from './huggingface/config.ts';
import { parseDecoderConfig } from './huggingface/config.ts';
import { buildLlama, collectWeights, type DecoderWeights } from './huggingface/llama.ts';
import { scaleTaken, type TakenWeight } from './quantized/stored-weight.ts';
import { takeOver } from './quantized/take-over.ts';

/** A checkpoint ready to be built into graphs of any shape. */
export interface DecoderModel {
  readonly checkpoint: Checkpoint;
  readonly config: DecoderConfig;
  readonly weights: DecoderWeights;
  /** Rows of the embedding table, f32 [ids.length, hiddenSize]. */
  readonly embed: (ids: readonly number[]) => Float32Array;
  /** Integers of a checkpoint that is quantized already, by the names of the weights. */
  readonly taken: ReadonlyMap<string, TakenWeight>;
}

/** @throws IM401 to IM405 */
export function readDecoderModel(checkpoint: Checkpoint): DecoderModel {
  const opened = takeOver(checkpoint.config, checkpoint.tensors, checkpoint.name);
  const config = parseDecoderConfig(opened.config, checkpoint.name);
  const weights = collectWeights(config, opened.tensors, checkpoint.name);
  const embed = lookUpRows(opened.tensors.get('model.embed_tokens.weight')!);
  const taken = new Map(
    [...opened.taken].map(([name, weight]) => {
      const scaled = name.endsWith('.q_proj.weight') ? scaleTaken(weight, 1 / Math.sqrt(config.headDim)) : weight;
      return [name, scaled] as const;
    }),
  );
  return { checkpoint, config, weights, embed, taken };
}

/** The tokenizer of a checkpoint, for what works on text. @throws IM110 when it has none */
export function requireTokenizer(checkpoint: Checkpoint): Tokenizer {
  if (checkpoint.tokenizer) return checkpoint.tokenizer;
  throw new NpucError('IM110', {
    message: 'the checkpoint has no tokenizer.json',
    where: checkpoint.where,
    hint: 'text cannot be read or written without it',
  });
}

/** Reads rows of a table in a file one by one; a table that is computed is computed once, when the first row is asked for. */
export function lookUpRows(table: Tensor): (ids: readonly number[]) => Float32Array {
  const width = table.shape[1]!;
  const bytes = byteLengthOf(table.dtype, width);
  let all: Float32Array | undefined;
  const rowOf = (id: number): Float32Array => {
    if (table.storage.kind === 'file') {
      const row = { kind: 'memory', bytes: table.readRange(id * bytes, bytes) } as const;
      return new Tensor(table.dtype, [width], row).toFloats();
    }
    all ??= table.toFloats();
    return all.subarray(id * width, (id + 1) * width);
  };
  return (ids) => {
    const rows = new Float32Array(ids.length * width);
    for (const [i, id] of ids.entries()) rows.set(rowOf(id), i * width);
    return rows;
  };
}

/**
 * The semantic decoder for contexts up to `cache`.
 * @throws IM411 when the context is longer than the checkpoint's positions
 */
export function buildDecoder(
  config: DecoderConfig,
  weights: DecoderWeights,
  cache: number,
  allowExtrapolation = false,
): Module {
  if (cache > config.maxPositions && !allowExtrapolation) {
    throw new NpucError('IM411', {
      message: `--cache ${cache} is above max_position_embeddings ${config.maxPositions}`,
      hint: `at most ${config.maxPositions}, or --allow-extrapolation if the checkpoint can do more`,
    });
  }
  return buildLlama(config, weights, cache);
}

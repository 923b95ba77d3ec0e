import { describe, expect, test } from 'vitest';
import { buildDecoder } from '../../compiler/import/decoder-model.ts';
import { type DecoderConfig, parseDecoderConfig } from '../../compiler/import/huggingface/config.ts';
import { collectWeights } from '../../compiler/import/huggingface/llama.ts';
import type { Tensor } from '../../compiler/ir/tensor.ts';
import { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { openModule } from '../../compiler/runtime/engine.ts';
import type { Runner } from '../../compiler/runtime/runner.ts';
import { applyIoContract } from '../../passes/apply-io-contract.ts';
import {
  genieContract,
  type IoContract,
  litertLmContract,
  litertNpuContract,
  mediatekContract,
  plainContract,
} from '../../passes/io-contract.ts';
import { makeProtocol } from '../../passes/protocol.ts';
import { randomCheckpoint, referenceLogits } from '../reference-decoder.ts';

const base = {
  architectures: ['LlamaForCausalLM'],
  hidden_size: 24,
  intermediate_size: 40,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  vocab_size: 37,
  max_position_embeddings: 64,
};

const FORMS = [
  {
    name: 'grouped queries, biases, heads wider than the stream, untied head',
    raw: { ...base, num_key_value_heads: 2, head_dim: 10, attention_bias: true, mlp_bias: true },
    biases: true,
  },
  { name: 'one head each, tied head', raw: { ...base, tie_word_embeddings: true }, biases: false },
  { name: 'one key head for all', raw: { ...base, num_key_value_heads: 1, head_dim: 4 }, biases: false },
];
const CONTRACTS = [plainContract, genieContract, litertNpuContract, litertLmContract, mediatekContract];
const CACHE = 24;
const ids = [3, 17, 36, 0, 5, 5, 29, 11, 2, 8, 31];

async function openSession(
  config: DecoderConfig,
  tensors: ReadonlyMap<string, Tensor>,
  contract: IoContract,
  sizes: readonly number[],
  cache: number,
): Promise<DecoderSession> {
  const weights = collectWeights(config, tensors, 'random');
  const graphs = new Map<number, Runner>();
  for (const tokens of sizes) {
    const seen = contract.update === 'shift' ? cache + tokens : cache;
    const module = buildDecoder(config, weights, seen);
    applyIoContract(module, contract, { tokens, cache: seen });
    graphs.set(tokens, await openModule(module));
  }
  const table = tensors.get('model.embed_tokens.weight')!.toFloats();
  const embedding = (rows: readonly number[]): Float32Array =>
    Float32Array.from(rows.flatMap((id) => [...table.subarray(id * config.hiddenSize, (id + 1) * config.hiddenSize)]));
  return new DecoderSession({
    protocol: makeProtocol(config, contract, cache),
    graphs,
    ...(contract.embedding === 'embeds' ? { embedding } : {}),
  });
}

function worst(rows: readonly Float32Array[], expected: readonly Float64Array[]): number {
  expect(rows.length).toBe(expected.length);
  let most = 0;
  rows.forEach((row, i) => {
    expect(row.length).toBe(expected[i]!.length);
    row.forEach((value, j) => {
      most = Math.max(most, Math.abs(value - expected[i]![j]!));
    });
  });
  return most;
}

describe.each(FORMS)('$name', ({ raw, biases }) => {
  const config = parseDecoderConfig(raw, 'config.json');
  const tensors = randomCheckpoint(config, { attentionBias: biases, mlpBias: biases });
  const expected = referenceLogits(config, tensors, ids);

  describe.each(CONTRACTS)('$name contract', (contract) => {
    test.each([[[1]], [[4, 1]], [[6, 4, 1]], [[11, 1]]])('graphs of %j tokens', async (sizes) => {
      const session = await openSession(config, tensors, contract, sizes, CACHE);
      try {
        expect(worst(await session.feed(ids, 'all'), expected)).toBeLessThan(1e-4);
        // The last row alone, its prompt through graphs that may give no logits; then one token more.
        for (const cut of [1, 4, 5, 7, 10]) {
          session.reset();
          expect(worst(await session.feed(ids.slice(0, cut)), [expected[cut - 1]!])).toBeLessThan(1e-4);
          expect(worst(await session.feed([ids[cut]!]), [expected[cut]!])).toBeLessThan(1e-4);
        }
      } finally {
        await session.close();
      }
    });

    test('a cache that is filled to its last slot', async () => {
      const session = await openSession(config, tensors, contract, [4, 1], ids.length);
      try {
        expect(worst(await session.feed(ids, 'all'), expected)).toBeLessThan(1e-4);
        expect(session.room).toBe(0);
        await expect(session.feed([1])).rejects.toMatchObject({ code: 'RT102' });
      } finally {
        await session.close();
      }
    });
  });
});

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { buildPlainDecoder } from '../../../calibration/decoder-statistics.ts';
import { openCheckpoint } from '../../../compiler/import/checkpoint.ts';
import { type DecoderModel, readDecoderModel } from '../../../compiler/import/decoder-model.ts';
import { parseDecoderConfig } from '../../../compiler/import/huggingface/config.ts';
import { inverseFrequencies } from '../../../compiler/import/huggingface/rope.ts';
import { readNpz } from '../../../compiler/import/npz.ts';
import { toNumbers } from '../../../compiler/ir/tensor.ts';
import { DecoderSession } from '../../../compiler/runtime/decoder-session.ts';
import { openModule } from '../../../compiler/runtime/engine.ts';
import { generateGreedy } from '../../../compiler/runtime/generate.ts';
import type { Runner } from '../../../compiler/runtime/runner.ts';
import { plainContract } from '../../../passes/io-contract.ts';
import { makeProtocol } from '../../../passes/protocol.ts';
import { hasMaterial, materialPath } from '../../material.ts';

const CHECKPOINTS = [
  { name: 'stories260k', folder: ['stories260k', 'hf'], reference: ['stories260k', 'hf_reference.npz'] },
  {
    name: 'llama3-gqa-ropescale',
    folder: ['tiny-arch-dev', 'llama3-gqa-ropescale'],
    reference: ['tiny-arch-dev', 'llama3-gqa-ropescale', 'reference.npz'],
  },
  {
    name: 'llama-mha-untied',
    folder: ['tiny-arch-dev', 'llama-mha-untied'],
    reference: ['tiny-arch-dev', 'llama-mha-untied', 'reference.npz'],
  },
] as const;

describe.skipIf(!hasMaterial).each(CHECKPOINTS)('$name against transformers', ({ folder, reference }) => {
  let model: DecoderModel;
  let ids: number[];
  let logits: Float32Array;
  let greedy: number[];
  let prompt: number[];
  const runners = new Map<string, Runner>();

  beforeAll(async () => {
    model = readDecoderModel(await openCheckpoint(materialPath(...folder)));
    const npz = readNpz(materialPath(...reference));
    ids = toNumbers(npz.input_ids!);
    logits = npz.logits!.data as Float32Array;
    greedy = toNumbers(npz.greedy!);
    prompt = npz.prompt ? toNumbers(npz.prompt) : ids;
  });
  afterAll(async () => {
    for (const runner of runners.values()) await runner.close();
    model.checkpoint.close();
  });

  const session = async (sizes: readonly number[], cache: number): Promise<DecoderSession> => {
    const graphs = new Map<number, Runner>();
    for (const size of sizes) {
      const key = `${size}x${cache}`;
      if (!runners.has(key))
        runners.set(key, await openModule(buildPlainDecoder(model.config, model.weights, size, cache)));
      graphs.set(size, runners.get(key)!);
    }
    return new DecoderSession({ protocol: makeProtocol(model.config, plainContract, cache), graphs });
  };
  const worstDifference = (rows: readonly Float32Array[]): number => {
    let worst = 0;
    rows.forEach((row, i) => {
      row.forEach((value, j) => {
        worst = Math.max(worst, Math.abs(value - logits[i * row.length + j]!));
      });
    });
    return worst;
  };

  test.each([
    [[1], 'decode only'],
    [[4, 1], 'chunks of 4'],
    [[5, 1], 'chunks that do not divide the text'],
    [[8, 3, 1], 'three sizes'],
    [[11, 1], 'one large chunk'],
  ])('graphs of %j tokens (%s): logits within 1e-4 for every cache that fits', async (sizes) => {
    const largest = Math.max(...sizes);
    for (const cache of new Set([Math.max(ids.length + largest, largest + 1), 64, 96])) {
      if (cache < ids.length + largest || cache > model.config.maxPositions) continue;
      const run = await session(sizes, cache);
      expect(worstDifference(await run.feed(ids, 'all'))).toBeLessThan(1e-4);
    }
  });

  test('every way to cut the text into chunks gives the same logits', async () => {
    const run = await session([8, 3, 1], 96);
    for (const chunks of [[1, 8, 2], [3, 3, 1, 2], [8, 1], [2, 2, 2, 2], [7]]) {
      run.reset();
      expect(worstDifference(await run.feed(ids, 'all', chunks))).toBeLessThan(1e-4);
    }
  });

  test('the greedy text is identical', async () => {
    const count = greedy.length > prompt.length ? greedy.length - prompt.length : greedy.length;
    const run = await session([4, 1], Math.min(128, model.config.maxPositions));
    const generated = await generateGreedy(run, prompt, count);
    expect([...prompt, ...generated].slice(-greedy.length)).toEqual(greedy);
  });
});

describe('rotary frequencies', () => {
  const base = { theta: 10000, factor: 4, lowFrequencyFactor: 1, highFrequencyFactor: 4, originalPositions: 64 };
  test('linear scaling divides every frequency', () => {
    const plain = inverseFrequencies({ ...base, type: 'default' }, 16, 128);
    const scaled = inverseFrequencies({ ...base, type: 'linear' }, 16, 128);
    scaled.forEach((frequency, i) => {
      expect(frequency).toBe(plain[i]! / 4);
    });
  });
  test('dynamic scaling leaves the trained context alone and raises the base beyond it', () => {
    const plain = inverseFrequencies({ ...base, type: 'default' }, 16, 64);
    expect(inverseFrequencies({ ...base, type: 'dynamic' }, 16, 64)).toEqual(plain);
    const longer = inverseFrequencies({ ...base, type: 'dynamic' }, 16, 128);
    // transformers: base * (factor * length / original - (factor - 1)) ** (dim / (dim - 2))
    const theta = 10000 * (4 * 2 - 3) ** (16 / 14);
    expect(longer[7]).toBeCloseTo(theta ** (-14 / 16), 9);
  });
  test('llama3 scaling keeps high frequencies and divides low ones', () => {
    const plain = inverseFrequencies({ ...base, theta: 500000, type: 'default' }, 16, 256);
    const scaled = inverseFrequencies({ ...base, theta: 500000, type: 'llama3' }, 16, 256);
    expect(scaled[0]).toBe(plain[0]);
    expect(scaled[7]).toBe(plain[7]! / 4);
  });
});

describe('config.json', () => {
  const config = {
    architectures: ['LlamaForCausalLM'],
    hidden_size: 64,
    intermediate_size: 128,
    num_hidden_layers: 1,
    num_attention_heads: 4,
    vocab_size: 100,
  };
  test.each([
    [{ ...config, architectures: ['MambaForCausalLM'] }, 'IM401'],
    [{}, 'IM401'],
    [{ ...config, hidden_size: 0 }, 'IM402'],
    [{ ...config, hidden_size: '64' }, 'IM402'],
    [{ ...config, num_key_value_heads: 3 }, 'IM402'],
    [{ ...config, head_dim: 15 }, 'IM402'],
    [{ ...config, hidden_act: 'gelu' }, 'IM402'],
    [{ ...config, rope_scaling: { rope_type: 'yarn', factor: 2 } }, 'IM402'],
    [{ ...config, rope_scaling: { rope_type: 'linear' } }, 'IM402'],
  ])('%j is refused with %s', (raw, code) => {
    expect(() => parseDecoderConfig(raw, 'config.json')).toThrowError(expect.objectContaining({ code }));
  });
  test('defaults are those of transformers', () => {
    const parsed = parseDecoderConfig(config, 'config.json');
    expect(parsed).toMatchObject({
      headDim: 16,
      keyValueHeads: 4,
      maxPositions: 2048,
      epsilon: 1e-6,
      tiedEmbeddings: false,
    });
    expect(parsed.rope).toMatchObject({ type: 'default', theta: 10000 });
  });
});

import { beforeAll, describe, expect, test } from 'vitest';
import { buildDecoder } from '../../../compiler/import/decoder-model.ts';
import type { DecoderConfig } from '../../../compiler/import/huggingface/config.ts';
import { collectWeights } from '../../../compiler/import/huggingface/llama.ts';
import type { Tensor } from '../../../compiler/ir/tensor.ts';
import { DecoderSession } from '../../../compiler/runtime/decoder-session.ts';
import { openModules } from '../../../compiler/runtime/engine.ts';
import { compareRows } from '../../../evaluation/compare-chunk.ts';
import { applyIoContract } from '../../../passes/apply-io-contract.ts';
import { genieContract, type IoContract, litertNpuContract, plainContract } from '../../../passes/io-contract.ts';
import { makeProtocol } from '../../../passes/protocol.ts';
import { quantizePorts } from '../../../targets/qnn/qnn-target.ts';
import { portEncodings } from '../../../targets/target.ts';
import { demo } from '../../cli/run-npuc.ts';
import { randomCheckpoint, slidingLogits } from '../../reference-decoder.ts';
import { openSmallDecoder } from '../../targets/small-decoder.ts';

const CONFIG: DecoderConfig = {
  architecture: 'LlamaForCausalLM',
  hiddenSize: 32,
  intermediateSize: 48,
  layers: 2,
  heads: 4,
  keyValueHeads: 2,
  headDim: 8,
  vocabSize: 40,
  maxPositions: 256,
  epsilon: 1e-5,
  rope: {
    type: 'default',
    theta: 10000,
    factor: 1,
    lowFrequencyFactor: 1,
    highFrequencyFactor: 1,
    originalPositions: 256,
  },
  tiedEmbeddings: true,
};
const CACHE = 16;
const CHUNK = 4;
const IDS = Array.from({ length: 46 }, (_, i) => (i * 17 + (i % 7) * 5 + 3) % CONFIG.vocabSize);

let tensors: Map<string, Tensor>;
beforeAll(() => {
  tensors = randomCheckpoint(CONFIG);
});

/** Graphs of one cache size with tables for `context` positions. */
async function open(contract: IoContract, context: number): Promise<DecoderSession> {
  const weights = collectWeights(CONFIG, tensors, 'random');
  const modules = [CHUNK, 1].map((tokens) => {
    const module = buildDecoder(CONFIG, weights, context, true);
    applyIoContract(module, contract, { tokens, cache: CACHE, logits: 'all' });
    return module;
  });
  const runners = await openModules(modules);
  const table = tensors.get('model.embed_tokens.weight')!.toFloats();
  const session = new DecoderSession({
    protocol: makeProtocol(CONFIG, contract, context),
    graphs: runners.map((runner, i) => ({ tokens: [CHUNK, 1][i]!, cache: CACHE, runner })),
    ...(contract.embedding === 'embeds'
      ? {
          embedding: (ids: readonly number[]) =>
            Float32Array.from(
              ids.flatMap((id) => [...table.subarray(id * CONFIG.hiddenSize, (id + 1) * CONFIG.hiddenSize)]),
            ),
        }
      : {}),
  });
  session.pinCache(CACHE);
  return session;
}

async function stream(session: DecoderSession, sinks: number, positions: 'cache' | 'global'): Promise<Float32Array[]> {
  const rows: Float32Array[] = [];
  for (let start = 0; start < IDS.length; start += CHUNK) {
    const excess = session.length + CHUNK - CACHE;
    if (excess > 0) session.slide(sinks, excess, positions);
    rows.push(...(await session.feed(IDS.slice(start, start + CHUNK), 'all')));
  }
  return rows;
}

describe('a cache that slides', () => {
  test.each([
    ['plain', plainContract],
    ['genie', genieContract],
    ['litert', litertNpuContract],
  ] as const)(
    '%s: gives the logits of a reference without graphs, for both kinds of positions',
    async (_name, contract) => {
      for (const positions of ['cache', 'global'] as const) {
        for (const sinks of [0, 2]) {
          const session = await open(contract, positions === 'global' ? 64 : CACHE);
          try {
            const got = await stream(session, sinks, positions);
            const expected = slidingLogits(CONFIG, tensors, IDS, { cache: CACHE, chunk: CHUNK, sinks, positions });
            let worst = 0;
            expected.forEach((row, i) =>
              row.forEach((value, j) => {
                worst = Math.max(worst, Math.abs(value - got[i]![j]!));
              }),
            );
            expect(worst).toBeLessThan(2e-3);
          } finally {
            await session.close();
          }
        }
      }
    },
  );

  test('the two kinds of positions differ once it has slid, and sinks do something', () => {
    const of = (sinks: number, positions: 'cache' | 'global') =>
      slidingLogits(CONFIG, tensors, IDS, { cache: CACHE, chunk: CHUNK, sinks, positions });
    const [a, b, c] = [of(0, 'cache'), of(2, 'cache'), of(2, 'global')];
    const differ = (x: Float64Array[], y: Float64Array[], from: number, to: number): number =>
      Math.max(
        ...x.slice(from, to).flatMap((row, i) => [...row].map((value, j) => Math.abs(value - y[from + i]![j]!))),
      );
    expect(differ(a, b, 0, CACHE)).toBe(0);
    expect(differ(a, b, CACHE, IDS.length)).toBeGreaterThan(0.01);
    expect(differ(b, c, CACHE, IDS.length)).toBeGreaterThan(0.01);
  });

  test('more than there is cannot be dropped, and global positions end with the tables', async () => {
    const session = await open(plainContract, CACHE);
    try {
      await session.feed(IDS.slice(0, 12), 'last');
      expect(() => session.slide(4, 9, 'cache')).toThrow(expect.objectContaining({ code: 'RT105' }) as Error);
      expect(() => session.slide(0, 0, 'cache')).toThrow(expect.objectContaining({ code: 'RT105' }) as Error);
      session.slide(0, 8, 'global');
      await expect(session.feed(IDS.slice(0, 8), 'last')).rejects.toMatchObject({ code: 'RT105' });
    } finally {
      await session.close();
    }
  });

  test('integer keys are rotated on their grid', async () => {
    // The same decoder in Genie's contract, once with integer ports and once with float ports.
    const small = await openSmallDecoder(demo);
    const decoder = await small.quantize('w8a16', 'qnn');
    const run = async (integer: boolean): Promise<Float32Array[]> => {
      const module = decoder.stamp({ name: 'step', tokens: 8, cache: 32, logits: 'all' });
      const ports = integer ? quantizePorts(module.graph()) : {};
      const [runner] = await openModules([module]);
      const session = new DecoderSession({
        protocol: makeProtocol(small.config, genieContract, 32),
        graphs: [{ tokens: 8, cache: 32, runner: runner! }],
        encodings: portEncodings(ports),
      });
      try {
        const rows: Float32Array[] = [];
        for (let start = 0; start < 64; start += 8) {
          const excess = session.length + 8 - 32;
          if (excess > 0) session.slide(2, excess, 'cache');
          rows.push(...(await session.feed(small.text.slice(start, start + 8), 'all')));
        }
        return rows;
      } finally {
        await session.close();
      }
    };
    // Cosines and sines are cut off where ports are integers, as Genie does: that is all that differs.
    const agreement = compareRows(await run(false), await run(true));
    expect(agreement.sqnr).toBeGreaterThan(30);
    expect(agreement.topAgreement).toBeGreaterThan(0.95);
  });
});

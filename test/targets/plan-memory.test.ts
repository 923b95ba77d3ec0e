import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { makeRecipe } from '../../calibration/recipe.ts';
import { decoderTargets, formatOf } from '../../targets/index.ts';
import {
  cacheBytes,
  type GraphMemory,
  type MemoryRequest,
  planGraphMemory,
  planWeightMemory,
} from '../../targets/plan-memory.ts';
import { planContextBytes } from '../../targets/qnn/plan-context.ts';
import { readContextBinary } from '../../targets/qnn/read-context.ts';
import { demo } from '../cli/run-npuc.ts';
import { toolchain } from './qnn/toolchain-or-skip.ts';
import { emitContext, openSmallDecoder, type SmallDecoder } from './small-decoder.ts';

let small: SmallDecoder;
let work: string;
beforeAll(async () => {
  small = await openSmallDecoder(demo);
  work = mkdtempSync(join(tmpdir(), 'npuc-memory-'));
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

function request(scheme: string, target: 'onnx' | 'qnn' | 'tflite'): MemoryRequest {
  const { config, weights } = small;
  return { config, weights, recipe: makeRecipe(scheme), ...formatOf(target), integerPorts: target === 'qnn' };
}

describe('planned memory', () => {
  test.each(['qnn', 'onnx', 'tflite'] as const)('%s: three layers need the arena of all of them', (target) => {
    for (const scheme of ['w4a16', 'w8a8', 'fp16']) {
      for (const [tokens, cache] of [
        [1, 64],
        [32, 256],
      ] as const) {
        const few = planGraphMemory(request(scheme, target), tokens, cache);
        const all = planGraphMemory(request(scheme, target), tokens, cache, small.config.layers);
        const figures = ({ nodes: _, alive, ...bytes }: GraphMemory) => ({ ...bytes, most: Math.max(...alive) });
        expect(figures(few)).toEqual(figures(all));
      }
    }
  });

  test('keys and values: what goes in and what comes out is the cache', () => {
    const memory = request('w8a16', 'qnn');
    const graph = planGraphMemory(memory, 16, 128);
    const { layers, keyValueHeads, headDim } = small.config;
    expect(cacheBytes(memory, 128)).toBe(2 * layers * keyValueHeads * headDim * 128);
    expect(graph.pastBytes + graph.newBytes).toBe(cacheBytes(memory, 128));
    // Float ports take four times the bytes of 8-bit ones.
    expect(cacheBytes(request('w8a16', 'onnx'), 128)).toBe(4 * cacheBytes(memory, 128));
  });

  test.each(['w4a16', 'w8a16', 'w8a8', 'fp16'])('%s: weights take the planned bytes in the file', async (scheme) => {
    const out = join(work, `onnx-${scheme}`);
    await decoderTargets.onnx.emit(await small.quantize(scheme, 'onnx'), emitContext(out, 16, 64));
    const { weightBytes, embeddingBytes } = planWeightMemory(request(scheme, 'onnx'), 0);
    const written = statSync(join(out, 'onnx', 'weights.data')).size;
    // The rest is rotary tables, and what lies in the models because it is small.
    expect(Math.abs((weightBytes + embeddingBytes) / written - 1)).toBeLessThan(0.025);
  });

  test.skipIf(!toolchain).each([
    ['w8a16', 16, 64],
    ['w4a16', 32, 256],
    ['w8a8', 16, 256],
  ] as const)(
    '%s %ix%i: the context binary is within a tenth of what was planned, its spill-fill no less',
    async (scheme, tokens, cache) => {
      const out = join(work, `qnn-${scheme}`);
      const manifest = await decoderTargets.qnn.emit(await small.quantize(scheme, 'qnn'), {
        ...emitContext(out, tokens, cache),
        toolchain: toolchain!,
      });
      const binary = manifest.files.find((file) => file.endsWith('.bin'))!;
      const memory = request(scheme, 'qnn');
      const graphs = [planGraphMemory(memory, tokens, cache), planGraphMemory(memory, 1, cache)];
      const planned = planContextBytes(planWeightMemory(memory, 0), { ...small.config, graphs, share: true });
      expect(Math.abs(planned / statSync(join(out, binary)).size - 1)).toBeLessThan(0.1);
      const context = await readContextBinary(toolchain!, join(out, binary));
      const vtcm = 8 * 2 ** 20;
      for (const [i, { spillFillBytes }] of context.graphs.entries())
        expect(spillFillBytes).toBeGreaterThanOrEqual(Math.max(0, Math.max(...graphs[i]!.alive) - vtcm));
    },
  );
});

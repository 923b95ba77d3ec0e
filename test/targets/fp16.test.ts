import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { generateGreedy } from '../../compiler/runtime/generate.ts';
import { compareTwin } from '../../evaluation/compare-chunk.ts';
import { evaluateLogits } from '../../evaluation/perplexity.ts';
import { decoderTargets } from '../../targets/index.ts';
import { findSoc } from '../../targets/socs.ts';
import type { TargetName } from '../../targets/target.ts';
import { toolchain } from './qnn/toolchain-or-skip.ts';
import { CHECKPOINTS, emitContext, openSmallDecoder, type SmallDecoder } from './small-decoder.ts';

const [TOKENS, CACHE] = [32, 128];

/** dB to the float model that a target's half floats must keep: stored ones cost less than computed ones. */
const TARGETS: readonly (readonly [TargetName, number, number])[] = [
  ['onnx', 65, 0.0005],
  ['tflite', 65, 0.0005],
  ...(toolchain ? ([['qnn', 45, 0.005]] as const) : []),
];

describe.each(CHECKPOINTS)('the fp16 scheme of $name', { timeout: 300_000 }, ({ source }) => {
  let work: string;
  let small: SmallDecoder;
  beforeAll(async () => {
    work = mkdtempSync(join(tmpdir(), 'npuc-fp16-'));
    small = await openSmallDecoder(source());
  }, 120_000);
  afterAll(() => {
    small.model!.checkpoint.close();
    rmSync(work, { recursive: true, force: true });
  });

  test.each(TARGETS)('%s runs, close to the float model, from two bytes a weight', async (name, decibels, slack) => {
    const decoder = await small.quantize('fp16', name);
    const out = join(work, name);
    const target = await decoderTargets[name].emit(decoder, emitContext(out, TOKENS, CACHE));
    expect(target.ports).toEqual({});
    const session = await decoderTargets[name].open(out, target, toolchain ? { toolchain } : {});
    const shape = { tokens: TOKENS, cache: CACHE };
    const scorer = (await decoderTargets[name].openForEvaluation?.(decoder, out, target, shape)) ?? session;
    const float = await small.openFloat(TOKENS, CACHE);
    try {
      const text = name === 'qnn' ? small.text.slice(0, 128) : small.text;
      const options = { window: CACHE, prefix: small.prefix };
      const report = (await evaluateLogits(float, new Map([[name, scorer]]), text, options)).get(name)!;
      console.log(
        `${name}: ratio ${report.ratio.toFixed(5)}, ${report.sqnr.toFixed(1)} dB, ${report.predictions} predictions`,
      );
      expect(Math.abs(report.ratio - 1)).toBeLessThan(slack);
      expect(report.sqnr).toBeGreaterThan(decibels);
      expect(report.topAgreement).toBeGreaterThan(0.98);
      if (name !== 'qnn') {
        const prompt = [...small.prefix, ...small.text.slice(0, TOKENS + 3)];
        expect(await generateGreedy(session, prompt, 8)).toEqual(await generateGreedy(float, prompt, 8));
      }
      const reference = await decoderTargets[name].openReference?.(out, target);
      if (reference) {
        const window = [...small.prefix, ...small.text].slice(0, TOKENS);
        expect((await compareTwin(reference, session, window)).sqnr).toBeGreaterThan(decibels);
        await reference.close();
      }
    } finally {
      for (const each of new Set([session, scorer, float])) await each.close();
    }
    const sources = target.files.filter((file) => file.includes('/qdq/'));
    const shipped = target.files.filter((file) => !sources.includes(file));
    const bytes = shipped.reduce((sum, file) => sum + statSync(join(out, file)).size, 0);
    // Every weight once, and the embedding table beside the head that is tied to it.
    const { vocabSize, hiddenSize } = small.config;
    const matrices = [...small.weights.values()].filter((tensor) => tensor.shape.length > 1);
    const weights = matrices.reduce((sum, tensor) => sum + tensor.size, 0);
    expect(matrices.some((tensor) => tensor.size === vocabSize * hiddenSize)).toBe(true);
    console.log(`${name}: ${bytes} bytes, ${weights} weights`);
    expect(bytes).toBeGreaterThan(2 * weights);
    expect(bytes).toBeLessThan(2 * weights * 1.1 + 300_000);
  });

  test.skipIf(!toolchain)('qnn is refused where the HTP has no half floats', async () => {
    const decoder = await small.quantize('fp16', 'qnn');
    const context = { ...emitContext(join(work, 'v68'), TOKENS, CACHE), soc: findSoc('SM8350'), toolchain: toolchain! };
    await expect(decoderTargets.qnn.emit(decoder, context)).rejects.toMatchObject({ code: 'TG002' });
  });
});

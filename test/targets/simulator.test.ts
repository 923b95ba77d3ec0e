import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  buildPlainDecoder,
  calibrationShape,
  collectDecoderStatistics,
  cutWindows,
} from '../../calibration/decoder-statistics.ts';
import { quantizeDecoder } from '../../calibration/quantize-decoder.ts';
import { makeRecipe, type RecipeOptions } from '../../calibration/recipe.ts';
import type { ValueStatistics } from '../../calibration/statistics.ts';
import { defaultText, readTokens } from '../../calibration/texts.ts';
import { openCheckpoint } from '../../compiler/import/checkpoint.ts';
import { type DecoderModel, readDecoderModel } from '../../compiler/import/decoder-model.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { createProgress } from '../../compiler/progress.ts';
import { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { openModule } from '../../compiler/runtime/engine.ts';
import { compareTwin } from '../../evaluation/compare-chunk.ts';
import type { LogitReport } from '../../evaluation/logits.ts';
import { evaluateLogits } from '../../evaluation/perplexity.ts';
import { plainContract } from '../../passes/io-contract.ts';
import { makeProtocol } from '../../passes/protocol.ts';
import { formatOf } from '../../targets/index.ts';
import { qnnTarget } from '../../targets/qnn/qnn-target.ts';
import { findToolchain } from '../../targets/qnn/toolchain.ts';
import { findSoc } from '../../targets/socs.ts';
import { demo } from '../cli/run-npuc.ts';
import { hasMaterial, materialPath } from '../material.ts';

const toolchain = findToolchain('qnn');
if (!toolchain) {
  if (process.env.CI) throw new Error('the QNN toolchain is absent: in CI that is a failure');
  console.warn('SKIPPED: the QNN toolchain is absent, nothing is simulated');
}

const SHAPE = { tokens: 64, cache: 256 } as const;
const EVALUATED = 2048;

interface Model {
  readonly name: string;
  readonly source: () => string;
  readonly calibration: () => string;
  /** Held-out texts, one after the other. */
  readonly evaluation: () => readonly string[];
}

const MODELS: readonly Model[] = [
  {
    name: 'the demo model',
    source: () => demo,
    calibration: () => defaultText('calibration'),
    evaluation: () => [defaultText('evaluation')],
  },
  ...(hasMaterial
    ? [
        {
          name: 'stories260k',
          source: () => materialPath('stories260k', 'hf'),
          calibration: () => materialPath('text', 'stories260k_samples.txt'),
          evaluation: () => [materialPath('text', 'tinystories_sample.txt'), materialPath('text', 'alice29.txt')],
        },
      ]
    : []),
];

describe.skipIf(!toolchain).each(MODELS)(
  '$name on the HTP simulator',
  { timeout: 600_000 },
  ({ source, calibration, evaluation }) => {
    let work: string;
    let model: DecoderModel;
    let windows: number[][];
    let statistics: Map<string, ValueStatistics>;
    let float: DecoderSession;
    let prefix: number[];
    let text: readonly number[];

    beforeAll(async () => {
      work = mkdtempSync(join(tmpdir(), 'npuc-simulator-'));
      model = readDecoderModel(await openCheckpoint(source()));
      const tokenizer = model.checkpoint.tokenizer!;
      const shape = calibrationShape(model.config);
      prefix = tokenizer.bosId === undefined ? [] : [tokenizer.bosId];
      const { ids } = readTokens(calibration(), tokenizer, 8 * shape.window, shape.window);
      windows = cutWindows(ids, shape, 8, prefix);
      text = evaluation()
        .flatMap((path) => readTokens(path, tokenizer, EVALUATED + SHAPE.cache, 1024).ids)
        .slice(0, EVALUATED + SHAPE.cache);
      statistics = await collectDecoderStatistics(model.config, model.weights, windows);
      const runner = await openModule(buildPlainDecoder(model.config, model.weights, SHAPE.tokens, SHAPE.cache));
      float = new DecoderSession({
        protocol: makeProtocol(model.config, plainContract, SHAPE.cache),
        graphs: new Map([[SHAPE.tokens, runner]]),
      });
    }, 120_000);
    afterAll(async () => {
      await float.close();
      model.checkpoint.close();
      rmSync(work, { recursive: true, force: true });
    });

    /** Compiles for a SoC; the simulator's agreement with the QDQ twin, and its figures on text where asked. */
    const simulate = async (
      scheme: string,
      soc: string,
      options: RecipeOptions,
      onText: boolean,
    ): Promise<{ twin: number; report: LogitReport | undefined }> => {
      const decoder = await quantizeDecoder({
        config: model.config,
        weights: model.weights,
        statistics,
        windows,
        recipe: makeRecipe(scheme, options),
        ...formatOf('qnn'),
        kernels: wasmKernels,
      });
      const out = mkdtempSync(join(work, 'out-'));
      const target = await qnnTarget.emit(decoder, {
        out,
        soc: findSoc(soc),
        shapes: { tokens: [SHAPE.tokens], caches: [SHAPE.cache] },
        threads: 2,
        io: 'float',
        progress: createProgress('quiet'),
        toolchain: toolchain!,
      });
      const session = await qnnTarget.open(out, target, { toolchain: toolchain! });
      const reference = await qnnTarget.openReference!(out, target);
      try {
        const { sqnr: twin } = await compareTwin(reference, session, [...prefix, ...text].slice(0, SHAPE.tokens));
        if (!onText) return { twin, report: undefined };
        const reports = await evaluateLogits(float, new Map([['htp', session]]), text, { window: SHAPE.cache, prefix });
        return { twin, report: reports.get('htp')! };
      } finally {
        await session.close();
        await reference.close();
      }
    };

    test.each(['SM8550', 'SM8650', 'SM8750', 'SM8850'])(
      'w8a16 with a 16-bit cache on %s: at least 45 dB to the QDQ twin on ONNX Runtime',
      async (soc) => {
        const { twin } = await simulate('w8a16', soc, { cache: 16 }, false);
        console.log(`${soc} w8a16 kv s16: ${twin.toFixed(1)} dB`);
        expect(twin).toBeGreaterThanOrEqual(45);
      },
    );

    test.each<[string, RecipeOptions, number]>([
      ['w8a16', { cache: 16 }, 1.02],
      ['w8a16', { cache: 8 }, 1.05],
      ['w4a16', { cache: 16, block: 32 }, 1.25],
    ])('%s %j on 2,048 tokens of held-out text', async (scheme, options, limit) => {
      const { twin, report } = await simulate(scheme, 'SM8750', options, true);
      console.log(
        `SM8750 ${scheme} ${JSON.stringify(options)}: ratio ${report!.ratio.toFixed(4)}, KL ${report!.divergence.toFixed(4)}, ` +
          `top-1 ${report!.topAgreement.toFixed(3)}, ${twin.toFixed(1)} dB to the twin, ${report!.predictions} predictions`,
      );
      expect(report!.predictions).toBeGreaterThanOrEqual(EVALUATED);
      expect(report!.ratio).toBeLessThan(limit);
    });

    test('w8a8 compiles whole and runs', async () => {
      const { twin, report } = await simulate('w8a8', 'SM8750', {}, true);
      console.log(`SM8750 w8a8: ratio ${report!.ratio.toFixed(4)}, ${twin.toFixed(1)} dB to the twin`);
      expect(report!.ratio).toBeLessThan(1.3);
    });

    test('v69 has no 16-bit cache: a coded error, not a wrong binary', async () => {
      await expect(simulate('w8a16', 'SM8450', { cache: 16 }, false)).rejects.toMatchObject({ code: 'TG002' });
      const { twin } = await simulate('w8a16', 'SM8450', { cache: 8 }, false);
      expect(twin).toBeGreaterThan(20);
    });
  },
);

import type { StatisticsKey } from '../../calibration/statistics-cache.ts';
import { readTokens, startTokens } from '../../calibration/texts.ts';
import { openCheckpoint } from '../../compiler/import/checkpoint.ts';
import { readDecoderModel, requireTokenizer } from '../../compiler/import/decoder-model.ts';
import { pickJavaScriptEngine } from '../../compiler/runtime/engine.ts';
import { describeEngine, openWithJavaScript } from '../../compiler/runtime/onnxruntime.ts';
import type { CheckSubject } from '../../evaluation/check/baseline.ts';
import { drawWindows } from '../../evaluation/check/bootstrap.ts';
import { type CalibratedInputs, WINDOW } from '../../evaluation/check/measure-decoder.ts';
import { formatOf } from '../../targets/index.ts';
import type { TargetName } from '../../targets/target.ts';
import { calibrateDecoder } from './calibrate-decoder.ts';
import { adaptRecipe, type CompileOptions, readCalibration } from './compile-decoder.ts';
import { version } from './version.ts';

/** Windows of held-out text without which there is nothing to resample. */
const LEAST_WINDOWS = 2;

export interface OpenedSubject {
  /** What a baseline must be of. */
  readonly subject: CheckSubject;
  /** The checkpoint calibrated on a draw of the windows; 0 is all of them. */
  calibrate(seed: number): Promise<CalibratedInputs>;
  close(): void;
}

/**
 * Opens a checkpoint for a check and reads its texts.
 * @throws as openCheckpoint and readTokens: QT110 when the held-out text is too short for two windows
 */
export async function openSubject(options: CompileOptions, target: TargetName): Promise<OpenedSubject> {
  const { progress } = options;
  const checkpoint = await openCheckpoint(options.source, {
    progress: (done, total, file) => progress.update(done, total, file),
  });
  try {
    const model = readDecoderModel(checkpoint);
    const tokenizer = requireTokenizer(checkpoint);
    const prefix = startTokens(tokenizer);
    const step = WINDOW - prefix.length;
    const text = readTokens(options.evaluation.text, tokenizer, options.evaluation.tokens, LEAST_WINDOWS * step);
    const windows = Array.from({ length: Math.floor(text.ids.length / step) }, (_, i) => [
      ...prefix,
      ...text.ids.slice(i * step, (i + 1) * step),
    ]);
    const calibration = readCalibration(options, model);
    const digest = await checkpoint.digest({ progress: (done, total) => progress.update(done, total) });
    const engine = await describeEngine(pickJavaScriptEngine());
    const calibrate = async (seed: number): Promise<CalibratedInputs> => {
      const drawn = drawWindows(calibration.windows, seed);
      const key: StatisticsKey = { checkpoint: digest, windows: drawn, engine };
      const source = await calibrateDecoder(model, key, options);
      const { recipe } = adaptRecipe(source.recipe, options.soc, target);
      const shared = {
        name: checkpoint.name,
        digest,
        config: model.config,
        weights: model.weights,
        ...(model.taken.size > 0 ? { taken: model.taken } : {}),
        requantize: options.requantize,
        windows: drawn,
        calibrationDigest: calibration.text.digest,
        text: { digest: text.digest, windows, prefix: prefix.length },
        recipe,
        target,
        ...formatOf(target, options.embedding),
        npuc: version(),
        threads: options.threads,
        open: (path: string) => openWithJavaScript(path, pickJavaScriptEngine(), options.threads),
      };
      const calibrated = { ...shared, embed: source.embed, statistics: source.statistics, cacheKey: source.key };
      return source.weights === model.weights
        ? calibrated
        : { ...calibrated, changed: { config: source.config, weights: source.weights } };
    };
    const subject: CheckSubject = {
      kind: 'decoder',
      model: { name: checkpoint.name, digest },
      target,
      text: { digest: text.digest, windows: windows.length, tokens: windows.length * step },
      predictions: windows.map(() => step - 1),
    };
    return { subject, calibrate, close: () => checkpoint.close() };
  } catch (error) {
    checkpoint.close();
    throw error;
  }
}

import { findAnchors } from '../../calibration/anchor-stream.ts';
import { collectDecoderStatistics } from '../../calibration/decoder-statistics.ts';
import type { GivenEncodings } from '../../calibration/read-encodings.ts';
import { hasFloatActivations, type Override, type Recipe } from '../../calibration/recipe.ts';
import {
  type DecoderSource,
  findSinkDirection,
  hasStreamOutliers,
  rotateDecoder,
} from '../../calibration/rotate-decoder.ts';
import { findOutliers, separateOutliers } from '../../calibration/separate-outliers.ts';
import type { ValueStatistics } from '../../calibration/statistics.ts';
import { cachedStatistics, type StatisticsKey } from '../../calibration/statistics-cache.ts';
import { NpucError } from '../../compiler/errors.ts';
import type { DecoderModel } from '../../compiler/import/decoder-model.ts';
import type { Progress } from '../../compiler/progress.ts';

/** What is quantized: the checkpoint's decoder, or the same function with its outliers tamed. */
export interface CalibratedDecoder extends DecoderSource {
  readonly taken?: DecoderModel['taken'];
  readonly statistics: ReadonlyMap<string, ValueStatistics>;
  /** What the statistics depend on. */
  readonly key: StatisticsKey;
  /** The recipe with every choice made. */
  readonly recipe: Recipe;
}

/** What a decoder's calibration asks of the options of a compile. */
export interface CalibrationChoices {
  readonly recipe: Recipe;
  readonly outputs: { readonly given?: Pick<GivenEncodings, 'activations'> };
  readonly progress: Progress;
  /** Bytes of float weights that may be open at a time. */
  readonly weightBytes?: number;
}

/** Ends the name of what outliers have beyond their bound (buildLlama). */
const EXCESS = '.mlp_product.outliers';

/** So few weights: four bits would save nothing. */
const OUTLIER_WEIGHTS: Override = {
  match: '^model\\.layers\\.\\d+\\.mlp\\.down_proj\\.outliers\\b',
  weight: { bits: 8, block: 0 },
};

/**
 * Collects a decoder's statistics, decides from them whether its residual stream is rotated and channels with outliers are
 * separated, and collects them again where something was changed.
 * @throws CL001 where a checkpoint's own integers and a change of its weights are asked for
 */
export async function calibrateDecoder(
  model: DecoderModel,
  calibrated: StatisticsKey,
  choices: CalibrationChoices,
): Promise<CalibratedDecoder> {
  const { progress } = choices;
  const collect = (key: StatisticsKey, { config, weights }: DecoderSource): ReturnType<typeof cachedStatistics> =>
    cachedStatistics(key, () =>
      collectDecoderStatistics(config, weights, calibrated.windows, {
        onProgress: (done, total) => progress.update(done, total),
        ...(choices.weightBytes === undefined ? {} : { weightBytes: choices.weightBytes }),
      }),
    );
  progress.stage('calibrate');
  const { statistics, cached } = await collect(calibrated, model);
  if (cached) progress.note('  statistics of this checkpoint and text are known already');
  const { rotation, outliers } = chooseChanges(choices, model, statistics);
  const recipe: Recipe = {
    ...choices.recipe,
    rotation,
    outliers,
    overrides: [...choices.recipe.overrides, ...(outliers === 'apart' ? [OUTLIER_WEIGHTS] : [])],
  };
  if (rotation === 'none' && outliers === 'none') return { ...model, statistics, key: calibrated, recipe };
  let source: DecoderSource = model;
  if (outliers === 'apart') source = separateOutliers(source, findOutliers(model.config, statistics));
  if (rotation === 'hadamard') {
    source = rotateDecoder(source, findSinkDirection(model.config, statistics));
    source = { ...source, config: { ...source.config, anchors: findAnchors(model.config, statistics) } };
  }
  progress.stage('calibrate with outliers tamed');
  const key: StatisticsKey = { ...calibrated, rotation, outliers };
  return { ...source, statistics: (await collect(key, source)).statistics, key, recipe };
}

/**
 * Given encodings, and integers that are taken over, are those of the checkpoint's own values: they forbid changes that nobody
 * asked for.
 */
function chooseChanges(
  { recipe, outputs }: CalibrationChoices,
  { config, taken }: DecoderModel,
  statistics: ReadonlyMap<string, ValueStatistics>,
): { rotation: 'none' | 'hadamard'; outliers: 'none' | 'apart' } {
  for (const [flag, value] of [
    ['--rotation hadamard', recipe.rotation === 'hadamard'],
    ['--outliers apart', recipe.outliers === 'apart'],
  ]) {
    if (!value || taken.size === 0) continue;
    throw new NpucError('CL001', {
      message: `${flag} would change the quantized weights of the checkpoint`,
      hint: 'leave it out, or take the checkpoint in floats',
    });
  }
  const { given } = outputs;
  const own = given === undefined && taken.size === 0;
  // A file that was written for a decoder with outliers apart has their names.
  const named = given !== undefined && [...given.activations.keys()].some((name) => name.endsWith(EXCESS));
  const some =
    (own || named) &&
    recipe.outliers !== 'none' &&
    !hasFloatActivations(recipe) &&
    findOutliers(config, statistics).size > 0;
  return {
    rotation:
      recipe.rotation === 'auto'
        ? own && hasStreamOutliers(config, statistics)
          ? 'hadamard'
          : 'none'
        : recipe.rotation,
    outliers: some ? 'apart' : 'none',
  };
}

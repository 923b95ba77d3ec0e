import type { Recipe } from '../../calibration/recipe.ts';
import type { Tensor } from '../../compiler/ir/tensor.ts';
import { findStageValue } from './compare-stages.ts';
import type { Subject } from './find-culprit.ts';
import { type DecoderUnderCheck, measureValues, requantize, runWindows } from './measure-decoder.ts';
import { weightedMean } from './measurement.ts';

/** A measured decoder as what culprits are looked for in. */
export function decoderSubject(checked: DecoderUnderCheck): Subject {
  const { inputs, steps, decoder, measurement } = checked;
  const under = async (recipe: Recipe | undefined): Promise<typeof decoder> =>
    recipe ? await requantize(inputs, recipe, steps) : decoder;
  return {
    measurement,
    activations: decoder.plan.activations,
    weightEncodings: decoder.weightEncodings,
    run: async (patch, recipe) => await runWindows(inputs, steps, await under(recipe), patch),
    values: async (patch, only, recipe) => await measureValues(inputs, await under(recipe), patch, only),
    runFloat: async (names) => {
      const weights = new Map<string, Tensor>(inputs.weights);
      for (const [name, source] of names) weights.set(name, inputs.weights.get(source)!);
      const run = await runWindows({ ...inputs, weights }, steps, decoder, {});
      return weightedMean(run.series.floatLoss, run.predictions);
    },
    // Behind the first step the target's contract renames and turns values: a step is all that can be said there.
    lookInto: async (stage) => (stage === 'apply-io-contract' ? await findStageValue(inputs, steps) : undefined),
  };
}

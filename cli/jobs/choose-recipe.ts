import { buildPlainDecoder } from '../../calibration/decoder-statistics.ts';
import { candidateRecipes } from '../../calibration/effort.ts';
import type { QuantizedDecoder } from '../../calibration/quantize-decoder.ts';
import type { Recipe } from '../../calibration/recipe.ts';
import type { DecoderModel } from '../../compiler/import/decoder-model.ts';
import { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { openModule } from '../../compiler/runtime/engine.ts';
import { addLogits, emptyLogitSums } from '../../evaluation/logits.ts';
import { plainContract } from '../../passes/io-contract.ts';
import { makeProtocol } from '../../passes/protocol.ts';
import type { CalibratedDecoder } from './calibrate-decoder.ts';

/** One recipe that was tried: what the statistics made of it, and its mean KL on the held-out windows. */
export interface TriedRecipe {
  readonly source: CalibratedDecoder;
  readonly divergence: number;
}

export interface TryInputs {
  readonly model: DecoderModel;
  readonly recipe: Recipe;
  /** Windows of calibration text that no candidate is calibrated on, of one length. */
  readonly heldOut: readonly (readonly number[])[];
  /** Tokens that stand before every window and are not predicted. */
  readonly prefix: number;
  readonly calibrate: (recipe: Recipe) => Promise<CalibratedDecoder>;
  readonly quantize: (source: CalibratedDecoder) => Promise<QuantizedDecoder>;
  readonly onTry?: (done: number, total: number) => void;
}

/**
 * Quantizes by every candidate recipe, runs each beside the float model on held-out windows, and gives them from the least
 * KL to the most. Recipes that come to the same choices are tried once. One candidate is open at a time.
 */
export async function tryRecipes(inputs: TryInputs): Promise<TriedRecipe[]> {
  const sources = new Map<string, CalibratedDecoder>();
  for (const recipe of candidateRecipes(inputs.recipe)) {
    const source = await inputs.calibrate(recipe);
    const { rotation, outliers, migration } = source.recipe;
    const key = JSON.stringify([rotation, outliers, migration]);
    if (!sources.has(key)) sources.set(key, source);
  }
  const tried: TriedRecipe[] = [];
  const expected = await floatLogits(inputs);
  for (const source of sources.values()) {
    const decoder = await inputs.quantize(source);
    tried.push({ source, divergence: await measureDivergence(decoder, inputs, expected) });
    inputs.onTry?.(tried.length, sources.size);
  }
  return tried.sort((a, b) => a.divergence - b.divergence);
}

/** What was chosen and what it was chosen from, as a remark of the plan. */
export function describeChoice(tried: readonly TriedRecipe[], windows: number): string {
  const spell = ({ source: { recipe }, divergence }: TriedRecipe): string =>
    `${divergence.toFixed(4)} with rotation ${recipe.rotation}, migration ${recipe.migration}`;
  const [best, ...rest] = tried;
  return (
    `effort best: KL ${spell(best!)} on ${windows} held-out windows of calibration text` +
    (rest.length > 0 ? `; against ${rest.map(spell).join('; ')}` : '')
  );
}

type Logits = readonly (readonly Float32Array[])[];

async function floatLogits({ model: { config, weights }, heldOut }: TryInputs): Promise<Logits> {
  const window = heldOut[0]!.length;
  const runner = await openModule(buildPlainDecoder(config, weights, window, window + 1));
  const protocol = makeProtocol(config, plainContract, window + 1);
  const session = new DecoderSession({ protocol, graphs: new Map([[window, runner]]) });
  return runAll(session, heldOut);
}

async function runAll(session: DecoderSession, windows: readonly (readonly number[])[]): Promise<Logits> {
  const logits: Float32Array[][] = [];
  try {
    for (const window of windows) {
      session.reset();
      logits.push(await session.feed(window, 'all'));
    }
  } finally {
    await session.close();
  }
  return logits;
}

/** Mean KL of a decoder's graph, integers and all, against the float model's logits. */
async function measureDivergence(
  decoder: QuantizedDecoder,
  { heldOut, prefix }: TryInputs,
  expected: Logits,
): Promise<number> {
  const window = heldOut[0]!.length;
  const request = { name: 'try', tokens: window, cache: window + 1, logits: 'all' } as const;
  const session = new DecoderSession({
    protocol: makeProtocol(decoder.config, decoder.contract, window + 1),
    graphs: new Map([[window, await openModule(decoder.stamp(request))]]),
    ...(decoder.contract.embedding === 'embeds' ? { embedding: decoder.embed } : {}),
  });
  const got = await runAll(session, heldOut);
  const sums = emptyLogitSums();
  heldOut.forEach((ids, w) => {
    for (let i = prefix; i + 1 < ids.length; i++) addLogits(sums, expected[w]![i]!, got[w]![i]!, ids[i + 1]!);
  });
  return sums.divergence / sums.count;
}

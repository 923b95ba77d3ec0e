import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  type Budget,
  choosePromotions,
  formBytes,
  PROMOTED,
  type Promotion,
  promotableGroups,
  promotionOverrides,
  requireBudget,
} from '../../calibration/budget.ts';
import { measureSensitivity } from '../../calibration/measure-sensitivity.ts';
import type { WeightPlan } from '../../calibration/plan-weights.ts';
import { planWeights } from '../../calibration/plan-weights.ts';
import type { QuantizedDecoder } from '../../calibration/quantize-decoder.ts';
import type { NumberFormat, Override, Recipe } from '../../calibration/recipe.ts';
import { NpucError } from '../../compiler/errors.ts';
import { dequantizeLazily, quantizeLazily } from '../../compiler/export/quantize-constant.ts';
import { buildDecoder, type DecoderModel } from '../../compiler/import/decoder-model.ts';
import type { Graph } from '../../compiler/ir/graph.ts';
import type { Tensor } from '../../compiler/ir/tensor.ts';
import { applyIoContract } from '../../passes/apply-io-contract.ts';
import type { IoContract } from '../../passes/io-contract.ts';
import type { TargetName } from '../../targets/target.ts';

/** Windows of calibration text on which sensitivity is measured. */
const WINDOWS = 2;

/** What a budget came to for one target: the curve from the least to the most bytes, and how much of it was taken. */
export interface BudgetReport {
  readonly budget: number;
  /** Every weight at its planned form; what was chosen. */
  readonly smallest: number;
  readonly chosen: number;
  readonly windows: number;
  /** Groups in the order of what they buy for a byte; `bytes` and `left` (KL) are those with all before it promoted too. */
  readonly curve: readonly (Promotion & { readonly promoted: boolean })[];
}

/** Bytes of all weights of a plan, embedding table included. */
function plannedBytes(
  graph: Graph,
  weights: ReadonlyMap<string, WeightPlan>,
  { vocabSize, hiddenSize }: DecoderModel['config'],
  recipe: Recipe,
  format: NumberFormat,
): number {
  let bytes = 0;
  for (const { name, form, axis } of weights.values()) {
    const { dims } = graph.find(name)!;
    bytes += formBytes(form, dims[1 - axis]!, dims[axis]!);
  }
  const elements = vocabSize * hiddenSize;
  return bytes + (format.table === 'row' ? elements + 4 * vocabSize : (elements * recipe.activation) / 8);
}

/**
 * Refuses a budget that nothing can meet, before any work.
 * @throws QT140 naming the smallest that works, CL001 for a scheme that does not start from 4 bits
 */
export function checkBudget(
  budget: Budget,
  { config, weights, taken }: DecoderModel,
  recipe: Recipe,
  { format, contract }: { readonly format: NumberFormat; readonly contract: IoContract },
): void {
  if (recipe.weight.bits !== 4) {
    throw new NpucError('CL001', {
      message: `--budget gives 4-bit weights more bits where they pay; --scheme ${recipe.scheme} has none of 4 bits`,
      hint: '--scheme w4a16',
    });
  }
  if (taken.size > 0) {
    throw new NpucError('CL001', {
      message: "--budget would change the checkpoint's own integers",
      hint: 'leave it out, or take the checkpoint in floats',
    });
  }
  const module = buildDecoder(config, weights, 2, true);
  applyIoContract(module, contract, { tokens: 1, cache: 2 });
  const graph = module.graph();
  requireBudget(budget, plannedBytes(graph, planWeights(graph, recipe, format, []), config, recipe, format));
}

/** Measures what each group of 4-bit weights costs in KL, and chooses those that get 8 bits within the budget. */
export async function meetBudget(
  budget: Budget,
  decoder: QuantizedDecoder,
  windows: readonly (readonly number[])[],
  onLayer: (done: number, total: number) => void,
): Promise<{ readonly overrides: Override[]; readonly report: BudgetReport }> {
  const { config, plan, recipe, format, migration, embed } = decoder;
  const graph = decoder.stamp({ name: 'weights', tokens: 1, cache: 2, logits: 'all' }).graph();
  const smallest = plannedBytes(graph, plan.weights, config, recipe, format);
  requireBudget(budget, smallest);
  const groups = promotableGroups(plan);
  const quantized = new Map<string, Tensor>();
  for (const name of [...groups.values()].flat()) {
    const { data, encoding, payload } = graph.find(name)!;
    quantized.set(name, dequantizeLazily(payload ?? quantizeLazily(data!, encoding!, name), encoding!));
  }
  const used = windows.slice(0, WINDOWS);
  const common = { config, weights: migration.weights, quantized, groups, embed, windows: used, onLayer };
  const divergences = await measureSensitivity(common);
  const sensitive = [...groups].map(([name, weights]) => {
    const cost = weights.reduce((sum, weight) => {
      const [inputs, outputs] = graph.find(weight)!.dims as [number, number];
      return sum + formBytes(PROMOTED, inputs, outputs) - formBytes(plan.weights.get(weight)!.form, inputs, outputs);
    }, 0);
    return { name, weights, cost, divergence: divergences.get(name)! };
  });
  const { curve, taken } = choosePromotions(sensitive, smallest, budget);
  const chosen = curve.reduce((sum, { name, cost }) => sum + (taken.has(name) ? cost : 0), smallest);
  return {
    overrides: promotionOverrides(curve, taken),
    report: {
      budget: budget.bytes,
      smallest,
      chosen,
      windows: used.length,
      curve: curve.map((each) => ({ ...each, promoted: taken.has(each.name) })),
    },
  };
}

/** One line for a plan's remarks. */
export function describeBudget({ budget, smallest, chosen, curve }: BudgetReport): string {
  const promoted = curve.filter((each) => each.promoted);
  const all = curve.reduce((sum, { divergence }) => sum + divergence, 0);
  const bought = promoted.reduce((sum, { divergence }) => sum + divergence, 0);
  const size = (bytes: number): string => `${(bytes / 1e6).toFixed(2)} MB`;
  return (
    `budget ${size(budget)}: ${promoted.length} of ${curve.length} groups of weights have 8 bits, ${size(chosen)} instead of ` +
    `${size(smallest)}; the groups' own KL adds up to ${(all - bought).toFixed(4)} instead of ${all.toFixed(4)} (budget.json has the curve)`
  );
}

/** The file beside a manifest that has the curve of every target. */
export const BUDGET_FILE = 'budget.json';

export function writeBudget(folder: string, reports: ReadonlyMap<TargetName, BudgetReport>): string {
  const targets = Object.fromEntries(reports);
  writeFileSync(join(folder, BUDGET_FILE), `${JSON.stringify({ format: 1, targets }, undefined, 1)}\n`);
  return BUDGET_FILE;
}

import { NpucError } from '../compiler/errors.ts';
import type { Plan } from './plan.ts';
import { type Override, overrideOf, type WeightForm } from './recipe.ts';

/** A limit on the bytes of all weights, head and embedding table included. */
export interface Budget {
  readonly bytes: number;
}

/** Weights that get more bits together or not at all, and what measuring them alone gave. */
export interface SensitiveGroup {
  readonly name: string;
  readonly weights: readonly string[];
  /** Bytes that 8 bits take more than the planned form. */
  readonly cost: number;
  /** Mean KL on the measured windows when this group alone has its planned form and all the rest is float. */
  readonly divergence: number;
}

/** A group that was given 8 bits: what it cost, and what it bought. */
export interface Promotion extends SensitiveGroup {
  /** Bytes of all weights, and the sum of the KL of all groups that are left, from here on. */
  readonly bytes: number;
  readonly left: number;
}

/** Bytes of a matrix [inputs, outputs]: packed integers, a float a channel, and a byte a block, or a half float. */
export function formBytes({ bits, block, scales }: WeightForm, inputs: number, outputs: number): number {
  const blocks = block > 0 ? Math.ceil(inputs / block) * outputs : 0;
  const perBlock = scales === 'f16' ? 2 : 1;
  const channels = block > 0 && scales === 'f16' ? 0 : 4 * outputs;
  return Math.ceil((inputs * outputs * bits) / 8) + channels + blocks * perBlock;
}

/** What promoted weights become. */
export const PROMOTED: WeightForm = { bits: 8, block: 0 };

/** Weights that read one input, or feed one sum: the granularity of promotion. */
export function groupName(weight: string): string | undefined {
  const found = /^model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)_proj\.weight$/.exec(weight);
  if (!found) return undefined;
  const [, layer, kind] = found;
  const part = 'qkv'.includes(kind!) ? 'q,k,v' : kind === 'gate' || kind === 'up' ? 'gate,up' : kind;
  return `layers.${layer} ${part}`;
}

/** The groups of a plan whose weights have 4 bits and may have 8: where an override chose the form, it stays. */
export function promotableGroups(plan: Pick<Plan, 'weights'>): Map<string, string[]> {
  const groups = new Map<string, string[]>();
  for (const { name, form, why } of plan.weights.values()) {
    const group = groupName(name);
    if (group === undefined || form.bits !== 4 || why.startsWith('override')) continue;
    groups.set(group, [...(groups.get(group) ?? []), name]);
  }
  return groups;
}

/** @throws QT140 naming the least bytes that there can be */
export function requireBudget(budget: Budget, smallest: number): void {
  if (smallest <= budget.bytes) return;
  throw new NpucError('QT140', {
    message: `the weights take at least ${smallest} bytes (${(smallest / 1e6).toFixed(2)} MB), the budget is ${budget.bytes}`,
    hint: `--budget "weights<=${(Math.ceil(smallest / 1e4) / 100).toFixed(2)}MB" is the smallest that works; larger blocks (--block) take less`,
  });
}

/**
 * Which groups get 8 bits: those that buy the most KL for a byte first, as long as the budget lasts; a group that no longer
 * fits leaves its place to the next one. The sum of the groups' own KL stands for that of the whole.
 * @returns every group in that order: the curve. `taken` of them are within the budget.
 */
export function choosePromotions(
  groups: readonly SensitiveGroup[],
  smallest: number,
  budget: Budget,
): { readonly curve: readonly Promotion[]; readonly taken: ReadonlySet<string> } {
  const order = [...groups].sort((a, b) => b.divergence / b.cost - a.divergence / a.cost || (a.name < b.name ? -1 : 1));
  let bytes = smallest;
  let left = groups.reduce((sum, { divergence }) => sum + divergence, 0);
  const curve = order.map((group): Promotion => {
    bytes += group.cost;
    left = Math.max(0, left - group.divergence);
    return { ...group, bytes, left };
  });
  const taken = new Set<string>();
  let used = smallest;
  for (const { name, cost } of order) {
    if (used + cost > budget.bytes) continue;
    used += cost;
    taken.add(name);
  }
  return { curve, taken };
}

/** The promotions as overrides of a recipe; the reason says what each cost and bought. */
export function promotionOverrides(curve: readonly Promotion[], taken: ReadonlySet<string>): Override[] {
  return curve
    .filter(({ name }) => taken.has(name))
    .flatMap(({ name, weights, cost, divergence }) =>
      weights.map((weight) => ({
        ...overrideOf(weight),
        weight: PROMOTED,
        why: `budget: 8 bits for ${name} cost ${(cost / 1e6).toFixed(3)} MB; at 4 bits alone it has KL ${divergence.toPrecision(3)}`,
      })),
    );
}

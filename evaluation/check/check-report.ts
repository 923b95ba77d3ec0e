import type { Attribution } from './attribute-error.ts';
import type { Baseline } from './baseline.ts';
import type { Culprit, Trial } from './find-culprit.ts';
import type { Finding, Judgement } from './judge.ts';
import type { Measurement } from './measurement.ts';

/** Everything that a check has to say; every output is a rendering of it. */
export interface CheckReport {
  readonly measurement: Measurement;
  readonly baseline: Baseline;
  readonly judgement: Judgement;
  readonly culprit?: Culprit;
  /** What was swapped back to find it. */
  readonly trials: readonly Trial[];
  readonly attribution?: Attribution;
  /** The file that the recipe came from, and the line of each of its keys. */
  readonly config?: { readonly path: string; readonly lines: ReadonlyMap<string, number> };
}

/** A place in a file of the repository. */
export interface Place {
  readonly file: string;
  readonly line: number;
}

/** Keys of the configuration file that decide a line of the recipe. */
const CONFIG_KEYS: Readonly<Record<string, readonly string[]>> = {
  cache: ['kv'],
  weight: ['block', 'scheme'],
  activation: ['scheme'],
  head: ['scheme'],
  migration: ['scheme'],
};

/** Where a finding is shown: the line of the recipe, where there is a file of it, else that of the figure in the baseline. */
export function placeOf({ baseline, config }: CheckReport, at: string): Place {
  if (config && at.startsWith('recipe.')) {
    const key = at.slice('recipe.'.length);
    for (const name of [...(CONFIG_KEYS[key] ?? []), key]) {
      const line = config.lines.get(name);
      if (line !== undefined) return { file: config.path, line };
    }
  }
  return { file: baseline.path, line: baseline.lines.get(at) ?? baseline.lines.get(at.split('.')[0]!) ?? 1 };
}

/** What failed, in the order that tells most: metrics, steps, budgets, then values in order of computation. */
export function listFailures({ judgement }: CheckReport): Finding[] {
  const order = ['metric', 'stage', 'budget', 'value'];
  return judgement.findings
    .filter(({ level }) => level === 'regression')
    .sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind));
}

/** One sentence on the whole. */
export function describeOutcome(report: CheckReport): string {
  const failures = listFailures(report);
  const { compared, insideNoise } = report.judgement;
  if (failures.length === 0)
    return `No regression: ${compared} values compared, ${insideNoise} of them moved inside the noise.`;
  const values = failures.filter(({ kind }) => kind === 'value').length;
  const others = failures.filter(({ kind }) => kind !== 'value').map(({ subject }) => subject);
  const parts = [
    ...(others.length > 0 ? [[...new Set(others)].slice(0, 4).join(', ')] : []),
    ...(values > 0 ? [`${values} of ${compared} values`] : []),
  ];
  return `Regression in ${parts.join(' and ')}.`;
}

/** Lines of the recipe that are not the baseline's, whether or not they cost anything. */
export function changedRecipe({ measurement, baseline }: CheckReport): string[] {
  const [now, before] = [measurement.recipe, baseline.measurement.recipe] as unknown as Record<string, unknown>[];
  const keys = [...new Set([...Object.keys(before!), ...Object.keys(now!)])];
  return keys.filter((key) => JSON.stringify(now![key]) !== JSON.stringify(before![key]));
}

/** The recipe's own words for a source of error. */
export const SOURCE_NAMES = {
  weights: 'rounding of weights',
  activations: 'ranges of activations',
  cache: 'key/value cache',
  lowering: 'lowering without integers',
} as const;

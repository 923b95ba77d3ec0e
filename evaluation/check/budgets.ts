import { compileMatch } from '../../calibration/recipe.ts';
import { type Measurement, weightedMean } from './measurement.ts';

/** Limits that a reviewer sets, whatever the noise: they come on top of the comparison with the baseline. */
export interface Budgets {
  readonly max_kl?: number | undefined;
  readonly min_top1?: number | undefined;
  readonly max_perplexity?: number | undefined;
  readonly max_perplexity_ratio?: number | undefined;
  /** dB of an ONNX model's outputs. */
  readonly min_sqnr?: number | undefined;
  /** Of weights and embedding together. */
  readonly max_bytes?: number | undefined;
  /** dB of the values whose name, or whose source node's name, matches a regular expression. */
  readonly values?: readonly { readonly match: string; readonly min_sqnr: number }[] | undefined;
}

export interface BudgetBreach {
  /** Such as `max_kl`, or `values.0`. */
  readonly budget: string;
  readonly limit: number;
  readonly got: number;
  /** The value that broke it. */
  readonly value?: string;
}

/** Every budget that a measurement breaks. @throws QT102 for a match that is no regular expression */
export function findBreaches(now: Measurement, budgets: Budgets): BudgetBreach[] {
  const mean = (key: 'divergence' | 'agreement' | 'loss' | 'floatLoss' | 'noise'): number | undefined =>
    now.series[key] && weightedMean(now.series[key], now.predictions);
  const [loss, floatLoss, noise] = [mean('loss'), mean('floatLoss'), mean('noise')];
  const ratio = loss === undefined || floatLoss === undefined ? undefined : Math.exp(loss - floatLoss);
  const bytes = Object.entries(now.bytes).reduce((sum, [key, n]) => (key === 'cache_per_token' ? sum : sum + n), 0);
  const breaches: BudgetBreach[] = [];
  const most = (budget: keyof Budgets, got: number | undefined): void => {
    const limit = budgets[budget] as number | undefined;
    // The negation makes a figure that is no number a breach.
    if (limit !== undefined && got !== undefined && !(got <= limit)) breaches.push({ budget, limit, got });
  };
  const least = (budget: keyof Budgets, got: number | undefined): void => {
    const limit = budgets[budget] as number | undefined;
    if (limit !== undefined && got !== undefined && !(got >= limit)) breaches.push({ budget, limit, got });
  };
  most('max_kl', mean('divergence'));
  least('min_top1', mean('agreement'));
  most('max_perplexity', loss === undefined ? undefined : Math.exp(loss));
  most('max_perplexity_ratio', ratio);
  least('min_sqnr', noise === undefined ? undefined : -10 * Math.log10(noise));
  most('max_bytes', bytes);
  (budgets.values ?? []).forEach(({ match, min_sqnr }, i) => {
    const expression = compileMatch(match);
    for (const { name, from, sqnr } of now.values) {
      if (!(sqnr >= min_sqnr) && [name, ...from].some((each) => expression.test(each)))
        breaches.push({ budget: `values.${i}`, limit: min_sqnr, got: sqnr, value: name });
    }
  });
  return breaches;
}

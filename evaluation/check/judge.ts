import { NpucError } from '../../compiler/errors.ts';
import { type Baseline, requireSameSubject } from './baseline.ts';
import { bootstrapMean, studentQuantile } from './bootstrap.ts';
import { findBreaches } from './budgets.ts';
import { keepsFloats } from './compare-stages.ts';
import { METRICS, type MeasuredValue, type Measurement, type Metric, weightedMean } from './measurement.ts';
import { LEAST_NOISE } from './noise-floor.ts';

export type FindingKind = 'metric' | 'value' | 'stage' | 'budget' | 'scale' | 'missing';

/** One thing that a check has to say. */
export interface Finding {
  readonly kind: FindingKind;
  /** Only regressions and broken budgets fail a check. */
  readonly level: 'regression' | 'note' | 'improvement';
  /** Metric, value, stage or budget. */
  readonly subject: string;
  /** The user's own nodes. */
  readonly from: readonly string[];
  readonly message: string;
  readonly before?: number;
  readonly now: number;
  /** How much worse, over the measured noise. */
  readonly timesNoise?: number;
  /** Path in the baseline file whose line it is about. */
  readonly at: string;
}

export interface MetricRow {
  readonly metric: Metric;
  /** Means as they are shown. */
  readonly before: number;
  readonly now: number;
  /** Mean paired difference with its 99 % interval; above zero is worse. */
  readonly worse: number;
  readonly low: number;
  readonly high: number;
  readonly noise: number;
  readonly verdict: 'regression' | 'inside the noise' | 'improvement';
}

export interface Judgement {
  readonly failed: boolean;
  readonly metrics: readonly MetricRow[];
  readonly findings: readonly Finding[];
  /** Values whose SQNR moved, but by no more than noise explains. */
  readonly insideNoise: number;
  readonly compared: number;
  /** Deviations that a difference must exceed: one chance in a hundred that noise alone raises any alarm. */
  readonly factors: { readonly metric: number; readonly value: number };
}

/** Chance of a false alarm over all figures together. */
const ALARM = 0.01;

/**
 * Compares a measurement with its baseline. A figure regresses where it is worse by more than its noise explains at one chance
 * in a hundred over all figures; a metric over windows must also be worse in the paired bootstrap.
 * @throws CK003 when they are not of the same subject, CK004 when a measured figure is no number
 */
export function judge(baseline: Baseline, now: Measurement, seed: number): Judgement {
  requireSameSubject(baseline, now);
  requireNumbers(now, 1);
  const { measurement: base, noise } = baseline;
  const freedom = Math.max(1, noise.draws);
  const known = METRICS.filter(({ key }) => base.series[key] && now.series[key]);
  const compared = now.values.filter(({ name }) => base.values.some((value) => value.name === name));
  const factors = {
    metric: studentQuantile(ALARM / 2 / Math.max(1, known.length), freedom),
    // Ranges that a rare element outgrows make tails heavy: those of so few degrees of freedom as there were draws.
    value: studentQuantile(ALARM / 2 / Math.max(1, compared.length), freedom),
  };
  const findings: Finding[] = [];
  const metrics = known.map((metric) => judgeMetric(metric, baseline, now, seed, factors.metric));
  for (const row of metrics) {
    const { metric, verdict } = row;
    if (verdict === 'inside the noise') continue;
    findings.push({
      kind: 'metric',
      level: verdict,
      subject: metric.title,
      from: [],
      message: `${metric.title} went from ${short(row.before)} to ${short(row.now)}`,
      before: row.before,
      now: row.now,
      timesNoise: Math.abs(row.worse) / row.noise,
      at: `metrics.${metric.title}`,
    });
  }
  findings.push(...judgeStages(base, now));
  const values = judgeValues(baseline, now, factors.value);
  findings.push(...values.findings);
  for (const breach of findBreaches(now, baseline.budgets)) {
    const limit = breach.budget.startsWith('max') ? 'at most' : 'at least';
    findings.push({
      kind: 'budget',
      level: 'regression',
      subject: breach.value ?? breach.budget,
      from: now.values.find(({ name }) => name === breach.value)?.from ?? [],
      message: `the budget ${breach.budget} allows ${limit} ${breach.limit}, ${breach.value ?? 'the model'} has ${short(breach.got)}`,
      now: breach.got,
      at: 'budgets',
    });
  }
  return {
    failed: findings.some(({ level }) => level === 'regression'),
    metrics,
    findings,
    insideNoise: values.insideNoise,
    compared: compared.length,
    factors,
  };
}

/** @throws CK004 naming the first figure that is no number; `exitCode` 1 in a check, 2 where a baseline is to be written */
export function requireNumbers(now: Measurement, exitCode: 1 | 2): void {
  const bad =
    METRICS.find(({ key }) => now.series[key]?.some((figure) => !Number.isFinite(figure)))?.title ??
    now.values.find(({ sqnr, rms }) => Number.isNaN(sqnr) || !Number.isFinite(rms))?.name;
  if (bad === undefined) return;
  throw new NpucError('CK004', {
    message: `${bad} is not a number: the quantized model overflows, or gives NaN`,
    where: now.values.find(({ name }) => name === bad)?.from[0] ?? bad,
    hint: 'npuc compile reports the first value that is not finite',
    exitCode,
  });
}

function judgeMetric(
  metric: Metric,
  { measurement: base, noise }: Baseline,
  now: Measurement,
  seed: number,
  factor: number,
): MetricRow {
  const [before, after] = [base.series[metric.key]!, now.series[metric.key]!];
  const sign = metric.better === 'lower' ? 1 : -1;
  const { mean, low, high } = bootstrapMean(
    after.map((value, i) => sign * (value - before[i]!)),
    now.predictions,
    seed,
  );
  const size = Math.max(LEAST_NOISE[metric.key], noise.metrics[metric.key] ?? 0);
  const verdict =
    mean > factor * size && low > 0
      ? 'regression'
      : -mean > factor * size && high < 0
        ? 'improvement'
        : 'inside the noise';
  return {
    metric,
    before: metric.show(weightedMean(before, base.predictions)),
    now: metric.show(weightedMean(after, now.predictions)),
    worse: mean,
    low,
    high,
    noise: size,
    verdict,
  };
}

/** Steps that must not change the float model. */
function judgeStages(base: Measurement, now: Measurement): Finding[] {
  return now.stages.flatMap(({ name, sqnr }): Finding[] => {
    const before = base.stages.find((stage) => stage.name === name)?.sqnr;
    if (keepsFloats(sqnr, before)) return [];
    return [
      {
        kind: 'stage',
        level: 'regression',
        subject: name,
        from: [],
        message: `the step "${name}" changes what the float model computes: ${sqnr.toFixed(1)} dB`,
        ...(before === undefined ? {} : { before }),
        now: sqnr,
        at: `stages.${name}`,
      },
    ];
  });
}

function judgeValues(
  { measurement: base, noise }: Baseline,
  now: Measurement,
  factor: number,
): { findings: Finding[]; insideNoise: number } {
  const before = new Map(base.values.map((value) => [value.name, value]));
  const findings: Finding[] = [];
  let insideNoise = 0;
  for (const value of now.values) {
    const old = before.get(value.name);
    if (!old) continue;
    const size = Math.max(LEAST_NOISE.value, noise.values.get(value.name) ?? 0);
    const drop = old.sqnr === value.sqnr ? 0 : old.sqnr - value.sqnr;
    const illusion = describeIllusion(old, value, factor * size);
    if (Math.abs(drop) > factor * size) {
      findings.push({
        kind: 'value',
        level: drop > 0 ? 'regression' : illusion ? 'note' : 'improvement',
        subject: value.name,
        from: value.from,
        message: `${value.name} went from ${old.sqnr.toFixed(1)} to ${value.sqnr.toFixed(1)} dB${illusion ? `, ${illusion}` : ''}`,
        before: old.sqnr,
        now: value.sqnr,
        timesNoise: Math.abs(drop) / size,
        at: `values.${value.name}`,
      });
      continue;
    }
    if (illusion) {
      findings.push({
        kind: 'scale',
        level: 'note',
        subject: value.name,
        from: value.from,
        message: `${value.name} has the dB it had only because ${illusion}`,
        before: old.rms,
        now: value.rms,
        at: `values.${value.name}`,
      });
    } else if (drop !== 0) insideNoise++;
  }
  for (const { name } of base.values) {
    if (now.values.some((value) => value.name === name)) continue;
    findings.push({
      kind: 'missing',
      level: 'note',
      subject: name,
      from: [],
      message: `${name} is not quantized any more, or is gone`,
      now: Number.NaN,
      at: `values.${name}`,
    });
  }
  return { findings, insideNoise };
}

/** dB hide noise that grew together with the value: said where noise grew by more than the margin and dB did not fall. */
function describeIllusion(old: MeasuredValue, now: MeasuredValue, margin: number): string | undefined {
  const [was, is] = [noisePower(old), noisePower(now)];
  if (!(was > 0) || !(is > 0) || !Number.isFinite(is)) return undefined;
  const grown = 10 * Math.log10(is / was);
  const scale = 20 * Math.log10(now.rms / old.rms);
  if (grown <= Math.max(1, margin) || scale <= 1 || now.sqnr < old.sqnr - margin) return undefined;
  return `it grew ${(now.rms / old.rms).toFixed(2)} times: its noise is ${grown.toFixed(1)} dB larger`;
}

function noisePower({ rms, sqnr }: MeasuredValue): number {
  return rms * rms * 10 ** (-sqnr / 10);
}

function short(value: number): string {
  return Number.isFinite(value) ? String(Number(value.toPrecision(4))) : String(value);
}

import type { Recipe } from '../../calibration/recipe.ts';
import type { TargetName } from '../../targets/target.ts';

/** Figures that are known for every window of text, or for every sample of an ONNX model. */
export type MetricKey = 'divergence' | 'agreement' | 'loss' | 'floatLoss' | 'noise';

export interface Metric {
  readonly key: MetricKey;
  /** As a baseline and a report name it. */
  readonly title: string;
  readonly better: 'lower' | 'higher';
  /** What is shown for a mean: perplexity for a loss, dB for noise. */
  readonly show: (mean: number) => number;
}

const same = (mean: number): number => mean;

/** Every metric, in the order of a baseline. */
export const METRICS: readonly Metric[] = [
  { key: 'divergence', title: 'kl', better: 'lower', show: same },
  { key: 'agreement', title: 'top1', better: 'higher', show: same },
  { key: 'loss', title: 'perplexity', better: 'lower', show: Math.exp },
  { key: 'floatLoss', title: 'float_perplexity', better: 'lower', show: Math.exp },
  { key: 'noise', title: 'sqnr', better: 'lower', show: (share) => (share === 0 ? Infinity : -10 * Math.log10(share)) },
];

/** A value's encoding, as far as it is one scale for the whole value. */
export interface MeasuredEncoding {
  readonly dtype: string;
  readonly scale: number;
  readonly zero: number;
}

/** One value of the target's graph, over all windows that values are compared on. */
export interface MeasuredValue {
  readonly name: string;
  /** The user's own nodes that it came from. */
  readonly from: readonly string[];
  /** dB against the same value of the float graph. */
  readonly sqnr: number;
  readonly cosine: number;
  /** Root mean square of the float value: with it a figure that only looks good because the value grew shows. */
  readonly rms: number;
  /** Smallest and largest element of the float value. */
  readonly range: readonly [number, number];
  /** Noise that came in here, as a share of the value's own power. */
  readonly noiseAdded?: number;
  readonly encoding?: MeasuredEncoding;
}

/** One weight of the model. */
export interface MeasuredWeight {
  readonly name: string;
  /** Such as `i4 block 64`. */
  readonly form: string;
  /** Geometric mean of all its scales. */
  readonly scale: number;
  /** First 8 hexadecimal digits of the SHA-256 of the float weight as it was imported. */
  readonly digest: string;
}

/** A step of lowering that must not change what the float model computes. */
export interface MeasuredStage {
  readonly name: string;
  /** dB of its outputs against those of the stage before. */
  readonly sqnr: number;
}

/** Everything that a check compares with a baseline. */
export interface Measurement {
  readonly kind: 'decoder' | 'model';
  readonly model: { readonly name: string; readonly digest: string };
  readonly npuc: string;
  readonly engine: string;
  readonly target: TargetName;
  readonly recipe: Recipe;
  /** Held-out text or samples. */
  readonly text: { readonly digest: string; readonly windows: number; readonly tokens: number };
  readonly calibration: { readonly digest: string; readonly windows: number };
  readonly bytes: Readonly<Record<string, number>>;
  /** Predictions of each window: the weight of its means. */
  readonly predictions: readonly number[];
  /** Means over each window. */
  readonly series: Readonly<Partial<Record<MetricKey, readonly number[]>>>;
  readonly stages: readonly MeasuredStage[];
  /** In order of computation, without values that are mere rearrangements of another. */
  readonly values: readonly MeasuredValue[];
  readonly weights: readonly MeasuredWeight[];
}

/** Mean of window means, each window counting by its predictions. */
export function weightedMean(series: readonly number[], weights: readonly number[]): number {
  let sum = 0;
  let total = 0;
  series.forEach((value, i) => {
    sum += value * weights[i]!;
    total += weights[i]!;
  });
  return sum / total;
}

/** A name with its numbers taken out: the same role in every layer. */
export function roleOf(name: string): string {
  return name.replace(/\d+/g, '*');
}

/** The layer that a value or a weight belongs to, by its name: `layers.3.q_proj`, `new_key_3`. */
export function layerOf(name: string): number | undefined {
  const found = /(?:^|[./_])(?:layers?|blocks?|h|key|value|k|v)[._](\d+)(?=[._]|$)/.exec(name);
  return found ? Number(found[1]) : undefined;
}

import type { MeasuredEncoding } from '../check/measurement.ts';
import type { RealTensor } from './align-values.ts';

/** One value of a build. */
export interface ViewValue {
  /** In the names of npuc's own decoder, or of the user's model, whatever the target calls it. */
  readonly name: string;
  readonly from: readonly string[];
  /** dB against float, where a report knows them. */
  readonly sqnr?: number;
  /** Noise that comes in here, as a share of the value's power. */
  readonly noiseAdded?: number;
  readonly encoding?: MeasuredEncoding;
}

/** One weight of a build. */
export interface ViewWeight {
  readonly name: string;
  /** Such as `i4 block 64`. */
  readonly form: string;
  /** Geometric mean of its scales. */
  readonly scale: number;
  /** The real numbers that its integers stand for, read when asked for. */
  readonly read?: () => RealTensor;
}

/** What quality is known by: one figure and whether less of it is better. */
export interface ViewFigure {
  readonly name: string;
  readonly value: number;
  readonly better: 'lower' | 'higher';
}

/** A build, a recipe or an artifact, as far as it can be compared with another. */
export interface BuildView {
  readonly title: string;
  readonly kind: 'checkpoint' | 'build' | 'recipe' | 'artifact' | 'baseline' | 'measurement';
  /** Settings and versions, in order. */
  readonly facts: readonly (readonly [string, string])[];
  /** Operators of its graph, the decode graph where there are several, by name. */
  readonly ops: ReadonlyMap<string, number>;
  /** In order of computation. */
  readonly values: readonly ViewValue[];
  readonly weights: readonly ViewWeight[];
  /** What goes to the phone. */
  readonly files: readonly { readonly path: string; readonly bytes: number }[];
  readonly quality: readonly ViewFigure[];
}

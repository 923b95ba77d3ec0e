import { NpucError } from '../../compiler/errors.ts';
import { type AlignedComparison, compareAligned, type RealTensor } from './align-values.ts';
import type { BuildView, ViewFigure, ViewValue, ViewWeight } from './build-view.ts';
import type { RunComparison } from './run-artifacts.ts';

export interface FactRow {
  readonly name: string;
  readonly a: string;
  readonly b: string;
  readonly changed: boolean;
}

export interface ValueRow {
  readonly name: string;
  readonly from: readonly string[];
  readonly a?: ViewValue;
  readonly b?: ViewValue;
  /** dB that b has more than a. */
  readonly delta?: number;
  /** Of the step: 2 is a range twice as wide in the same type. */
  readonly scaleRatio?: number;
  /** b against a, where both were run on the same inputs: layout and scale undone. */
  readonly numbers?: AlignedComparison;
  readonly changed: boolean;
}

/** Counts of both weights over the same bins. */
export interface Histogram {
  readonly low: number;
  readonly high: number;
  readonly a: readonly number[];
  readonly b: readonly number[];
}

export interface WeightRow {
  readonly name: string;
  readonly a?: ViewWeight;
  readonly b?: ViewWeight;
  readonly changed: boolean;
  /** b's real numbers against a's, layout and scale undone. */
  readonly numbers?: AlignedComparison;
  readonly histogram?: Histogram;
}

export interface QualityRow {
  readonly name: string;
  readonly a?: number;
  readonly b?: number;
  readonly better: ViewFigure['better'];
}

/** Everything that changed between two builds. */
export interface BuildDiff {
  readonly a: BuildView;
  readonly b: BuildView;
  readonly facts: readonly FactRow[];
  readonly ops: readonly { readonly name: string; readonly a: number; readonly b: number }[];
  readonly values: readonly ValueRow[];
  readonly weights: readonly WeightRow[];
  readonly files: readonly { readonly path: string; readonly a?: number; readonly b?: number }[];
  readonly bytes: { readonly a: number; readonly b: number };
  readonly quality: readonly QualityRow[];
}

/** Scales that differ by less are the same but for the order of sums. */
const SAME_SCALE = 1e-5;
/** dB that differ by less did not change. */
const SAME_DB = 0.05;
/** dB from which two floats are the same but for the order of sums. */
const SAME_NUMBERS = 100;
const BINS = 32;
/** Elements of a weight above which its numbers are not compared: 64 MiB of floats on either side. */
const MOST_ELEMENTS = 2 ** 24;

/**
 * Compares two builds: values and weights by the names that passes carried on.
 * @param run values of both on the same inputs, where they were run
 * @throws CK005 when they have no value, weight, operator or figure in common
 */
export function compareBuilds(a: BuildView, b: BuildView, run: RunComparison = new Map()): BuildDiff {
  const values = pair(addRun(a.values, run), addRun(b.values, run)).map(
    ([left, right]): ValueRow => compareValue(left, right, run.get((left ?? right)!.name)),
  );
  const weights = pair(a.weights, b.weights).map(([left, right]): WeightRow => compareWeight(left, right));
  const quality = pair(a.quality, b.quality).map(
    ([left, right]): QualityRow => ({
      name: (left ?? right)!.name,
      better: (left ?? right)!.better,
      ...(left ? { a: left.value } : {}),
      ...(right ? { b: right.value } : {}),
    }),
  );
  const ops = [...new Set([...a.ops.keys(), ...b.ops.keys()])].sort().map((name) => ({
    name,
    a: a.ops.get(name) ?? 0,
    b: b.ops.get(name) ?? 0,
  }));
  const common =
    [...values, ...weights, ...quality].some((row) => row.a !== undefined && row.b !== undefined) ||
    ops.some((row) => row.a > 0 && row.b > 0);
  if (!common) {
    throw new NpucError('CK005', {
      message: `${a.title} and ${b.title} have nothing in common: no value, weight, operator or figure`,
      hint: 'are they of the same model?',
    });
  }
  const names = [...new Set([...a.facts, ...b.facts].map(([name]) => name))];
  const of = (view: BuildView, name: string): string => view.facts.find(([each]) => each === name)?.[1] ?? '-';
  const sum = (view: BuildView): number => view.files.reduce((total, { bytes }) => total + bytes, 0);
  return {
    a,
    b,
    facts: names.map((name) => ({ name, a: of(a, name), b: of(b, name), changed: of(a, name) !== of(b, name) })),
    ops,
    values,
    weights,
    files: pair(
      a.files.map(({ path, bytes }) => ({ name: path, bytes })),
      b.files.map(({ path, bytes }) => ({ name: path, bytes })),
    ).map(([left, right]) => ({
      path: (left ?? right)!.name,
      ...(left ? { a: left.bytes } : {}),
      ...(right ? { b: right.bytes } : {}),
    })),
    bytes: { a: sum(a), b: sum(b) },
    quality,
  };
}

/** Pairs by name, in the order of the first list, what only the second has where it stands there. */
function pair<T extends { readonly name: string }>(
  left: readonly T[],
  right: readonly T[],
): [T | undefined, T | undefined][] {
  const others = new Map(right.map((each) => [each.name, each]));
  const known = new Set(left.map(({ name }) => name));
  const pairs: [T | undefined, T | undefined][] = left.map((each) => [each, others.get(each.name)]);
  let after = 0;
  for (const each of right) {
    if (known.has(each.name)) after = pairs.findIndex(([a]) => a?.name === each.name) + 1;
    else pairs.splice(after++, 0, [undefined, each]);
  }
  return pairs;
}

/** Values that only a run knows stand behind those that a view knows. */
function addRun(values: readonly ViewValue[], run: RunComparison): ViewValue[] {
  const known = new Set(values.map(({ name }) => name));
  return [...values, ...[...run.keys()].filter((name) => !known.has(name)).map((name) => ({ name, from: [] }))];
}

function compareValue(
  a: ViewValue | undefined,
  b: ViewValue | undefined,
  numbers: AlignedComparison | undefined,
): ValueRow {
  const { name, from } = (a ?? b)!;
  const delta = a?.sqnr === undefined || b?.sqnr === undefined ? undefined : difference(b.sqnr, a.sqnr);
  const [left, right] = [a?.encoding, b?.encoding];
  const scaleRatio = left && right && left.dtype === right.dtype ? right.scale / left.scale : undefined;
  const other = left?.dtype !== right?.dtype || (left !== undefined && right !== undefined && left.zero !== right.zero);
  return {
    name,
    from: from.length > 0 ? from : (b?.from ?? []),
    ...(a ? { a } : {}),
    ...(b ? { b } : {}),
    ...(delta === undefined ? {} : { delta }),
    ...(scaleRatio === undefined ? {} : { scaleRatio }),
    ...(numbers ? { numbers } : {}),
    changed:
      !a ||
      !b ||
      other ||
      (numbers !== undefined && numbers.sqnr < SAME_NUMBERS) ||
      (scaleRatio !== undefined && Math.abs(scaleRatio - 1) > SAME_SCALE) ||
      (delta !== undefined && !(Math.abs(delta) <= SAME_DB)),
  };
}

function difference(now: number, before: number): number {
  return now === before ? 0 : now - before;
}

function compareWeight(a: ViewWeight | undefined, b: ViewWeight | undefined): WeightRow {
  const row = { name: (a ?? b)!.name, ...(a ? { a } : {}), ...(b ? { b } : {}) };
  if (!a || !b) return { ...row, changed: true };
  const same = a.form === b.form && Math.abs(b.scale / a.scale - 1) <= SAME_SCALE;
  if (!a.read || !b.read) return { ...row, changed: !same };
  const [left, right] = [a.read(), b.read()];
  if (left.data.length > MOST_ELEMENTS) return { ...row, changed: !same };
  const numbers = compareAligned(left, right);
  if (!numbers) return { ...row, changed: true };
  return {
    ...row,
    numbers,
    changed: !same || Number.isFinite(numbers.sqnr),
    histogram: countBoth(left, right),
  };
}

/** Both weights over 32 bins of their common range. */
function countBoth(a: RealTensor, b: RealTensor): Histogram {
  let [low, high] = [0, 0];
  for (const { data } of [a, b]) {
    for (const element of data) {
      if (element < low) low = element;
      if (element > high) high = element;
    }
  }
  const count = ({ data }: RealTensor): number[] => {
    const bins = new Array<number>(BINS).fill(0);
    const width = (high - low) / BINS || 1;
    for (const element of data) bins[Math.min(BINS - 1, Math.floor((element - low) / width))]!++;
    return bins;
  };
  return { low, high, a: count(a), b: count(b) };
}

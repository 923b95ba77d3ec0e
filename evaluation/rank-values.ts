import type { TargetName } from '../targets/target.ts';
import type { ValueComparison } from './compare-values.ts';
import type { Report } from './report.ts';

/** A value with the later ones that only move it: reshapes and transposes have its error and say nothing new. */
export interface RankedValue {
  readonly value: ValueComparison;
  readonly copies: readonly ValueComparison[];
}

/** The values with the lowest SQNR, worst first; NaN is the worst there is. */
export function worstValues(values: readonly ValueComparison[], limit: number): RankedValue[] {
  return gatherCopies(values)
    .sort((a, b) => order(a.value.sqnr) - order(b.value.sqnr))
    .slice(0, limit);
}

/** The values that bring in most noise of their own, the noisiest first: where errors are made. */
export function noisiestValues(values: readonly ValueComparison[], limit: number): ValueComparison[] {
  return values
    .filter((value) => value.noiseAdded !== undefined && value.noiseAdded > 0)
    .sort((a, b) => b.noiseAdded! - a.noiseAdded!)
    .slice(0, limit);
}

/** The first value in order of computation whose SQNR is under the threshold. */
export function firstDiverging(values: readonly ValueComparison[], threshold: number): ValueComparison | undefined {
  return values.find((value) => !(value.sqnr >= threshold));
}

function order(sqnr: number): number {
  return Number.isNaN(sqnr) ? Number.NEGATIVE_INFINITY : sqnr;
}

/** Moving a value keeps its largest error to the bit, and its SQNR but for the order of the sum. */
function gatherCopies(values: readonly ValueComparison[]): RankedValue[] {
  const groups: { value: ValueComparison; copies: ValueComparison[] }[] = [];
  const byError = new Map<number, (typeof groups)[number]>();
  for (const value of values) {
    const group = byError.get(value.maxError);
    if (group && Math.abs(group.value.sqnr - value.sqnr) < 1e-3) group.copies.push(value);
    else {
      const fresh = { value, copies: [] };
      groups.push(fresh);
      if (value.maxError > 0) byError.set(value.maxError, fresh);
    }
  }
  return groups;
}

/** One row of a table over all targets. */
export interface SharedValue {
  readonly name: string;
  readonly from: readonly string[];
  /** dB by target; a target that computes another way has no such value. */
  readonly sqnr: Readonly<Partial<Record<TargetName, number>>>;
}

/** The values that are worst in any target, with what they are in the others, worst first. */
export function worstOverall(report: Report, limit: number): SharedValue[] {
  const rows = new Map<string, SharedValue & { worst: number }>();
  for (const target of Object.values(report.targets)) {
    for (const { value } of worstValues(target.values, limit)) {
      if (rows.has(value.name)) continue;
      const sqnr: Partial<Record<TargetName, number>> = {};
      for (const [name, each] of Object.entries(report.targets) as [TargetName, typeof target][]) {
        const found = each.values.find((other) => other.name === value.name);
        if (found) sqnr[name] = found.sqnr;
      }
      rows.set(value.name, {
        name: value.name,
        from: value.from,
        sqnr,
        worst: Math.min(...Object.values(sqnr).map(order)),
      });
    }
  }
  return [...rows.values()]
    .sort((a, b) => a.worst - b.worst)
    .slice(0, limit)
    .map(({ name, from, sqnr }) => ({ name, from, sqnr }));
}

/** A stretch of the network: what comes before the layers, a layer, what comes after. */
export interface Section {
  /** `in`, the layer's number, or `out`. */
  readonly label: string;
  readonly values: readonly ValueComparison[];
}

const LAYER = /(?:^|[./_])(?:layers?|blocks?|h|encoder|decoder)[./_](\d+)(?=[./_]|$)/;

/**
 * Cuts values, in order of computation, at the layers that their names or their nodes' names tell. Values without a layer
 * belong to the stretch that they are computed in. A graph without layers is one stretch.
 */
export function splitSections(values: readonly ValueComparison[]): Section[] {
  const layers = values.map((value) => {
    const match = [value.name, ...value.from].map((name) => LAYER.exec(name)).find((found) => found !== null);
    return match ? Number(match[1]) : undefined;
  });
  const last = layers.findLastIndex((layer) => layer !== undefined);
  if (last < 0) return values.length > 0 ? [{ label: '', values }] : [];
  const sections = new Map<string, ValueComparison[]>();
  let label = 'in';
  values.forEach((value, i) => {
    if (i > last) label = 'out';
    else if (layers[i] !== undefined) label = String(layers[i]);
    const section = sections.get(label);
    if (section) section.push(value);
    else sections.set(label, [value]);
  });
  return [...sections].map(([name, members]) => ({ label: name, values: members }));
}

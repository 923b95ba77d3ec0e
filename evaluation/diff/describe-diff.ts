import { formatBytes, formatCount } from '../format-figures.ts';
import type { BuildDiff, QualityRow, ValueRow } from './compare-builds.ts';

/** Share by which a figure may move without being said to be better or worse: figures of reports carry no interval. */
const SAME_SHARE = 0.001;

/** Whether b is better, worse or alike in a figure. */
export function judgeFigure({ a, b, better }: QualityRow): 'better' | 'worse' | 'same' | 'unknown' {
  if (a === undefined || b === undefined) return 'unknown';
  if (a === b || Math.abs(b - a) <= SAME_SHARE * Math.abs(a)) return 'same';
  return b < a === (better === 'lower') ? 'better' : 'worse';
}

/** One sentence on what changed. */
export function describeDiff(diff: BuildDiff): string {
  const parts = [
    countChanged(diff.facts.filter(({ changed }) => changed).length, 'setting'),
    countChanged(diff.ops.filter(({ a, b }) => a !== b).length, 'operator count'),
    countChanged(diff.values.filter(({ changed }) => changed).length, 'value'),
    countChanged(diff.weights.filter(({ changed }) => changed).length, 'weight'),
  ].filter((part) => part !== '');
  const { a, b } = diff.bytes;
  const size =
    a === b
      ? `the same size, ${formatBytes(a)}`
      : `${formatBytes(b)} where it was ${formatBytes(a)} (${signed(b - a)})`;
  const verdicts = diff.quality.map(judgeFigure);
  const quality = verdicts.every((verdict) => verdict === 'unknown')
    ? []
    : [
        verdicts.includes('worse')
          ? verdicts.includes('better')
            ? 'quality better in some figures and worse in others'
            : 'worse quality'
          : verdicts.includes('better')
            ? 'better quality'
            : 'the same quality',
      ];
  if (parts.length === 0) return `Nothing changed: ${[...quality, size].join(', ')}.`;
  return `${parts.join(', ')} changed; ${[...quality, size].join(', ')}.`;
}

function countChanged(count: number, what: string): string {
  return count === 0 ? '' : `${formatCount(count)} ${what}${count > 1 ? 's' : ''}`;
}

/** Bytes with a sign. */
export function signed(bytes: number): string {
  return `${bytes < 0 ? '-' : '+'}${formatBytes(Math.abs(bytes))}`;
}

/** The rows that lost most, then those that only one side has, then those that changed in another way. */
export function rankRows(rows: readonly ValueRow[]): ValueRow[] {
  const key = ({ delta, numbers, a, b }: ValueRow): number =>
    delta !== undefined ? delta : numbers ? numbers.sqnr : a && b ? 1e6 : 1e3;
  return rows.filter(({ changed }) => changed).sort((x, y) => key(x) - key(y));
}

/** A form as a table has it: type and step. */
export function describeEncoding(row: ValueRow['a']): string {
  if (!row) return '-';
  const { encoding } = row;
  return encoding ? `${encoding.dtype} ${Number(encoding.scale.toPrecision(4))}` : 'float';
}

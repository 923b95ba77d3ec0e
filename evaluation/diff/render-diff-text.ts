import colors from 'picocolors';
import { formatFigure, layRows } from '../check/render-text.ts';
import { formatBytes, formatDecibels } from '../format-figures.ts';
import { describeAlignment } from './align-values.ts';
import type { BuildDiff } from './compare-builds.ts';
import { describeDiff, describeEncoding, judgeFigure, rankRows, signed } from './describe-diff.ts';

/** Rows of each table; the HTML file has all. */
const SHOWN = 10;

/** What changed, for a terminal, with a line break at its end. */
export function renderDiffText(diff: BuildDiff, colour: boolean): string {
  const paint = colors.createColors(colour);
  const lines = [paint.bold(`${diff.a.title}  ->  ${diff.b.title}`), describeDiff(diff)];
  const table = (head: readonly string[], rows: readonly (readonly string[])[]): void => {
    if (rows.length === 0) return;
    const shown = rows.slice(0, SHOWN);
    lines.push('', ...layRows([head, ...shown]));
    if (rows.length > shown.length) lines.push(`and ${rows.length - shown.length} more`);
  };
  table(
    ['quality', 'a', 'b', ''],
    diff.quality.map((row) => [
      row.name,
      row.a === undefined ? '-' : formatFigure(row.a),
      row.b === undefined ? '-' : formatFigure(row.b),
      judgeFigure(row),
    ]),
  );
  table(
    ['setting', 'a', 'b'],
    diff.facts.filter(({ changed }) => changed).map(({ name, a, b }) => [name, cut(a), cut(b)]),
  );
  table(
    ['file', 'a', 'b', 'difference'],
    diff.files
      .filter(({ a, b }) => a !== b)
      .map(({ path, a, b }) => [
        path,
        a === undefined ? '-' : formatBytes(a),
        b === undefined ? '-' : formatBytes(b),
        signed((b ?? 0) - (a ?? 0)),
      ]),
  );
  table(
    ['operator', 'a', 'b'],
    diff.ops.filter(({ a, b }) => a !== b).map(({ name, a, b }) => [name, String(a), String(b)]),
  );
  table(
    ['value', 'a', 'b', 'dB a', 'dB b', 'difference', 'b against a'],
    rankRows(diff.values).map((row) => [
      row.name,
      describeEncoding(row.a),
      describeEncoding(row.b),
      formatDecibels(row.a?.sqnr).replace(' dB', ''),
      formatDecibels(row.b?.sqnr).replace(' dB', ''),
      row.delta === undefined ? '-' : row.delta.toFixed(1),
      row.numbers ? [formatDecibels(row.numbers.sqnr), ...describeAlignment(row.numbers)].join(', ') : '-',
    ]),
  );
  table(
    ['weight', 'a', 'b', 'numbers'],
    diff.weights
      .filter(({ changed }) => changed)
      .map(({ name, a, b, numbers }) => [
        name,
        a?.form ?? '-',
        b?.form ?? '-',
        numbers ? [formatDecibels(numbers.sqnr), ...describeAlignment(numbers)].join(', ') : '-',
      ]),
  );
  return `${lines.join('\n')}\n`;
}

function cut(text: string): string {
  return text.length > 40 ? `${text.slice(0, 39)}…` : text;
}

import colors from 'picocolors';
import { formatBytes, formatDecibels, formatShare } from '../format-figures.ts';
import { type CheckReport, changedRecipe, describeOutcome, listFailures, SOURCE_NAMES } from './check-report.ts';
import type { MetricRow } from './judge.ts';

/** Values that are listed; the files have all. */
const SHOWN = 8;

/** A figure in the fewest digits that tell two of them apart. */
export function formatFigure(value: number): string {
  return Number.isFinite(value) ? String(Number(value.toPrecision(4))) : String(value);
}

/** What a metric's row says, as cells: name, before, now, difference with interval, noise, verdict. */
export function metricCells({ metric, before, now, worse, low, high, noise, verdict }: MetricRow): string[] {
  const sign = metric.better === 'lower' ? 1 : -1;
  const [from, to] = sign === 1 ? [low, high] : [-high, -low];
  const signed = (value: number): string => `${value > 0 ? '+' : ''}${formatFigure(value)}`;
  return [
    metric.title,
    formatFigure(before),
    formatFigure(now),
    `${signed(sign * worse)} (${signed(from)} to ${signed(to)})`,
    `${formatFigure(noise)}`,
    `${(Math.abs(worse) / noise).toFixed(1)} x`,
    verdict,
  ];
}

export const METRIC_HEAD = [
  'metric',
  'baseline',
  'now',
  'difference (99 %)',
  'noise',
  'over noise',
  'verdict',
] as const;

/** The report for a terminal, with a line break at its end. */
export function renderCheckText(report: CheckReport, colour: boolean): string {
  const paint = colors.createColors(colour);
  const { measurement, judgement, culprit, trials, attribution, baseline } = report;
  const mark = judgement.failed ? paint.red('FAILED') : paint.green('passed');
  const lines = [
    paint.bold(`check of ${measurement.model.name} for ${measurement.target} against ${baseline.path}: ${mark}`),
    describeOutcome(report),
    '',
    ...layRows([[...METRIC_HEAD], ...judgement.metrics.map(metricCells)]),
  ];
  if (baseline.measurement.engine !== measurement.engine)
    lines.push(`the baseline was measured with ${baseline.measurement.engine}, this with ${measurement.engine}`);
  const changed = changedRecipe(report);
  if (changed.length > 0) lines.push(`the recipe is not that of the baseline: ${changed.join(', ')}`);
  const failures = listFailures(report).filter(({ kind }) => kind !== 'metric');
  if (failures.length > 0) lines.push('');
  for (const { message, timesNoise, from } of failures.slice(0, SHOWN)) {
    const times = timesNoise === undefined ? '' : `, ${timesNoise.toFixed(1)} x its noise`;
    lines.push(`- ${message}${times}${from.length > 0 ? `  (${from.join(', ')})` : ''}`);
  }
  if (failures.length > SHOWN) lines.push(`- and ${failures.length - SHOWN} more`);
  const notes = judgement.findings.filter(({ level }) => level === 'note');
  for (const { message } of notes.slice(0, SHOWN)) lines.push(`- note: ${message}`);
  if (notes.length > SHOWN) lines.push(`- and ${notes.length - SHOWN} more notes`);
  const better = judgement.findings.filter(({ level }) => level === 'improvement').length;
  if (better > 0) lines.push(`${better} figures improved: --update takes them into the baseline`);
  if (judgement.failed) {
    lines.push('');
    if (culprit) {
      lines.push(paint.bold(`culprit: ${culprit.what}`), `  ${culprit.why}`);
      if (culprit.from.length > 0) lines.push(`  from ${culprit.from.slice(0, 4).join(', ')}`);
    } else lines.push('no single culprit: nothing that was swapped back took the regression away');
    for (const { kind, what, recovered } of trials)
      lines.push(paint.dim(`  ${formatShare(Math.max(0, recovered)).padStart(8)} recovered by ${kind} ${what}`));
  }
  if (attribution) {
    lines.push('', `where the error comes from (KL ${formatFigure(attribution.total)}):`);
    lines.push(
      ...layRows([
        ['source', 'alone', 'total without it'],
        ...attribution.shares.map(({ source, alone, without }) => [
          SOURCE_NAMES[source],
          formatFigure(alone),
          formatFigure(attribution.total - without),
        ]),
      ]),
    );
    const [fix] = attribution.fixes;
    if (fix)
      lines.push(
        `cheapest fix: ${fix.what}: KL ${formatFigure(-fix.gain)}, ${formatBytes(fix.bytes)} more${fix.recipe.startsWith('kv') ? ' a token' : ''}`,
        `  ${fix.recipe}`,
      );
  }
  return `${lines.join('\n')}\n`;
}

/** Pads columns to their widest cell. */
export function layRows(rows: readonly (readonly string[])[]): string[] {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column]!))
      .join('  ')
      .trimEnd(),
  );
}

/** The report as markdown: a pull request's step summary. */
export function renderCheckMarkdown(report: CheckReport): string {
  const { measurement, judgement, culprit, trials, attribution } = report;
  const table = (head: readonly string[], rows: readonly (readonly string[])[]): string[] => [
    `| ${head.join(' | ')} |`,
    `|${head.map(() => '---').join('|')}|`,
    ...rows.map((row) => `| ${row.map(escapeCell).join(' | ')} |`),
    '',
  ];
  const lines = [
    `## ${judgement.failed ? '❌' : '✅'} npuc check: ${escapeCell(measurement.model.name)} for ${measurement.target}`,
    '',
    describeOutcome(report),
    '',
    ...table(METRIC_HEAD, judgement.metrics.map(metricCells)),
  ];
  if (culprit) {
    lines.push(`**Culprit: ${escapeCell(culprit.what)}**: ${escapeCell(culprit.why)}.`, '');
    if (culprit.from.length > 0)
      lines.push(
        `From ${culprit.from
          .slice(0, 6)
          .map((node) => `\`${node.replaceAll('`', "'")}\``)
          .join(', ')}.`,
        '',
      );
  }
  const failures = listFailures(report).filter(({ kind }) => kind !== 'metric');
  if (failures.length > 0) {
    lines.push(
      ...table(
        ['where', 'baseline', 'now', 'over noise', 'your node'],
        failures
          .slice(0, 20)
          .map(({ kind, subject, before, now, timesNoise, from }) => [
            subject,
            before === undefined ? '-' : kind === 'budget' ? formatFigure(before) : formatDecibels(before),
            kind === 'budget' ? formatFigure(now) : formatDecibels(now),
            timesNoise === undefined ? '-' : `${timesNoise.toFixed(1)} x`,
            from.join(', ') || '-',
          ]),
      ),
    );
    if (failures.length > 20) lines.push(`and ${failures.length - 20} more`, '');
  }
  if (trials.length > 0) {
    lines.push('<details><summary>What was swapped back</summary>', '');
    lines.push(
      ...table(
        ['part', 'regression recovered'],
        trials.map(({ kind, what, recovered }) => [`${kind} ${what}`, formatShare(Math.max(0, recovered))]),
      ),
      '</details>',
      '',
    );
  }
  if (attribution) {
    lines.push(
      ...table(
        ['source of error', 'KL alone', 'KL without it'],
        attribution.shares.map(({ source, alone, without }) => [
          SOURCE_NAMES[source],
          formatFigure(alone),
          formatFigure(attribution.total - without),
        ]),
      ),
    );
    for (const { what, gain, bytes, recipe } of attribution.fixes.slice(0, 3))
      lines.push(`- ${escapeCell(what)}: KL ${formatFigure(-gain)}, ${formatBytes(bytes)} more: \`${recipe}\``);
    if (attribution.fixes.length > 0) lines.push('');
  }
  lines.push(
    `A metric fails where it is worse by ${judgement.factors.metric.toFixed(1)} times its noise and worse in the paired bootstrap, a value where it is worse by ${judgement.factors.value.toFixed(1)} times its own: one false alarm in a hundred checks.`,
    '',
  );
  return lines.join('\n');
}

/** Names come from a stranger's file: they must not end a cell or start markup. */
function escapeCell(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}]/gu, '\ufffd').replace(/[\\|<>`*[\]]/g, (character) => `\\${character}`);
}

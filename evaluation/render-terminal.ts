import colors from 'picocolors';
import type { Sharing, TargetName } from '../targets/target.ts';
import { describeNpu } from './describe-npu.ts';
import { describeSource, describeVerdict, joinWords, listTargets, shortenMiddle } from './describe-report.ts';
import {
  EXECUTIONS,
  formatBytes,
  formatCount,
  formatDecibels,
  formatDivergence,
  formatPerplexity,
  formatRatio,
  formatRatioError,
  formatSeconds,
  formatShare,
} from './format-figures.ts';
import { GRADES, type Grade, gradeTarget } from './grade-target.ts';
import { describeRemark, groupRemarks } from './group-remarks.ts';
import { firstDiverging, noisiestValues, worstOverall } from './rank-values.ts';
import type { CacheCheck, Report, TargetReport } from './report.ts';

export interface TerminalOptions {
  /** Default: when stdout is a terminal and NO_COLOR is not set. */
  readonly colour?: boolean;
  /** Columns. Default: those of the terminal, 80 at least and 100 at most. */
  readonly width?: number;
}

type Paint = (text: string) => string;
type Colors = ReturnType<typeof colors.createColors>;

interface Cell {
  readonly text: string;
  readonly paint?: Paint;
  readonly right?: boolean;
}

const WIDTHS = { least: 80, most: 100 };
const GAP = '  ';
const REMARKS = 6;
const WORST = 10;

/** The report as a compact table, as wide as the terminal but at most 100 columns, without a line break at its end. */
export function renderTerminal(report: Report, options: TerminalOptions = {}): string {
  const paint = colors.createColors(options.colour ?? wantsColour());
  const width = options.width ?? Math.max(WIDTHS.least, Math.min(WIDTHS.most, process.stdout.columns ?? WIDTHS.most));
  const targets = listTargets(report);
  const verdict = describeVerdict(report);
  const shape = `${report.tokens.join(', ')} tokens, cache ${report.caches.map(formatCount).join(', ')}`;
  const lines = [
    paint.bold(shorten(`${report.source} for ${report.soc}, ${report.scheme}, ${shape}`, width)),
    ...wrap(verdict.sentence, width).map(gradePaint(paint, verdict.grade)),
    '',
    ...renderFigures(targets, paint, width),
    paint.dim(describeFloat(report)),
  ];
  const values = renderValues(report, targets, paint, width);
  if (values.length > 0) lines.push('', ...values);
  const notes = targets.flatMap(([name, target]) => [
    ...(target.twinSqnr === undefined ? [] : [`${name}: ${describeTwin(target.twinSqnr)}`]),
    ...(target.sharing ? [`${name}: ${describeSharing(target.sharing)}`] : []),
    ...(target.caches ? [`${name}: ${describeCaches(target.caches)}`] : []),
    ...(target.npu ?? []).flatMap(describeNpu).map((line) => `${name} for ${line}`),
    ...target.notes.map((note) => `${name}: ${note}`),
  ]);
  const grouped = groupRemarks(report.remarks);
  const remarks = grouped.slice(0, REMARKS).map(describeRemark);
  const more = grouped.length - remarks.length;
  if (more > 0) remarks.push(`${formatCount(more)} more remarks in report.html`);
  if (notes.length + remarks.length > 0)
    lines.push('', ...[...notes, ...remarks].flatMap((text) => wrap(text, width, '- ')));
  return lines.map((line) => line.trimEnd()).join('\n');
}

/** How exactly an engine computes: its logits against ONNX Runtime on the same QDQ model. */
export function describeTwin(sqnr: number): string {
  return `the engine's logits agree with ONNX Runtime on the same QDQ model to ${formatDecibels(sqnr)}`;
}

/** What graphs save by having one binary. @param format how bytes are written */
export function describeSharing(
  { graphs, binaryBytes, aloneBytes, measured, sharedWeights }: Sharing,
  format: (bytes: number) => string = formatBytes,
): string {
  const alone = `${format(aloneBytes)} alone${measured ? '' : ' (estimated)'}`;
  return `${formatCount(graphs)} graphs share ${formatCount(sharedWeights)} weights: ${format(binaryBytes)} together, ${alone}`;
}

/** The figures are of the largest cache; the graphs of the others must give the same. */
export function describeCaches(caches: readonly CacheCheck[]): string {
  const each = caches.map(
    ({ cache, sqnr }) =>
      `${formatCount(cache)} ${sqnr === Number.POSITIVE_INFINITY ? 'exactly' : `to ${formatDecibels(sqnr)}`}`,
  );
  return `the graphs of smaller caches agree with those of the largest: ${each.join(', ')}`;
}

/** Whether stdout takes colours, by NO_COLOR, FORCE_COLOR and what it is. */
export function wantsColour(): boolean {
  const { NO_COLOR, FORCE_COLOR, TERM } = process.env;
  if (NO_COLOR) return false;
  return Boolean(FORCE_COLOR) || (process.stdout.isTTY === true && TERM !== 'dumb');
}

function gradePaint(paint: Colors, grade: Grade): Paint {
  if (grade === 'close') return paint.green;
  return grade === 'loss' || grade === 'unproven' ? paint.yellow : paint.red;
}

function describeFloat(report: Report): string {
  const tokens = `${formatCount(report.evaluationTokens)} tokens of held-out text`;
  return Number.isFinite(report.floatPerplexity)
    ? `float model: perplexity ${formatPerplexity(report.floatPerplexity)} on ${tokens}`
    : 'float model: perplexity not measured, the engines ran one chunk';
}

function renderFigures(targets: readonly [TargetName, TargetReport][], paint: Colors, width: number): string[] {
  const head = ['target', 'verdict', 'ppl ratio', 'KL', 'top-1', 'logits', 'size', 'how'];
  const rows = targets.map(([name, target]): Cell[] => {
    const grade = gradeTarget(target);
    const { logits } = target;
    const figures = logits ?? target.chunk;
    const ratio = logits
      ? `${formatRatio(logits.ratio)} ± ${formatRatioError(logits.ratioError, logits.ratio)}`
      : target.chunk
        ? 'one chunk only'
        : '-';
    return [
      { text: name, paint: paint.bold },
      { text: GRADES[grade].word, paint: gradePaint(paint, grade) },
      { text: ratio },
      { text: figures ? formatDivergence(figures.divergence) : '-', right: true },
      { text: figures ? formatShare(figures.topAgreement) : '-', right: true },
      { text: formatDecibels(figures?.sqnr), right: true },
      { text: formatBytes(target.bytes), right: true },
      { text: EXECUTIONS[target.execution].short.replace('executed as', 'as') },
    ];
  });
  const engines = targets.map(([name, { engine, seconds }]) => `${name} in ${engine} (${formatSeconds(seconds)})`);
  const titles = head.map((text, i) => ({ text, paint: paint.dim, right: i > 2 && i < head.length - 1 }));
  return [...layTable([titles, ...rows], width), ...wrap(`ran ${joinWords(engines)}`, width).map(paint.dim)];
}

/** The ten worst values over all targets, where each target first diverges, and where it loses most. */
function renderValues(
  report: Report,
  targets: readonly [TargetName, TargetReport][],
  paint: Colors,
  width: number,
): string[] {
  const compared = targets.filter(([, target]) => target.values.length > 0);
  if (compared.length === 0) return [];
  const threshold = report.divergenceThreshold;
  const rows = worstOverall(report, WORST).map((row): Cell[] => [
    { text: shorten(row.name, Math.floor(0.34 * width)) },
    ...compared.map(([name]): Cell => {
      const sqnr = row.sqnr[name];
      const text = sqnr === undefined ? '-' : formatDecibels(sqnr).replace(' dB', '');
      return { text, right: true, ...(sqnr !== undefined && !(sqnr >= threshold) ? { paint: paint.yellow } : {}) };
    }),
    { text: describeSource(row.from), paint: paint.dim },
  ]);
  const head: Cell[] = ['worst values, dB', ...compared.map(([name]) => name), 'your node'].map((text, i) => ({
    text,
    paint: paint.dim,
    right: i > 0 && i <= compared.length,
  }));
  const first = groupTargets(compared, ({ values }) => {
    const value = firstDiverging(values, threshold);
    return value ? value.name : 'none';
  });
  const noisy = compared.filter(([, { values }]) => noisiestValues(values, 1).length > 0);
  const source = groupTargets(noisy, ({ values }) => noisiestValues(values, 1)[0]!.name);
  const lines = [
    `first under ${threshold} dB: ${first}`,
    ...(noisy.length > 0 ? [`most noise comes in at ${source}`] : []),
  ];
  return [...layTable([head, ...rows], width), ...wrap(lines.join('; '), width)];
}

/** `a (onnx, qnn), b (tflite)`; no names where all targets say the same. */
function groupTargets(
  targets: readonly [TargetName, TargetReport][],
  describe: (target: TargetReport) => string,
): string {
  const groups = new Map<string, string[]>();
  for (const [name, target] of targets) {
    const text = describe(target);
    groups.set(text, [...(groups.get(text) ?? []), name]);
  }
  if (groups.size === 1) return [...groups.keys()][0]!;
  return joinWords([...groups].map(([text, names]) => `${text} (${names.join(', ')})`));
}

/** Pads columns to their widest cell; the last one gets what is left of the line. */
function layTable(rows: readonly (readonly Cell[])[], width: number): string[] {
  const clean = rows.map((row) => row.map((cell) => ({ ...cell, text: printable(cell.text) })));
  const widths = clean[0]!.map((_, column) => Math.max(...clean.map((row) => lengthOf(row[column]!.text))));
  const last = widths.length - 1;
  const before = widths.slice(0, last).reduce((sum, width) => sum + width + GAP.length, 0);
  widths[last] = Math.max(8, width - before);
  return clean.map((row) =>
    row
      .map(({ text, paint, right }, column) => {
        const fitted = column === last ? shorten(text, widths[last]!) : text;
        const padding = ' '.repeat(Math.max(0, widths[column]! - lengthOf(fitted)));
        const painted = paint ? paint(fitted) : fitted;
        return right ? padding + painted : column === last ? painted : painted + padding;
      })
      .join(GAP),
  );
}

/** Breaks a text at spaces into lines; later lines are indented as far as the mark before the first. */
function wrap(text: string, columns: number, mark = ''): string[] {
  const width = columns - mark.length;
  const lines: string[] = [];
  let line = '';
  for (const word of printable(text)
    .split(' ')
    .map((each) => shorten(each, width))) {
    if (line !== '' && lengthOf(line) + 1 + lengthOf(word) > width) {
      lines.push(line);
      line = word;
    } else line = line === '' ? word : `${line} ${word}`;
  }
  lines.push(line);
  return lines.map((each, i) => (i === 0 ? mark : ' '.repeat(mark.length)) + each);
}

/** A printable text, its middle cut out where it is too long. */
function shorten(text: string, width: number): string {
  return shortenMiddle(printable(text), width);
}

/** Names come from a stranger's file: control characters in them must not reach the terminal. */
function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, '\ufffd');
}

function lengthOf(text: string): number {
  return [...text].length;
}

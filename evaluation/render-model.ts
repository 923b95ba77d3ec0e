import type { TargetName } from '../targets/target.ts';
import { worstSqnr } from './compare-runs.ts';
import { describeNpu } from './describe-npu.ts';
import { describeSource } from './describe-report.ts';
import { EXECUTIONS, formatBytes, formatDecibels, formatReal, formatRun, formatSteps } from './format-figures.ts';
import type { ModelReport, ModelTargetReport, SampleReport } from './model-report.ts';
import { worstValues } from './rank-values.ts';

const WORST = 10;
const REMARKS = 8;

/** The report of an ONNX model as text of plain lines, with a line break at its end. */
export function renderModel(report: ModelReport): string {
  const inputs = report.inputs.map(({ name, type }) => `${name} ${type}`).join(', ');
  const lines = [
    `${report.source} for ${report.soc}, ${report.scheme}: ${inputs}`,
    `calibrated on ${describeSamples(report.calibration)}, evaluated on ${describeSamples(report.evaluation)}`,
  ];
  for (const warning of report.warnings) lines.push(`WARNING: ${warning}`);
  if (report.simplified) {
    lines.push(
      `frozen and simplified float graph against the untouched model: ${formatDecibels(worstSqnr(report.simplified))}`,
    );
  }
  const shown = new Map<ModelTargetReport['values'], TargetName>();
  for (const [name, target] of Object.entries(report.targets) as [TargetName, ModelTargetReport][]) {
    lines.push('', ...renderTarget(name, target));
    const twin = shown.get(target.values);
    if (twin) lines.push(`  the values of the QDQ graph are those of ${twin}`);
    else lines.push(...renderValues(target, report.divergenceThreshold));
    if (!twin && target.values.length > 0) shown.set(target.values, name);
    lines.push(...(target.npu ?? []).flatMap(describeNpu).map((line) => `  npu: ${line}`));
    lines.push(...target.notes.map((note) => `  note: ${note}`));
  }
  const remarks = report.remarks.slice(0, REMARKS);
  const more = report.remarks.length - remarks.length;
  if (remarks.length > 0) lines.push('', ...remarks.map((remark) => `- ${remark}`));
  if (more > 0) lines.push(`- ${more} more remarks in report.json`);
  return `${lines.map(printable).join('\n')}\n`;
}

/** What random samples mean for a report: its loudest lines. */
export function describeRandom(report: Pick<ModelReport, 'calibration' | 'evaluation'>): string[] {
  const warnings: string[] = [];
  if (report.calibration.random)
    warnings.push('ranges were measured on random inputs: give real samples with --calibrate file.npz');
  if (report.evaluation.random)
    warnings.push('the figures below are from random inputs: give real samples with --evaluate file.npz');
  return warnings;
}

function describeSamples({ source, samples, random }: SampleReport): string {
  return random ? source : `${samples} ${samples === 1 ? 'sample' : 'samples'} of ${source}`;
}

function renderTarget(name: TargetName, target: ModelTargetReport): string[] {
  const head = `${name}: ${target.engine}, ${EXECUTIONS[target.execution].short}, ${formatRun(target.seconds)} a run, ${formatBytes(target.bytes)}`;
  const table = [
    ['output', 'SQNR', 'cosine', 'max error', ...(target.twin ? ['engine', 'QDQ'] : [])],
    ...target.outputs.map((output, i) => [
      output.name,
      formatDecibels(output.sqnr),
      output.cosine.toFixed(6),
      formatReal(output.maxError),
      ...(target.twin ? [formatDecibels(target.twin[i]!.sqnr), formatDecibels(target.twinOutputs![i]!.sqnr)] : []),
    ]),
  ];
  const lines = [head, ...layTable(table)];
  if (target.twin) {
    lines.push('  engine: against ONNX Runtime on the same QDQ model; QDQ: that model against the float model');
  }
  return lines;
}

/** The ten worst values, with the user's own nodes, and where the graph first parts from the float model. */
function renderValues(target: ModelTargetReport, threshold: number): string[] {
  const worst = worstValues(target.values, WORST);
  if (worst.length === 0) return [];
  const first = target.firstDivergence
    ? `first under ${threshold} dB: ${target.firstDivergence}`
    : `none under ${threshold} dB`;
  return [
    `  worst values of the QDQ graph; ${first}`,
    ...layTable([
      ['value', 'SQNR', 'max error', 'steps', 'your node'],
      ...worst.map(({ value }) => [
        value.name,
        formatDecibels(value.sqnr),
        formatReal(value.maxError),
        formatSteps(value.maxSteps),
        describeSource(value.from),
      ]),
    ]),
  ];
}

/** Longest name in a table: exporters of some frameworks chain the names of everything that they merged. */
const LONGEST_CELL = 44;

function layTable(rows: readonly (readonly string[])[]): string[] {
  const cells = rows.map((row) => row.map((cell) => shorten(printable(cell))));
  const widths = cells[0]!.map((_, column) => Math.max(...cells.map((row) => row[column]!.length)));
  return cells.map((row) => `  ${row.map((cell, column) => cell.padEnd(widths[column]!)).join('  ')}`.trimEnd());
}

/** Cuts the middle out of a text that is too long: the ends of names say most. */
function shorten(text: string): string {
  if (text.length <= LONGEST_CELL) return text;
  const head = Math.floor((LONGEST_CELL - 1) / 3);
  return `${text.slice(0, head)}\u2026${text.slice(text.length - (LONGEST_CELL - 1 - head))}`;
}

/** Names come from a stranger's file: control characters in them must not reach the terminal. */
function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, '\ufffd');
}

import { COLUMNS, describeState } from './render-sweep-text.ts';
import type { SweepReport } from './sweep-report.ts';

/** Every point as a line of comma-separated values (RFC 4180), figures as numbers, absent ones empty. */
export function renderSweepCsv({ points, budget }: SweepReport): string {
  const head = [
    ...COLUMNS.map(({ name, unit }) => (unit === '' ? name : `${name} (${unit})`)),
    'prefill low (tokens/s)',
    'prefill high (tokens/s)',
    'decode low (tokens/s)',
    'decode high (tokens/s)',
    'on the front',
    'chosen',
    'state',
  ];
  const lines = points.map((point) => [
    ...COLUMNS.map(({ value }) => value(point)),
    point.plan.prefill?.low,
    point.plan.prefill?.high,
    point.plan.decode?.low,
    point.plan.decode?.high,
    point.front ? 'yes' : 'no',
    point.id === budget?.best ? 'yes' : 'no',
    describeState(point),
  ]);
  return [head, ...lines].map((cells) => `${cells.map(writeCell).join(',')}\r\n`).join('');
}

function writeCell(cell: string | number | undefined): string {
  const text = cell === undefined ? '' : String(cell);
  // A spreadsheet takes a text that begins so for a formula.
  const plain = typeof cell === 'string' && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
}

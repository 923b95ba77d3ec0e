import type { EstimateError, SpeedEstimate } from '../../targets/estimate-speed.ts';
import { formatBytes, formatPerplexity, formatRatio, formatSeconds } from '../format-figures.ts';
import { describeSharing, listSharing, memoryOf, REQUEST, type SweepPoint, type SweepReport } from './sweep-report.ts';

/** A column of the table and of the CSV: for people and for programs. */
export interface Column {
  readonly name: string;
  readonly unit: string;
  /** What the column is, for the report's legend. */
  readonly about: string;
  readonly text: (point: SweepPoint) => string;
  /** Undefined where the point does not have it. */
  readonly value: (point: SweepPoint) => number | string | undefined;
  readonly numeric: boolean;
}

const rate = (estimate: SpeedEstimate | undefined): string =>
  estimate === undefined ? '-' : `~${formatRate(estimate.tokensPerSecond)}`;

const bytes = (value: number | undefined): string => (value === undefined ? '-' : formatBytes(value));

function column(
  name: string,
  unit: string,
  about: string,
  value: Column['value'],
  text: Column['text'],
  numeric = true,
): Column {
  return { name, unit, about, value, text, numeric };
}

/** Every figure of a point, in the order of tables. */
export const COLUMNS: readonly Column[] = [
  column(
    'target',
    '',
    'what it is compiled for',
    ({ target }) => target,
    ({ target }) => target,
    false,
  ),
  column(
    'SoC',
    '',
    'part name',
    ({ soc }) => soc,
    ({ soc }) => soc,
    false,
  ),
  column(
    'scheme',
    '',
    'bits of weights and activations',
    ({ scheme }) => scheme,
    ({ scheme }) => scheme,
    false,
  ),
  column(
    'tokens',
    '',
    'new tokens of a prefill run',
    ({ tokens }) => tokens,
    ({ tokens }) => String(tokens),
  ),
  column(
    'cache',
    '',
    'whole context',
    ({ cache }) => cache,
    ({ cache }) => String(cache),
  ),
  column('memory', 'bytes', 'artifact, cache, values inside the graphs, inputs and outputs', memoryOf, (point) =>
    formatBytes(memoryOf(point)),
  ),
  column(
    'artifact',
    'bytes',
    'what goes to the phone: measured once it is compiled, planned before',
    ({ plan, result }) => result?.artifactBytes ?? plan.artifactBytes,
    ({ plan, result }) => formatBytes(result?.artifactBytes ?? plan.artifactBytes),
  ),
  column(
    'planned',
    'bytes',
    'the artifact as it was planned',
    ({ plan }) => plan.artifactBytes,
    ({ plan }) => formatBytes(plan.artifactBytes),
  ),
  column(
    'KV',
    'bytes',
    'keys and values of the whole cache',
    ({ plan }) => plan.cacheBytes,
    ({ plan }) => formatBytes(plan.cacheBytes),
  ),
  column(
    'arena',
    'bytes',
    'values inside the graph, laid out by when they are needed',
    ({ plan }) => plan.arenaBytes,
    ({ plan }) => formatBytes(plan.arenaBytes),
  ),
  column(
    'spill-fill',
    'bytes',
    'of the prefill graph, read back from the binary',
    ({ result }) => result?.spillFill?.prefill,
    ({ result }) => bytes(result?.spillFill?.prefill),
  ),
  column(
    'prefill',
    'tokens/s',
    'estimate from the peaks of the SoC',
    ({ plan }) => plan.prefill?.tokensPerSecond,
    ({ plan }) => rate(plan.prefill),
  ),
  column(
    'decode',
    'tokens/s',
    'estimate from the peaks of the SoC',
    ({ plan }) => plan.decode?.tokensPerSecond,
    ({ plan }) => rate(plan.decode),
  ),
  column(
    'request',
    's',
    `estimate for a prompt of ${REQUEST.prompt} tokens and an answer of ${REQUEST.answer}`,
    ({ plan }) => plan.seconds,
    ({ plan }) => (plan.seconds === undefined ? '-' : `~${formatRequest(plan.seconds)}`),
  ),
  column(
    'perplexity',
    '',
    'of a long text streamed through the cache',
    ({ quality }) => quality?.perplexity,
    ({ quality }) => (quality ? formatPerplexity(quality.perplexity) : '-'),
  ),
  column(
    'ratio',
    'x',
    "perplexity over the float model's with the largest cache",
    ({ quality }) => quality?.ratio,
    ({ quality }) => (quality ? formatRatio(quality.ratio) : '-'),
  ),
  column(
    'simulator',
    'dB',
    'logits of one chunk against ONNX Runtime on the same integers',
    ({ result }) => result?.simulator?.sqnr,
    ({ result }) => (result?.simulator ? result.simulator.sqnr.toFixed(1) : '-'),
  ),
  column(
    'ops',
    '',
    'ops of the decode graph that the target took, of all of them',
    ({ result }) => (result ? `${result.ops.taken}/${result.ops.all}` : undefined),
    ({ result }) => (result ? `${result.ops.taken}/${result.ops.all}` : '-'),
    false,
  ),
  column(
    'compile',
    's',
    'time on this machine',
    ({ result }) => result?.seconds,
    ({ result }) => (result ? formatSeconds(result.seconds) : '-'),
  ),
  column(
    'CPU',
    's',
    "processor time of the compile, the vendor's compiler included",
    ({ result }) => result?.cpuSeconds,
    ({ result }) => (result ? formatSeconds(result.cpuSeconds) : '-'),
  ),
  column(
    'peak',
    'bytes',
    'memory of the compile on this machine',
    ({ result }) => result?.peakRssBytes,
    ({ result }) => bytes(result?.peakRssBytes),
  ),
  column(
    'weights',
    'SHA-256',
    'of the names and bytes of all weights as written',
    ({ result }) => result?.weightsDigest,
    ({ result }) => result?.weightsDigest.slice(0, 8) ?? '-',
    false,
  ),
];

/** Requests of small models take less than a second. */
export function formatRequest(seconds: number): string {
  return seconds < 1 ? `${(1000 * seconds).toFixed(seconds < 0.1 ? 1 : 0)} ms` : formatSeconds(seconds);
}

export function formatRate(tokensPerSecond: number): string {
  return tokensPerSecond < 10 ? tokensPerSecond.toFixed(1) : tokensPerSecond.toFixed(0);
}

/** What stands in the way of a point, in a few words. */
export function describeState({ plan, failure }: SweepPoint): string {
  if (failure) return `${failure.code} ${failure.message}`;
  if (plan.limits.length > 0) return `does not fit: ${plan.limits.join('; ')}`;
  return plan.parts > 1 ? `in ${plan.parts} parts` : '';
}

/** Columns that any point has; the planned size beside the real one only where there is a real one. */
export function listColumns(points: readonly SweepPoint[]): readonly Column[] {
  const compiled = points.some(({ result }) => result !== undefined);
  return COLUMNS.filter(
    ({ name, value }) => points.some((point) => value(point) !== undefined) && (compiled || name !== 'planned'),
  );
}

/** What the published runs do not tell. */
export const SMALL_MODELS =
  'All are of models of three billion weights: what a run costs besides is not in the estimate, so for much smaller models it is a bound from above.';

/** The points as a table for a terminal, with what the budget chose, and how good the estimates are. */
export function renderSweepText(report: SweepReport): string {
  const columns = listColumns(report.points);
  const head = ['', ...columns.map(({ name }) => name), ''];
  const rows = report.points.map((point) => [
    point.id === report.budget?.best ? '>' : point.front ? '*' : '',
    ...columns.map(({ text }) => text(point)),
    describeState(point),
  ]);
  const numeric = [false, ...columns.map(({ numeric }) => numeric), false];
  return [
    `${report.source}: ${report.points.length} points, ${report.points.filter(({ front }) => front).length} of them (*) not beaten in memory, time and quality at once`,
    '',
    ...layTable([head, ...rows], numeric),
    '',
    ...describeStages(report),
    ...listSharing(report.points).map(describeSharing),
    ...(report.points.some(({ plan }) => plan.prefill ?? plan.decode) ? describePublished(report.published) : []),
    ...(report.budget ? ['', ...describeBudget(report)] : []),
    '',
  ].join('\n');
}

/** What each kind of work took. */
function describeStages({ stages = [] }: SweepReport): string[] {
  return stages.map(
    ({ name, jobs, seconds, cpuSeconds, vendorCpuSeconds }) =>
      `${name}: ${jobs} time${jobs === 1 ? '' : 's'}, ${formatSeconds(seconds)}${
        cpuSeconds > 0 ? `, CPU ${formatSeconds(cpuSeconds)}` : ''
      }${vendorCpuSeconds > 0 ? `, of it ${formatSeconds(vendorCpuSeconds)} in the vendor's compiler` : ''}`,
  );
}

/** What the budget chose. */
export function describeBudget({ budget }: SweepReport): string[] {
  if (!budget) return [];
  if (budget.best !== undefined)
    return [
      `best within ${budget.budget}: ${budget.best} (${budget.fitting} point${budget.fitting === 1 ? '' : 's'} within it)`,
    ];
  return [`nothing is within ${budget.budget}:`, ...budget.impossible!.map((line) => `  ${line}`)];
}

/** `~` figures are estimates: how far such estimates are from what was published. */
export function describePublished(published: readonly EstimateError[]): string[] {
  const share = (error: number): string => `${error >= 0 ? '+' : ''}${(100 * error).toFixed(0)} %`;
  return [
    '~ figures are estimates from public peaks of the SoCs, never measured. Their error on published runs:',
    ...published.map(({ run, prefill, decode }) =>
      [
        `  ${run.soc} ${run.model.name}, ${run.scheme}, cache ${run.cache}:`,
        ...(prefill
          ? [`prefill ${formatRate(prefill.estimate)} for ${formatRate(prefill.published)} (${share(prefill.error)}),`]
          : []),
        `decode ${formatRate(decode.estimate)} for ${formatRate(decode.published)} (${share(decode.error)})`,
      ].join(' '),
    ),
    SMALL_MODELS,
  ];
}

function layTable(rows: readonly (readonly string[])[], numeric: readonly boolean[]): string[] {
  const widths = numeric.map((_, i) => Math.max(...rows.map((row) => row[i]!.length)));
  return rows.map((row) =>
    row
      .map((cell, i) => (numeric[i] ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!)))
      .join('  ')
      .trimEnd(),
  );
}

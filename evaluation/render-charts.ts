import type { TargetName } from '../targets/target.ts';
import { listTargets } from './describe-report.ts';
import { formatBytes, formatDivergence, formatRatio, formatRatioError, ROLES } from './format-figures.ts';
import { GRADE_BOUNDS } from './grade-target.ts';
import { html, type Markup } from './markup.ts';
import { describeCaches, describeSharing } from './render-terminal.ts';
import type { Report, ReportFile } from './report.ts';
import { renderMarker } from './target-marker.ts';

/** A number on a chart's axis as a share of its width, 0 to 1. */
type Scale = (value: number) => number;

interface Bar {
  readonly target: TargetName;
  readonly value: number;
  /** Half the width of the whisker. */
  readonly error: number;
  readonly text: string;
}

interface BarChart {
  readonly id: string;
  readonly title: string;
  readonly about: string;
  readonly bars: readonly Bar[];
  /** Where bars start. */
  readonly origin: number;
  readonly scale: Scale;
  readonly ticks: readonly { readonly value: number; readonly label: string; readonly bound: boolean }[];
  /** What to say where there is no bar. */
  readonly absent: string;
}

/** Bars of the perplexity ratio and of KL, with the bounds of the grades. */
export function renderDistances(report: Report): Markup {
  const targets = listTargets(report);
  const ratios = targets.flatMap(([target, { logits }]): Bar[] =>
    logits
      ? [
          {
            target,
            value: logits.ratio,
            error: logits.ratioError,
            text: `${formatRatio(logits.ratio)} ± ${formatRatioError(logits.ratioError, logits.ratio)}`,
          },
        ]
      : [],
  );
  const divergences = targets.flatMap(([target, { logits, chunk }]): Bar[] => {
    const value = (logits ?? chunk)?.divergence;
    return value === undefined
      ? []
      : [{ target, value, error: 0, text: `${formatDivergence(value)}${logits ? '' : ', one chunk'}` }];
  });
  return html`<section><h2>Distance from the float model</h2>
<div class="pair">${renderBars(ratioChart(ratios))}${renderBars(divergenceChart(divergences))}</div></section>`;
}

function ratioChart(bars: readonly Bar[]): BarChart {
  const finite = bars.filter(({ value }) => Number.isFinite(value));
  const low = Math.min(1, ...finite.map(({ value, error }) => value - error));
  const high = Math.max(1.022, ...finite.map(({ value, error }) => value + error));
  const logarithmic = high > 4;
  const scale = logarithmic ? logScale(Math.max(1e-3, low), high) : linearScale(low, 1 + (high - 1) * 1.04);
  const powers = [10, 100, 1e3, 1e4, 1e5, 1e6].filter((power) => power < high);
  return {
    id: 'ratio',
    title: 'Perplexity ratio',
    about: 'Perplexity of the target over that of the float model, with its standard error; 1 is no loss.',
    bars,
    origin: 1,
    scale,
    ticks: [
      { value: 1, label: '1', bound: false },
      ...(logarithmic
        ? powers.map((value) => ({ value, label: value < 1e4 ? String(value) : value.toExponential(0), bound: false }))
        : spaced(
            GRADE_BOUNDS.map(({ ratio }) => ratio).filter((bound) => bound <= high),
            scale,
          ).map((value) => ({
            value,
            label: String(value),
            bound: true,
          }))),
    ],
    absent: 'No target ran enough text for a perplexity.',
  };
}

function divergenceChart(bars: readonly Bar[]): BarChart {
  const finite = bars.filter(({ value }) => Number.isFinite(value));
  const high = Math.max(0.033, ...finite.map(({ value }) => value));
  const scale = linearScale(0, high * 1.04);
  return {
    id: 'divergence',
    title: 'KL divergence',
    about: 'Mean KL(float || target) of the next token, nats; 0 is the same distribution.',
    bars,
    origin: 0,
    scale,
    ticks: [
      { value: 0, label: '0', bound: false },
      ...spaced(
        GRADE_BOUNDS.map(({ divergence }) => divergence).filter((bound) => bound <= high),
        scale,
      ).map((value) => ({
        value,
        label: String(value),
        bound: true,
      })),
    ],
    absent: 'No target was run.',
  };
}

function renderBars(chart: BarChart): Markup {
  if (chart.bars.length === 0)
    return html`<figure class="bars"><h3>${chart.title}</h3><p class="about">${chart.absent}</p></figure>`;
  const { scale } = chart;
  const lines = chart.ticks.map(
    ({ value, bound }) =>
      html`<line class="${bound ? 'bound' : 'origin'}" x1="${percent(scale(value))}" x2="${percent(scale(value))}" y1="0" y2="100%"/>`,
  );
  return html`<figure class="bars" id="${chart.id}"><h3>${chart.title}</h3>
${chart.bars.map(
  (bar) => html`<div class="row t-${bar.target}"><span class="label">${renderMarker(bar.target)}${bar.target}</span>
<svg class="track" width="100%" height="26" role="img" aria-label="${chart.title} of ${bar.target}: ${bar.text}">${lines}${renderBar(
    bar,
    chart,
  )}</svg><span class="value">${bar.text}</span></div>`,
)}
<div class="row axis"><span></span><svg width="100%" height="16" aria-hidden="true">${chart.ticks.map(
    ({ value, label }) =>
      html`<text x="${percent(scale(value))}" y="12" text-anchor="${anchor(scale(value))}">${label}</text>`,
  )}</svg><span></span></div>
<figcaption>${chart.about}${chart.ticks.some(({ bound }) => bound) && ' Dashed lines are the bounds of the verdicts.'}</figcaption></figure>`;
}

function renderBar({ value, error }: Bar, { scale, origin }: BarChart): Markup {
  if (!Number.isFinite(value)) return html`<text class="nan" x="1%" y="17">not a number</text>`;
  const [from, to] = [scale(origin), scale(value)].sort((a, b) => a - b) as [number, number];
  const [low, high] = [scale(value - error), scale(value + error)];
  return html`<rect class="bar" x="${percent(from)}" y="6" width="${percent(Math.max(to - from, 0.003))}" height="14" rx="2"/>${
    error > 0 &&
    html`<g class="whisker"><line x1="${percent(low)}" x2="${percent(high)}" y1="13" y2="13"/><line x1="${percent(low)}" x2="${percent(low)}" y1="9" y2="17"/><line x1="${percent(high)}" x2="${percent(high)}" y1="9" y2="17"/></g>`
  }`;
}

/** What the bytes are, target by target, beside the float16 weights. */
export function renderSizes(report: Report): Markup {
  const targets = listTargets(report);
  const float = report.parameters * 2;
  const most = Math.max(float, ...targets.map(([, { bytes }]) => bytes));
  const rows = targets.map(([name, target]) => {
    const shipped = shippedRoles(target.files ?? []);
    let x = 0;
    const parts = shipped.map(([role, bytes], i) => {
      const rect = html`<rect class="part p${i}" x="${percent(x)}" y="4" width="${percent(bytes / most)}" height="18"><title>${role} ${formatBytes(bytes)}</title></rect>`;
      x += bytes / most;
      return rect;
    });
    const listed = shipped.map(([role, bytes]) => `${role} ${formatBytes(bytes)}`).join(', ');
    return html`<div class="row t-${name}"><span class="label">${renderMarker(name)}${name}</span>
<svg class="track" width="100%" height="26" role="img" aria-label="${name}: ${listed || formatBytes(target.bytes)}">${
      parts.length > 0
        ? parts
        : html`<rect class="part p0" x="0" y="4" width="${percent(target.bytes / most)}" height="18"/>`
    }</svg><span class="value">${formatBytes(target.bytes)}</span></div>
<p class="parts">${listed}</p>`;
  });
  const files = targets.flatMap(([name, target]) => (target.files ?? []).map((file) => ({ name, file })));
  return html`<section><h2>Size</h2><figure class="bars" id="sizes">${rows}
<div class="row float"><span class="label">float16</span><svg class="track" width="100%" height="26" role="img" aria-label="float16 weights: ${formatBytes(
    float,
  )}"><rect class="part" x="0" y="4" width="${percent(float / most)}" height="18"/></svg><span class="value">${formatBytes(float)}</span></div>
<p class="parts">the same weights in float16</p></figure>
${targets.map(
  ([name, { sharing, caches }]) =>
    html`${sharing && html`<p class="about">${name}: ${describeSharing(sharing)}.</p>`}${
      caches && html`<p class="about">${name}: ${describeCaches(caches)}.</p>`
    }`,
)}
${
  files.length > 0 &&
  html`<details><summary>${String(files.length)} files</summary><div class="scroll"><table class="sortable"><thead><tr><th scope="col">file</th><th scope="col">what it is</th><th scope="col" class="n">size</th></tr></thead><tbody>${files.map(
    ({ file }) =>
      html`<tr><td><code>${file.path}</code></td><td>${ROLES[file.role]}</td><td class="n" data-v="${String(file.bytes)}">${formatBytes(file.bytes)}</td></tr>`,
  )}</tbody></table></div></details>`
}</section>`;
}

/** Bytes by role, largest first, without what stays at home. */
function shippedRoles(files: readonly ReportFile[]): [string, number][] {
  const sums = new Map<string, number>();
  for (const { role, bytes } of files) {
    if (role !== 'source') sums.set(ROLES[role], (sums.get(ROLES[role]) ?? 0) + bytes);
  }
  return [...sums].sort(([, a], [, b]) => b - a);
}

function linearScale(low: number, high: number): Scale {
  return (value) => Math.min(1, Math.max(0, (value - low) / (high - low)));
}

function logScale(low: number, high: number): Scale {
  const span = Math.log(high / low) * 1.04;
  return (value) => (value > low ? Math.min(1, Math.log(value / low) / span) : 0);
}

/** Drops ticks that would be written over one another, the larger ones staying. */
function spaced(values: readonly number[], scale: Scale): number[] {
  const kept: number[] = [];
  for (const value of [...values].reverse()) {
    if (scale(value) > 0.08 && (kept.length === 0 || scale(kept[0]!) - scale(value) > 0.12)) kept.unshift(value);
  }
  return kept;
}

function anchor(share: number): string {
  return share < 0.04 ? 'start' : share > 0.96 ? 'end' : 'middle';
}

/** A share as an SVG length. */
export function percent(share: number): string {
  return `${Number((100 * share).toFixed(3))}%`;
}

import type { EstimateError } from '../../targets/estimate-speed.ts';
import { formatBytes, formatCount, formatSeconds } from '../format-figures.ts';
import { html, type Markup } from '../markup.ts';
import { renderPage, renderReproduction } from '../render-page.ts';
import { sortKey } from '../render-values.ts';
import { renderFronts, renderGrowth, renderTimelines } from './render-sweep-charts.ts';
import { describeState, formatRate, listColumns, SMALL_MODELS } from './render-sweep-text.ts';
import {
  anchorOf,
  describeSharing,
  listSharing,
  memoryOf,
  REQUEST,
  type SweepPoint,
  type SweepReport,
} from './sweep-report.ts';

/** The report of a sweep as one HTML file. Same report, same bytes. */
export function renderSweepHtml(report: SweepReport): string {
  return renderPage(
    `${report.source}: ${report.points.length} points`,
    [],
    [
      renderHeader(report),
      renderFronts(report),
      renderTable(report),
      renderGrowth(report),
      renderTimelines(report),
      renderWork(report),
      renderPublished(report),
      renderReproduction({
        versions: { npuc: report.npuc },
        ...(report.command === undefined ? {} : { command: report.command }),
      }),
      renderLegend(report),
    ],
  );
}

function renderHeader(report: SweepReport): Markup {
  const { points, parameters, stream } = report;
  const schemes = [...new Set(points.map(({ scheme }) => scheme))].join(', ');
  const socs = [...new Set(points.map(({ soc }) => soc))].join(', ');
  const compiled = points.filter(({ result }) => result !== undefined).length;
  return html`<header><p class="kind">Sweep of token and cache sizes</p>
<h1>${report.source} <span class="for">for ${socs}</span></h1>
<dl class="facts"><div><dt>points</dt><dd>${String(points.length)}</dd></div><div><dt>compiled</dt><dd>${
    compiled === 0 ? 'none: a plan' : String(compiled)
  }</dd></div><div><dt>schemes</dt><dd>${schemes}</dd></div><div><dt>weights</dt><dd>${formatCount(parameters)}</dd></div>${
    stream &&
    html`<div><dt>text through each cache</dt><dd>${formatCount(stream.tokens)} tokens</dd></div><div><dt>when it is full</dt><dd>${
      stream.sinks > 0 ? `slides behind ${stream.sinks} first tokens` : 'slides'
    }, ${stream.positions} positions</dd></div>`
  }</dl>
${renderAnswer(report)}</header>`;
}

/** The answer to the budget, or the point that is best without one. */
function renderAnswer({ budget, points }: SweepReport): Markup {
  if (budget?.impossible) {
    return html`<div class="verdict broken"><span class="glyph" aria-hidden="true">✕</span><div><p class="sentence"><strong>Nothing is within</strong> <code>${budget.budget}</code></p>${budget.impossible.map(
      (line) => html`<p class="lead">${line}</p>`,
    )}</div></div>`;
  }
  const best = points.find(({ id }) => id === budget?.best);
  if (best) {
    return html`<div class="verdict close"><span class="glyph" aria-hidden="true">✓</span><div><p class="sentence">Best within <code>${budget!.budget}</code>: <strong>${best.id}</strong></p><p class="lead">${describePoint(
      best,
    )}. ${String(budget!.fitting)} of ${String(points.length)} points are within it.</p></div></div>`;
  }
  const front = points.filter((point) => point.front);
  return html`<div class="verdict unproven"><span class="glyph" aria-hidden="true">◇</span><div><p class="sentence"><strong>${String(
    front.length,
  )}</strong> of ${String(points.length)} points are beaten by no other in memory, time and quality at once</p><p class="lead">They are marked in charts and table. A budget chooses one: <code>--budget "memory&lt;=...,ppl&lt;=...x"</code></p></div></div>`;
}

function describePoint(point: SweepPoint): string {
  const { plan, quality } = point;
  return [
    `${formatBytes(memoryOf(point))} of memory`,
    ...(quality ? [`perplexity ratio ${quality.ratio.toFixed(4)}`] : []),
    ...(plan.decode ? [`about ${formatRate(plan.decode.tokensPerSecond)} tokens a second`] : []),
  ].join(', ');
}

function renderTable(report: SweepReport): Markup {
  const columns = listColumns(report.points);
  const states = report.points.some((point) => describeState(point) !== '');
  return html`<section><h2>All points</h2>
<p class="about">Figures with ~ are estimates from public peaks of the SoC: nothing was measured on a phone. ◆ marks what no other point of the same SoC beats in memory, time and quality at once.</p>
<p class="filter js-only"><label>Find <input type="search" data-filter="points-table" placeholder="SM8750 w4a16"></label> <span data-count="points-table"></span></p>
<div class="scroll"><table class="sortable" id="points-table"><thead><tr><th scope="col">front</th>${columns.map(
    ({ name, numeric }) => html`<th scope="col"${numeric && html` class="n"`}>${name}</th>`,
  )}${states && html`<th scope="col">remark</th>`}</tr></thead>
<tbody>${report.points.map((point) => {
    const chosen = point.id === report.budget?.best;
    return html`<tr id="${anchorOf(point)}" class="${chosen ? 'chosen' : ''}${point.plan.limits.length > 0 || point.failure ? ' unfit' : ''}"><td data-v="${
      chosen ? '0' : point.front ? '1' : '2'
    }">${point.front ? html`<span title="on the front">◆</span>` : ''}${chosen && html`<b title="chosen by the budget"> chosen</b>`}</td>${columns.map(
      ({ text, value, numeric, name }) =>
        numeric
          ? html`<td class="n" data-v="${sortKey(value(point) as number | undefined)}"${spreadOf(name, point)}>${text(point)}</td>`
          : html`<td>${text(point)}</td>`,
    )}${states && html`<td>${describeState(point)}</td>`}</tr>`;
  })}</tbody></table></div></section>`;
}

/** The range of an estimate, on its cell. */
function spreadOf(name: string, { plan }: SweepPoint): Markup | undefined {
  const estimate = name === 'prefill' ? plan.prefill : name === 'decode' ? plan.decode : undefined;
  if (!estimate) return undefined;
  return html` title="${formatRate(estimate.low)} to ${formatRate(estimate.high)} tokens a second, bound by ${
    estimate.bound === 'memory' ? 'memory bandwidth' : 'computing'
  }"`;
}

/** What was shared, and what each kind of work took. */
function renderWork({ points, stages = [] }: SweepReport): Markup {
  const sharing = listSharing(points);
  if (sharing.length === 0 && stages.length === 0) return html``;
  return html`<section><h2>Quantized once</h2><ul class="remarks">${sharing.map(
    (group) => html`<li>${describeSharing(group)}</li>`,
  )}</ul>${
    stages.length > 0 &&
    html`<div class="scroll"><table id="stages"><thead><tr><th scope="col">work</th><th scope="col" class="n">times</th><th scope="col" class="n">time</th><th scope="col" class="n">CPU</th><th scope="col" class="n">of it the vendor's compiler</th></tr></thead><tbody>${stages.map(
      ({ name, jobs, seconds, cpuSeconds, vendorCpuSeconds }) =>
        html`<tr><td>${name}</td><td class="n">${String(jobs)}</td><td class="n">${formatSeconds(seconds)}</td><td class="n">${
          cpuSeconds > 0 ? formatSeconds(cpuSeconds) : '-'
        }</td><td class="n">${vendorCpuSeconds > 0 ? formatSeconds(vendorCpuSeconds) : '-'}</td></tr>`,
    )}</tbody></table></div>`
  }</section>`;
}

/** The estimate beside what was published. */
function renderPublished({ published, points }: SweepReport): Markup {
  if (!points.some(({ plan }) => plan.prefill ?? plan.decode)) return html``;
  const share = (error: number): string => `${error >= 0 ? '+' : ''}${(100 * error).toFixed(0)} %`;
  const cells = (figures: EstimateError['decode'] | undefined): Markup =>
    figures
      ? html`<td class="n">${formatRate(figures.estimate)}</td><td class="n">${formatRate(figures.published)}</td><td class="n">${share(figures.error)}</td>`
      : html`<td class="n">-</td><td class="n">-</td><td class="n">-</td>`;
  return html`<section><h2>How far the estimates are off</h2>
<p class="about">The same estimate for runs that others measured on devices and published, each left out of the shares of the peaks that it is estimated with. Tokens a second. ${SMALL_MODELS}</p>
<div class="scroll"><table id="published"><thead><tr><th scope="col">SoC</th><th scope="col">model</th><th scope="col" class="n">cache</th><th scope="col" class="n">prefill, estimate</th><th scope="col" class="n">published</th><th scope="col" class="n">error</th><th scope="col" class="n">decode, estimate</th><th scope="col" class="n">published</th><th scope="col" class="n">error</th><th scope="col">source</th></tr></thead><tbody>${published.map(
    ({ run, prefill, decode }) =>
      html`<tr><td>${run.soc}</td><td>${run.model.name}</td><td class="n">${String(run.cache)}</td>${cells(prefill)}${cells(decode)}<td class="from">${run.source}</td></tr>`,
  )}</tbody></table></div></section>`;
}

function renderLegend({ points }: SweepReport): Markup {
  const shown = listColumns(points);
  return html`<section><h2>How to read this</h2><dl class="legend-list">${shown.map(
    ({ name, about, unit }) =>
      html`<dt>${name}</dt><dd>${about}${unit !== '' && unit !== 'bytes' && `, ${unit}`}.</dd>`,
  )}<dt>front</dt><dd>Memory, the time of a request (${String(REQUEST.prompt)} tokens of prompt, ${String(
    REQUEST.answer,
  )} of answer) and quality. Where no text was evaluated, a larger cache stands for quality, and schemes are not compared.</dd></dl></section>`;
}

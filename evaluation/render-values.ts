import type { TargetName } from '../targets/target.ts';
import type { ValueComparison } from './compare-values.ts';
import { type ComparedTargets, describeSource, listTargets } from './describe-report.ts';
import { formatCount, formatDecibels, formatNoise, formatReal, formatSteps } from './format-figures.ts';
import { html, type Markup, renderPath } from './markup.ts';
import { type RankedValue, worstValues } from './rank-values.ts';
import type { PlanLine, Report } from './report.ts';
import { renderMarker } from './target-marker.ts';

const WORST = 10;

/** The ten worst values of every target, with the user's own nodes. */
export function renderWorstValues(report: ComparedTargets): Markup {
  const targets = listTargets(report).filter(([, { values }]) => values.length > 0);
  if (targets.length === 0) return html``;
  return html`<section><h2>Worst values</h2>
<p class="about">The lowest SQNR of each target; values that only move another one are counted with it. <b>added</b> is the noise that a value brings in itself, beyond its worst input's, in percent of its power: there an error is made, elsewhere it is passed on. <b>steps</b> is the largest error in steps of the value's own encoding. The second line is the node in your own model.</p>
<div class="worsts">${targets.map(([name, { values }]) => renderWorstTable(name, values, report.divergenceThreshold))}</div></section>`;
}

function renderWorstTable(name: TargetName, values: readonly ValueComparison[], threshold: number): Markup {
  return html`<div class="scroll"><table class="worst sortable t-${name}" id="worst-${name}"><caption>${renderMarker(name)}${name}</caption>
<thead><tr><th scope="col">value</th><th scope="col" class="n">dB</th><th scope="col" class="n">added</th><th scope="col" class="n">steps</th></tr></thead>
<tbody>${worstValues(values, WORST).map((ranked) => renderWorstRow(ranked, threshold))}</tbody></table></div>`;
}

function renderWorstRow({ value, copies }: RankedValue, threshold: number): Markup {
  const { name, from, sqnr, noiseAdded, maxError, maxSteps, cosine } = value;
  const about = `cosine ${formatReal(cosine)}, largest error ${formatReal(maxError)}`;
  return html`<tr title="${about}"><td>${renderPath(name)}${
    copies.length > 0 &&
    html` <small title="${copies.map((copy) => copy.name).join(', ')}">and ${String(copies.length)} moved</small>`
  }<br><span class="from">${renderPath(describeSource(from))}</span></td><td class="n ${
    sqnr >= threshold ? '' : 'low'
  }" data-v="${sortKey(sqnr)}">${formatDecibels(sqnr).replace(' dB', '')}</td><td class="n" data-v="${sortKey(noiseAdded)}">${
    noiseAdded === undefined ? '-' : formatNoise(Math.max(0, noiseAdded))
  }</td><td class="n" data-v="${sortKey(maxSteps)}">${formatSteps(maxSteps)}</td></tr>`;
}

/** Every compared value in order of computation, searchable and sortable. */
export function renderAllValues(report: ComparedTargets): Markup {
  const targets = listTargets(report).filter(([, { values }]) => values.length > 0);
  if (targets.length === 0) return html``;
  return html`<section><h2>All values</h2>
${targets.map(
  ([name, { values }]) =>
    html`<details id="values-${name}"><summary>${renderMarker(name)}${name}: ${formatCount(values.length)} values in order of computation</summary>
<p class="filter js-only"><label>Find <input type="search" data-filter="values-${name}-table" placeholder="Conv, relu, ..."></label> <span data-count="values-${name}-table"></span></p>
<div class="scroll"><table class="sortable t-${name}" id="values-${name}-table"><thead><tr><th scope="col" class="n">#</th><th scope="col">value</th><th scope="col" class="n">dB</th><th scope="col" class="n">added</th><th scope="col" class="n">max error</th><th scope="col" class="n">steps</th></tr></thead>
<tbody>${values.map((value, i) => renderValueRow(value, i + 1, report.divergenceThreshold))}</tbody></table></div></details>`,
)}</section>`;
}

function renderValueRow(value: ValueComparison, place: number, threshold: number): Markup {
  const { name, from, sqnr, noiseAdded, maxError, maxSteps } = value;
  return html`<tr><td class="n" data-v="${String(place)}">${String(place)}</td><td>${renderPath(name)}<br><span class="from">${renderPath(
    describeSource(from),
  )}</span></td><td class="n ${sqnr >= threshold ? '' : 'low'}" data-v="${sortKey(sqnr)}">${formatDecibels(
    sqnr,
  ).replace(' dB', '')}</td><td class="n" data-v="${sortKey(noiseAdded)}">${
    noiseAdded === undefined ? '-' : formatNoise(Math.max(0, noiseAdded))
  }</td><td class="n" data-v="${sortKey(maxError)}">${formatReal(maxError)}</td><td class="n" data-v="${sortKey(
    maxSteps,
  )}">${formatSteps(maxSteps)}</td></tr>`;
}

/** Every decision of the quantization, searchable and sortable, with the SQNR that came of it. */
export function renderPlan(report: ComparedTargets & Pick<Report, 'plan' | 'scheme'>): Markup {
  const counts = new Map<string, number>();
  for (const { dtype } of report.plan) counts.set(dtype, (counts.get(dtype) ?? 0) + 1);
  const summary = [...counts].sort(([, a], [, b]) => b - a).map(([dtype, count]) => `${formatCount(count)} ${dtype}`);
  if (report.plan.length === 0) {
    return html`<section><h2>Quantization plan</h2><p class="about">Nothing was quantized: scheme ${report.scheme}.</p></section>`;
  }
  const sqnr = new Map(
    listTargets(report).map(([name, { values }]) => [name, new Map(values.map((value) => [value.name, value.sqnr]))]),
  );
  return html`<section><h2>Quantization plan</h2>
<details id="plan"><summary>${formatCount(report.plan.length)} decisions: ${summary.join(', ')}</summary>
<p class="filter js-only"><label>Find <input type="search" data-filter="plan-table" placeholder="down_proj, i16, cache, ..."></label> <span data-count="plan-table"></span></p>
<div class="scroll"><table class="sortable" id="plan-table"><thead><tr><th scope="col">value</th><th scope="col">form</th><th scope="col">targets</th><th scope="col">why</th><th scope="col" class="n">worst dB</th></tr></thead>
<tbody>${report.plan.map((line) => renderPlanRow(line, sqnr))}</tbody></table></div></details></section>`;
}

function renderPlanRow(line: PlanLine, sqnr: ReadonlyMap<TargetName, ReadonlyMap<string, number>>): Markup {
  const found = line.targets.map((target) => sqnr.get(target)?.get(line.value)).filter((value) => value !== undefined);
  const worst = found.length > 0 ? Math.min(...found) : undefined;
  return html`<tr><td>${renderPath(line.value)}</td><td class="form">${line.dtype}</td><td>${line.targets.join(', ')}</td><td>${
    line.why
  }</td><td class="n" data-v="${sortKey(worst)}">${worst === undefined ? '' : formatDecibels(worst).replace(' dB', '')}</td></tr>`;
}

/** What the script sorts by: an absent figure goes last, NaN before all numbers, an exact value after them. */
export function sortKey(value: number | undefined): string {
  if (value === undefined) return '';
  if (Number.isNaN(value)) return '-1e99';
  return Number.isFinite(value) ? String(value) : value > 0 ? '1e99' : '-1e98';
}

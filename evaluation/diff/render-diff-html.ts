import { formatFigure } from '../check/render-text.ts';
import { formatBytes, formatCount, formatDecibels, formatNoise } from '../format-figures.ts';
import { html, type Markup, renderPath } from '../markup.ts';
import { renderPage } from '../render-page.ts';
import { sortKey } from '../render-values.ts';
import { describeAlignment } from './align-values.ts';
import type { BuildDiff, ValueRow, WeightRow } from './compare-builds.ts';
import { describeDiff, describeEncoding, judgeFigure, signed } from './describe-diff.ts';
import { renderHistogram, renderWaterfall } from './render-diff-charts.ts';

/** Rows of a table: a page of a model of a billion weights stays under a megabyte. */
const MOST_ROWS = 1000;

/** Two builds side by side as one HTML file that needs nothing else. Same diff, same bytes. */
export function renderDiffHtml(diff: BuildDiff): string {
  return renderPage(
    `${diff.a.title} and ${diff.b.title}`,
    [],
    [
      renderHeader(diff),
      renderQuality(diff),
      renderWaterfall(diff),
      renderValues(diff),
      renderWeights(diff),
      renderCounts(diff),
      renderFacts(diff),
      renderLegend(),
    ],
  );
}

const GLYPHS = { worse: '▲', better: '✓', same: '=', unknown: '?' } as const;
const GRADES = { worse: 'degraded', better: 'close', same: 'unproven', unknown: 'unproven' } as const;

function renderHeader(diff: BuildDiff): Markup {
  const verdicts = diff.quality.map(judgeFigure);
  const verdict = (['worse', 'better', 'same'] as const).find((each) => verdicts.includes(each)) ?? 'unknown';
  return html`<header>
<p class="kind">npuc comparison of two ${diff.a.kind === diff.b.kind ? `${diff.a.kind}s` : 'sides'}</p>
<h1><bdi>${diff.a.title}</bdi> <span class="for">and</span> <bdi>${diff.b.title}</bdi></h1>
<dl class="facts"><div><dt>a</dt><dd>${diff.a.title}</dd></div><div><dt>b</dt><dd>${diff.b.title}</dd></div>
<div><dt>size</dt><dd>${formatBytes(diff.bytes.a)} → ${formatBytes(diff.bytes.b)}</dd></div></dl>
<div class="verdict ${GRADES[verdict]}"><span class="glyph" aria-hidden="true">${GLYPHS[verdict]}</span>
<div><p class="sentence">${describeDiff(diff)}</p></div></div>
</header>`;
}

function renderQuality({ quality }: BuildDiff): Markup {
  if (quality.length === 0) {
    return html`<section><h2>Quality</h2><p class="about">Neither side has a report of its quality: npuc compile writes one.</p></section>`;
  }
  return html`<section><h2>Quality</h2><div class="scroll"><table id="quality"><thead><tr><th scope="col">figure</th><th scope="col" class="n">a</th><th scope="col" class="n">b</th><th scope="col">b is</th></tr></thead>
<tbody>${quality.map((row) => {
    const verdict = judgeFigure(row);
    return html`<tr><td>${row.name}</td><td class="n">${row.a === undefined ? '-' : formatFigure(row.a)}</td><td class="n">${
      row.b === undefined ? '-' : formatFigure(row.b)
    }</td><td${verdict === 'worse' && html` class="low"`}><span aria-hidden="true">${GLYPHS[verdict]}</span> ${verdict}</td></tr>`;
  })}</tbody></table></div></section>`;
}

/** What changed first, then the rest as far as there is room, each in order of computation. */
function selectRows<T extends { readonly changed: boolean }>(rows: readonly T[]): T[] {
  if (rows.length <= MOST_ROWS) return [...rows];
  const kept = new Set([...rows.filter(({ changed }) => changed), ...rows].slice(0, MOST_ROWS));
  return rows.filter((row) => kept.has(row));
}

function renderValues({ values }: BuildDiff): Markup {
  if (values.length === 0) return html``;
  const rows = selectRows(values);
  const changed = values.filter((row) => row.changed).length;
  return html`<section><h2>Values, side by side</h2>
<p class="about">${formatCount(changed)} of ${formatCount(values.length)} changed, in order of computation${
    rows.length < values.length && `; ${formatCount(values.length - rows.length)} that did not change are left out`
  }. Matched by the names that passes carry on, whatever a target calls its ports. Numbers: b against a on the same inputs, where both were run, whatever the layout of either.</p>
<p class="filter js-only"><label>Find <input type="search" data-filter="values" placeholder="layers.2 u8 changed"></label> <span data-count="values"></span></p>
<div class="scroll"><table class="sortable" id="values"><thead><tr><th scope="col">value</th><th scope="col">a</th><th scope="col">b</th><th scope="col" class="n">step b / a</th><th scope="col" class="n">dB a</th><th scope="col" class="n">dB b</th><th scope="col" class="n">difference</th><th scope="col">numbers</th><th scope="col">state</th></tr></thead>
<tbody>${rows.map(renderValue)}</tbody></table></div></section>`;
}

function renderValue({ name, from, a, b, delta, scaleRatio, numbers, changed }: ValueRow): Markup {
  const state = !a ? 'only in b' : !b ? 'only in a' : changed ? 'changed' : 'same';
  const decibels = (value: number | undefined): Markup =>
    html`<td class="n" data-v="${sortKey(value)}">${value === undefined ? '' : formatDecibels(value).replace(' dB', '')}</td>`;
  return html`<tr><td>${renderPath(name)}${from.length > 0 && html`<br><span class="from">${renderPath(from.join(', '))}</span>`}</td><td class="form">${describeEncoding(
    a,
  )}</td><td class="form">${describeEncoding(b)}</td><td class="n" data-v="${sortKey(scaleRatio)}">${
    scaleRatio === undefined ? '' : formatFigure(scaleRatio)
  }</td>${decibels(a?.sqnr)}${decibels(b?.sqnr)}<td class="n${delta !== undefined && delta < -1 ? ' low' : ''}" data-v="${sortKey(delta)}">${
    delta === undefined ? '' : `${delta > 0 ? '+' : ''}${delta.toFixed(1)}`
  }</td><td>${numbers ? [formatDecibels(numbers.sqnr), ...describeAlignment(numbers)].join('; ') : ''}</td><td>${state}</td></tr>`;
}

function renderWeights({ weights }: BuildDiff): Markup {
  if (weights.length === 0) return html``;
  const rows = selectRows(weights);
  const changed = weights.filter((row) => row.changed).length;
  return html`<section><h2>Weights</h2>
<p class="about">${formatCount(changed)} of ${formatCount(weights.length)} changed. dB: the numbers of b against those of a, whatever the layout of either. Histograms: a filled, b as a line, over the range of both.</p>
<p class="filter js-only"><label>Find <input type="search" data-filter="weights" placeholder="down_proj i4 changed"></label> <span data-count="weights"></span></p>
<div class="scroll"><table class="sortable" id="weights"><thead><tr><th scope="col">weight</th><th scope="col">a</th><th scope="col">b</th><th scope="col" class="n">dB</th><th scope="col">numbers</th><th scope="col">histogram</th><th scope="col">state</th></tr></thead>
<tbody>${rows.map(renderWeight)}</tbody></table></div></section>`;
}

function renderWeight({ name, a, b, numbers, histogram, changed }: WeightRow): Markup {
  const state = !a ? 'only in b' : !b ? 'only in a' : changed ? 'changed' : 'same';
  return html`<tr><td>${renderPath(name)}</td><td class="form">${a?.form ?? '-'}</td><td class="form">${b?.form ?? '-'}</td><td class="n" data-v="${sortKey(
    numbers?.sqnr,
  )}">${numbers ? formatDecibels(numbers.sqnr).replace(' dB', '') : ''}</td><td>${numbers ? describeAlignment(numbers).join('; ') : ''}</td><td>${
    histogram && renderHistogram(histogram, name)
  }</td><td>${state}</td></tr>`;
}

function renderCounts({ ops, files }: BuildDiff): Markup {
  return html`<section><h2>Graph and bytes</h2><div class="pair">
${
  ops.length > 0 &&
  html`<div class="scroll"><table class="sortable" id="ops"><caption>Operators</caption><thead><tr><th scope="col">operator</th><th scope="col" class="n">a</th><th scope="col" class="n">b</th><th scope="col" class="n">difference</th></tr></thead><tbody>${ops.map(
    ({ name, a, b }) =>
      html`<tr><td>${name}</td><td class="n" data-v="${String(a)}">${formatCount(a)}</td><td class="n" data-v="${String(b)}">${formatCount(b)}</td><td class="n" data-v="${String(b - a)}">${
        a === b ? '' : `${b > a ? '+' : ''}${b - a}`
      }</td></tr>`,
  )}</tbody></table></div>`
}
<div class="scroll"><table class="sortable" id="files"><caption>Files</caption><thead><tr><th scope="col">file</th><th scope="col" class="n">a</th><th scope="col" class="n">b</th><th scope="col" class="n">difference</th></tr></thead><tbody>${files.map(
    ({ path, a, b }) =>
      html`<tr><td>${renderPath(path)}</td><td class="n" data-v="${sortKey(a)}">${a === undefined ? '-' : formatBytes(a)}</td><td class="n" data-v="${sortKey(b)}">${
        b === undefined ? '-' : formatBytes(b)
      }</td><td class="n" data-v="${String((b ?? 0) - (a ?? 0))}">${a === b ? '' : signed((b ?? 0) - (a ?? 0))}</td></tr>`,
  )}</tbody></table></div></div></section>`;
}

function renderFacts({ facts }: BuildDiff): Markup {
  const changed = facts.filter((fact) => fact.changed).length;
  return html`<section><h2>Settings</h2><p class="about">${formatCount(changed)} of ${formatCount(facts.length)} differ.</p>
<div class="scroll"><table class="sortable" id="facts"><thead><tr><th scope="col">setting</th><th scope="col">a</th><th scope="col">b</th><th scope="col">state</th></tr></thead>
<tbody>${facts.map(
    ({ name, a, b, changed: differs }) =>
      html`<tr><td>${name}</td><td class="form">${a}</td><td class="form">${b}</td><td>${differs ? html`<b>changed</b>` : 'same'}</td></tr>`,
  )}</tbody></table></div></section>`;
}

function renderLegend(): Markup {
  return html`<section><h2>How to read this</h2><dl class="legend-list">
<dt>dB</dt><dd>Signal to quantization noise: 20 dB is a tenth of the size in error, 40 dB a hundredth, 60 dB a thousandth. Values are each side's own figures against its float model; of weights it is b against a.</dd>
<dt>step</dt><dd>What one integer is worth. Twice the step is twice the range in the same type.</dd>
<dt>noise added</dt><dd>Noise that comes in at a value, as a share of its power: where an error is made, not where it is passed on. ${formatNoise(0.01)} is 20 dB.</dd>
</dl></section>`;
}

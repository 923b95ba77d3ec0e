import { createHash } from 'node:crypto';
import { describeVerdict, listTargets } from './describe-report.ts';
import { GRADE_BOUNDS, GRADES } from './grade-target.ts';
import { describeRemark, groupRemarks } from './group-remarks.ts';
import { html, type Markup, raw } from './markup.ts';
import { renderDistances, renderSizes } from './render-charts.ts';
import { renderNetworkChart } from './render-network-chart.ts';
import { renderSamples } from './render-samples.ts';
import { renderCards, renderHeader } from './render-summary.ts';
import { renderPlan, renderWorstValues } from './render-values.ts';
import type { Report } from './report.ts';
import { REPORT_SCRIPT } from './report-script.ts';
import { REPORT_STYLE } from './report-style.ts';
import { defineMarkers } from './target-marker.ts';

/**
 * The report as one HTML file that needs nothing else: its policy forbids the browser every request and every script but
 * its own, which only sorts, filters and points. Same report, same bytes.
 */
export function renderHtml(report: Report): string {
  const script = createHash('sha256').update(REPORT_SCRIPT).digest('base64');
  const policy = `default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-${script}'; base-uri 'none'; form-action 'none'`;
  const verdict = describeVerdict(report);
  const page = html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${report.source} for ${report.soc}: ${GRADES[verdict.grade].word}</title>
<link rel="icon" href="data:,">
<style>${raw(REPORT_STYLE)}</style>
</head>
<body>
${defineMarkers(listTargets(report).map(([name]) => name))}
<main>
${renderHeader(report)}
${renderCards(report)}
${renderDistances(report)}
${renderNetworkChart(report)}
${renderWorstValues(report)}
${renderSamples(report)}
${renderSizes(report)}
${renderPlan(report)}
${renderRemarks(report)}
${renderReproduction(report)}
${renderLegend(report)}
</main>
<script>${raw(REPORT_SCRIPT)}</script>
</body>
</html>
`;
  return page.text;
}

function renderRemarks({ remarks }: Report): Markup {
  if (remarks.length === 0) return html``;
  return html`<section><h2>Remarks</h2><ul class="remarks">${groupRemarks(remarks).map((remark) => html`<li>${describeRemark(remark)}</li>`)}</ul></section>`;
}

function renderReproduction({ command, versions }: Report): Markup {
  if (command === undefined && versions === undefined) return html``;
  return html`<section><h2>Make it again</h2>
${command !== undefined && html`<div class="command"><pre id="command"><code>${command}</code></pre><button type="button" class="js-only" data-copy="command">Copy</button></div>`}
${
  versions !== undefined &&
  html`<p class="about">${Object.entries(versions).map(([name, version], i) => `${i > 0 ? ', ' : ''}${name} ${version}`)}. The same input, recipe and versions give the same artifacts, byte for byte.</p>`
}</section>`;
}

/** How to read the figures, at the end: who needs it looks for it. */
function renderLegend(report: Report): Markup {
  return html`<section><h2>How to read this</h2>
<dl class="legend-list">
<dt>perplexity ratio</dt><dd>Perplexity of the target over that of the float model on the same held-out text, ± one standard error over the predictions.</dd>
<dt>KL</dt><dd>How far the distribution of the next token moved, mean over tokens, in nats. It sees losses that perplexity on an unfamiliar text misses.</dd>
<dt>top-1</dt><dd>Share of positions where both models hold the same token most likely.</dd>
<dt>SQNR</dt><dd>Signal to quantization noise ratio: 20 dB is a tenth of the size in error, 40 dB a hundredth, 60 dB a thousandth.</dd>
<dt>verdicts</dt><dd><ul>${GRADE_BOUNDS.map(
    ({ grade, ratio, divergence }) =>
      html`<li><b>${GRADES[grade].word}</b>: ratio up to ${String(ratio)} and KL up to ${String(divergence)}: ${GRADES[grade].sentence}.</li>`,
  )}<li><b>${GRADES.broken.word}</b>: beyond these, or not a number.</li></ul>Where only a chunk was run, KL decides alone.</dd>
<dt>values</dt><dd>Compared on ${String(Math.max(...report.tokens))} tokens through extra graph outputs. Such taps can change what a runtime fuses; the figures of the whole model do not use them.</dd>
</dl></section>`;
}

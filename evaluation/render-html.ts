import { describeVerdict, listTargets } from './describe-report.ts';
import { GRADE_BOUNDS, GRADES } from './grade-target.ts';
import { html, type Markup } from './markup.ts';
import { renderDistances, renderSizes } from './render-charts.ts';
import { renderNetworkChart } from './render-network-chart.ts';
import { renderPage, renderRemarks, renderReproduction } from './render-page.ts';
import { renderSamples } from './render-samples.ts';
import { renderCards, renderHeader } from './render-summary.ts';
import { renderPlan, renderWorstValues } from './render-values.ts';
import type { Report } from './report.ts';

/** The report of a compiled checkpoint as one HTML file. Same report, same bytes. */
export function renderHtml(report: Report): string {
  const title = `${report.source} for ${report.soc}: ${GRADES[describeVerdict(report).grade].word}`;
  return renderPage(
    title,
    listTargets(report).map(([name]) => name),
    [
      renderHeader(report),
      renderCards(report),
      renderDistances(report),
      renderNetworkChart(report),
      renderWorstValues(report),
      renderSamples(report),
      renderSizes(report),
      renderPlan(report),
      renderRemarks(report),
      renderReproduction(report),
      renderLegend(report),
    ],
  );
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

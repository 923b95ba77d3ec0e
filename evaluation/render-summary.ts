import type { TargetName } from '../targets/target.ts';
import { describeNpu } from './describe-npu.ts';
import { describeSource, describeVerdict, listTargets } from './describe-report.ts';
import {
  EXECUTIONS,
  formatBytes,
  formatCount,
  formatDecibels,
  formatDivergence,
  formatNoise,
  formatPerplexity,
  formatRatio,
  formatRatioError,
  formatSeconds,
  formatShare,
} from './format-figures.ts';
import { GRADES, type Grade, gradeTarget, WORST_FIRST } from './grade-target.ts';
import { html, type Markup, renderPath } from './markup.ts';
import { firstDiverging, noisiestValues, worstValues } from './rank-values.ts';
import type { Report, TargetReport } from './report.ts';
import { renderMarker } from './target-marker.ts';

/** Shapes beside the words, so that the verdict does not hang on colour. */
export const GLYPHS: Readonly<Record<Grade, string>> = {
  close: '✓',
  loss: '△',
  degraded: '▲',
  broken: '✕',
  unproven: '?',
};

/** What was compiled, the verdict over all targets, and where to look first. */
export function renderHeader(report: Report): Markup {
  const verdict = describeVerdict(report);
  const facts: readonly (readonly [string, string])[] = [
    ['scheme', report.scheme],
    ['tokens a run', `${report.tokens.map(formatCount).join(', ')} and 1`],
    ['cache', report.caches.map(formatCount).join(', ')],
    ['weights', formatCount(report.parameters)],
    ['float perplexity', formatPerplexity(report.floatPerplexity)],
    ['held-out text', `${formatCount(report.evaluationTokens)} tokens`],
  ];
  return html`<header>
<p class="kind">npuc accuracy report</p>
<h1><bdi>${report.source}</bdi> <span class="for">for</span> <bdi>${report.soc}</bdi></h1>
<dl class="facts">${facts.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
<div class="verdict ${verdict.grade}">
<span class="glyph" aria-hidden="true">${GLYPHS[verdict.grade]}</span>
<div><p class="sentence"><strong>${GRADES[verdict.grade].word}.</strong> ${verdict.sentence}</p>${renderLead(report)}</div>
</div>
</header>`;
}

/** Where the weakest target loses most: the place to start at 11 pm. */
function renderLead(report: Report): Markup | undefined {
  const weakest = listTargets(report).sort(
    ([, a], [, b]) =>
      WORST_FIRST.indexOf(gradeTarget(a)) - WORST_FIRST.indexOf(gradeTarget(b)) || distance(b) - distance(a),
  )[0];
  if (!weakest) return undefined;
  const [name, target] = weakest;
  const [source] = noisiestValues(target.values, 1);
  const [worst] = worstValues(target.values, 1);
  if (!worst) return undefined;
  return html`<p class="lead">Farthest from float: <b>${name}</b>${
    source &&
    html`. Most noise comes in at ${renderName(source.name, source.from)}: ${formatNoise(source.noiseAdded!)} of the value's power`
  }; the worst value is ${renderName(worst.value.name, worst.value.from)} with ${formatDecibels(worst.value.sqnr)}.</p>`;
}

function distance(target: TargetReport): number {
  const divergence = (target.logits ?? target.chunk)?.divergence ?? 0;
  return Number.isNaN(divergence) ? Number.POSITIVE_INFINITY : divergence;
}

/** A value's name with the user's own node behind it. */
export function renderName(name: string, from: readonly string[]): Markup {
  return html`${renderPath(name)}${from.length > 0 && html` <span class="from">(${renderPath(describeSource(from))})</span>`}`;
}

/** A card for every target: how good, how far from float, how large, and how it is known. */
export function renderCards(report: Report): Markup {
  return html`<section class="cards" aria-label="Targets">${listTargets(report).map(([name, target]) =>
    renderCard(name, target, report),
  )}</section>`;
}

function renderCard(name: TargetName, target: TargetReport, report: Report): Markup {
  const grade = gradeTarget(target);
  return html`<article class="card t-${name}">
<h2>${renderMarker(name)}${name}<span class="badge ${grade}"><span aria-hidden="true">${GLYPHS[grade]}</span> ${GRADES[grade].word}</span></h2>
${renderHeadline(target)}
<dl class="figures">${renderFigures(target, report)}</dl>
<dl class="where">${renderWhere(target, report.divergenceThreshold)}</dl>
<p class="proof"><b>${EXECUTIONS[target.execution].short}</b> in ${target.engine}, <span class="nb">${formatSeconds(target.seconds)}</span>. ${
    EXECUTIONS[target.execution].long
  }</p>
${[...(target.npu ?? []).flatMap(describeNpu), ...target.notes].map((note) => html`<p class="note">${note}</p>`)}
</article>`;
}

function renderHeadline(target: TargetReport): Markup {
  const { logits, chunk } = target;
  if (logits) {
    return html`<p class="headline"><span class="big">${formatRatio(logits.ratio)}</span> ± ${formatRatioError(
      logits.ratioError,
      logits.ratio,
    )}<span class="caption">perplexity, float = 1</span></p>`;
  }
  if (chunk) {
    return html`<p class="headline"><span class="big">${formatDivergence(chunk.divergence)}</span> nats<span class="caption">KL on one chunk of ${formatCount(
      chunk.tokens,
    )} tokens; no perplexity</span></p>`;
  }
  return html`<p class="headline"><span class="big">-</span><span class="caption">nothing was run</span></p>`;
}

function renderFigures(target: TargetReport, report: Report): Markup[] {
  const figures = target.logits ?? target.chunk;
  const rows: [string, string, string][] = [];
  if (figures) {
    rows.push(['KL', formatDivergence(figures.divergence), 'mean KL(float || target) per token, nats']);
    rows.push(['top-1', formatShare(figures.topAgreement), 'predictions with the same most likely token']);
    rows.push(['logits', formatDecibels(figures.sqnr), 'signal to quantization noise of the logits']);
  }
  if (target.twinSqnr !== undefined) {
    rows.push([
      'engine',
      formatDecibels(target.twinSqnr),
      "the engine's logits against ONNX Runtime on the same QDQ model",
    ]);
  }
  rows.push(['size', formatBytes(target.bytes), 'bytes that go to the phone']);
  const bits = (8 * target.bytes) / report.parameters;
  if (Number.isFinite(bits))
    rows.push(['per weight', `${bits.toFixed(1)} bits`, 'size over the weights of the float model']);
  if (target.chunk) {
    rows.push(['a chunk', formatSeconds(target.chunk.secondsPerChunk), 'on this machine, not on the phone']);
    rows.push(['a token', formatSeconds(target.chunk.secondsPerToken), 'on this machine, not on the phone']);
  }
  return rows.map(([label, value, about]) => html`<div title="${about}"><dt>${label}</dt><dd>${value}</dd></div>`);
}

/** Where a target's values part from the float model, enter most noise, and are worst. */
export function renderWhere(target: Pick<TargetReport, 'values'>, threshold: number): Markup {
  const { values } = target;
  if (values.length === 0) return html`<div><dt>values</dt><dd>none were compared</dd></div>`;
  const first = firstDiverging(values, threshold);
  const [source] = noisiestValues(values, 1);
  const [worst] = worstValues(values, 1);
  return html`<div><dt>first under ${threshold} dB</dt>${
    first
      ? html`<dd>${renderPath(first.name)}</dd><dd>${formatDecibels(first.sqnr)}</dd>`
      : html`<dd>none</dd><dd></dd>`
  }</div>
${
  source &&
  html`<div><dt>most noise from</dt><dd>${renderPath(source.name)}</dd><dd>+${formatNoise(source.noiseAdded!)}</dd></div>`
}
<div><dt>worst value</dt><dd>${renderPath(worst!.value.name)}</dd><dd>${formatDecibels(worst!.value.sqnr)}</dd></div>`;
}

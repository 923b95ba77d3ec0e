import type { TargetName } from '../targets/target.ts';
import type { ValueComparison } from './compare-values.ts';
import { type ComparedTargets, describeSource, listTargets, shortenMiddle } from './describe-report.ts';
import { formatDecibels } from './format-figures.ts';
import { html, type Markup, raw } from './markup.ts';
import { splitSections } from './rank-values.ts';
import { percent } from './render-charts.ts';
import { renderMarker } from './target-marker.ts';

interface Point {
  readonly value: ValueComparison;
  /** Shares of the plot's width and height. */
  readonly x: number;
  readonly y: number;
}

interface Series {
  readonly target: TargetName;
  readonly points: readonly Point[];
}

/** Labels of layers that fit under the chart on a phone. */
const LABELS = 12;

/** Values above which their marks are drawn smaller. */
const DENSE = 1500;

/**
 * SQNR of every value of one prefill chunk along the network. Targets compute with different values, so a layer is what they
 * share: each has the same width in all of them, and its values are spread over it in their order of computation.
 */
export function renderNetworkChart(report: ComparedTargets): Markup {
  const targets = listTargets(report).filter(([, { values }]) => values.length > 0);
  if (targets.length === 0) {
    return html`<section><h2>Error along the network</h2><p class="about">No quantized values were compared.</p></section>`;
  }
  const stretches = layStretches(targets.map(([, { values }]) => values));
  const range = decibelRange(targets.flatMap(([, { values }]) => values));
  const toY = (sqnr: number): number => {
    const clamped = Number.isNaN(sqnr) ? range.low : Math.min(range.high, Math.max(range.low, sqnr));
    return (range.high - clamped) / (range.high - range.low);
  };
  const series = targets.map(
    ([target, { values }]): Series => ({
      target,
      points: splitSections(values).flatMap(({ label, values: members }) =>
        members.map((value, i) => {
          const { start, width } = stretches.get(label)!;
          return { value, x: start + ((i + 0.5) / members.length) * width, y: toY(value.sqnr) };
        }),
      ),
    }),
  );
  const count = series.reduce((sum, { points }) => sum + points.length, 0);
  const clipped = targets.some(([, { values }]) => values.some(({ sqnr }) => sqnr > range.high));
  const threshold = toY(report.divergenceThreshold);
  return html`<section><h2>Error along the network</h2>
<p class="about">Signal to quantization noise of every value of one run, in order of computation: the target's quantized graph against the float graph, both in ONNX Runtime. Higher is better; under ${String(
    report.divergenceThreshold,
  )} dB a tenth of the value's size is noise.</p>
<figure class="network">
<div class="legend">${series.map(
    ({ target }) =>
      html`<label class="t-${target}"><input type="checkbox" id="show-${target}" checked>${renderMarker(target)}${target}</label>`,
  )}</div>
<div class="plot"><svg id="network"${count > DENSE && raw(' class="dense"')} width="100%" height="340" role="img" aria-label="SQNR along the network, ${String(count)} values">
${[...stretches].map(([label, stretch], i) => renderStretch(label, stretch, i, stretches.size))}
${decibelTicks(range).map(
  (tick) =>
    html`<line class="grid" x1="0" x2="100%" y1="${percent(toY(tick))}" y2="${percent(toY(tick))}"/><text class="tick" x="-8" y="${percent(
      toY(tick),
    )}" dy="4" text-anchor="end">${String(tick)}${tick === range.high && clipped && '+'}</text>`,
)}
<rect class="under" x="0" y="${percent(threshold)}" width="100%" height="${percent(1 - threshold)}"/>
<line class="threshold" x1="0" x2="100%" y1="${percent(threshold)}" y2="${percent(threshold)}"/>
<text class="threshold-label" x="100%" y="${percent(threshold)}" dx="6" dy="4">${String(report.divergenceThreshold)} dB</text>
${series.map(renderSeries)}
${renderWorst(series)}
<use class="pointer" href="#ring"/>
</svg></div>
<output class="readout js-only">Point at a value for its name.</output>
<figcaption>${stretches.size > 1 && 'Each stretch is a layer of the network, numbered below. '}Spikes are values in which an exact constant is most of the signal, such as masked scores; the highest are drawn at the upper edge. Lines only lead the eye.</figcaption>
</figure></section>`;
}

function renderStretch(label: string, { start, width }: Stretch, index: number, count: number): Markup {
  const named = label === 'in' || label === 'out' || Number(label) % Math.ceil(count / LABELS) === 0;
  return html`<rect class="stretch ${index % 2 === 0 ? 'even' : 'odd'}" x="${percent(start)}" y="0" width="${percent(width)}" height="100%"/>${
    named &&
    html`<text class="layer" x="${percent(start + width / 2)}" y="100%" dy="18" text-anchor="middle">${label}</text>`
  }`;
}

function renderSeries({ target, points }: Series): Markup {
  const path = points
    .map(({ x, y }, i) => `${i === 0 ? 'M' : 'L'}${(x * 1000).toFixed(1)} ${(y * 1000).toFixed(1)}`)
    .join('');
  return html`<g class="series t-${target}"><svg x="0" y="0" width="100%" height="100%" viewBox="0 0 1000 1000" preserveAspectRatio="none"><path class="line" d="${path}" vector-effect="non-scaling-stroke"/></svg>${points.map(
    ({ value, x, y }) =>
      html`<use class="point" href="#m-${target}" x="${percent(x)}" y="${percent(y)}"><title>${target} ${value.name} ${formatDecibels(
        value.sqnr,
      )}, ${describeSource(value.from)}</title></use>`,
  )}</g>`;
}

/** A name at the lowest point of all. */
function renderWorst(series: readonly Series[]): Markup | undefined {
  const [worst] = series
    .flatMap(({ points }) => points)
    .sort((a, b) => (Number.isNaN(a.value.sqnr) ? -1 : Number.isNaN(b.value.sqnr) ? 1 : a.value.sqnr - b.value.sqnr));
  if (!worst) return undefined;
  const end = worst.x > 0.6;
  return html`<g class="lowest"><use href="#ring" x="${percent(worst.x)}" y="${percent(worst.y)}"/><text x="${percent(worst.x)}" y="${percent(
    worst.y,
  )}" dx="${end ? '-9' : '9'}" dy="${worst.y > 0.94 ? '-8' : '16'}" text-anchor="${end ? 'end' : 'start'}">${shortenMiddle(worst.value.name, 30)} ${formatDecibels(
    worst.value.sqnr,
  )}</text></g>`;
}

/** Where a layer lies in the plot, in shares of its width. */
interface Stretch {
  readonly start: number;
  readonly width: number;
}

/**
 * All stretches that any target has, in order: what comes before the layers first, what comes after last. Each is as wide as
 * its values are many, but not so narrow that its label has no room.
 */
function layStretches(valueLists: readonly (readonly ValueComparison[])[]): Map<string, Stretch> {
  const counts = new Map<string, number>();
  for (const values of valueLists) {
    for (const { label, values: members } of splitSections(values))
      counts.set(label, Math.max(members.length, counts.get(label) ?? 0));
  }
  const order = (label: string): number =>
    label === 'in' ? -1 : label === 'out' ? Number.POSITIVE_INFINITY : Number(label);
  const labels = [...counts.keys()].sort((a, b) => order(a) - order(b));
  const least = Math.max(...counts.values()) * 0.15;
  const weights = labels.map((label) => Math.max(least, counts.get(label)!));
  const sum = weights.reduce((a, b) => a + b, 0);
  let start = 0;
  const stretches = new Map<string, Stretch>();
  labels.forEach((label, i) => {
    stretches.set(label, { start, width: weights[i]! / sum });
    start += weights[i]! / sum;
  });
  return stretches;
}

interface DecibelRange {
  readonly low: number;
  readonly high: number;
}

/**
 * Whole tens around the values that matter: the few highest, masks and constants, are drawn at the upper edge, as is what
 * is beyond 100 dB; what is under -20 dB at the lower one.
 */
function decibelRange(values: readonly ValueComparison[]): DecibelRange {
  const finite = values.map(({ sqnr }) => sqnr).filter(Number.isFinite);
  const low = Math.max(-20, Math.min(0, Math.floor(Math.min(...finite, 0) / 10) * 10));
  const usual = finite.sort((a, b) => a - b)[Math.floor(finite.length * 0.93)] ?? 0;
  return { low, high: Math.min(100, Math.max(40, Math.ceil(usual / 10) * 10)) };
}

function decibelTicks({ low, high }: DecibelRange): number[] {
  const ticks: number[] = [];
  const step = high - low > 60 ? 20 : 10;
  for (let tick = low; tick <= high; tick += step) ticks.push(tick);
  return ticks;
}

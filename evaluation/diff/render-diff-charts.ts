import { formatNoise } from '../format-figures.ts';
import { html, type Markup, raw } from '../markup.ts';
import { splitSections } from '../rank-values.ts';
import type { ViewValue } from './build-view.ts';
import type { BuildDiff, Histogram } from './compare-builds.ts';

const WIDTH = 180;
const HEIGHT = 34;

/** Two histograms over one range: a filled, b as a line. */
export function renderHistogram({ low, high, a, b }: Histogram, name: string): Markup {
  const most = Math.max(1, ...a, ...b);
  const step = WIDTH / a.length;
  const heightOf = (count: number): string => (HEIGHT - (HEIGHT * count) / most).toFixed(0);
  // Steps: a bin is as wide as it is.
  const path = (counts: readonly number[]): string =>
    counts
      .map((count, i) => `${i === 0 ? `M0 ${heightOf(count)}` : `V${heightOf(count)}`}h${step.toFixed(1)}`)
      .join('');
  const label = `${name}, ${low.toPrecision(3)} to ${high.toPrecision(3)}`;
  return html`<svg class="histogram" width="${String(WIDTH)}" height="${String(HEIGHT)}" viewBox="0 0 ${String(WIDTH)} ${String(HEIGHT)}" role="img" aria-label="${label}"><path class="a" d="${raw(`${path(a)}V${HEIGHT}H0Z`)}"/><path class="b" d="${raw(path(b))}"/></svg>`;
}

interface Step {
  readonly label: string;
  readonly a: number;
  readonly b: number;
}

/** Noise that each stretch of the network adds, in shares of power, summed over its values. */
function layerNoise(values: readonly ViewValue[]): Map<string, number> {
  const compared = values.flatMap(({ name, from, sqnr, noiseAdded }) =>
    sqnr === undefined ? [] : [{ name, from, sqnr, cosine: 1, maxError: 0, maxSteps: undefined, noiseAdded }],
  );
  return new Map(
    splitSections(compared as Parameters<typeof splitSections>[0]).map(({ label, values: members }) => [
      label,
      members.reduce((sum, { noiseAdded }) => sum + Math.max(0, noiseAdded ?? 0), 0),
    ]),
  );
}

const PLOT = { width: 1000, height: 300 };

/**
 * Where noise comes in, layer by layer: a bar for each side, and the sum so far as a line. What rises in b and not in a is
 * where the difference is made.
 */
export function renderWaterfall(diff: BuildDiff): Markup {
  const [a, b] = [layerNoise(diff.a.values), layerNoise(diff.b.values)];
  const order = (label: string): number => (label === 'in' ? -1 : label === 'out' ? Infinity : Number(label));
  const labels = [...new Set([...a.keys(), ...b.keys()])].sort((x, y) => order(x) - order(y));
  const steps = labels.map((label): Step => ({ label, a: a.get(label) ?? 0, b: b.get(label) ?? 0 }));
  if (steps.length === 0 || (a.size === 0 && b.size === 0)) {
    return html`<section><h2>Where noise comes in</h2><p class="about">Neither side knows the dB of its values.</p></section>`;
  }
  const total = Math.max(
    1e-12,
    steps.reduce((sum, step) => sum + step.a, 0),
    steps.reduce((sum, step) => sum + step.b, 0),
  );
  const slot = PLOT.width / steps.length;
  const width = Math.max(1, slot * 0.36);
  const y = (share: number): string => (PLOT.height * (1 - share / total)).toFixed(1);
  const draw = (side: 'a' | 'b'): Markup => {
    let sum = 0;
    const bars = steps.map((step, i) => {
      const from = sum;
      sum += step[side];
      const x = i * slot + (side === 'a' ? slot * 0.1 : slot * 0.54);
      const height = Math.max(1, (PLOT.height * step[side]) / total);
      return html`<rect class="${side}" x="${x.toFixed(1)}" y="${((PLOT.height * (total - sum)) / total).toFixed(1)}" width="${width.toFixed(1)}" height="${height.toFixed(1)}"><title>${side}, ${
        step.label === '' ? 'network' : `layer ${step.label}`
      }: ${formatNoise(step[side])} added, ${formatNoise(from + step[side])} so far</title></rect>`;
    });
    return html`<g>${bars}</g>`;
  };
  const every = Math.ceil(steps.length / 16);
  return html`<section><h2>Where noise comes in</h2>
<p class="about">Noise that each layer adds, as a share of its values' power, stacked from layer to layer: a waterfall of each side. The last step is as high as all noise together.</p>
<figure class="waterfall"><p class="legend"><span class="key a"></span>a: <bdi>${diff.a.title}</bdi> <span class="key b"></span>b: <bdi>${diff.b.title}</bdi></p>
<svg id="waterfall" viewBox="-60 -14 1070 345" width="100%" role="img" aria-label="Noise added by each of ${String(steps.length)} layers in a and b">
${[0, 0.5, 1].map(
  (share) =>
    html`<line class="grid" x1="0" x2="${String(PLOT.width)}" y1="${y(share * total)}" y2="${y(share * total)}"/><text class="tick" x="-6" y="${y(share * total)}" dy="4" text-anchor="end">${formatNoise(share * total)}</text>`,
)}
${draw('a')}${draw('b')}
${steps.map(
  ({ label }, i) =>
    i % every === 0 &&
    html`<text class="tick" x="${((i + 0.5) * slot).toFixed(1)}" y="320" text-anchor="middle">${label}</text>`,
)}
</svg>
<details><summary>As a table</summary><div class="scroll"><table class="sortable" id="steps"><thead><tr><th scope="col">layer</th><th scope="col" class="n">a adds</th><th scope="col" class="n">b adds</th></tr></thead><tbody>${steps.map(
    (step) =>
      html`<tr><td>${step.label}</td><td class="n" data-v="${String(step.a)}">${formatNoise(step.a)}</td><td class="n" data-v="${String(step.b)}">${formatNoise(step.b)}</td></tr>`,
  )}</tbody></table></div></details></figure></section>`;
}

import { formatBytes, formatRatio } from '../format-figures.ts';
import { html, type Markup } from '../markup.ts';
import { percent } from '../render-charts.ts';
import { formatRequest } from './render-sweep-text.ts';
import { anchorOf, memoryOf, type SweepPoint, type SweepReport } from './sweep-report.ts';

/** A figure of points on the upright axis; smaller is better. */
interface Axis {
  readonly title: string;
  readonly of: (point: SweepPoint) => number | undefined;
  readonly text: (value: number) => string;
}

const TIME: Axis = { title: 'seconds of a request, estimated', of: ({ plan }) => plan.seconds, text: formatRequest };
const QUALITY: Axis = {
  title: 'perplexity ratio',
  of: ({ quality }) => (quality && Number.isFinite(quality.ratio) ? quality.ratio : undefined),
  text: formatRatio,
};

/** Marks of schemes: shapes repeat what colours say. */
const SHAPES: readonly Markup[] = [
  html`<circle r="4.2"/>`,
  html`<rect x="-3.7" y="-3.7" width="7.4" height="7.4"/>`,
  html`<path d="M0-5 4.7 3.5-4.7 3.5Z"/>`,
  html`<path d="M0-5 5 0 0 5-5 0Z"/>`,
];

const seriesOf = ({ points }: SweepReport): string[] => [...new Set(points.map(describeSeries))];
const describeSeries = ({ target, scheme }: SweepPoint): string => `${target} ${scheme}`;

/** Memory against time and against quality, for every SoC, the points that no other beats joined. */
export function renderFronts(report: SweepReport): Markup {
  const socs = [...new Set(report.points.map(({ soc }) => soc))];
  const axes = [TIME, QUALITY].filter(({ of }) => report.points.some((point) => of(point) !== undefined));
  if (axes.length === 0) return html``;
  const series = seriesOf(report);
  return html`<section><h2>Memory against time and quality</h2>
<p class="about">Every point, lower and further left is better. Filled marks are on the front: no other point of the SoC is better in memory, time and quality at once; the line joins those that are best in the two figures of a chart. Each mark leads to its row.</p>
${renderMarks(series)}
<div class="pair">${socs.flatMap((soc) =>
    axes.map((axis) =>
      renderScatter(
        `${soc}: ${axis.title}`,
        report.points.filter((point) => point.soc === soc),
        axis,
        series,
      ),
    ),
  )}</div></section>`;
}

/** What each mark stands for, and the marks themselves for the charts. */
function renderMarks(series: readonly string[]): Markup {
  return html`<svg width="0" height="0" class="defs" aria-hidden="true"><defs>${series.map(
    (_, i) => html`<g id="m-s${i}">${SHAPES[i % SHAPES.length]!}</g>`,
  )}</defs></svg><p class="marks">${series.map(
    (name, i) =>
      html`<span class="s${i % 6}"><svg class="marker" width="14" height="14" viewBox="-6 -6 12 12" aria-hidden="true"><use href="#m-s${i}"/></svg>${name}</span>`,
  )}</p>`;
}

function renderScatter(title: string, all: readonly SweepPoint[], axis: Axis, series: readonly string[]): Markup {
  const points = all.flatMap((point) => {
    const value = axis.of(point);
    return value === undefined ? [] : [{ point, x: memoryOf(point), y: value }];
  });
  if (points.length === 0) return html``;
  const [xs, ys] = [scaleOf(points.map(({ x }) => x)), scaleOf(points.map(({ y }) => y))];
  const place = points.map(({ point, x, y }) => ({ point, value: y, left: xs.at(x), top: 1 - ys.at(y) }));
  // Of the front, which is one in three figures, those that no other beats in the two of this chart.
  let least = Number.POSITIVE_INFINITY;
  const front = place
    .filter(({ point }) => point.front)
    .sort((a, b) => a.left - b.left || a.value - b.value)
    .filter(({ value }) => {
      const lower = value < least;
      least = Math.min(least, value);
      return lower;
    });
  return html`<figure class="scatter" data-readout><h3>${title}</h3>
<div class="plot"><svg class="chart" width="100%" height="280" role="group" aria-label="${title} of ${String(points.length)} points against memory">
${ys.ticks.map(
  (tick) =>
    html`<line class="grid" x1="0" x2="100%" y1="${percent(1 - ys.at(tick))}" y2="${percent(1 - ys.at(tick))}"/><text class="tick" x="-6" y="${percent(1 - ys.at(tick))}" dy="4" text-anchor="end">${axis.text(tick)}</text>`,
)}
${xs.ticks.map(
  (tick) =>
    html`<text class="tick" x="${percent(xs.at(tick))}" y="100%" dy="16" text-anchor="middle">${formatBytes(tick)}</text>`,
)}
${front
  .slice(1)
  .map(
    ({ left, top }, i) =>
      html`<line class="front" x1="${percent(front[i]!.left)}" y1="${percent(front[i]!.top)}" x2="${percent(left)}" y2="${percent(top)}"/>`,
  )}
${place.map(({ point, value, left, top }) => {
  const index = series.indexOf(describeSeries(point));
  const text = `${point.id}: ${formatBytes(memoryOf(point))}, ${axis.text(value)}`;
  return html`<a href="#${anchorOf(point)}" aria-label="${text}"><use class="spot s${index % 6}${point.front && ' filled'}" href="#m-s${index}" x="${percent(left)}" y="${percent(top)}"><title>${text}</title></use></a>`;
})}
</svg></div><output class="readout js-only">Point at a mark for its figures.</output></figure>`;
}

interface Scale {
  at(value: number): number;
  readonly ticks: readonly number[];
}

/** Room around the values, and three or four round numbers among them. */
function scaleOf(values: readonly number[]): Scale {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const span = most - least || Math.abs(most) || 1;
  const [low, high] = [least - 0.08 * span, most + 0.08 * span];
  const raw = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw)!;
  const ticks: number[] = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) ticks.push(Number(tick.toPrecision(12)));
  return { at: (value) => (value - low) / (high - low), ticks };
}

/** Keys and values against the size of the cache. */
export function renderGrowth(report: SweepReport): Markup {
  const caches = [...new Set(report.points.map(({ cache }) => cache))].sort((a, b) => a - b);
  const series = seriesOf(report);
  const lines = series.map((name) => ({
    name,
    values: caches.map((cache) => {
      const point = report.points.find((each) => describeSeries(each) === name && each.cache === cache);
      return { cache, kv: point?.plan.cacheBytes ?? 0, rest: point ? memoryOf(point) - point.plan.cacheBytes : 0 };
    }),
  }));
  const most = Math.max(...lines.flatMap(({ values }) => values.map(({ kv, rest }) => kv + rest)));
  return html`<section><h2>Growth of keys and values</h2>
<p class="about">The coloured part is keys and values, the pale part all else: artifact, values inside the graphs, inputs and outputs, at the fewest tokens and the first SoC.</p>
<figure class="bars" id="growth">${lines.map(
    ({ name, values }, i) =>
      html`<h3>${name}</h3>${values.map(
        ({ cache, kv, rest }) =>
          html`<div class="row s${i % 6}"><span class="label">${String(cache)}</span><svg class="track" width="100%" height="20" role="img" aria-label="${name}, cache ${String(
            cache,
          )}: keys and values ${formatBytes(kv)}, all else ${formatBytes(rest)}"><rect class="part p3" x="0" y="3" width="${percent(rest / most)}" height="14"/><rect class="part p0" x="${percent(rest / most)}" y="3" width="${percent(kv / most)}" height="14"/></svg><span class="value">${formatBytes(kv)}</span></div>`,
      )}`,
  )}</figure></section>`;
}

/** What is alive inside the graphs while they run, for every point. */
export function renderTimelines(report: SweepReport): Markup {
  const series = seriesOf(report);
  return html`<section><h2>Memory while a graph runs</h2>
<p class="about">Bytes of the values inside the graph that are alive at each node: embedding, a first, a middle and a last layer, head. Weights, keys and values are beside it all the time.</p>
<details id="timelines"><summary>${String(report.points.length)} points</summary><div class="timelines">${report.points.map(
    (point) => {
      const { timeline, arenaBytes } = point.plan;
      const most = Math.max(1, ...timeline.prefill, ...timeline.decode);
      const index = series.indexOf(describeSeries(point)) % 6;
      return html`<figure class="timeline s${index}"><h3>${point.id}</h3>${(['prefill', 'decode'] as const).map(
        (name) =>
          html`<svg width="100%" height="${name === 'prefill' ? '48' : '28'}" viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="${name}: at most ${formatBytes(
            Math.max(0, ...timeline[name]),
          )}"><path class="area ${name}" d="${areaOf(timeline[name], name === 'prefill' ? most : Math.max(1, ...timeline.decode))}"/></svg><p class="from">${name}: at most ${formatBytes(Math.max(0, ...timeline[name]))}</p>`,
      )}<p class="from">arena ${formatBytes(arenaBytes)}</p></figure>`;
    },
  )}</div></details></section>`;
}

function areaOf(values: readonly number[], most: number): string {
  const step = 100 / Math.max(1, values.length);
  const short = (value: number): string => String(Number(value.toFixed(1)));
  const steps = values.map((value, i) => `V${short(100 - (100 * value) / most)}H${short((i + 1) * step)}`);
  return `M0 100${steps.join('')}V100Z`;
}

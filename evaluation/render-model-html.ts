import type { TargetName } from '../targets/target.ts';
import { worstSqnr } from './compare-runs.ts';
import { describeNpu } from './describe-npu.ts';
import { joinWords, listTargets } from './describe-report.ts';
import { EXECUTIONS, formatBytes, formatCount, formatDecibels, formatReal, formatRun } from './format-figures.ts';
import { gradeModel, MODEL_GRADE_BOUNDS } from './grade-model.ts';
import { GRADES, WORST_FIRST } from './grade-target.ts';
import { html, type Markup, renderPath } from './markup.ts';
import type { ModelReport, ModelTargetReport, SampleReport } from './model-report.ts';
import { renderNetworkChart } from './render-network-chart.ts';
import { renderPage, renderRemarks, renderReproduction } from './render-page.ts';
import { GLYPHS, renderWhere } from './render-summary.ts';
import { renderAllValues, renderPlan, renderWorstValues, sortKey } from './render-values.ts';
import { renderMarker } from './target-marker.ts';

/** The report of a compiled ONNX model as one HTML file that needs nothing else. Same report, same bytes. */
export function renderModelHtml(report: ModelReport): string {
  const shown = shareValues(report);
  return renderPage(
    `${report.source} for ${report.soc}: ${describeWorst(report).title}`,
    listTargets(report).map(([name]) => name),
    [
      renderHeader(report),
      html`<section class="cards" aria-label="Targets">${listTargets(report).map(([name, target]) =>
        renderCard(name, target, report),
      )}</section>`,
      renderOutputs(report),
      renderNetworkChart(shown),
      renderWorstValues(shown),
      renderAllValues(shown),
      renderPlan(report),
      renderRemarks(report),
      renderReproduction(report),
      renderLegend(),
    ],
  );
}

/** Targets of one number format have the very same graph: its values are shown once. */
function shareValues(report: ModelReport): ModelReport {
  const seen = new Set<ModelTargetReport['values']>();
  const targets = Object.fromEntries(
    listTargets(report).map(([name, target]) => {
      const again = seen.has(target.values);
      seen.add(target.values);
      return [name, again ? { ...target, values: [] } : target];
    }),
  );
  return { ...report, targets };
}

/** The grades of all targets in one sentence, the worst first. */
function describeWorst(report: ModelReport): { title: string; grade: keyof typeof GRADES; sentence: string } {
  const grades = listTargets(report).map(([name, target]) => ({ name, target, grade: gradeModel(target) }));
  const worst = WORST_FIRST.find((grade) => grades.some((each) => each.grade === grade));
  if (!worst) return { title: 'nothing compiled', grade: 'unproven', sentence: 'No target was compiled.' };
  const clauses = WORST_FIRST.flatMap((grade) => {
    const members = grades.filter((each) => each.grade === grade);
    if (members.length === 0) return [];
    const names = joinWords(members.map(({ name }) => name));
    if (grade === 'unproven') return [`${names} ${members.length > 1 ? 'were' : 'was'} ${GRADES[grade].sentence}`];
    const least = Math.min(...members.map(({ target }) => worstSqnr(target.outputs)));
    return [`the worst output of ${names} keeps ${formatDecibels(least)}`];
  });
  return { title: GRADES[worst].word, grade: worst, sentence: `${clauses.join('; ')}.` };
}

function renderHeader(report: ModelReport): Markup {
  const { title, grade, sentence } = describeWorst(report);
  const facts: readonly (readonly [string, string])[] = [
    ['scheme', report.scheme],
    ...report.inputs.map(({ name, type }): [string, string] => [`input ${name}`, type]),
    ['calibrated on', describeSamples(report.calibration)],
    ['evaluated on', describeSamples(report.evaluation)],
    ...(report.simplified
      ? [['simplified graph', `${formatDecibels(worstSqnr(report.simplified))} to the untouched model`] as const]
      : []),
  ];
  return html`<header>
<p class="kind">npuc accuracy report</p>
<h1><bdi>${report.source}</bdi> <span class="for">for</span> <bdi>${report.soc}</bdi></h1>
<dl class="facts">${facts.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
<div class="verdict ${grade}">
<span class="glyph" aria-hidden="true">${GLYPHS[grade]}</span>
<div><p class="sentence"><strong>${title}.</strong> ${sentence}</p>${report.warnings.map(
    (warning) => html`<p class="lead low">Warning: ${warning}</p>`,
  )}</div>
</div>
</header>`;
}

function describeSamples({ source, samples, random }: SampleReport): string {
  return random ? source : `${formatCount(samples)} of ${source}`;
}

function renderCard(name: TargetName, target: ModelTargetReport, report: ModelReport): Markup {
  const grade = gradeModel(target);
  const rows: [string, string, string][] = [
    ['best output', formatDecibels(Math.max(...target.outputs.map(({ sqnr }) => sqnr))), 'against the float model'],
    ...(target.twin
      ? [
          ['engine', formatDecibels(worstSqnr(target.twin)), 'against ONNX Runtime on the same QDQ model'],
          ['QDQ', formatDecibels(worstSqnr(target.twinOutputs!)), 'that QDQ model on ONNX Runtime against float'],
        ].map((row) => row as [string, string, string])
      : []),
    ['size', formatBytes(target.bytes), 'bytes that go to the phone'],
    ['a run', formatRun(target.seconds), 'on this machine, not on the phone'],
  ];
  return html`<article class="card t-${name}">
<h2>${renderMarker(name)}${name}<span class="badge ${grade}"><span aria-hidden="true">${GLYPHS[grade]}</span> ${GRADES[grade].word}</span></h2>
<p class="headline"><span class="big">${formatDecibels(worstSqnr(target.outputs))}</span><span class="caption">SQNR of the worst output, against the untouched float model</span></p>
<dl class="figures">${rows.map(([label, value, about]) => html`<div title="${about}"><dt>${label}</dt><dd>${value}</dd></div>`)}</dl>
<dl class="where">${renderWhere(target, report.divergenceThreshold)}</dl>
<p class="proof"><b>${EXECUTIONS[target.execution].short}</b> in ${target.engine}. ${EXECUTIONS[target.execution].long}</p>
${[...(target.npu ?? []).flatMap(describeNpu), ...target.notes].map((note) => html`<p class="note">${note}</p>`)}
</article>`;
}

/** Every output of every target. */
function renderOutputs(report: ModelReport): Markup {
  const targets = listTargets(report);
  const names = targets[0]?.[1].outputs.map(({ name }) => name) ?? [];
  return html`<section><h2>Outputs</h2>
<p class="about">dB against the untouched float model, with the largest absolute error under it.</p>
<div class="scroll"><table class="sortable" id="outputs"><thead><tr><th scope="col">output</th>${targets.map(
    ([name]) => html`<th scope="col" class="n">${name}</th>`,
  )}</tr></thead>
<tbody>${names.map(
    (output) =>
      html`<tr><td>${renderPath(output)}</td>${targets.map(([, { outputs }]) => {
        const found = outputs.find(({ name }) => name === output);
        if (!found) return html`<td class="n" data-v=""></td>`;
        const low = found.sqnr >= report.divergenceThreshold ? '' : 'low';
        return html`<td class="n ${low}" data-v="${sortKey(found.sqnr)}">${formatDecibels(found.sqnr).replace(' dB', '')}<br><span class="from">${formatReal(found.maxError)}</span></td>`;
      })}</tr>`,
  )}</tbody></table></div></section>`;
}

function renderLegend(): Markup {
  return html`<section><h2>How to read this</h2>
<dl class="legend-list">
<dt>SQNR</dt><dd>Signal to quantization noise ratio: 20 dB is a tenth of the size in error, 40 dB a hundredth, 60 dB a thousandth.</dd>
<dt>verdicts</dt><dd><ul>${MODEL_GRADE_BOUNDS.map(
    ({ grade, sqnr }) => html`<li><b>${GRADES[grade].word}</b>: the worst output keeps ${String(sqnr)} dB.</li>`,
  )}<li><b>${GRADES.broken.word}</b>: below these, or not a number.</li></ul>An output that is next to nothing everywhere, such as the scores of a detector that sees nothing, has few dB without harm.</dd>
<dt>engine</dt><dd>How exactly the engine computes what the integers say: its outputs against ONNX Runtime's on the same QDQ model.</dd>
<dt>values</dt><dd>Compared on the first samples through extra graph outputs of the QDQ graph, both in ONNX Runtime. Scales that were moved from one convolution into the next are the same in both.</dd>
</dl></section>`;
}

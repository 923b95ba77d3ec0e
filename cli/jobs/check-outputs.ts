import { type CheckReport, describeOutcome } from '../../evaluation/check/check-report.ts';
import { renderAnnotations, renderJunit, renderSarif } from '../../evaluation/check/render-ci.ts';
import { renderCheckMarkdown, renderCheckText } from '../../evaluation/check/render-text.ts';
import { viewMeasurement } from '../../evaluation/check/view-measurement.ts';
import { type BuildDiff, compareBuilds } from '../../evaluation/diff/compare-builds.ts';
import { renderDiffHtml } from '../../evaluation/diff/render-diff-html.ts';
import { wantsColour } from '../../evaluation/render-terminal.ts';
import { spellFigures } from '../../evaluation/write-report.ts';
import { appendTo, writeWhole } from './check.ts';

export interface CheckOutputs {
  readonly junit?: string;
  readonly sarif?: string;
  readonly markdown?: string;
  readonly html?: string;
  /** A file of a CI system that summaries are appended to. */
  readonly summary?: string;
  /** Whether GitHub's workflow commands are written to stderr. */
  readonly annotations: boolean;
}

/** Writes every output that was asked for. @returns the report as text and as one line of JSON. @throws IO002 */
export function writeCheckOutputs(report: CheckReport, outputs: CheckOutputs): { text: string; json: string } {
  if (outputs.junit !== undefined) writeWhole(outputs.junit, renderJunit(report));
  if (outputs.sarif !== undefined) writeWhole(outputs.sarif, renderSarif(report));
  if (outputs.markdown !== undefined) writeWhole(outputs.markdown, renderCheckMarkdown(report));
  if (outputs.html !== undefined) writeWhole(outputs.html, renderDiffHtml(diffWithBaseline(report)));
  if (outputs.summary !== undefined) appendTo(outputs.summary, renderCheckMarkdown(report));
  if (outputs.annotations) for (const line of renderAnnotations(report)) process.stderr.write(`${line}\n`);
  return { text: renderCheckText(report, wantsColour()), json: JSON.stringify(summarize(report), spellFigures) };
}

/** The baseline and the measurement side by side. */
function diffWithBaseline({ baseline, measurement }: CheckReport): BuildDiff {
  return compareBuilds(
    viewMeasurement(baseline.measurement, baseline.path, 'baseline'),
    viewMeasurement(measurement, 'now', 'measurement'),
  );
}

/** What a program wants of a report: the verdict, every figure that is judged, and who broke it. */
function summarize({ baseline, judgement, culprit, trials, attribution, ...report }: CheckReport): object {
  return {
    passed: !judgement.failed,
    outcome: describeOutcome({ baseline, judgement, trials, ...report }),
    baseline: baseline.path,
    model: report.measurement.model,
    target: report.measurement.target,
    metrics: judgement.metrics.map(({ metric, ...row }) => ({ metric: metric.title, ...row })),
    findings: judgement.findings,
    insideNoise: judgement.insideNoise,
    compared: judgement.compared,
    ...(culprit ? { culprit } : {}),
    trials,
    ...(attribution ? { attribution } : {}),
  };
}

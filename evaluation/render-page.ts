import { createHash } from 'node:crypto';
import type { TargetName } from '../targets/target.ts';
import { describeRemark, groupRemarks } from './group-remarks.ts';
import { html, type Markup, raw } from './markup.ts';
import type { Report } from './report.ts';
import { REPORT_SCRIPT } from './report-script.ts';
import { REPORT_STYLE } from './report-style.ts';
import { defineMarkers } from './target-marker.ts';

/**
 * A page that needs nothing else: its policy forbids the browser every request, and every script but its own, which only
 * sorts, filters and points.
 * @param targets whose markers the sections use
 */
export function renderPage(title: string, targets: readonly TargetName[], sections: readonly Markup[]): string {
  const script = createHash('sha256').update(REPORT_SCRIPT).digest('base64');
  const policy = `default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-${script}'; base-uri 'none'; form-action 'none'`;
  const page = html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${title}</title>
<link rel="icon" href="data:,">
<style>${raw(REPORT_STYLE)}</style>
</head>
<body>
${defineMarkers(targets)}
<main>
${sections.map((section) => html`${section}\n`)}</main>
<script>${raw(REPORT_SCRIPT)}</script>
</body>
</html>
`;
  return page.text;
}

/** Remarks of the plan, those of all layers alike as one. */
export function renderRemarks({ remarks }: Pick<Report, 'remarks'>): Markup {
  if (remarks.length === 0) return html``;
  return html`<section><h2>Remarks</h2><ul class="remarks">${groupRemarks(remarks).map((remark) => html`<li>${describeRemark(remark)}</li>`)}</ul></section>`;
}

/** The command that makes the report again, and the versions that it was made with. */
export function renderReproduction({ command, versions }: Pick<Report, 'command' | 'versions'>): Markup {
  if (command === undefined && versions === undefined) return html``;
  return html`<section><h2>Make it again</h2>
${command !== undefined && html`<div class="command"><pre id="command"><code>${command.split(/ (?=--)/).map((part, i) => html`${i > 0 && ' '}<span>${part}</span>`)}</code></pre><button type="button" class="js-only" data-copy="command">Copy</button></div>`}
${
  versions !== undefined &&
  html`<p class="about">${Object.entries(versions).map(([name, version], i) => `${i > 0 ? ', ' : ''}${name} ${version}`)}. The same input, recipe and versions give the same artifacts, byte for byte.</p>`
}</section>`;
}

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { renderHtml } from './render-html.ts';
import type { Report } from './report.ts';

/** Writes `report.json` and the self-contained `report.html` into an output folder. */
export function writeReport(folder: string, report: Report): void {
  writeFileSync(join(folder, 'report.json'), `${JSON.stringify(report, undefined, 1)}\n`);
  writeFileSync(join(folder, 'report.html'), renderHtml(report));
}

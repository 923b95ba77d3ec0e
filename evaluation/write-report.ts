import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { NpucError } from '../compiler/errors.ts';
import type { ModelReport } from './model-report.ts';
import { renderHtml } from './render-html.ts';
import { renderModelHtml } from './render-model-html.ts';
import type { Report } from './report.ts';

/** Fields that may hold Infinity (nothing differs) or NaN (the engine gave no numbers), which JSON cannot. */
const FIGURES: ReadonlySet<string> = new Set([
  'cosine',
  'divergence',
  'floatPerplexity',
  'maxError',
  'maxSteps',
  'noiseAdded',
  'perplexity',
  'ratio',
  'ratioError',
  'referencePerplexity',
  'sqnr',
  'twinSqnr',
]);
const NOT_FINITE: ReadonlySet<unknown> = new Set(['Infinity', '-Infinity', 'NaN']);

/** Writes `report.json` and the self-contained `report.html` into an output folder. */
export function writeReport(folder: string, report: Report): void {
  writeFileSync(join(folder, 'report.json'), serializeReport(report));
  writeFileSync(join(folder, 'report.html'), renderHtml(report));
}

/** Writes `report.json` and the self-contained `report.html` of a compiled ONNX model into an output folder. */
export function writeModelReport(folder: string, report: ModelReport): void {
  writeFileSync(join(folder, 'report.json'), serializeReport(report));
  writeFileSync(join(folder, 'report.html'), renderModelHtml(report));
}

/** The text of `report.json`: figures that are not finite are the strings `Infinity`, `-Infinity` and `NaN`. */
export function serializeReport(report: Report | ModelReport): string {
  return `${JSON.stringify(report, spellFigures, 1)}\n`;
}

/** For JSON.stringify: figures that are not finite become their names, where JSON would write null. */
export function spellFigures(_key: string, value: unknown): unknown {
  return typeof value === 'number' && !Number.isFinite(value) ? String(value) : value;
}

/**
 * Reads the `report.json` of an output folder.
 * @throws IO001 when there is none, IO003 when it is not a report of this version
 */
export function readReport(folder: string): Report {
  const path = join(folder, 'report.json');
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    throw new NpucError('IO001', { message: `cannot read ${path}: ${(cause as Error).message}`, where: path, cause });
  }
  const revive = (key: string, value: unknown): unknown =>
    FIGURES.has(key) && NOT_FINITE.has(value) ? Number(value) : value;
  try {
    const report = JSON.parse(text, revive) as Report;
    if (report.format !== 2 || typeof report.targets !== 'object') throw new Error('it is not an npuc report');
    return report;
  } catch (cause) {
    throw new NpucError('IO003', {
      message: `${path}: ${(cause as Error).message}`,
      where: path,
      hint: 'compile again',
      cause,
    });
  }
}

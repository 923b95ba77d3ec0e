import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { readReport, writeReport } from '../../evaluation/write-report.ts';
import { makeReport } from './make-report.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'npuc-report-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

describe('writeReport', () => {
  test('what is read is what was written, figures that are not finite and samples that look like them included', () => {
    const report = makeReport();
    const odd = {
      ...report,
      floatPerplexity: Number.NaN,
      samples: { float: 'NaN', onnx: 'Infinity' },
      targets: {
        ...report.targets,
        onnx: { ...report.targets.onnx!, twinSqnr: Number.POSITIVE_INFINITY },
      },
    };
    writeReport(folder, odd);
    expect(readReport(folder)).toEqual(odd);
  });

  test('the same report gives the same bytes', () => {
    writeReport(folder, makeReport());
    const files = ['report.json', 'report.html'].map((name) => readFileSync(join(folder, name)));
    writeReport(folder, makeReport());
    expect(['report.json', 'report.html'].map((name) => readFileSync(join(folder, name)))).toEqual(files);
  });
});

describe('readReport', () => {
  test.each([
    ['no file', undefined, 'IO001'],
    ['no JSON', '{"format": 2,', 'IO003'],
    ['another format', '{"format": 1, "targets": {}}', 'IO003'],
    ['no report', 'null', 'IO003'],
  ])('%s', (_name, text, code) => {
    if (text !== undefined) writeFileSync(join(folder, 'report.json'), text);
    expect(() => readReport(folder)).toThrow(expect.objectContaining({ code }));
  });
});

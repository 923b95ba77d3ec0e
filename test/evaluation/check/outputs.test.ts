import { existsSync, readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { z } from 'zod';
import { cacheFolder } from '../../../compiler/cache.ts';
import { listFailures } from '../../../evaluation/check/check-report.ts';
import { renderAnnotations, renderJunit, renderSarif } from '../../../evaluation/check/render-ci.ts';
import { renderCheckMarkdown, renderCheckText } from '../../../evaluation/check/render-text.ts';
import { HOSTILE, makeCheckReport } from './make-check-report.ts';

const SCHEMA = cacheFolder('schemas', 'sarif-2.1.0.json');
const hasSchema = existsSync(SCHEMA);
if (!hasSchema && process.env.CI) throw new Error(`${SCHEMA} is absent: node test/tools/fetch-sarif-schema.mjs`);
if (!hasSchema) console.warn('SKIPPED: SARIF is not validated, run node test/tools/fetch-sarif-schema.mjs');

interface SarifLog {
  runs: {
    tool: { driver: { name?: string; rules: { id: string }[] } };
    results: {
      ruleId: string;
      ruleIndex: number;
      level: string;
      message: { text: string };
      locations: {
        physicalLocation: { artifactLocation: { uri: string }; region: { startLine: number } };
        logicalLocations: { fullyQualifiedName: string }[];
      }[];
    }[];
  }[];
}

const parse = (): SarifLog => JSON.parse(renderSarif(makeCheckReport())) as SarifLog;

describe.skipIf(!hasSchema)('SARIF', () => {
  // The validator takes relative references for malformed URLs: that they are well formed is checked below.
  const text = hasSchema ? readFileSync(SCHEMA, 'utf8').replaceAll(/"format": "uri-reference",?/g, '') : '{}';
  const schema = z.fromJSONSchema(JSON.parse(text.replaceAll(/,(\s*[}\]])/g, '$1')) as z.core.JSONSchema.JSONSchema);

  test('is what the standard says', () => {
    const { success, error } = schema.safeParse(parse());
    expect(error?.issues ?? []).toEqual([]);
    expect(success).toBe(true);
  });

  test.each([
    ['an unknown level', (log: SarifLog) => Object.assign(log.runs[0]!.results[0]!, { level: 'fatal' })],
    ['a tool without a name', (log: SarifLog) => Object.assign(log.runs[0]!.tool, { driver: { rules: [] } })],
    ['a key of its own', (log: SarifLog) => Object.assign(log.runs[0]!.results[0]!, { extra: 1 })],
    [
      'a line 0',
      (log: SarifLog) =>
        Object.assign(log.runs[0]!.results[0]!.locations[0]!.physicalLocation, { region: { startLine: 0 } }),
    ],
  ])('the schema refuses %s', (_, spoil) => {
    const log = parse();
    spoil(log);
    expect(schema.safeParse(log).success).toBe(false);
  });
});

test('SARIF points at the line of the recipe, of the baseline, and at the node of the model', () => {
  const [run] = parse().runs;
  const [culprit, ...others] = run!.results;
  expect(culprit!.ruleId).toBe('culprit');
  expect(culprit!.locations[0]!.physicalLocation).toEqual({
    artifactLocation: { uri: 'npuc.config.yaml' },
    region: { startLine: 7 },
  });
  const report = makeCheckReport();
  const hostile = others.find(({ message }) => message.text.includes(HOSTILE))!;
  expect(hostile.locations[0]!.physicalLocation).toEqual({
    artifactLocation: { uri: 'ci/quality%20one.yaml' },
    region: { startLine: report.baseline.lines.get(`values.${HOSTILE}`) },
  });
  expect(hostile.locations[0]!.logicalLocations[0]!.fullyQualifiedName).toBe(`model.${HOSTILE}`);
  for (const { ruleId, ruleIndex } of run!.results) expect(run!.tool.driver.rules[ruleIndex]!.id).toBe(ruleId);
});

test('JUnit counts what failed, and is well formed whatever a model calls its values', () => {
  const xml = renderJunit(makeCheckReport());
  const failures = listFailures(makeCheckReport()).length;
  expect(xml.match(/<failure /g)).toHaveLength(failures);
  expect(xml).toMatch(new RegExp(`<testsuites name="npuc check" tests="\\d+" failures="${failures}" errors="0">`));
  // biome-ignore lint/suspicious/noControlCharactersInRegex: XML has none of them
  expect(xml).not.toMatch(/[\u0000-\u0008\u000b\u000c\u000e-\u001f]/);
  expect(xml).not.toContain('<b>');
  // Every tag that opens is closed, in order.
  const open: string[] = [];
  for (const [, end, name, rest] of xml.matchAll(/<(\/?)([a-z]+)([^<>]*)>/g)) {
    if (end) expect(open.pop()).toBe(name);
    else if (!rest!.endsWith('/')) open.push(name!);
  }
  expect(open).toEqual([]);
});

test('annotations are commands of one line, their properties escaped', () => {
  const lines = renderAnnotations(makeCheckReport());
  expect(lines[0]).toMatch(/^::error file=npuc\.config\.yaml,line=7,title=npuc check%3A culprit::range: "percentile"/);
  expect(lines.length).toBeLessThanOrEqual(10);
  for (const line of lines) expect(line).toMatch(/^::error file=[^,\n]+,line=\d+,title=[^:\n]+::[^\n]+$/);
});

test('the step summary is a table that no name breaks out of', () => {
  const text = renderCheckMarkdown(makeCheckReport());
  expect(text).toContain('## ❌ npuc check: made-up for onnx');
  expect(text).toContain('**Culprit: range: "percentile"**');
  const row = text.split('\n').find((line) => line.includes('\\<b\\>'))!;
  expect(row.match(/(?<!\\)\|/g)).toHaveLength(6);
  expect(text).toContain('| rounding of weights | 0.01 | 0.018 |');
});

test('the terminal names what failed, by how much, who did it and the cheapest fix', () => {
  const text = renderCheckText(makeCheckReport(), false);
  expect(text).toContain('check of made-up for onnx against ci/quality one.yaml: FAILED');
  expect(text).toContain('Regression in kl, max_kl and 2 of 5 values.');
  expect(text).toMatch(/layers\.1\.down_proj went from 37\.0 to 25\.0 dB, [\d.]+ x its noise/);
  expect(text).toContain('culprit: range: "percentile"');
  expect(text).toContain('98.0 % recovered by recipe range: "percentile"');
  expect(text).toContain('cheapest fix: a key/value cache of 16 bits: KL -0.004, 64 B more a token');
});

import { describe, expect, test, vi } from 'vitest';
import { renderTerminal } from '../../evaluation/render-terminal.ts';
import type { Report } from '../../evaluation/report.ts';
import { makeReport } from './make-report.ts';

const ESCAPE = '\u001b';

/** Text without the colour codes. */
function stripColour(text: string): string {
  return text.split(ESCAPE).reduce((plain, part) => plain + part.replace(/^\[\d+m/, ''));
}

describe('renderTerminal', () => {
  test('the whole table', async () => {
    await expect(renderTerminal(makeReport(), { colour: false })).toMatchFileSnapshot('render-terminal.txt');
  });

  test('has no colour where it is not asked for, nor for NO_COLOR, nor when stdout is no terminal', () => {
    expect(renderTerminal(makeReport(), { colour: false })).not.toContain(ESCAPE);
    vi.stubEnv('FORCE_COLOR', '');
    expect(process.stdout.isTTY).not.toBe(true);
    expect(renderTerminal(makeReport())).not.toContain(ESCAPE);
    vi.stubEnv('FORCE_COLOR', '1');
    expect(renderTerminal(makeReport())).toContain(ESCAPE);
    vi.stubEnv('NO_COLOR', '1');
    expect(renderTerminal(makeReport())).not.toContain(ESCAPE);
    vi.unstubAllEnvs();
  });

  test('colour adds nothing but colour', () => {
    const coloured = renderTerminal(makeReport(), { colour: true });
    expect(coloured).toContain(`${ESCAPE}[31mDegraded${ESCAPE}[39m`);
    const unpadded = (text: string): string => text.replaceAll(/ +\n/g, '\n');
    expect(unpadded(stripColour(coloured))).toBe(renderTerminal(makeReport(), { colour: false }));
  });

  test('fits 100 columns whatever names, remarks and figures are', () => {
    const report = makeReport();
    const long = 'transformer/decoder/block_17/'.repeat(12);
    const grown: Report = {
      ...report,
      source: long,
      targets: Object.fromEntries(
        Object.entries(report.targets).map(([name, target]) => [
          name,
          {
            ...target,
            engine: long,
            seconds: 36_000,
            notes: [long, 'word '.repeat(60)],
            logits: { ...report.targets.onnx!.logits!, ratio: 189_803.26, ratioError: 25_405.31, divergence: 12.42 },
            values: target.values.map((value) => ({ ...value, name: long + value.name, from: [long, long] })),
          },
        ]),
      ),
      remarks: [long, `${long} ${long}`],
    };
    for (const line of renderTerminal(grown, { colour: false }).split('\n'))
      expect([...line].length).toBeLessThanOrEqual(100);
  });

  test('fits a terminal of 80 columns', () => {
    const report = makeReport();
    const lines = renderTerminal(report, { colour: false, width: 80 }).split('\n');
    expect(Math.max(...lines.map((line) => [...line].length))).toBeLessThanOrEqual(80);
    expect(lines.some((line) => line.startsWith('qnn') && line.endsWith('as twin'))).toBe(true);
  });

  test('control characters of names do not reach the terminal', () => {
    const report = makeReport();
    const evil = `${ESCAPE}]0;owned\u0007${ESCAPE}[2J\u202e`;
    const text = renderTerminal({ ...report, source: evil, remarks: [evil] }, { colour: false });
    expect(text).not.toMatch(/[^\P{Cc}\n]|\u202e/u);
  });

  test('says when nothing was quantized or nothing could be run', () => {
    const report = makeReport();
    const text = renderTerminal(
      {
        ...report,
        floatPerplexity: Number.NaN,
        plan: [],
        remarks: [],
        targets: {
          qnn: {
            engine: 'none',
            execution: 'read-back-only',
            bytes: 12,
            values: [],
            seconds: 0.5,
            notes: [],
          },
        },
      },
      { colour: false },
    );
    expect(text).toContain('qnn was not executed, so nothing is known.');
    expect(text).toContain('Not run');
    expect(text).not.toContain('worst values');
    expect(text).not.toContain('NaN');
  });
});

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { OpMeter, prepareRaw, WIDTHS, type Width } from '../../evaluation/measure-op.ts';
import { type OpForm, parseForm, readOpForms } from '../../evaluation/op-forms.ts';
import { formatCell, measureForm } from '../../evaluation/support-table.ts';
import { PASSES } from '../../passes/pipelines.ts';
import { checkGraph } from '../../targets/qnn/check-graph.ts';
import { HTP_RULES, REPLACED_OPS, TAKEN_OPS } from '../../targets/qnn/rules.ts';
import { findSoc } from '../../targets/socs.ts';
import { root } from '../cli/run-npuc.ts';
import { toolchain } from '../targets/qnn/toolchain-or-skip.ts';

const SOC = findSoc('SM8650');
const NAMES = Object.keys(WIDTHS) as Width[];
const forms = readOpForms(join(root, 'fixtures', 'op-forms.yaml'));
const text = readFileSync(join(root, 'SUPPORT.md'), 'utf8');

interface Cells extends Readonly<Record<Width, string>> {
  readonly note: string;
}

/** The cells of the committed table, by op and form. */
const cells = new Map<string, Cells>(
  text
    .slice(text.indexOf('## Measured'), text.indexOf('## Rules'))
    .split('\n')
    .filter((line) => line.startsWith('| ') && !line.startsWith('| op '))
    .map((line) => {
      const [, op, form, u8, u16, fp16, note] = line.split(/(?<!\\) ?\| ?/);
      return [`${op} ${form}`, { u8: u8!, u16: u16!, fp16: fp16!, note: note! }];
    }),
);
const keyOf = ({ op, form }: OpForm): string => `${op} ${form}`;

test('SUPPORT.md has a row for every form, and no other', () => {
  expect([...cells.keys()]).toEqual(forms.map(keyOf));
});

describe('the linter says what the table says', () => {
  test.each(forms)('$op $form', (form) => {
    const { note, ...row } = cells.get(keyOf(form))!;
    const raw = prepareRaw(parseForm(form), SOC);
    const asItIs = /as it is: ([^;]*)/.exec(note)?.[1] ?? '';
    const isBad = (width: Width): boolean =>
      new RegExp(`\\b${width} (refused|crashed|\\*\\*)`).test(asItIs) || /refused|crashed|\*\*/.test(row[width]);
    const flagged = NAMES.filter((width) => checkGraph(raw.module, SOC, { scheme: WIDTHS[width] }).length > 0);
    for (const width of NAMES.filter(isBad)) expect(flagged, `${width} is bad`).toContain(width);
    // The linter may say more: a form is not always bad. But not of a form that has nothing against it.
    if (note === '') expect(flagged).toEqual([]);
  });
});

test('rules have distinct codes, known ops and known passes', () => {
  const codes = HTP_RULES.map(({ code }) => code);
  expect(new Set(codes).size).toBe(codes.length);
  for (const { ops, code, mend } of HTP_RULES) {
    for (const op of ops) expect(TAKEN_OPS, `${op} of ${code}`).toContain(op);
    if (mend?.kind === 'pass') expect([...PASSES.keys(), 'fold-qdq']).toContain(mend.pass);
  }
  for (const [op, pass] of Object.entries(REPLACED_OPS)) {
    expect(TAKEN_OPS).not.toContain(op);
    expect([...PASSES.keys()]).toContain(pass);
  }
});

/** Rows that are measured again: one of each family, and what is likeliest to change. */
const SAMPLE = [
  'Conv 3x3',
  'Conv depthwise',
  'ConvTranspose in groups',
  'AveragePool 2x2',
  'Resize linear, half_pixel',
  'Resize nearest, half_pixel, down by 2',
  'InstanceNormalization ',
  'LayerNormalization without a bias',
  'HardSwish ',
  'Swish ',
  'Softmax last axis',
  'Log ',
  'CumSum last axis',
  'Pad reflect',
  'MatMul two activations',
  'LSTM forward',
];

describe.skipIf(!toolchain)('measured again', { timeout: 60_000 }, () => {
  const meter = toolchain ? new OpMeter(toolchain, SOC) : undefined;
  afterAll(() => meter?.close());

  test.each(SAMPLE)('%s is within 1 dB of its row', async (name) => {
    const form = forms.find((each) => keyOf(each) === name)!;
    const { lowered } = await measureForm(form, meter!, SOC);
    const committed = cells.get(name)!;
    for (const width of NAMES) {
      const [wanted, found] = [committed[width], formatCell(lowered[width], width)].map(readCell);
      expect(found!.length).toBe(wanted!.length);
      found!.forEach((figure, i) => {
        const other = wanted![i]!;
        if (Number.isFinite(figure) && Number.isFinite(other)) expect(Math.abs(figure - other), width).toBeLessThan(1);
        else expect(figure, width).toBe(other);
      });
    }
  });
});

/** The figures of a cell; `exact` is infinite. */
function readCell(cell: string): number[] {
  return [...cell.matchAll(/exact|-?[\d.]+/g)].map(([figure]) => (figure === 'exact' ? Infinity : Number(figure)));
}

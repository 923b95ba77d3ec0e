import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Plan } from '../../calibration/plan.ts';
import { affineEncoding } from '../../compiler/ir/encoding.ts';
import type { ValueComparison } from '../../evaluation/compare-values.ts';
import { describeVerdict, joinWords } from '../../evaluation/describe-report.ts';
import {
  formatBytes,
  formatCount,
  formatDecibels,
  formatDivergence,
  formatNoise,
  formatRatio,
  formatSeconds,
  formatSteps,
} from '../../evaluation/format-figures.ts';
import { gradeTarget } from '../../evaluation/grade-target.ts';
import { describeRemark, groupRemarks } from '../../evaluation/group-remarks.ts';
import { markDifferences, sharedWords } from '../../evaluation/mark-differences.ts';
import { escapeHtml, html, raw } from '../../evaluation/markup.ts';
import { listFiles, mergePlans } from '../../evaluation/merge-plans.ts';
import {
  firstDiverging,
  noisiestValues,
  splitSections,
  worstOverall,
  worstValues,
} from '../../evaluation/rank-values.ts';
import type { TargetReport } from '../../evaluation/report.ts';
import { makeReport } from './make-report.ts';

function value(name: string, sqnr: number, more: Partial<ValueComparison> = {}): ValueComparison {
  return { name, from: [], sqnr, cosine: 1, maxError: Math.abs(sqnr) + name.length, maxSteps: undefined, ...more };
}

describe('markup', () => {
  test('escapes everything that is not markup, in lists too', () => {
    const item = (text: string) => html`<li>${text}</li>`;
    expect(html`<ul title="${'"\'&'}">${['<a>', 'b'].map(item)}${raw('<hr>')}${false}${undefined}${0}</ul>`.text).toBe(
      '<ul title="&quot;&#39;&amp;"><li>&lt;a&gt;</li><li>b</li><hr>0</ul>',
    );
  });

  test('shows control characters and lone surrogates', () => {
    expect(escapeHtml('a\u0000b\u0007\n\t\ud800c\u0085')).toBe('a\u2400b\u2407\n\t\ufffdc\ufffd');
  });

  test('property: no text makes an element, an attribute or a character that HTML forbids', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), (text) => {
        expect(escapeHtml(text)).not.toMatch(/[<>"'\p{Cs}]|[^\P{Cc}\n\t]|&(?!amp;|lt;|gt;|quot;|#39;)/u);
      }),
    );
  });
});

describe('figures', () => {
  test('in their units', () => {
    expect([0, 999, 1000, 3_536_382, 999_499_999, 2.5e12].map(formatBytes)).toEqual([
      '0 B',
      '999 B',
      '1.00 kB',
      '3.54 MB',
      '999 MB',
      '2.50 TB',
    ]);
    expect([0, 999, 1000, 2_885_888].map(formatCount)).toEqual(['0', '999', '1,000', '2,885,888']);
    expect([28.56, -0.01, Number.POSITIVE_INFINITY, Number.NaN, undefined].map(formatDecibels)).toEqual([
      '28.6 dB',
      '0.0 dB',
      'exact',
      'NaN',
      '-',
    ]);
    expect([1.00336, 12.345, 189_803.26, Number.NaN].map(formatRatio)).toEqual(['1.0034', '12.35', '1.9e+5', 'NaN']);
    expect([-1e-17, 0.00671, 0.2231, 12.42].map(formatDivergence)).toEqual(['0.0000', '0.0067', '0.223', '12.4']);
    expect([0.000001, 0.00031, 0.0123, 3.4, Number.POSITIVE_INFINITY].map(formatNoise)).toEqual([
      '0 %',
      '0.031 %',
      '1.2 %',
      '340 %',
      'Infinity',
    ]);
    expect([0.351, 3.75, 64.2, 119.6, 140, 3599.7].map(formatSeconds)).toEqual([
      '0.4 s',
      '3.8 s',
      '64 s',
      '120 s',
      '2 min 20 s',
      '60 min 0 s',
    ]);
    expect([undefined, 0.5, 2081.4].map(formatSteps)).toEqual(['-', '0.5', '2,081']);
  });
});

describe('gradeTarget', () => {
  const { onnx, qnn } = makeReport().targets;
  const graded = (ratio: number, divergence: number): string =>
    gradeTarget({ ...onnx!, logits: { ...onnx!.logits!, ratio, divergence } });

  test('needs both the ratio and KL', () => {
    expect(graded(1.02, 0.03)).toBe('close');
    expect(graded(0.98, 0.01)).toBe('close');
    expect(graded(1.0201, 0.03)).toBe('loss');
    expect(graded(1.0, 0.16)).toBe('degraded');
    expect(graded(1.51, 0.01)).toBe('broken');
    expect(graded(1.0, 0.7)).toBe('broken');
  });

  test('no number is no success', () => {
    expect(graded(Number.NaN, 0.01)).toBe('broken');
    expect(graded(1, Number.NaN)).toBe('broken');
  });

  test('nothing that was not executed is good', () => {
    expect(gradeTarget({ ...onnx!, execution: 'read-back-only' })).toBe('unproven');
    const { logits: _, ...bare } = onnx!;
    expect(gradeTarget(bare as TargetReport)).toBe('unproven');
    expect(gradeTarget(qnn!)).toBe('close');
  });

  test('the verdict names the worst first', () => {
    const report = makeReport();
    expect(describeVerdict(report)).toEqual({
      grade: 'degraded',
      sentence: 'tflite is clearly worse than the float model; onnx and qnn are close to the float model.',
    });
    expect(describeVerdict({ ...report, targets: {} }).grade).toBe('unproven');
    expect(joinWords(['a', 'b', 'c'])).toBe('a, b and c');
  });
});

describe('ranking', () => {
  test('worst values: NaN before all, values that only move another one with it', () => {
    const values = [
      value('a', 30),
      value('b', 12, { maxError: 7 }),
      value('b.reshaped', 12.0000001, { maxError: 7 }),
      value('c', Number.NaN, { maxError: Number.NaN }),
      value('d', 12, { maxError: 8 }),
    ];
    expect(
      worstValues(values, 3).map(({ value: { name }, copies }) => [name, copies.map((copy) => copy.name)]),
    ).toEqual([
      ['c', []],
      ['b', ['b.reshaped']],
      ['d', []],
    ]);
  });

  test('values that are exact are never copies of one another', () => {
    const exact = { maxError: 0 };
    const values = [value('a', Number.POSITIVE_INFINITY, exact), value('b', Number.POSITIVE_INFINITY, exact)];
    expect(worstValues(values, 5)).toHaveLength(2);
  });

  test('the first diverging value is the first in order of computation, NaN among them', () => {
    const values = [value('a', 20), value('b', Number.NaN), value('c', 1)];
    expect(firstDiverging(values, 20)?.name).toBe('b');
    expect(firstDiverging(values.slice(0, 1), 20)).toBeUndefined();
  });

  test('noisiest values', () => {
    const values = [
      value('a', 1, { noiseAdded: 0.1 }),
      value('b', 1, { noiseAdded: Number.POSITIVE_INFINITY }),
      value('c', 1, { noiseAdded: -1 }),
      value('d', 1),
    ];
    expect(noisiestValues(values, 9).map(({ name }) => name)).toEqual(['b', 'a']);
  });

  test('worst over all targets, with what they are in the others', () => {
    const [first] = worstOverall(makeReport(), 10);
    expect(first).toEqual({
      name: 'layers.2.mlp_product',
      from: ['model.layers.2.mlp'],
      sqnr: { onnx: 17, tflite: 12.75, qnn: 16.5 },
    });
  });

  test.each([
    [['embedding', 'layers.0.q', 'rope_cos', 'layers.0.o', 'layers.1.q', 'norm', 'logits'], 'in:1 0:3 1:1 out:2'],
    [['model/encoder/3/conv', 'h.4.mlp', 'x'], '3:1 4:1 out:1'],
    [['conv1', 'layers', 'resnet50'], ':3'],
    [[], ''],
  ])('splitSections(%j)', (names, expected) => {
    const sections = splitSections(names.map((name) => value(name, 1)));
    expect(sections.map(({ label, values }) => `${label}:${values.length}`).join(' ')).toBe(expected);
  });

  test('splitSections knows layers by the names of the source nodes', () => {
    const values = [value('kv_slice_k_7', 1, { from: ['model.layers.7.self_attn'] })];
    expect(splitSections(values)[0]!.label).toBe('7');
  });
});

describe('markDifferences', () => {
  test('marks words that the reference does not have there', () => {
    expect(markDifferences('a very good deal.', 'a good deal of it.')).toEqual([
      { text: 'a', same: true },
      { text: ' very', same: false },
      { text: ' good deal.', same: true },
    ]);
    expect(sharedWords('a very good deal', 'a good deal')).toBe(1);
    expect(sharedWords('a b', 'a b')).toBe(2);
  });

  const text = fc
    .array(fc.constantFrom('a', 'bb', ' ', '\n', '.', '"', '\u00e9', '\ud83d\ude00', '\ud800'))
    .map((parts) => parts.join(''));

  test('property: the spans put together are the text, and a text is the same as itself', () => {
    fc.assert(
      fc.property(text, text, (one, other) => {
        const spans = markDifferences(one, other);
        expect(spans.map((span) => span.text).join('')).toBe(one);
        expect(markDifferences(one, one).every(({ same }) => same)).toBe(true);
      }),
    );
  });

  test('property: what is the same is in the reference, in order', () => {
    fc.assert(
      fc.property(text, text, (one, other) => {
        let at = 0;
        for (const span of markDifferences(one, other)) {
          if (!span.same) continue;
          for (const word of span.text.match(/\s*\S|\s+$/gu) ?? []) {
            const found = other.indexOf(word.trim(), at);
            expect(found).toBeGreaterThanOrEqual(0);
            at = found + word.trim().length;
          }
        }
      }),
    );
  });

  test('a text of a book is not searched for minutes', () => {
    const book = 'word '.repeat(5000);
    expect(markDifferences(`${book}x`, `${book}y`).map(({ same }) => same)).toEqual([true, false]);
  });
});

describe('plans and files', () => {
  const encoding = affineEncoding('u16', -1, 1);
  const plan = (dtype: 'u16' | 'i16', block: 0 | 64): { readonly plan: Plan } => ({
    plan: {
      activations: new Map([['x', { encoding: { ...encoding, dtype }, why: 'scheme' }]]),
      weights: new Map([['w', { name: 'w', form: { bits: 4, block }, input: 'x', why: 'scheme' }]]),
      tables: new Set(['embed']),
      remarks: [],
    } as unknown as Plan,
  });

  test('targets that decided alike share a line', () => {
    const lines = mergePlans(
      new Map([
        ['onnx', plan('u16', 64)],
        ['tflite', plan('i16', 0)],
        ['qnn', plan('u16', 64)],
      ]),
    );
    expect(lines).toEqual([
      { value: 'w', dtype: 'i4 block 64', why: 'scheme', targets: ['onnx', 'qnn'] },
      { value: 'embed', dtype: 'i8 per row', why: 'embedding table', targets: ['onnx', 'tflite', 'qnn'] },
      { value: 'w', dtype: 'i4 per channel', why: 'scheme', targets: ['tflite'] },
      { value: 'x', dtype: 'u16', why: 'scheme', targets: ['onnx', 'qnn'] },
      { value: 'x', dtype: 'i16', why: 'scheme', targets: ['tflite'] },
    ]);
  });

  test('files of a target, each with its role', () => {
    const files = [
      'a/embedding.bin',
      'a/m.bin',
      'a/m.onnx',
      'a/qdq/m.onnx',
      'a/weights.data',
      'b/other',
      'a/e.json',
      'a/m.tflite',
    ];
    const described = files.map((path, bytes) => ({ path, bytes, sha256: '' }));
    const target = {
      files: files.filter((path) => path.startsWith('a/')),
      embedding: { file: 'a/embedding.bin', form: 'i8-per-row' as const },
    };
    expect(listFiles(target, described).map(({ path, role, bytes }) => `${path} ${role} ${bytes}`)).toEqual([
      'a/embedding.bin embedding 0',
      'a/m.bin binary 1',
      'a/m.onnx graph 2',
      'a/qdq/m.onnx source 3',
      'a/weights.data weights 4',
      'a/e.json encodings 6',
      'a/m.tflite model 7',
    ]);
  });

  test('remarks that differ by layer are one', () => {
    const remarks = [
      'layers.0.probs: 16 bits',
      'head: 8 bits',
      'layers.1.probs: 16 bits',
      'layers.12.probs: 16 bits',
      'layers.1.probs: 8 bits',
    ];
    expect(groupRemarks(remarks).map(describeRemark)).toEqual([
      'layers.0.probs: 16 bits (and 2 other layers)',
      'head: 8 bits',
      'layers.1.probs: 8 bits',
    ]);
  });
});

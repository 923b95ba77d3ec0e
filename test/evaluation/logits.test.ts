import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { argmax } from '../../compiler/runtime/generate.ts';
import { addLogits, emptyLogitSums, type LogitReport, reportLogits } from '../../evaluation/logits.ts';

const logit = fc.float({ min: -40, max: 40, noNaN: true });
/** Two engines' logits for some positions, and the tokens that came next. */
const predictions = fc.integer({ min: 2, max: 24 }).chain((vocabulary) => {
  const row = fc.array(logit, { minLength: vocabulary, maxLength: vocabulary }).map((row) => Float32Array.from(row));
  return fc.array(fc.tuple(row, row, fc.integer({ min: 0, max: vocabulary - 1 })), { minLength: 1, maxLength: 12 });
});

function report(rows: readonly (readonly [Float32Array, Float32Array, number])[]): LogitReport {
  const sums = emptyLogitSums();
  for (const [reference, other, next] of rows) addLogits(sums, reference, other, next);
  return reportLogits(sums);
}

/** Logits of given probabilities, shifted: a constant added to all logits changes no probability. */
function logitsOf(probabilities: readonly number[], shift = 0): Float32Array {
  return Float32Array.from(probabilities, (p) => Math.log(p) + shift);
}

describe('reportLogits', () => {
  test('figures of two predictions, worked by hand', () => {
    // KL = 0.5 ln 2 + 0.25 ln 1 + 0.25 ln 0.5 = 0.25 ln 2 for the first, 0 for the second.
    const result = report([
      [logitsOf([0.5, 0.25, 0.25]), logitsOf([0.25, 0.25, 0.5]), 0],
      [logitsOf([0.2, 0.8]), logitsOf([0.2, 0.8], 3), 1],
    ]);
    expect(result.predictions).toBe(2);
    expect(result.divergence).toBeCloseTo((0.25 * Math.LN2) / 2, 6);
    expect(result.topAgreement).toBe(0.5);
    // Losses: ln 2 and -ln 0.8 against ln 4 and -ln 0.8.
    expect(result.referencePerplexity).toBeCloseTo(Math.sqrt(2 / 0.8), 5);
    expect(result.perplexity).toBeCloseTo(Math.sqrt(4 / 0.8), 5);
    expect(result.ratio).toBeCloseTo(Math.SQRT2, 5);
    // Differences ln 2 and 0: their deviation is ln 2 / 2, that of their mean ln 2 / (2 sqrt 2).
    expect(result.ratioError).toBeCloseTo((Math.SQRT2 * Math.LN2) / (2 * Math.SQRT2), 5);
  });

  test('SQNR is that of the logits themselves', () => {
    const result = report([[Float32Array.of(3, 4), Float32Array.of(3, 4.5), 0]]);
    expect(result.sqnr).toBeCloseTo(10 * Math.log10(25 / 0.25), 9);
  });

  test('an engine that gives no numbers is not close', () => {
    const result = report([[Float32Array.of(1, 2), Float32Array.of(Number.NaN, 2), 1]]);
    expect(result.ratio).toBeNaN();
    expect(result.divergence).toBeNaN();
    expect(result.sqnr).toBeNaN();
  });

  test('no predictions, no figures', () => {
    const { predictions, ...figures } = report([]);
    expect(predictions).toBe(0);
    for (const figure of Object.values(figures)) expect(figure).toBeNaN();
  });

  test('a token that the reference excludes adds nothing to KL', () => {
    const result = report([[Float32Array.of(Number.NEGATIVE_INFINITY, 0, 0), Float32Array.of(-100, 0, 0), 1]]);
    expect(result.divergence).toBeCloseTo(0, 12);
  });

  test('property: KL is never negative', () => {
    fc.assert(
      fc.property(predictions, (rows) => {
        // Rounding of a sum that is zero.
        expect(report(rows).divergence).toBeGreaterThan(-1e-12);
      }),
    );
  });

  test('property: an engine beside itself is exact', () => {
    fc.assert(
      fc.property(predictions, (rows) => {
        const result = report(rows.map(([reference, , next]) => [reference, reference, next] as const));
        expect(result).toMatchObject({ ratio: 1, ratioError: 0, topAgreement: 1, sqnr: Number.POSITIVE_INFINITY });
        expect(Math.abs(result.divergence)).toBeLessThan(1e-9);
        expect(result.perplexity).toBe(result.referencePerplexity);
      }),
    );
  });

  test('property: the ratio is that of the perplexities', () => {
    fc.assert(
      fc.property(predictions, (rows) => {
        const { ratio, perplexity, referencePerplexity } = report(rows);
        expect(ratio / (perplexity / referencePerplexity)).toBeCloseTo(1, 9);
      }),
    );
  });

  test('property: a constant added to all of one row changes no probability', () => {
    fc.assert(
      fc.property(predictions, fc.integer({ min: -8, max: 8 }), (rows, shift) => {
        const moved = rows.map(([a, b, next]) => [a, b.map((value) => value + shift), next] as const);
        const [before, after] = [report(rows), report(moved)];
        expect(after.divergence).toBeCloseTo(before.divergence, 3);
        expect(Math.log(after.perplexity)).toBeCloseTo(Math.log(before.perplexity), 3);
      }),
    );
  });
});

test('argmax is the first of equals', () => {
  expect(argmax(Float32Array.of(1, 5, 5, 2))).toBe(1);
});

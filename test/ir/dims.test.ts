import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  addDims,
  bindDim,
  bindShape,
  ceilDivDims,
  dimSymbols,
  divDims,
  divDimsExactly,
  maxDims,
  minDims,
  modDims,
  mulDims,
  parseDim,
  productOfDims,
  sameDim,
  sameShape,
  simplifyDim,
  subtractDims,
} from '../../compiler/ir/dims.ts';
import type { Dim } from '../../compiler/ir/graph.ts';

describe('the normal form', () => {
  it.each([
    ['past + 1 - past', 1],
    ['tokens+past', 'past + tokens'],
    ['2*(a + b) - b', '2 * a + b'],
    ['a*b*2 + b*a', '3 * a * b'],
    ['(4*n + 8) / 4', 'n + 2'],
    ['floor((2*n + 3) / 2)', 'n + 1'],
    ['floor((floor((n + 1) / 2) + 1) / 2)', 'floor((n + 3) / 4)'],
    ['ceil(n / 8) * 8', '8 * ceil(n / 8)'],
    ['max(a, a + b)', 'a + b'],
    ['min(b, a)', 'min(a, b)'],
    ['-n + 5', '-n + 5'],
    ['7', 7],
    ['mod(6 * n, 3)', 0],
  ])('%s is %s', (text, expected) => {
    expect(parseDim(text)).toBe(expected);
    // A normal form is its own.
    expect(parseDim(String(expected))).toBe(expected);
  });

  it.each(['batch.1', 'p2o.DynamicDimension.0', '?', 'batch size', 'a::b', 'n / 2', 'é', '2 ^ n', "it's"])(
    'leaves the foreign name %s as it is',
    (name) => {
      expect(parseDim(name)).toBe(name);
      expect(bindDim(name, { [name]: 3 })).toBe(3);
    },
  );

  it('keeps names with dots within expressions', () => {
    const dim = addDims('batch.1', 'tokens');
    expect(dim).toBe('batch.1 + tokens');
    expect(dimSymbols(parseDim('tokens + batch.1 * 2'))).toEqual(['batch.1', 'tokens']);
    expect(bindDim('2 * batch.1 + 1', { 'batch.1': 4 })).toBe(9);
  });
});

describe('arithmetic', () => {
  it('joins numbers and names', () => {
    expect(addDims(2, 3)).toBe(5);
    expect(subtractDims(addDims('past', 'tokens'), 'past')).toBe('tokens');
    expect(mulDims('heads', 64)).toBe('64 * heads');
    expect(divDims(mulDims('heads', 64), 'heads')).toBe(64);
    expect(divDims('n', 2)).toBe('floor(n / 2)');
    expect(divDimsExactly('n', 2)).toBeUndefined();
    expect(divDimsExactly(mulDims('n', 6), 3)).toBe('2 * n');
    expect(divDimsExactly('n', 0)).toBeUndefined();
    expect(modDims(7, 4)).toBe(3);
    expect(productOfDims([2, 'a', 3])).toBe('6 * a');
    expect(productOfDims([])).toBe(1);
  });

  it('knows equal expressions', () => {
    expect(sameDim('a + b', 'b + a')).toBe(true);
    expect(sameDim('a', 'b')).toBe(false);
    expect(sameDim(3, '3')).toBe(true);
    expect(sameShape(['a', 2], ['a', 2])).toBe(true);
    expect(sameShape(['a'], ['a', 2])).toBe(false);
  });

  it('binds names to numbers, expressions and nothing', () => {
    expect(bindDim('past + tokens', { past: 192, tokens: 64 })).toBe(256);
    expect(bindDim('past + tokens', { past: 'cache - tokens' })).toBe('cache');
    expect(bindDim('past', {})).toBe('past');
    expect(bindDim('constructor + 1', {})).toBe('constructor + 1');
    expect(bindShape(['n', 4, 'floor(n / 2)'], { n: 9 })).toEqual([9, 4, 4]);
  });

  it('refuses to divide by zero', () => {
    expect(() => divDims('n', 0)).toThrowError(expect.objectContaining({ code: 'IR020' }));
    expect(() => bindDim('floor(8 / n)', { n: 0 })).toThrowError(expect.objectContaining({ code: 'IR020' }));
  });
});

/** A random expression as a tree, built by our functions and computed by plain arithmetic. */
interface Expression {
  readonly dim: Dim;
  readonly value: number;
  /** A bound of every number on the way: beyond 2^53 plain arithmetic is no longer exact. */
  readonly peak: number;
}

const EXACT = 2 ** 45;

const BINDINGS = { a: 3, b: 7, c: 16 } as const;

const leaf = (dim: Dim, value: number): Expression => ({ dim, value, peak: value });

function apply(op: string, x: Expression, y: Expression): Expression {
  // Names stand for lengths: extremes are only asked of what is not negative.
  const [p, q] = [x, y].map((side) => (side.value < 0 ? leaf(0, 0) : side)) as [Expression, Expression];
  const peak = op === '*' ? x.peak * y.peak : x.peak + y.peak;
  switch (op) {
    case '+':
      return { dim: addDims(x.dim, y.dim), value: x.value + y.value, peak };
    case '-':
      return { dim: subtractDims(x.dim, y.dim), value: x.value - y.value, peak };
    case '*':
      return { dim: mulDims(x.dim, y.dim), value: x.value * y.value, peak };
    case 'max':
      return { dim: maxDims(p.dim, q.dim), value: Math.max(p.value, q.value), peak };
    default:
      return { dim: minDims(p.dim, q.dim), value: Math.min(p.value, q.value), peak };
  }
}

const expression: fc.Arbitrary<Expression> = fc
  .letrec<{ tree: Expression }>((tie) => ({
    tree: fc.oneof(
      { maxDepth: 4 },
      fc.constantFrom(...Object.entries(BINDINGS)).map(([dim, value]) => leaf(dim, value)),
      fc.integer({ min: 1, max: 9 }).map((value) => leaf(value, value)),
      fc
        .tuple(fc.constantFrom('+', '-', '*', 'max', 'min'), tie('tree'), tie('tree'))
        .map(([op, x, y]) => apply(op, x, y)),
      fc.tuple(tie('tree'), fc.integer({ min: 1, max: 8 }), fc.boolean()).map(([x, by, up]): Expression => {
        // Nested divisions multiply their divisors and offsets.
        const peak = x.peak * by;
        if (up) return { dim: ceilDivDims(x.dim, by), value: Math.ceil(x.value / by), peak };
        return { dim: divDims(x.dim, by), value: Math.floor(x.value / by), peak };
      }),
    ),
  }))
  .tree.filter(({ peak }) => peak < EXACT);

describe('random expressions', () => {
  it('bind to what plain arithmetic gives', () => {
    fc.assert(
      fc.property(expression, ({ dim, value }) => {
        expect(bindDim(dim, BINDINGS)).toBe(value === 0 ? 0 : value);
      }),
      { numRuns: 20000 },
    );
  });

  it('parse to themselves', () => {
    fc.assert(
      fc.property(expression, ({ dim, value }) => {
        expect(simplifyDim(dim)).toBe(dim);
        // What mathjs reads back is not taken from the table of known texts: spaces are dropped first.
        const again = parseDim(String(dim).replaceAll(' ', ''));
        expect(bindDim(again, BINDINGS)).toBe(value === 0 ? 0 : value);
      }),
      { numRuns: 200 },
    );
  });
});

describe('start-up', () => {
  const built = new URL('../../dist/compiler/ir/dims.js', import.meta.url);
  it.skipIf(!existsSync(built) && !process.env.CI)('does not load mathjs for integers, names and their sums', () => {
    const script = `
      const dims = await import(${JSON.stringify(built.href)});
      dims.bindDim(dims.addDims(dims.mulDims('past', 2), dims.divDims('tokens', 2)), { past: 1, 'batch.1': 2 });
      const { createRequire } = await import('node:module');
      const loaded = Object.keys(createRequire(${JSON.stringify(built.href)}).cache).filter((file) => file.includes('mathjs'));
      process.stdout.write(String(loaded.length));`;
    expect(execFileSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' })).toBe('0');
  });
});

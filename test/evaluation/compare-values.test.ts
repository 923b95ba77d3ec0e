import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Encoding } from '../../compiler/ir/encoding.ts';
import type { TensorData } from '../../compiler/ir/tensor.ts';
import { parseModule } from '../../compiler/ir/text.ts';
import { plainKernels } from '../../compiler/kernels/index.ts';
import { tapModule } from '../../compiler/runtime/taps.ts';
import {
  attributeNoise,
  comparedInputs,
  compareValues,
  type ValueComparison,
} from '../../evaluation/compare-values.ts';

function tensor(...values: number[]): TensorData {
  return { dtype: 'f32', shape: [values.length], data: Float32Array.from(values) };
}

function value(name: string, sqnr: number): ValueComparison {
  return { name, from: [], sqnr, cosine: 1, maxError: 0, maxSteps: undefined };
}

describe('compareValues', () => {
  const encoding: Encoding = { dtype: 'u8', scale: Float32Array.of(0.25), zeroPoint: Int32Array.of(0) };

  test('SQNR, cosine and largest error, worked by hand', () => {
    const [first] = compareValues(
      ['a'],
      { a: tensor(3, 4) },
      { a: tensor(3, 4.5) },
      new Map([['a', encoding]]),
      new Map([['a', ['Conv_3']]]),
      plainKernels,
    );
    expect(first).toMatchObject({ name: 'a', from: ['Conv_3'], maxError: 0.5, maxSteps: 2 });
    expect(first!.sqnr).toBeCloseTo(20, 9);
    expect(first!.cosine).toBeCloseTo((9 + 18) / (5 * Math.hypot(3, 4.5)), 9);
  });

  test('keeps the order asked for and leaves out what one side does not have', () => {
    const reference = { a: tensor(1), b: tensor(1), c: tensor(1, 2) };
    const other = { b: tensor(1), a: tensor(1), c: tensor(1) };
    const names = compareValues(['b', 'c', 'missing', 'a'], reference, other, new Map(), new Map(), plainKernels).map(
      ({ name, sqnr }) => [name, sqnr],
    );
    expect(names).toEqual([
      ['b', Number.POSITIVE_INFINITY],
      ['a', Number.POSITIVE_INFINITY],
    ]);
  });

  test('property: scaling both sides changes neither SQNR nor cosine', () => {
    const pair = fc.array(fc.tuple(fc.integer({ min: -99, max: 99 }), fc.integer({ min: -9, max: 9 })), {
      minLength: 1,
      maxLength: 40,
    });
    fc.assert(
      fc.property(pair, fc.constantFrom(0.125, 2, 64), (pairs, factor) => {
        const compare = (by: number): ValueComparison =>
          compareValues(
            ['a'],
            { a: tensor(...pairs.map(([x]) => x * by)) },
            { a: tensor(...pairs.map(([x, error]) => (x + error) * by)) },
            new Map(),
            new Map(),
            plainKernels,
          )[0]!;
        const [one, scaled] = [compare(1), compare(factor)];
        expect(scaled.sqnr).toBe(one.sqnr);
        expect(scaled.cosine).toBeCloseTo(one.cosine, 12);
        expect(scaled.maxError).toBe(one.maxError * factor);
      }),
    );
  });
});

const GRAPH = `npuir 1
opset 21
graph @main
  in %x : f32[2,2]
  %w : f32[2,2] = const [1.0, 2.0, 3.0, 4.0]
  %a = MatMul(%x, %w)
  %hidden = Relu(%a)
  %b = Add(%hidden, %x)
  %c = Mul(%b, %a)
  out %c
end
`;

describe('comparedInputs', () => {
  test('looks through values that were not compared', () => {
    const graph = parseModule(GRAPH).graph();
    expect([...comparedInputs(graph, new Set(['a', 'b', 'c']))]).toEqual([
      ['a', []],
      ['b', ['a']],
      ['c', ['b', 'a']],
    ]);
  });
});

describe('attributeNoise', () => {
  test('is the noise beyond that of the worst input, as a share of the power', () => {
    const values = attributeNoise(
      [value('a', 40), value('b', 20), value('c', 10)],
      new Map([
        ['a', []],
        ['b', ['a']],
        ['c', ['a', 'b']],
      ]),
    );
    expect(values[0]).not.toHaveProperty('noiseAdded');
    expect(values[1]!.noiseAdded).toBeCloseTo(0.01 - 0.0001, 12);
    expect(values[2]!.noiseAdded).toBeCloseTo(0.1 - 0.01, 12);
  });

  test('does not blame softmax for what a mask has hidden', () => {
    const values = attributeNoise(
      [value('scores', 20), value('mask', Number.POSITIVE_INFINITY), value('masked', 60), value('probs', 18)],
      new Map([
        ['masked', ['scores', 'mask']],
        ['probs', ['masked']],
      ]),
    );
    expect(values[2]!.noiseAdded).toBeLessThan(0);
    expect(values[3]!.noiseAdded).toBeCloseTo(10 ** -1.8 - 0.01, 12);
  });

  test('a sum of two noisy values has its own noise, which may be less', () => {
    const values = attributeNoise(
      [value('x', 40), value('branch', 10), value('sum', 20), value('next', 19)],
      new Map([
        ['branch', ['x']],
        ['sum', ['x', 'branch']],
        ['next', ['sum']],
      ]),
    );
    expect(values[3]!.noiseAdded).toBeCloseTo(10 ** -1.9 - 0.01, 12);
  });

  test('blames the first value that is not a number, not those after it', () => {
    const values = attributeNoise(
      [value('a', 40), value('b', Number.NaN), value('c', Number.NaN)],
      new Map([
        ['b', ['a']],
        ['c', ['b']],
      ]),
    );
    expect(values.map(({ noiseAdded }) => noiseAdded)).toEqual([undefined, Number.POSITIVE_INFINITY, undefined]);
  });
});

describe('tapModule', () => {
  test('adds outputs to a copy, each once, and leaves the module alone', () => {
    const module = parseModule(GRAPH);
    const tapped = tapModule(module, ['a', 'c', 'nowhere', 'b']);
    expect(tapped.graph().outputs.map(({ name }) => name)).toEqual(['c', 'a', 'b']);
    expect(module.graph().outputs.map(({ name }) => name)).toEqual(['c']);
  });
});

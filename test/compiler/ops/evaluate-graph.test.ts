import { describe, expect, it } from 'vitest';
import type { Module } from '../../../compiler/ir/graph.ts';
import type { TensorData } from '../../../compiler/ir/tensor.ts';
import { parseModule } from '../../../compiler/ir/text.ts';
import { evaluateGraph } from '../../../compiler/ops/evaluate-graph.ts';
import { findOp, OPS } from '../../../compiler/ops/index.ts';
import { inferShapes } from '../../../compiler/ops/infer-shapes.ts';
import { createReferenceRunner } from '../../../compiler/runtime/reference.ts';

function graphOf(body: string): Module {
  return parseModule(`npuir 1\nopset 21\n\ngraph @main\n${body}`);
}

const floats = (shape: readonly number[], ...values: number[]): TensorData => ({
  dtype: 'f32',
  shape,
  data: Float32Array.from(values),
});

const PAIR = `
  in %x : f32[2]
  %two : f32[] = const 2.0
  %a = Mul(%x, %two)
  %b = Neg(%a)
  %unused = custom::Thing(%x)
  out %b`;

describe('evaluateGraph', () => {
  it('gives the outputs, runs only what they need and shows every value', () => {
    const module = graphOf(PAIR);
    const seen: string[] = [];
    const results = evaluateGraph(
      module.graph(),
      module.opsets,
      { x: floats([2], 1, -3) },
      {
        onValue: (value, data) => seen.push(`${value.name} ${[...data.data]}`),
      },
    );
    expect(results).toEqual({ b: floats([2], -2, 6) });
    expect(seen).toEqual(['x 1,-3', 'a 2,-6', 'b -2,6']);
  });

  it('gives any value that is asked for', () => {
    const module = graphOf(PAIR);
    expect(evaluateGraph(module.graph(), module.opsets, { x: floats([2], 1, 2) }, { outputs: ['a'] })).toEqual({
      a: floats([2], 2, 4),
    });
  });

  it.each([
    ['RT011', {}],
    ['RT011', { x: floats([3], 1, 2, 3) }],
    ['RT011', { x: { dtype: 'i32', shape: [2], data: Int32Array.of(1, 2) } as TensorData }],
  ])('%s for feeds that do not fit', (code, feeds) => {
    const module = graphOf(PAIR);
    expect(() => evaluateGraph(module.graph(), module.opsets, feeds)).toThrowError(expect.objectContaining({ code }));
  });

  it('says which op has no reference semantics', () => {
    const module = graphOf(PAIR);
    expect(() =>
      evaluateGraph(module.graph(), module.opsets, { x: floats([2], 1, 2) }, { outputs: ['unused'] }),
    ).toThrowError(expect.objectContaining({ code: 'RT010', message: expect.stringContaining('custom.Thing') }));
  });

  it('never evaluates what is random', () => {
    const random = OPS.filter((op) => /^(Random|Bernoulli|Multinomial)/.test(op.name));
    expect(random).toHaveLength(6);
    expect(random.filter((op) => op.evaluate)).toEqual([]);
  });

  it('runs a loop whose body reads the values around it', () => {
    const module = graphOf(`
      in %x : f32[2]
      %trips : i64[] = const 3
      %go : bool[] = const true
      %last, %all = Loop(%trips, %go, %x) {body graph @body
          in %i : i64[]
          in %c : bool[]
          in %s : f32[2]
          %next = Add(%s, %x)
          out %c
          out %next
          out %next
        end}
      out %last
      out %all`);
    const results = evaluateGraph(module.graph(), module.opsets, { x: floats([2], 1, 10) });
    expect(results.last).toEqual(floats([2], 4, 40));
    expect(results.all).toEqual(floats([3, 2], 2, 20, 3, 30, 4, 40));
  });

  it('runs the branch that the condition says', () => {
    const module = graphOf(`
      in %flag : bool[]
      in %x : f32[1]
      %z = If(%flag) {then_branch graph @yes
          %a = Neg(%x)
          out %a
        end, else_branch graph @no
          out %x
        end}
      out %z`);
    const run = (flag: number): TensorData =>
      evaluateGraph(module.graph(), module.opsets, {
        flag: { dtype: 'bool', shape: [], data: Uint8Array.of(flag) },
        x: floats([1], 5),
      }).z!;
    expect(run(1)).toEqual(floats([1], -5));
    expect(run(0)).toEqual(floats([1], 5));
  });
});

describe('the table of ops', () => {
  it('has one record per op, with shapes and a quantization rule', () => {
    const names = OPS.map((op) => `${op.domain}:${op.name}`);
    expect(new Set(names).size).toBe(names.length);
    expect(OPS.filter((op) => !op.infer).map((op) => op.name)).toEqual([]);
  });

  it('knows ops from their first opset on', () => {
    expect(findOp('', 'RMSNormalization', 23)?.name).toBe('RMSNormalization');
    expect(findOp('ai.onnx', 'Add', 13)?.name).toBe('Add');
    expect(findOp('', 'RMSNormalization', 22)).toBeUndefined();
    expect(findOp('', 'toString', 21)).toBeUndefined();
    expect(findOp('custom', 'Add', 21)).toBeUndefined();
  });
});

describe('the reference runner', () => {
  it('runs a graph as every engine does', async () => {
    const module = graphOf(PAIR);
    inferShapes(module);
    const runner = createReferenceRunner(module.graph(), module.opsets);
    expect(runner.engine).toBe('npuc reference');
    expect(runner.inputs).toEqual([{ name: 'x', dtype: 'f32', shape: [2] }]);
    expect(await runner.run({ x: floats([2], 1, 2) })).toEqual({ b: floats([2], -2, -4) });
    expect(await runner.run({ x: floats([2], 1, 2) }, ['a'])).toEqual({ a: floats([2], 2, 4) });
    await runner.close();
  });
});

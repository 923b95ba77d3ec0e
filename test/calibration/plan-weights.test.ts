import { describe, expect, test } from 'vitest';
import { planWeights } from '../../calibration/plan-weights.ts';
import { htpFormat, litertFormat, makeRecipe, onnxFormat } from '../../calibration/recipe.ts';
import { parseModule } from '../../compiler/ir/text.ts';
import { inferShapes } from '../../compiler/ops/infer-shapes.ts';

const FORMATS = { htp: htpFormat, onnx: onnxFormat, litert: litertFormat };

function plan(inputs: number, format: keyof typeof FORMATS, block: number): { form: object; remarks: string[] } {
  const module = parseModule(`npuir 1
opset 23
graph @g
  in %x : f32[1,${inputs}]
  %w : f32[${inputs},32] = const rand(1, normal 0.1)
  %y = MatMul(%x, %w)
  out %y
`);
  inferShapes(module);
  const remarks: string[] = [];
  const weights = planWeights(module.graph(), makeRecipe('w4a16', { block }), FORMATS[format], remarks);
  return { form: weights.get('w')!.form, remarks };
}

describe('the form of a weight', () => {
  test.each([
    [576, 64, { bits: 4, block: 32 }],
    [512, 64, { bits: 4, block: 32 }],
    [576, 32, { bits: 4, block: 32 }],
    [1536, 64, { bits: 4, block: 64 }],
    [384, 64, { bits: 4, block: 64 }],
    [96, 64, { bits: 8, block: 0 }],
  ])('for HTP, %i inputs in blocks of %i: %j', (inputs, block, form) => {
    const planned = plan(inputs, 'htp', block);
    expect(planned.form).toEqual(form);
    expect(planned.remarks).toHaveLength('block' in form && form.block === block ? 0 : 1);
  });

  test('counts of blocks that HTP cannot take are halved there alone, with a remark', () => {
    expect(plan(576, 'htp', 64).remarks).toEqual(["w: blocks of 32, the target's runtime cannot take 9 blocks of 64"]);
    expect(plan(576, 'onnx', 64)).toEqual({ form: { bits: 4, block: 64 }, remarks: [] });
    expect(plan(576, 'litert', 64)).toEqual({ form: { bits: 4, block: 0 }, remarks: [] });
  });
});

import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { parseModule } from '../../../compiler/ir/text.ts';
import { lowerModel } from '../../../targets/tflite/graph/lower-model.ts';
import { printTflite } from '../../../targets/tflite/print.ts';
import { readTflite } from '../../../targets/tflite/read.ts';
import { encodeTflite } from '../../../targets/tflite/write.ts';
import { hasMaterial, materialPath } from '../../material.ts';
import { formText } from './graph-forms.ts';
import { lowerForm } from './run-graph.ts';

describe('a TFLite model as text', () => {
  it('has inputs, constants, operators and outputs like the IR, and the signatures', () => {
    const body = `in %x : f32[1,1,4,4]
%w : f32[2,1,3,3] = const rand(1, normal 0.2)
%c = Conv(%x, %w) {pads [1, 1, 1, 1]}
%y = Relu(%c)`;
    const { model } = lowerModel(lowerForm(parseModule(formText(body)), 'float').graph(), 'float');
    expect(printTflite(readTflite(encodeTflite(model)))).toMatchInlineSnapshot(`
      "tflite 3 "npuc"

      subgraph 0 "form"
        in   %form/x : FLOAT32[1,1,4,4]
        %form/shape.1x4x4x1 : INT32[4] = buffer 1, 16 bytes
        %form/c.bias : FLOAT32[2] = buffer 2, 8 bytes
        %form/w : FLOAT32[2,3,3,1] = buffer 3, 72 bytes
        %form/perm.0312 : INT32[4] = buffer 4, 16 bytes
        %form/x.1x4x4x1 : FLOAT32[1,4,4,1] = RESHAPE.1(%form/x, %form/shape.1x4x4x1) {newShape [1, 4, 4, 1]}
        %form/y : FLOAT32[1,4,4,2] = CONV_2D.1(%form/x.1x4x4x1, %form/w, %form/c.bias) {padding SAME, strideW 1, strideH 1, fusedActivationFunction RELU, dilationWFactor 1, dilationHFactor 1}
        %form/y.0312 : FLOAT32[1,2,4,4] = TRANSPOSE.1(%form/y, %form/perm.0312)
        out  %form/y.0312

      signature "form" of subgraph 0
        in   "x" = %form/x
        out  "y" = %form/y.0312
      "
    `);
  });

  it('says how integers are to be read, one scale or many', () => {
    const scales = '[0.25, 0.5]';
    const { model } = lowerModel(
      parseModule(
        formText(`in %x : f32[1,4] q(i8, scale 0.5, zero -3)
%w : f32[4,2] q(i8, axis 1, scale ${scales}) = const fill 0.5
%y : f32[1,2] q(i8, scale 2.0) = MatMul(%x, %w)`),
      ).graph(),
      'quantized',
    );
    const text = printTflite(model);
    expect(text).toContain('in   %form/x : INT8[1,4] q(scale 0.5, zero -3)');
    expect(text).toContain('%form/w : INT8[2,4] q(axis 0, 2 scales 0.25..0.5) = buffer');
  });

  it.skipIf(!hasMaterial)('names every operator of every file of the material', () => {
    const folder = 'tflite/ai-edge-quantizer';
    for (const name of readdirSync(materialPath(folder)).filter((each) => each.endsWith('.tflite'))) {
      const model = readTflite(new Uint8Array(readFileSync(materialPath(folder, name))), name);
      const lines = printTflite(model).split('\n');
      const operators = model.subgraphs.reduce((sum, graph) => sum + graph.operators.length, 0);
      expect(
        lines.filter((line) => / = [A-Z0-9_]+\.\d+\(/.test(line)),
        name,
      ).toHaveLength(operators);
      expect(
        lines.filter((line) => line.startsWith('signature')),
        name,
      ).toHaveLength(model.signatures.length);
    }
  });
});

import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { quantizeGraph } from '../../../calibration/quantize-graph.ts';
import { litertFormat, makeRecipe } from '../../../calibration/recipe.ts';
import { randomSamples } from '../../../calibration/samples.ts';
import { toFloats } from '../../../compiler/ir/tensor.ts';
import { parseModule } from '../../../compiler/ir/text.ts';
import { wasmKernels } from '../../../compiler/kernels/index.ts';
import { loadLitert } from '../../../compiler/runtime/litert.ts';
import type { ModelTargetManifest } from '../../../targets/model-target.ts';
import { findSoc } from '../../../targets/socs.ts';
import { readTflite } from '../../../targets/tflite/read.ts';
import { operatorName } from '../../../targets/tflite/schema-enums.ts';
import { tfliteModelTarget } from '../../../targets/tflite/tflite-model.ts';
import { FORMS, formText } from './graph-forms.ts';

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-tflite-ports-'));
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

const soc = findSoc('SM8650');

async function emit(scheme: string, io: 'float' | 'quantized'): Promise<ModelTargetManifest> {
  const module = parseModule(formText(FORMS['Conv and Relu']!));
  const recipe = makeRecipe(scheme);
  tfliteModelTarget.lower(module, soc, recipe);
  const { feeds } = randomSamples(module.graph(), 2, 1);
  const quantized = await quantizeGraph({ module, feeds, recipe, format: litertFormat, kernels: wasmKernels });
  return tfliteModelTarget.emit(quantized, { out: join(work, `${scheme}-${io}`), soc, threads: 1, io });
}

describe.each([
  ['w8a8', 'i8'],
  ['w8a16', 'i16'],
] as const)('ports of a model at %s', (scheme, dtype) => {
  test(`are ${dtype} where integers are asked for, and give what float ports give`, async () => {
    const [float, integer] = [await emit(scheme, 'float'), await emit(scheme, 'quantized')];
    expect(float.files).toEqual(['tflite/model.tflite']);
    expect(integer.files).toEqual(['tflite/model.tflite', 'tflite/model.quantized-io.tflite']);
    expect(integer.facts.io).toBe('quantized');
    const ports = [...integer.inputs, ...integer.outputs];
    expect(ports.map((port) => port.dtype)).toEqual([dtype, dtype]);
    expect(ports.every(({ scale }) => scale! > 0)).toBe(true);
    const path = join(work, `${scheme}-quantized`, integer.file);
    const operators = readTflite(readFileSync(path), path).subgraphs[0]!.operators.map(({ code }) =>
      operatorName(code),
    );
    expect(operators).not.toContain('QUANTIZE');
    expect(operators).not.toContain('DEQUANTIZE');
    const litert = await loadLitert(path);
    expect(litert.signatures.serving_default!.inputs[0]!.dtype).toBe(dtype);
    litert.dispose();

    const { scale, zeroPoint = 0, shape, name } = integer.inputs[0]!;
    const size = shape.reduce((product, dim) => product * dim, 1);
    // Multiples of the port's step: float ports round others by another rule at ties.
    const data = Float32Array.from({ length: size }, (_, i) => (((i * 37) % 201) - 100 - zeroPoint) * scale!);
    const results: Float32Array[] = [];
    for (const [target, io] of [
      [float, 'float'],
      [integer, 'quantized'],
    ] as const) {
      const runner = await tfliteModelTarget.open(join(work, `${scheme}-${io}`), target, {});
      const [result] = Object.values(await runner.run({ [name]: { dtype: 'f32', shape, data } }));
      results.push(toFloats(result!));
      await runner.close();
    }
    expect(results[1]).toEqual(results[0]);
    expect(new Set(results[0]).size).toBeGreaterThan(20);
  });
});

test('a scheme whose activations are floats has float ports', async () => {
  const manifest = await emit('dynamic-int8', 'quantized');
  expect(manifest.files).toEqual(['tflite/model.tflite']);
  expect(manifest.inputs[0]!.dtype).toBe('f32');
});

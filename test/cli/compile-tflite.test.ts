import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openTensorFile } from '../../compiler/import/onnx.ts';
import { toFloats } from '../../compiler/ir/tensor.ts';
import { loadLitert } from '../../compiler/runtime/litert.ts';
import { worstSqnr } from '../../evaluation/compare-runs.ts';
import type { ModelReport } from '../../evaluation/model-report.ts';
import type { ModelManifest } from '../../targets/manifest.ts';
import { encodeNpz } from '../compiler/import/write-npz.ts';
import { hasMaterial, materialPath } from '../material.ts';
import { runNpuc } from './run-npuc.ts';

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-compile-tflite-'));
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

describe.skipIf(!hasMaterial)('an ONNX model compiled to TFLite', () => {
  const model = hasMaterial ? materialPath('onnx', 'mnist_8', 'model.onnx') : '';
  const image = () => openTensorFile(materialPath('onnx', 'mnist_8', 'test_data_set_0', 'input_0.pb')).toData();

  test.each([
    ['fp16', 55, 0],
    ['w8a8', 25, 0],
    ['w8a16', 40, 0],
    ['dynamic-int8', 40, 0],
    // Blocks run along the flattened image: its order cannot be changed in the weights.
    ['dynamic-int4', 20, 1],
  ] as const)('at %s is one file that LiteRT runs as the report says', async (scheme, least, transposes) => {
    const samples = join(work, 'samples.npz');
    writeFileSync(samples, encodeNpz({ Input3: image() }));
    const out = join(work, scheme);
    const args = [
      'compile',
      model,
      '--target',
      'tflite',
      '--scheme',
      scheme,
      '--calibrate',
      samples,
      '--out',
      out,
      '--quiet',
    ];
    const outcome = await runNpuc(args);
    expect(outcome.code, outcome.stderr).toBe(0);
    const manifest = JSON.parse(readFileSync(join(out, 'manifest.json'), 'utf8')) as ModelManifest;
    const { tflite } = manifest.targets;
    expect(tflite).toMatchObject({ file: 'tflite/model.tflite', execution: 'executed' });
    expect(tflite!.facts).toMatchObject({ transposes, floatOperators: 0 });
    const report = JSON.parse(readFileSync(join(out, 'report.json'), 'utf8')) as ModelReport;
    expect(worstSqnr(report.targets.tflite!.outputs)).toBeGreaterThan(least);

    const litert = await loadLitert(join(out, tflite!.file));
    const [result] = Object.values(await litert.signatures.serving_default!.run({ Input3: image() }));
    litert.dispose();
    const wanted = openTensorFile(materialPath('onnx', 'mnist_8', 'test_data_set_0', 'output_0.pb')).toFloats();
    const best = (values: Float32Array): number => values.indexOf(values.reduce((a, b) => Math.max(a, b)));
    expect(best(toFloats(result!))).toBe(best(wanted));
  });

  test('is printed by inspect --text', async () => {
    const { code, stdout } = await runNpuc(['inspect', join(work, 'w8a8', 'tflite', 'model.tflite'), '--text']);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^tflite 3 "npuc"$/m);
    expect(stdout).toMatch(/: INT8\[1,28,28,8\] q\(scale .*\) = CONV_2D\.3\(/);
  });
});

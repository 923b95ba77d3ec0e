import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { writeOnnx } from '../../compiler/export/onnx.ts';
import { readNpz } from '../../compiler/import/npz.ts';
import { openTensorFile } from '../../compiler/import/onnx.ts';
import type { TensorData } from '../../compiler/ir/tensor.ts';
import { parseModule } from '../../compiler/ir/text.ts';
import { inferShapes } from '../../compiler/ops/infer-shapes.ts';
import { worstSqnr } from '../../evaluation/compare-runs.ts';
import type { ModelReport } from '../../evaluation/model-report.ts';
import { describeFile, type ModelManifest } from '../../targets/manifest.ts';
import { encodeNpz, floats } from '../compiler/import/write-npz.ts';
import { hasMaterial, materialPath } from '../material.ts';
import { toolchain } from '../targets/qnn/toolchain-or-skip.ts';
import { type Outcome, runNpuc } from './run-npuc.ts';

const TARGETS = toolchain ? 'onnx,qnn' : 'onnx';

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-compile-onnx-'));
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

function writeSamples(name: string, arrays: Readonly<Record<string, TensorData>>): string {
  const path = join(work, name);
  writeFileSync(path, encodeNpz(arrays));
  return path;
}

/** A model from the text form. */
function writeModel(name: string, body: string): string {
  const module = parseModule(`npuir 1\nopset 21\ngraph @g\n${body.trim().replace(/^/gm, '  ')}\n`);
  inferShapes(module);
  const path = join(work, name);
  writeOnnx(module, path);
  return path;
}

/** The three published inputs of mnist_8, as one array. */
function mnistSamples(): string {
  const sets = [0, 1, 2].map((set) =>
    openTensorFile(materialPath('onnx', 'mnist_8', `test_data_set_${set}`, 'input_0.pb')).toFloats(),
  );
  const data = Float32Array.from(sets.flatMap((set) => [...set]));
  return writeSamples('mnist.npz', { Input3: { dtype: 'f32', shape: [3, 1, 28, 28], data } });
}

async function compile(source: string, out: string, ...args: string[]): Promise<Outcome> {
  return await runNpuc(['compile', source, '--out', join(work, out), '--quiet', ...args]);
}

const readJson = <T>(out: string, name: string): T => JSON.parse(readFileSync(join(work, out, name), 'utf8')) as T;

function filesIn(out: string): string[] {
  const all = readdirSync(join(work, out), { recursive: true, encoding: 'utf8' });
  return all.filter((path) => statSync(join(work, out, path)).isFile()).sort();
}

describe.skipIf(!hasMaterial)('a real model', { timeout: 240_000 }, () => {
  const mnist = hasMaterial ? materialPath('onnx', 'mnist_8', 'model.onnx') : '';

  test('becomes artifacts that are executed, compared and listed', async () => {
    const samples = mnistSamples();
    const outcome = await compile(mnist, 'mnist', '--scheme', 'w8a16', '--target', TARGETS, '--calibrate', samples);
    expect(outcome.stderr).toBe('');
    expect(outcome.code).toBe(0);
    const manifest = readJson<ModelManifest>('mnist', 'manifest.json');
    for (const file of manifest.files) expect(describeFile(join(work, 'mnist'), file.path)).toEqual(file);
    const listed = [
      ...manifest.files.map(({ path }) => path),
      'manifest.json',
      'report.html',
      'report.json',
      'timings.json',
    ];
    expect(filesIn('mnist')).toEqual(listed.sort());
    expect(manifest).toMatchObject({ kind: 'model', calibration: { samples: 3, random: false } });
    // No clock, no path of this machine.
    expect(JSON.stringify(manifest)).not.toContain(work);

    const { targets, simplified, warnings } = readJson<ModelReport>('mnist', 'report.json');
    expect(warnings).toEqual([]);
    expect(simplified!.map(({ name }) => name)).toEqual(['Plus214_Output_0']);
    expect(worstSqnr(targets.onnx!.outputs)).toBeGreaterThan(40);
    const names = targets.onnx!.values.flatMap(({ from }) => from);
    expect(names).toContain('ReLU32');
    if (toolchain) {
      expect(targets.qnn).toMatchObject({ execution: 'executed' });
      expect(worstSqnr(targets.qnn!.outputs)).toBeGreaterThan(40);
      expect(worstSqnr(targets.qnn!.twin!)).toBeGreaterThan(70);
      const { inputs, outputs } = manifest.targets.qnn!;
      expect([...inputs, ...outputs].map(({ dtype }) => dtype)).toEqual(['u16', 'u16']);
    }
    expect(outcome.stdout).toMatch(/Plus214_Output_0 +\d+\.\d dB/);
    expect(outcome.stdout).toMatch(/ReLU32_Output_0 .* ReLU32/);
  });

  test('gives encodings and the float model that they are of, which compile to the same again', async () => {
    const args = ['--scheme', 'w8a8', '--target', 'onnx', '--calibrate', mnistSamples()];
    expect((await compile(mnist, 'given', ...args)).code).toBe(0);
    const folder = join(work, 'given', 'onnx');
    const again = await compile(
      join(folder, 'float.onnx'),
      'again',
      ...args,
      '--encodings-in',
      join(folder, 'encodings.json'),
    );
    expect(again.code, again.stderr).toBe(0);
    const worst = ['given', 'again'].map((out) =>
      Number(readJson<ModelReport>(out, 'report.json').targets.onnx!.outputs[0]!.sqnr),
    );
    // The second run is held against weights on their grids: only the activations are left to cost it anything.
    expect(worst[0]).toBeGreaterThan(35);
    expect(worst[1]).toBeGreaterThan(worst[0]!);
  });

  test('gives the same bytes in another folder, from another folder and with other threads', async () => {
    const samples = mnistSamples();
    const args = ['--scheme', 'w8a8', '--target', TARGETS, '--calibrate', samples];
    const copy = join(work, 'model.onnx');
    writeFileSync(copy, readFileSync(mnist));
    const outcomes = [
      await compile(mnist, 'one', ...args, '--threads', '1'),
      await compile(copy, 'another-folder', ...args, '--threads', '2'),
    ];
    expect(outcomes.map(({ code, stderr }) => [code, stderr])).toEqual([
      [0, ''],
      [0, ''],
    ]);
    const manifests = ['one', 'another-folder'].map((out) => readFileSync(join(work, out, 'manifest.json'), 'utf8'));
    expect(manifests[0]).toBe(manifests[1]);
    expect(readJson<ModelManifest>('one', 'manifest.json').files.length).toBeGreaterThan(toolchain ? 4 : 1);
  });

  test('is made and described by one JSON document on demand', async () => {
    const outcome = await compile(mnist, 'json', '--scheme', 'fp16', '--target', TARGETS, '--json');
    expect(outcome.code, outcome.stderr).toBe(0);
    const { report } = JSON.parse(outcome.stdout) as { report: ModelReport };
    expect(report.targets.onnx!.outputs[0]!.sqnr).toBe('Infinity');
    if (toolchain) expect(worstSqnr(report.targets.qnn!.outputs)).toBeGreaterThan(50);
  });

  test('without samples is calibrated on random ones, and says so where nobody overlooks it', async () => {
    const outcome = await runNpuc(['compile', mnist, '--target', 'onnx', '--scheme', 'w8a8', '--out', join(work, 'r')]);
    expect(outcome.code, outcome.stderr).toBe(0);
    for (const text of [outcome.stderr, outcome.stdout])
      expect(text).toMatch(/^WARNING: ranges were measured on random inputs/m);
    expect(readJson<ModelReport>('r', 'report.json').warnings).toHaveLength(2);
    expect(readJson<ModelManifest>('r', 'manifest.json').calibration.random).toBe(true);
  });

  test('evaluated on samples of another scale is suspected', async () => {
    const small = writeSamples('small.npz', { Input3: floats([1, 1, 28, 28], (i) => (i % 7) / 7) });
    const args = ['--scheme', 'w8a8', '--target', 'onnx', '--calibrate', mnistSamples(), '--evaluate', small];
    const outcome = await compile(mnist, 'scale', ...args);
    expect(outcome.stdout).toMatch(/WARNING: Input3 was calibrated on 0 to 255 and is evaluated on 0 to 0\.857/);
  });

  // dB of the worst output against the untouched model, on published inputs: docs/onnx-models.md has them all.
  test.each([
    {
      name: 'super_resolution_10',
      path: 'super_resolution_10/model.onnx',
      bind: ['batch_size=1'],
      samples: () => ({
        input: openTensorFile(materialPath('onnx', 'super_resolution_10', 'test_data_set_0', 'input_0.pb')).toData(),
      }),
      scheme: 'w8a16',
      least: 33,
    },
    {
      name: 'ppocr-cls',
      path: 'ppocr-v4/ch_ppocr_mobile_v2.0_cls_infer.onnx',
      bind: ['x=1x3x48x192'],
      samples: () => ({ x: readNpz(materialPath('onnx', 'ppocr-v4', 'cls.ocr-line.npz')).in_x! }),
      scheme: 'w8a8',
      least: 40,
    },
    {
      name: 'silero-vad',
      path: 'silero-vad/silero_vad_16k_op15.onnx',
      bind: ['batch=1', 'sequence=576'],
      samples: () => readNpz(materialPath('onnx', 'silero-vad', 'silero_vad_16k_op15.jfk-frame60.npz')),
      scheme: 'w8a16',
      least: 30,
    },
  ])('$name keeps $least dB at $scheme, whole on HTP', async ({ name, path, bind, samples, scheme, least }) => {
    const args = bind.flatMap((each) => ['--bind', each]);
    const calibrate = writeSamples(`${name}.npz`, samples());
    const outcome = await compile(
      materialPath('onnx', path),
      name,
      ...[...args, '--scheme', scheme, '--target', TARGETS, '--calibrate', calibrate],
    );
    expect(outcome.code, outcome.stderr).toBe(0);
    const { targets, simplified } = readJson<ModelReport>(name, 'report.json');
    for (const { sqnr } of simplified!) expect(Number(sqnr)).toBeGreaterThan(100);
    for (const [target, report] of Object.entries(targets))
      expect(Math.min(...report.outputs.map(({ sqnr }) => Number(sqnr))), target).toBeGreaterThan(least);
  });
});

test('a dry run prints shapes and sizes, and writes nothing', async () => {
  const body = 'in %x : f32[batch,4]\n%w : f32[4,8] = const rand(1, normal 0.3)\n%y = MatMul(%x, %w)\nout %y';
  const source = writeModel('dry.onnx', body);
  const args = ['--scheme', 'w8a16', '--target', 'onnx', '--bind', 'batch=2', '--dry-run'];
  const outcome = await compile(source, 'dry', ...args);
  expect(outcome.code, outcome.stderr).toBe(0);
  expect(outcome.stdout).toMatch(/^input +x f32\[2,4\]$/m);
  expect(outcome.stdout).toMatch(/^weights +32, 128 B before quantization$/m);
  expect(readdirSync(work)).not.toContain('dry');
});

describe('a graph that HTP refuses', () => {
  const refused = '%c = Hardmax(%x)\nin %x : f32[1,4]\nout %c'.split('\n');
  const body = [refused[1], refused[0], refused[2]].join('\n');

  test.skipIf(!toolchain)('is an error where qnn is asked for, with the node and the reason', async () => {
    const outcome = await compile(
      writeModel('hardmax.onnx', body),
      'hardmax',
      '--scheme',
      'w8a16',
      '--target',
      'onnx,qnn',
    );
    expect(outcome.code).toBe(2);
    expect(outcome.stderr).toMatch(/^QN01[01] /m);
    expect(outcome.stderr).toMatch(/Hardmax/);
    expect(readdirSync(work)).not.toContain('hardmax');
  });

  test.skipIf(!toolchain)('leaves qnn out where nobody asked, and says so', async () => {
    const outcome = await compile(writeModel('hardmax.onnx', body), 'hardmax-default', '--scheme', 'w8a16');
    expect(outcome.code, outcome.stderr).toBe(0);
    expect(Object.keys(readJson<ModelManifest>('hardmax-default', 'manifest.json').targets)).toEqual([
      'onnx',
      'tflite',
    ]);
    expect(outcome.stdout).toMatch(/- qnn is left out: .*Hardmax/);
    expect(filesIn('hardmax-default').filter((path) => path.startsWith('qnn'))).toEqual([]);
  });
});

describe('bad input gives one coded error, exit code 2, and leaves nothing behind', () => {
  const dynamic = 'in %x : f32[batch,4]\n%y = Relu(%x)\nout %y';

  /** Compiles and expects a refusal. */
  async function expectRefusal(code: RegExp, args: readonly string[], body = dynamic): Promise<void> {
    const source = writeModel('bad.onnx', body);
    const before = readdirSync(work).sort();
    const outcome = await compile(source, 'bad', '--scheme', 'w8a8', '--target', 'onnx', ...args);
    expect(outcome.stderr.split('\n').find((line) => /^[A-Z]{2}\d{3} /.test(line))).toMatch(code);
    expect(outcome.code).toBe(2);
    expect(outcome.stderr).not.toMatch(/\n\s+at .*[:(]\d+/);
    expect(readdirSync(work).sort()).toEqual(before);
  }
  const bound = ['--bind', 'batch=1'];

  test('a dimension without a length is named', () => expectRefusal(/^PS110 .*\[batch,4\]/, []));
  test('a binding for no dimension', () => expectRefusal(/^PS111 .*nothing/, [...bound, '--bind', 'nothing=3']));
  test('a length of nothing', () => expectRefusal(/^CL001 --bind batch=0/, ['--bind', 'batch=0']));
  test('a binding that is no number', () => expectRefusal(/^CL001 --bind batch=two/, ['--bind', 'batch=two']));
  test('a binding without a name', () => expectRefusal(/^CL001/, ['--bind', '=3']));
  test('a shape that contradicts the model', () => expectRefusal(/^PS111 .*\[2,5\]/, ['--bind', 'x=2x5']));
  test('an operator that TFLite has no form for', () => {
    const body = 'in %x : f32[batch,4,4]\n%y = Det(%x)\nout %y';
    return expectRefusal(/^TF201 .*Det/, [...bound, '--target', 'tflite'], body);
  });
  test('half floats to be quantized', () => expectRefusal(/^QT121 /, [], 'in %x : f16[1,4]\n%y = Relu(%x)\nout %y'));

  test('samples that lack an input', () =>
    expectRefusal(/^QT120 .*input x/, [
      ...bound,
      '--calibrate',
      writeSamples('none.npz', { z: floats([1, 4], () => 0) }),
    ]));
  test('samples of another shape', () =>
    expectRefusal(/^QT120 .*\[1,5\]/, [
      ...bound,
      '--calibrate',
      writeSamples('wide.npz', { x: floats([1, 5], () => 0) }),
    ]));
  test('samples that are no npz', () => {
    writeFileSync(join(work, 'junk.npz'), 'junk');
    return expectRefusal(/^IO003 /, [...bound, '--evaluate', join(work, 'junk.npz')]);
  });
  test('samples that are not there', () =>
    expectRefusal(/^IO001 /, [...bound, '--calibrate', join(work, 'nowhere.npz')]));
  test('samples that overflow', () =>
    expectRefusal(
      /^QT010 .*not finite/,
      [...bound, '--calibrate', writeSamples('zero.npz', { x: floats([1, 4], () => 0) })],
      'in %x : f32[batch,4]\n%y = Log(%x)\nout %y',
    ));
});

import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { ModelManifest } from '../../targets/manifest.ts';
import { noise, type TinyModel, writeModel } from '../targets/qnn/tiny-onnx.ts';
import { demo, runNpuc } from './run-npuc.ts';

let work: string;
let model: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-encodings-'));
  const mlp: TinyModel = {
    inputs: [{ name: 'x', dtype: 'f32', shape: [1, 32] }],
    outputs: [{ name: 'y', dtype: 'f32', shape: [1, 8] }],
    nodes: [
      { op: 'MatMul', name: 'first', inputs: ['x', 'w1'], outputs: ['h'] },
      { op: 'Relu', name: 'relu', inputs: ['h'], outputs: ['r'] },
      { op: 'Identity', name: 'nothing', inputs: ['r'], outputs: ['same'] },
      { op: 'MatMul', name: 'second', inputs: ['same', 'w2'], outputs: ['y'] },
    ],
    weights: [
      { name: 'w1', dtype: 'f32', shape: [32, 16], data: noise(512, 1) },
      { name: 'w2', dtype: 'f32', shape: [16, 8], data: noise(128, 2) },
    ],
  };
  model = writeModel(join(work, 'mlp.onnx'), mlp);
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

interface FileEncoding {
  readonly name: string;
  readonly bw: number;
  readonly scale: readonly number[];
  readonly offset: readonly number[];
}

const readFile = (out: string, file = 'onnx/encodings.json'): string => readFileSync(join(work, out, file), 'utf8');
const activationsOf = (out: string): Map<string, FileEncoding> => {
  const { activation_encodings } = JSON.parse(readFile(out)) as { activation_encodings: FileEncoding[] };
  return new Map(activation_encodings.map((entry) => [entry.name, entry]));
};
const write = (name: string, data: unknown): string => {
  const path = join(work, name);
  writeFileSync(path, typeof data === 'string' ? data : JSON.stringify(data));
  return path;
};
const file = (activations: readonly object[], params: readonly object[] = []) => ({
  version: '1.0.0',
  activation_encodings: activations,
  param_encodings: params,
});
const tensor = (name: string, bw: number, scale: number, offset: number) => ({
  ...{ name, bw, dtype: 'INT', enc_type: 'PER_TENSOR', is_sym: false },
  ...{ scale: [scale], offset: [offset] },
});

async function compile(
  source: string,
  out: string,
  ...flags: string[]
): Promise<{ code: number | null; stderr: string; stdout: string }> {
  return await runNpuc(['compile', source, '--target', 'onnx', '--out', join(work, out), '--quiet', ...flags]);
}

describe('given encodings of an ONNX model', () => {
  test('take the place of calibrated ones; the rest is calibrated, and that is said', async () => {
    const encodings = write('some.json', file([tensor('x', 8, 0.5, -128), tensor('same', 8, 0.25, 0)]));
    const { code, stdout, stderr } = await compile(
      model,
      'some',
      '--scheme',
      'w8a8',
      '--encodings-in',
      encodings,
      '--json',
    );
    expect([code, stderr.replace(/WARNING.*\n/g, '')]).toEqual([0, '']);
    const written = activationsOf('some');
    expect(written.get('x')).toMatchObject({ bw: 8, scale: [0.5], offset: [-128] });
    // The model's own Identity is gone: its input is the same value, and was not given.
    expect(written.has('same')).toBe(false);
    expect(written.get('h')!.scale[0]).toBeLessThan(0.25);
    const { report, manifest } = JSON.parse(stdout) as { report: { remarks: string[] }; manifest: ModelManifest };
    expect(report.remarks.join('\n')).toMatch(
      /some\.json gives 1 of \d activations and 0 of 2 weights; the others are cal/,
    );
    expect(manifest.calibration.encodings).toMatch(/^[0-9a-f]{64}$/);
  });

  test('what is written reads back to the same bytes, in both versions', async () => {
    const common = ['--scheme', 'w8a16'];
    const start = write('start.json', file([tensor('y', 8, 0.0625, -100)]));
    const run = async (out: string, ...flags: string[]): Promise<void> => {
      const { code, stderr } = await compile(model, out, ...common, ...flags);
      expect([code, stderr.replace(/WARNING.*\n/g, '')]).toEqual([0, '']);
    };
    await run('a', '--encodings-in', start);
    expect(activationsOf('a').get('y')).toMatchObject({ bw: 8, scale: [0.0625], offset: [-100] });
    await run('b', '--encodings-in', join(work, 'a/onnx/encodings.json'), '--encodings', '0.6.1');
    await run('c', '--encodings-in', join(work, 'b/onnx/encodings.json'));
    expect(JSON.parse(readFile('b'))).toMatchObject({
      version: '0.6.1',
      activation_encodings: { y: [{ bitwidth: 8 }] },
    });
    expect(readFile('c')).toBe(readFile('a'));
    for (const out of ['b', 'c'])
      expect(readFileSync(join(work, out, 'onnx/model.onnx'))).toEqual(readFileSync(join(work, 'a/onnx/model.onnx')));
  }, 60_000);

  test.each<[string, unknown, string, RegExp]>([
    ['no JSON', '{', 'QT130', /it is not JSON/],
    ['no lists', { version: '1.0.0' }, 'QT130', /activation_encodings/],
    ['a wrong width', file([tensor('x', 99, 1, 0)]), 'QT130', /bw/],
    ['a scale of zero', file([tensor('x', 8, 0, 0)]), 'QT130', /x: a scale is not a positive number/],
    ['an offset above zero', file([tensor('x', 8, 1, 3)]), 'QT130', /x: an offset is not between -255 and 0/],
    ['a name twice', file([tensor('x', 8, 1, 0), tensor('x', 8, 1, 0)]), 'QT130', /x twice/],
    ['another model', file([tensor('conv1', 8, 1, 0)]), 'QT131', /another model: none of its 1 names.*conv1/],
    ['an unknown name', file([tensor('x', 8, 1, 0), tensor('q', 8, 1, 0)]), 'QT131', /1 of its 2 names .* model: q$/m],
    [
      'a wrong number of channels',
      file([], [{ name: 'w1', dtype: 'INT', bw: 8, enc_type: 'PER_CHANNEL', scale: [1, 2], offset: [-128, -128] }]),
      'QT131',
      /w1: 2 scales for 16 output channels/,
    ],
    ['an asymmetric weight', file([], [tensor('w1', 8, 1, -7)]), 'QT131', /w1: weights must be symmetric/],
    [
      'float blocks',
      file(
        [],
        [{ name: 'w1', dtype: 'INT', bw: 4, enc_type: 'PER_BLOCK', block_size: 16, scale: [1, 2], offset: [-8] }],
      ),
      'QT130',
      /half floats/,
    ],
    [
      'older channels of several widths',
      {
        activation_encodings: {},
        param_encodings: {
          w1: [
            { bitwidth: 8, scale: 1, offset: -128 },
            { bitwidth: 4, scale: 1, offset: -8 },
          ],
        },
      },
      'QT130',
      /w1: its channels have several widths/,
    ],
  ])('%s is refused, and nothing is written', async (name, data, errorCode, message) => {
    const encodings = write('bad.json', data);
    const { code, stderr } = await compile(model, name, '--scheme', 'w8a16', '--encodings-in', encodings);
    expect(code).toBe(2);
    expect(stderr).toContain(errorCode);
    expect(stderr).toMatch(message);
    expect(existsSync(join(work, name))).toBe(false);
  });

  test('what does not go together is refused', async () => {
    const encodings = write('fine.json', file([tensor('x', 8, 1, 0)]));
    const refusals: [string, string[]][] = [
      ['CL001', ['--scheme', 'fp16', '--encodings-in', encodings]],
      ['IO001', ['--encodings-in', join(work, 'absent.json')]],
      ['QT132', ['--scheme', 'w4a16', '--encodings', '0.6.1']],
      ['CL002', ['--encodings', '0.9']],
      ['CL001', ['--dlc']],
      ['CL001', ['--toolchain', 'qnn@0.1']],
    ];
    for (const [errorCode, flags] of refusals) {
      const { code, stderr } = await compile(model, 'refused', ...flags);
      expect([code, stderr.slice(0, 5), flags]).toEqual([2, errorCode, flags]);
    }
    expect(existsSync(join(work, 'refused'))).toBe(false);
  });
});

test('given encodings of a decoder: what is written reads back to the same bytes', async () => {
  const common = [
    '--scheme',
    'w4a16',
    '--tokens',
    '4',
    '--cache',
    '16',
    '--calibration-windows',
    '1',
    '--evaluate',
    'none',
  ];
  const first = await compile(demo, 'decoder', ...common);
  expect([first.code, first.stderr]).toEqual([0, '']);
  const encodings = join(work, 'decoder/onnx/encodings.json');
  const second = await compile(demo, 'again', ...common, '--encodings-in', encodings);
  expect([second.code, second.stderr]).toEqual([0, '']);
  for (const name of ['encodings.json', 'weights.data', 'decode.onnx', 'prefill_4.onnx'])
    expect(
      readFileSync(join(work, 'again/onnx', name)).equals(readFileSync(join(work, 'decoder/onnx', name))),
      name,
    ).toBe(true);
  // One value changed by hand changes that value alone.
  const changed = readFile('decoder').replace(
    /("name":"(model\.layers\.1\.mlp\.down_proj\.out|[^"]*)","dtype":"INT","bw":16,"enc_type":"PER_TENSOR","is_sym":false,"scale":\[)[\d.e-]+/,
    '$11',
  );
  expect(changed).not.toBe(readFile('decoder'));
  const third = await compile(demo, 'changed', ...common, '--encodings-in', write('changed.json', changed));
  expect([third.code, third.stderr]).toEqual([0, '']);
  expect(readFile('changed')).toBe(changed);
}, 120_000);

import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { describeFile, type Manifest } from '../../targets/manifest.ts';
import { noise, type TinyModel, writeModel } from '../targets/qnn/tiny-onnx.ts';
import { demo, runNpuc } from './run-npuc.ts';

let work: string;
let out: string;
const shape = ['--tokens', '16', '--cache', '64', '--calibration-windows', '2', '--evaluate', 'none', '--quiet'];
beforeAll(async () => {
  work = mkdtempSync(join(tmpdir(), 'npuc-explain-'));
  out = join(work, 'out');
  const args = ['--target', 'onnx,tflite,hf', '--scheme', 'w8a8', '--range', 'percentile', '--out', out, ...shape];
  const { code, stderr } = await runNpuc(['compile', demo, ...args]);
  expect([code, stderr]).toEqual([0, '']);
}, 60_000);
afterAll(() => rmSync(work, { recursive: true, force: true }));

const explain = (...args: string[]) => runNpuc(['explain', ...args]);

test('a value: encoding, reason, range, clip, what was moved, for every target', async () => {
  const { code, stdout, stderr } = await explain(out, 'layers.0.attn_norm');
  expect([code, stderr]).toEqual([0, '']);
  expect(stdout).toMatch(
    /^onnx\n {2}activation layers\.0\.attn_norm\n {2}your node {2}model\.layers\.0\.input_layernorm\n/,
  );
  expect(stdout).toMatch(/\n {2}encoding {3}u16, scale [\d.e-]+, zero point \d+: -[\d.]+ to [\d.]+\n/);
  expect(stdout).toMatch(/\n {2}why {8}it reads the residual stream\n/);
  expect(stdout).toMatch(
    /\n {4}seen {5}layers\.0\.attn_norm: .* to .*, typical row .*, which keeps \d+ dB at 16 bits\n/,
  );
  expect(stdout).toMatch(
    /\n {2}migration {2}scale moved from the channels of layers\.0\.attn_norm into .*\(exponent 0\.5\)\n/,
  );
  expect(stdout).toMatch(/\ntflite\n/);
  const narrow = await explain(out, 'layers.1.silu', '--target', 'onnx');
  expect(narrow.stdout).toMatch(/percentile of what calibration saw\n.*clipped to .* % of the range cut off/);
  expect(narrow.stdout).not.toContain('tflite');
});

test('a weight, a node of the model, and the folder as a whole', async () => {
  const weight = await explain(out, 'model.layers.2.mlp.gate_proj.weight', '--json');
  const { decisions } = JSON.parse(weight.stdout) as {
    decisions: { target: string; rounding: string; dtype: string }[];
  };
  expect(decisions.map(({ target, rounding, dtype }) => [target, rounding, dtype])).toEqual(
    ['onnx', 'tflite', 'hf'].map((target) => [target, 'nearest', 'i8']),
  );
  const node = await explain(out, 'model.layers.2.mlp.gate_proj', '--target', 'onnx');
  expect(node.stdout).toMatch(
    /activation layers\.2\.gate_proj\n[\s\S]*weight {5}model\.layers\.2\.mlp\.gate_proj\.weight\n/,
  );
  const folder = await explain(out);
  expect(folder.stdout).toMatch(/^onnx {3}activation u16 +\d+ {2}it is the residual stream, such as/m);
  expect(folder.stdout).toMatch(/^hf {5}weight {5}i8 /m);
  expect(folder.stdout).not.toMatch(/^hf {5}activation/m);
});

test('the decisions are a file of the manifest, with the same bytes for the same input', async () => {
  const manifest = JSON.parse(readFileSync(join(out, 'manifest.json'), 'utf8')) as Manifest;
  expect(manifest.files).toContainEqual(describeFile(out, 'plan.json'));
  expect(readFileSync(join(out, 'plan.json'), 'utf8')).not.toContain(work);
});

test('an ONNX model', async () => {
  const mlp: TinyModel = {
    inputs: [{ name: 'x', dtype: 'f32', shape: [1, 32] }],
    outputs: [{ name: 'y', dtype: 'f32', shape: [1, 8] }],
    nodes: [
      { op: 'MatMul', name: 'first', inputs: ['x', 'w1'], outputs: ['h'] },
      { op: 'Tanh', name: 'tanh', inputs: ['h'], outputs: ['r'] },
      { op: 'MatMul', name: 'second', inputs: ['r', 'w2'], outputs: ['y'] },
    ],
    weights: [
      { name: 'w1', dtype: 'f32', shape: [32, 16], data: noise(512, 1) },
      { name: 'w2', dtype: 'f32', shape: [16, 8], data: noise(128, 2) },
    ],
  };
  const model = writeModel(join(work, 'mlp.onnx'), mlp);
  const folder = join(work, 'model');
  const { code } = await runNpuc([
    'compile',
    model,
    '--target',
    'onnx',
    '--scheme',
    'w8a8',
    '--quiet',
    '--out',
    folder,
  ]);
  expect(code).toBe(0);
  expect((await explain(folder, 'r')).stdout).toMatch(/range {6}fixed by the target's kernels/);
  expect((await explain(folder, 'w1')).stdout).toMatch(/rounding {3}gptq/);
  expect((await explain(folder, 'first')).stdout).toMatch(/your node {2}first/);
}, 60_000);

test.each<[string, () => string[], RegExp]>([
  [
    'a name that is none',
    () => [out, 'layers.0.mlp_produc'],
    /^CL001 no encoding is of layers\.0\.mlp_produc\n.*\n {2}hint: did you mean layers\.0\.mlp_product\?/,
  ],
  [
    'a target that was not compiled',
    () => [out, 'layers.0.silu', '--target', 'qnn'],
    /^CL001 .* has no target qnn\n.*\n {2}hint: it has onnx, tflite, hf/,
  ],
  ['a folder that holds nothing', () => [work], /^TG110 /],
])('%s is an error', async (_, args, message) => {
  const { code, stderr } = await explain(...args());
  expect(code).toBe(2);
  expect(stderr).toMatch(message);
});

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { writeOnnx } from '../../../compiler/export/onnx.ts';
import { parseModule } from '../../../compiler/ir/text.ts';
import { describeAlignment } from '../../../evaluation/diff/align-values.ts';
import type { BuildView } from '../../../evaluation/diff/build-view.ts';
import { compareBuilds } from '../../../evaluation/diff/compare-builds.ts';
import { rankRows } from '../../../evaluation/diff/describe-diff.ts';
import { runArtifacts } from '../../../evaluation/diff/run-artifacts.ts';

/** A convolution, its activation and a residual; images of equal sides, so that several orders of axes fit. */
const CHANNELS_FIRST = `npuir 1
ir 10
opset 21

graph @main
  in %image : f32[1,4,4,4]
  %w : f32[4,4,1,1] = const rand(1, uniform -0.5 0.5)
  %y : f32[1,4,4,4] = Conv(%image, %w)
  %act : f32[1,4,4,4] = Tanh(%y)
  %sum : f32[1,4,4,4] = Add(%act, %image)
  out %sum
`;

/** The same with channels last, as a converter rewrites it: its act is 1.5 times as large, and its sum is not. */
const CHANNELS_LAST = `npuir 1
ir 10
opset 21

graph @main
  in %image : f32[1,4,4,4]
  %w : f32[4,4,1,1] = const rand(1, uniform -0.5 0.5)
  %half : f32[] = const 1.5
  %planar : f32[1,4,4,4] = Transpose(%image) {perm [0, 3, 1, 2]}
  %y.planar : f32[1,4,4,4] = Conv(%planar, %w)
  %y : f32[1,4,4,4] = Transpose(%y.planar) {perm [0, 2, 3, 1]}
  %small : f32[1,4,4,4] = Tanh(%y)
  %act : f32[1,4,4,4] = Mul(%small, %half)
  %sum : f32[1,4,4,4] = Add(%small, %image)
  out %sum
`;

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'npuc-run-artifacts-'));
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

function write(name: string, text: string): string {
  const path = join(folder, name);
  writeOnnx(parseModule(text), path);
  return path;
}

test('a model is itself, value for value', async () => {
  const a = write('a.onnx', CHANNELS_FIRST);
  const run = (await runArtifacts(a, a))!;
  expect([...run.keys()]).toEqual(['y', 'act', 'sum']);
  for (const found of run.values()) expect(found).toMatchObject({ sqnr: Number.POSITIVE_INFINITY, gain: 1 });
});

test('of another layout and scale it is the same model, and the report says what was undone', async () => {
  const flat = (text: string, from: string, to: string): string => text.replaceAll(from, to);
  const a = write('first.onnx', flat(CHANNELS_FIRST, '[1,4,4,4]', '[1,4,5,6]'));
  // Channels are the last of three lengths now.
  const last = flat(CHANNELS_LAST, '[1,4,4,4]', '[1,5,6,4]')
    .replace(/%planar : f32\[1,5,6,4\]/, '%planar : f32[1,4,5,6]')
    .replace(/%y\.planar : f32\[1,5,6,4\]/, '%y.planar : f32[1,4,5,6]');
  const run = (await runArtifacts(a, write('last.onnx', last)))!;
  for (const name of ['y', 'sum']) {
    expect(run.get(name)!.sqnr).toBeGreaterThan(100);
    expect(run.get(name)!.permutation).toEqual([0, 3, 1, 2]);
  }
  const act = run.get('act')!;
  expect(act.sqnr).toBeLessThan(10);
  expect(act.scaledSqnr).toBeGreaterThan(100);
  expect(describeAlignment(act)[1]).toMatch(/^1\.500 times as large: /);
  const view = (title: string): BuildView => ({
    title,
    kind: 'artifact',
    facts: [],
    ops: new Map([['Conv', 1]]),
    values: [],
    weights: [],
    files: [],
    quality: [],
  });
  const rows = rankRows(compareBuilds(view('a'), view('b'), run).values);
  expect(rows.map(({ name }) => name)).toEqual(['act']);
});

test('inputs that are not the same, and shapes that are not fixed, are not run', async () => {
  const a = write('one.onnx', CHANNELS_FIRST);
  const other = write('other.onnx', CHANNELS_FIRST.replaceAll('[1,4,4,4]', '[1,4,8,8]'));
  expect(await runArtifacts(a, other)).toBeUndefined();
  const free = write('free.onnx', CHANNELS_FIRST.replaceAll('[1,4,4,4]', '[n,4,4,4]'));
  expect(await runArtifacts(free, free)).toBeUndefined();
});

test('where saturation does the work of an activation, its quantized value is compared with it', async () => {
  const float = `npuir 1
ir 10
opset 21

graph @main
  in %x : f32[4,8]
  %w : f32[8,8] = const rand(1, uniform -0.5 0.5)
  %product : f32[4,8] = MatMul(%x, %w)
  %act : f32[4,8] = Relu(%product)
  out %act
`;
  // The converter left the Relu out: unsigned integers with zero 0 clamp as it does.
  const integer = `npuir 1
ir 10
opset 21

graph @main
  in %x : f32[4,8]
  %w : f32[8,8] = const rand(1, uniform -0.5 0.5)
  %scale : f32[] = const 0.01
  %zero : u8[] = const 0
  %act : f32[4,8] = MatMul(%x, %w)
  %act.q : u8[4,8] = QuantizeLinear(%act, %scale, %zero)
  %act.out : f32[4,8] = DequantizeLinear(%act.q, %scale, %zero)
  out %act.out
`;
  const run = (await runArtifacts(write('relu.onnx', float), write('clamped.onnx', integer)))!;
  // Steps of 0.01 in values of about 0.5.
  expect(run.get('act')!.sqnr).toBeGreaterThan(35);
  expect(run.get('act')!.sqnr).toBeLessThan(60);
});

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { compileOptions } from '../../../cli/compile.ts';
import { mergeConfig } from '../../../cli/config.ts';
import { openModelSubject } from '../../../cli/jobs/check-model.ts';
import type { CompileOptions } from '../../../cli/jobs/compile-decoder.ts';
import { writeOnnx } from '../../../compiler/export/onnx.ts';
import { floatAttribute } from '../../../compiler/ir/graph.ts';
import { parseModule } from '../../../compiler/ir/text.ts';
import type { Pass } from '../../../compiler/pass.ts';
import { type Baseline, parseBaseline, writeBaseline } from '../../../evaluation/check/baseline.ts';
import { findCulprit } from '../../../evaluation/check/find-culprit.ts';
import { judge } from '../../../evaluation/check/judge.ts';
import { measureModel } from '../../../evaluation/check/measure-model.ts';
import { measureNoise } from '../../../evaluation/check/noise-floor.ts';
import { fuse } from '../../../passes/pipelines.ts';

/** RMSNorm as an exporter writes it, of values so small that epsilon counts, between two linear layers. */
const MODEL = `npuir 1
ir 11
opset 23

graph @main
  in %x : f32[4,32]
  %first : f32[32,32] = const rand(1, uniform -0.02 0.02)
  %second : f32[32,16] = const rand(2, uniform -0.3 0.3)
  %gain : f32[32] = const rand(3, uniform 0.5 1.5)
  %two : f32[] = const 2
  %eps : f32[] = const 0.001
  %h = MatMul(%x, %first)
  %squares = Pow(%h, %two)
  %axes : i64[1] = const [-1]
  %mean = ReduceMean(%squares, %axes) {keepdims 1}
  %shifted = Add(%mean, %eps)
  %root = Sqrt(%shifted)
  %normed = Div(%h, %root)
  %scaled = Mul(%normed, %gain)
  %y = MatMul(%scaled, %second)
  out %y
`;

let folder: string;
let options: CompileOptions;
let baseline: Baseline;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'npuc-check-model-'));
  const source = join(folder, 'model.onnx');
  writeOnnx(parseModule(MODEL), source);
  options = compileOptions(mergeConfig({}, { source, scheme: 'w8a16', target: ['onnx'] }), {
    force: false,
    quiet: true,
  });
  const inputs = openModelSubject(options, [], 'onnx');
  const base = (await measureModel(inputs(0))).measurement;
  const draws = [];
  for (const seed of [1, 2, 3, 4]) draws.push((await measureModel(inputs(seed))).measurement);
  baseline = parseBaseline(writeBaseline(base, measureNoise(base, draws), {}), 'quality.yaml');
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

test('an unchanged model passes, on another draw of the samples too', async () => {
  for (const seed of [0, 7]) {
    const { measurement } = await measureModel(openModelSubject(options, [], 'onnx')(seed));
    expect(measurement.series.noise).toHaveLength(16);
    expect(judge(baseline, measurement, seed).findings.map(({ message }) => message)).toEqual([]);
  }
});

test('a fusion that drops epsilon is found by bisection over the passes, with the node that it made', async () => {
  const fusions = fuse.map(
    (pass): Pass =>
      pass.name !== 'fuse-rms-norm'
        ? pass
        : {
            ...pass,
            run: (graph, context) => {
              const changed = pass.run(graph, context);
              for (const node of graph.nodes)
                if (node.op === 'RMSNormalization') node.attributes.set('epsilon', floatAttribute(0));
              return changed;
            },
          },
  );
  const subject = await measureModel(openModelSubject(options, [], 'onnx', { fusions })(0));
  const judgement = judge(baseline, subject.measurement, 0);
  expect(judgement.failed).toBe(true);
  const { culprit } = await findCulprit(subject, baseline, judgement);
  expect(culprit).toMatchObject({ kind: 'pass', what: 'fuse-rms-norm' });
  expect(culprit!.names[0]).toMatch(/normed|scaled|y/);
});

test('a recipe that is worse is named', async () => {
  const narrow = compileOptions(
    mergeConfig({}, { source: options.source, scheme: 'w4a16', block: 0, target: ['onnx'] }),
    { force: false, quiet: true },
  );
  const subject = await measureModel(openModelSubject(narrow, [], 'onnx')(0));
  const judgement = judge(baseline, subject.measurement, 0);
  expect(judgement.failed).toBe(true);
  const { culprit } = await findCulprit(subject, baseline, judgement);
  expect(culprit).toMatchObject({ kind: 'recipe', names: ['weight'] });
});

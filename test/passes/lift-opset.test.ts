import { describe, expect, it } from 'vitest';
import { parseModule } from '../../compiler/ir/text.ts';
import { runPasses } from '../../compiler/pass.ts';
import { findDifference, randomFeeds } from '../../compiler/pass-values.ts';
import { openModule } from '../../compiler/runtime/engine.ts';
import type { Tensors } from '../../compiler/runtime/runner.ts';
import { liftOpset } from '../../passes/lift-opset.ts';

/** Operators whose old form the reference engine does not evaluate: ONNX Runtime runs both opsets. */
const GRAPHS: Readonly<Record<string, readonly [opset: number, lines: string]>> = {
  'GroupNormalization with scales per group': [
    18,
    `in %x : f32[1,4,3]
     %s : f32[2] = const [1.0, 2.0]
     %b : f32[2] = const [0.5, -1.0]
     %y = GroupNormalization(%x, %s, %b) {num_groups 2}`,
  ],
  'GridSample modes': [16, 'in %x : f32[1,1,4,4]\n in %g : f32[1,3,3,2]\n %y = GridSample(%x, %g) {mode "bilinear"}'],
  'TopK with k as an attribute': [8, 'in %x : f32[2,4]\n %y, %i = TopK(%x) {k 2}'],
  'linear Upsample': [8, 'in %x : f32[1,1,3,3]\n %y = Upsample(%x) {scales [1.0, 1.0, 2.0, 2.0], mode "linear"}'],
  'nearest Upsample': [8, 'in %x : f32[1,1,3,3]\n %y = Upsample(%x) {scales [1.0, 1.0, 1.5, 2.5], mode "nearest"}'],
  'linear Resize': [
    10,
    'in %x : f32[1,1,3,3]\n %s : f32[4] = const [1.0, 1.0, 0.6, 2.0]\n %y = Resize(%x, %s) {mode "linear"}',
  ],
  'nearest Resize': [10, 'in %x : f32[1,1,3,3]\n %s : f32[4] = const [1.0, 1.0, 0.6, 2.0]\n %y = Resize(%x, %s)'],
  'Softmax over several axes': [11, 'in %x : f32[2,3,4]\n %y = Softmax(%x)'],
  'LogSoftmax over all axes': [11, 'in %x : f32[2,3,4]\n %y = LogSoftmax(%x) {axis 0}'],
  'Hardmax from a negative axis': [11, 'in %x : f32[2,3,4]\n %y = Hardmax(%x) {axis -2}'],
  Scatter: [
    9,
    `in %x : f32[3,3]
     in %u : f32[2,3]
     %i : i64[2,3] = const [0, 1, 2, 2, 0, 1]
     %y = Scatter(%x, %i, %u)`,
  ],
  'RoiAlign coordinates': [
    10,
    `in %x : f32[1,1,8,8]
     %r : f32[1,4] = const [0.5, 0.5, 5.0, 6.0]
     %i : i64[1] = const [0]
     %y = RoiAlign(%x, %r, %i) {output_height 2, output_width 2}`,
  ],
  'DFT along an axis': [17, 'in %x : f32[1,4,2]\n %y = DFT(%x) {axis 1}'],
  'reductions with axes as attributes': [13, 'in %x : f32[2,4]\n %y = ReduceLogSumExp(%x) {axes [-1], keepdims 0}'],
};

describe('lift-opset in ONNX Runtime', () => {
  it.each(Object.entries(GRAPHS))('keeps %s', async (_, [opset, lines]) => {
    const text = `npuir 1\nir 8\nopset ${opset}\ngraph @main\n${lines}\nout %y\n`;
    const [before, after] = [parseModule(text), parseModule(text)];
    expect(runPasses(after, [liftOpset(21)]).remarks).toEqual([]);
    expect(after.opsets.get('')).toBe(21);
    const feeds: Tensors = randomFeeds(after.graph());
    const [expected, actual] = await Promise.all(
      [before, after].map(async (module) => {
        const runner = await openModule(module);
        const outputs = await runner.run(feeds);
        await runner.close();
        return outputs;
      }),
    );
    expect(findDifference(expected!.y!, actual!.y!, 1e-6)).toBeUndefined();
  });
});

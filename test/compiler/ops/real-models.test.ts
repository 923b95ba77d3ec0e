import { describe, expect, it } from 'vitest';
import { openOnnx } from '../../../compiler/import/onnx.ts';
import type { Dim } from '../../../compiler/ir/graph.ts';
import { evaluateGraph } from '../../../compiler/ops/evaluate-graph.ts';
import { inferShapes } from '../../../compiler/ops/infer-shapes.ts';
import { hasMaterial, materialPath } from '../../material.ts';
import { runOnnx } from '../run-onnx.ts';
import { difference } from './compare.ts';
import { noise } from './node-case.ts';

/** Real networks against ONNX Runtime. super_resolution is left out: 3.3 GMAC take the reference 7 s. */
const MODELS: readonly { file: string; bindings?: Readonly<Record<string, number>>; free?: readonly number[] }[] = [
  { file: 'mnist_8/model.onnx' },
  { file: 'ultraface/version-RFB-320.onnx' },
  { file: 'yunet/yunet_n_320_320.onnx' },
  { file: 'basic-pitch/nmp.onnx', free: [1] },
  { file: 'silero-vad/silero_vad_16k_op15.onnx', bindings: { batch: 1, sequence: 576 } },
  { file: 'silero-vad/silero_vad_16k_sequence.onnx', bindings: { sequence_length: 3 } },
  { file: 'ppocr-v4/ch_ppocr_mobile_v2.0_cls_infer.onnx', free: [1, 3, 48, 192] },
  { file: 'ppocr-v4/ch_PP-OCRv4_det_infer.onnx', free: [1, 3, 64, 96] },
];

describe.skipIf(!hasMaterial)('real models', () => {
  it.each(MODELS)('$file', async ({ file, bindings = {}, free = [] }) => {
    const path = materialPath('onnx', file);
    const module = openOnnx(path);
    inferShapes(module);
    const graph = module.graph();
    const size = (dim: Dim, axis: number): number => (typeof dim === 'number' ? dim : (bindings[dim] ?? free[axis]!));
    const feeds = Object.fromEntries(
      graph.inputs
        .filter((input) => input.data === undefined)
        .map((input, index) => {
          const shape = input.shape.map(size);
          // The only integer input is a sampling rate.
          return input.dtype === 'i64'
            ? [input.name, { dtype: 'i64' as const, shape, data: BigInt64Array.of(16000n) }]
            : [input.name, noise(shape, index + 1)];
        }),
    );
    const ours = evaluateGraph(graph, module.opsets, feeds, {
      onValue: ({ name, type }, data) => {
        if (type?.kind !== 'tensor') throw new Error(`${name} has no inferred type`);
        expect(type.dtype, name).toBe(data.dtype);
        const fixed = type.shape?.map((dim, axis) => (typeof dim === 'number' ? dim : data.shape[axis]!));
        if (fixed) expect(fixed, `${name} was inferred as [${type.shape}]`).toEqual([...data.shape]);
      },
    });
    const theirs = await runOnnx(path, () => feeds);
    for (const [name, want] of Object.entries(theirs.outputs)) {
      // Absolute against the largest element: a whole network's rounding is relative to that.
      const largest = Math.max(...Array.from(want.data as Float32Array, Math.abs));
      const tolerance = { relative: 1e-3, absolute: 2e-5 * largest + 1e-6 };
      expect(difference(ours[name]!, want, tolerance), name).toBeUndefined();
    }
  });
});

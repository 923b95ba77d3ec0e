import type { ModelReport, ModelTargetReport } from '../../evaluation/model-report.ts';
import { HOSTILE, makeReport } from './make-report.ts';

/** A report of an ONNX model with two outputs on three targets, of which two have the very same values. */
export function makeModelReport(): ModelReport {
  const { onnx, tflite } = makeReport().targets;
  const output = (name: string, sqnr: number): ModelTargetReport['outputs'][number] => ({
    name,
    sqnr,
    cosine: 1 - 10 ** (-sqnr / 10),
    maxError: 10 ** (-sqnr / 20),
    skipped: 0,
  });
  const target = (engine: string, scores: number, boxes: number): ModelTargetReport => ({
    engine,
    execution: 'executed',
    bytes: 480_797,
    files: [{ path: `${engine}/model.onnx`, role: 'graph', bytes: 480_797 }],
    outputs: [output(HOSTILE, scores), output('boxes', boxes)],
    values: onnx!.values,
    firstDivergence: onnx!.values[5]!.name,
    seconds: 0.0123,
    notes: [],
  });
  const twin = [output(HOSTILE, 61), output('boxes', 80)];
  return {
    format: 1,
    kind: 'model',
    source: 'face <b>bold</b>.onnx',
    soc: 'SM8750',
    scheme: 'w8a16',
    inputs: [{ name: 'input', type: 'f32[1,3,240,320]' }],
    calibration: { source: 'calibrate.npz', samples: 6, random: false },
    evaluation: { source: '2 random samples, seed 2', samples: 2, random: true },
    simplified: [output(HOSTILE, Number.POSITIVE_INFINITY), output('boxes', 143.2)],
    targets: {
      onnx: target('onnxruntime-node 1.30.0', 60.3, 47.25),
      qnn: { ...target('HTP simulator', 44.1, Number.NaN), twin, twinOutputs: twin, notes: ['it parts <i>here</i>'] },
      tflite: { ...target('LiteRT', 33.3, 35), values: tflite!.values },
    },
    plan: makeReport().plan,
    warnings: ['the figures below are from random inputs'],
    remarks: ['Equal stays float (never quantized): </script><script>alert(2)</script>'],
    divergenceThreshold: 20,
    command: 'npuc compile face.onnx --soc SM8750 --scheme w8a16 --out build',
    versions: { npuc: '0.1.0' },
  };
}

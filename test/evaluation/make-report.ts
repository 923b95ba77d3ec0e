import type { ValueComparison } from '../../evaluation/compare-values.ts';
import type { Report, TargetReport } from '../../evaluation/report.ts';

/** A value named as hostile models would name it: text, never markup. */
export const HOSTILE = `layers.1.<script>alert("x")</script>&'`;

/** What the layers of the made-up model compute, with dB that differ by layer and target. */
const STEPS: readonly (readonly [string, string, number])[] = [
  ['q_proj', '.self_attn.q_proj', 31],
  ['scores', '.self_attn', 29],
  ['probs', '.self_attn', 35],
  ['o_proj', '.self_attn.o_proj', 22],
  ['mlp_product', '.mlp', 19],
  ['residual', '', 24],
];

export const LAYERS = 3;
/** Values of each target of `makeReport`: one before the layers, one after. */
export const VALUES = LAYERS * STEPS.length + 2;

function makeValues(offset: number): ValueComparison[] {
  const value = (name: string, from: string[], sqnr: number): ValueComparison => ({
    name,
    from,
    sqnr,
    cosine: 1 - 10 ** (-sqnr / 10),
    maxError: 10 ** (-sqnr / 20),
    maxSteps: 10 ** (2 - sqnr / 20),
    noiseAdded: 10 ** (-sqnr / 10) / 2,
  });
  const values = [value('embedding', ['model.embed_tokens'], Number.POSITIVE_INFINITY)];
  for (let layer = 0; layer < LAYERS; layer++) {
    for (const [name, from, sqnr] of STEPS)
      values.push(value(`layers.${layer}.${name}`, [`model.layers.${layer}${from}`], sqnr - layer - offset));
  }
  const hostile = values.findIndex(({ name }) => name === 'layers.1.mlp_product');
  // No two values have the same error, or they would count as one that was only moved.
  values.forEach((each, i) => {
    values[i] = { ...each, maxError: each.maxError * (1 + i / 1000) };
  });
  values[hostile] = { ...values[hostile]!, name: HOSTILE };
  values.push(value('logits', ['lm_head'], 27 - offset));
  return values;
}

/** A report of three targets: one close, one degraded, one whose engine ran a chunk only. */
export function makeReport(): Report {
  const logits = { predictions: 2039, referencePerplexity: 66.3447 };
  const onnx: TargetReport = {
    engine: 'onnxruntime-node 1.30.0',
    execution: 'executed',
    bytes: 3_536_382,
    files: [
      { path: 'onnx/prefill_64.onnx', role: 'graph', bytes: 186_160 },
      { path: 'onnx/weights.data', role: 'weights', bytes: 3_350_222 },
    ],
    logits: {
      ...logits,
      perplexity: 66.5677,
      ratio: 1.00336,
      ratioError: 0.0026,
      divergence: 0.00671,
      topAgreement: 0.9289,
      sqnr: 28.56,
    },
    values: makeValues(0),
    seconds: 3.75,
    notes: [],
  };
  const tflite: TargetReport = {
    engine: 'litert.js 2.5.3 wasm',
    execution: 'executed',
    bytes: 2_545_256,
    logits: {
      ...logits,
      perplexity: 79.1,
      ratio: 1.19226,
      ratioError: 0.0194,
      divergence: 0.2231,
      topAgreement: 0.7072,
      sqnr: 8.85,
    },
    values: makeValues(4.25),
    seconds: 140,
    notes: [],
  };
  const qnn: TargetReport = {
    engine: 'qnn 2.51.0 htp simulator',
    execution: 'executed-as-twin',
    bytes: 3_391_408,
    files: [
      { path: 'qnn/prefill_64_ctx_qnn.bin', role: 'binary', bytes: 3_391_408 },
      { path: 'qnn/qdq/weights.data', role: 'source', bytes: 9_000_000 },
    ],
    chunk: {
      tokens: 64,
      sqnr: 28.1,
      divergence: 0.0071,
      topAgreement: 0.9365,
      secondsPerChunk: 110.4,
      secondsPerToken: 2.31,
    },
    twinSqnr: 70.06,
    caches: [{ cache: 128, sqnr: 88.25, topAgreement: 1 }],
    sharing: {
      graphs: 4,
      binaryBytes: 4_636_672,
      aloneBytes: 17_100_000,
      measured: true,
      weightBytes: 3_971_072,
      sharedWeights: 52,
      sharedWeightBytes: 3_971_072,
    },
    values: makeValues(0.5),
    seconds: 125,
    notes: ['simulated on one chunk of 64 tokens'],
  };
  return {
    format: 2,
    source: 'demo <b>bold</b>',
    soc: 'SM8750',
    scheme: 'w4a16',
    tokens: [64],
    caches: [128, 256],
    parameters: 2_885_888,
    floatPerplexity: 66.3447,
    evaluationTokens: 2048,
    targets: { onnx, tflite, qnn },
    prompt: 'It was',
    samples: {
      float: ' a good deal of a little.\n\n"I am sure," said the Rat',
      onnx: ' a good deal of a little.\n\n"I am sure," said the Rat',
      tflite: ' a very good deal.\n\n"I am <i>not</i>," said\u0007 the Rat',
    },
    plan: [
      {
        value: 'model.layers.0.self_attn.q_proj.weight',
        dtype: 'i4 block 64',
        why: 'scheme w4a16',
        targets: ['onnx', 'qnn'],
      },
      {
        value: 'model.layers.0.self_attn.q_proj.weight',
        dtype: 'i4 per channel',
        why: 'no block form',
        targets: ['tflite'],
      },
      { value: 'layers.0.o_proj', dtype: 'u16', why: 'scheme w4a16', targets: ['onnx', 'qnn'] },
      { value: 'layers.0.o_proj', dtype: 'i16', why: 'scheme w4a16', targets: ['tflite'] },
      { value: HOSTILE, dtype: 'u16', why: 'override <img src=x onerror=alert(1)>', targets: ['onnx'] },
      { value: 'new_key_0', dtype: 'i16', why: 'key/value cache, i16', targets: ['onnx', 'qnn', 'tflite'] },
    ],
    remarks: [
      "layers.0.scores.masked: 16 bits, the mask's sentinel takes most of an 8-bit range",
      "layers.1.scores.masked: 16 bits, the mask's sentinel takes most of an 8-bit range",
      'a remark with </script><script>alert(2)</script>',
    ],
    divergenceThreshold: 20,
    command: "npuc compile 'my <model>' --soc SM8750 --scheme w4a16 --out build",
    versions: { npuc: '0.1.0', qairt: '2.51.0' },
  };
}

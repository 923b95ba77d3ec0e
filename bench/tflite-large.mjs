// A TFLite file above 2 GiB: written with its constants behind the FlatBuffer, loaded and run by Google's interpreter, its numbers
// checked; written to bench/results/tflite-large.md with --write.
//
//     python -m venv venv && venv/bin/pip install ai-edge-litert==2.3.0
//     npm run -s build && node bench/tflite-large.mjs --python venv/bin/python --write
//
// The file takes 2.4 GB in the temporary folder and goes at the end; the interpreter takes twice that in memory.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Tensor } from '../dist/compiler/ir/tensor.js';
import { BufferPool, SubgraphBuilder } from '../dist/targets/tflite/subgraph-builder.js';
import { writeTflite } from '../dist/targets/tflite/write.js';

const { values: flags } = parseArgs({
  options: {
    python: { type: 'string' },
    layers: { type: 'string', default: '140' },
    write: { type: 'boolean', default: false },
  },
});
if (!flags.python) throw new Error('--python names a Python with ai-edge-litert 2.3.0');

const LAYERS = Number(flags.layers);
const SIZE = 4096;
const SCALE = 1 / 64;

/** An integer of a layer's weight, -3..5. */
const weightOf = (layer, row, column) => ((row * 3 + column * 13 + layer * 5) % 7) + (row % 3) - 3;

function layerWeights(layer) {
  const compute = () => {
    const integers = new Int8Array(SIZE * SIZE);
    for (let row = 0; row < SIZE; row++)
      for (let column = 0; column < SIZE; column++) integers[row * SIZE + column] = weightOf(layer, row, column);
    return new Uint8Array(integers.buffer);
  };
  return new Tensor('i8', [SIZE, SIZE], { kind: 'derived', compute });
}

/** The sum of all layers over one input of zeros and ones: what dynamic kernels make of that is exact. */
function buildModel() {
  const pool = new BufferPool();
  const builder = new SubgraphBuilder('main', pool);
  const input = builder.addFloats('x', [1, SIZE]);
  const encoding = { dtype: 'i8', scale: new Float32Array(SIZE).fill(SCALE), axis: 0 };
  let sum;
  for (let layer = 0; layer < LAYERS; layer++) {
    const weight = builder.addWeight(`w${layer}`, layerWeights(layer), encoding);
    const product = builder.addFloats(`p${layer}`, [1, SIZE]);
    const options = { fusedActivationFunction: 0, weightsFormat: 0, keepNumDims: true, asymmetricQuantizeInputs: true };
    builder.addOperator('FULLY_CONNECTED', [input, weight, -1], [product], {
      options: { kind: 'FullyConnectedOptions', ...options },
    });
    if (sum === undefined) {
      sum = product;
      continue;
    }
    const next = builder.addFloats(`s${layer}`, [1, SIZE]);
    const added = { kind: 'AddOptions', fusedActivationFunction: 0, potScaleInt16: false };
    builder.addOperator('ADD', [sum, product], [next], { options: added });
    sum = next;
  }
  const ports = { inputs: [{ name: 'x', tensor: input }], outputs: [{ name: 'y', tensor: sum }] };
  builder.graph.inputs = [input];
  builder.graph.outputs = [sum];
  return {
    version: 3,
    description: 'npuc',
    subgraphs: [builder.graph],
    buffers: pool.buffers,
    signatures: [{ key: 'serving_default', subgraph: 0, ...ports }],
    metadata: [],
  };
}

const isOne = (column) => column % 3 === 0;

/** The output's element of a row, by hand. */
function expected(row) {
  let total = 0;
  for (let layer = 0; layer < LAYERS; layer++)
    for (let column = 0; column < SIZE; column++) if (isOne(column)) total += weightOf(layer, row, column);
  return total * SCALE;
}

const PYTHON = `
import json, resource, sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(sys.argv[1])
runner = interpreter.get_signature_runner('serving_default')
x = np.array([[1.0 if i % 3 == 0 else 0.0 for i in range(${SIZE})]], dtype=np.float32)
y = runner(x=x)['y'][0]
rows = json.loads(sys.argv[2])
print(json.dumps({'rss': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, 'values': [float(y[r]) for r in rows]}))
`;

const folder = mkdtempSync(join(tmpdir(), 'npuc-large-'));
try {
  const path = join(folder, 'model.tflite');
  const { sha256 } = writeTflite(path, buildModel());
  const peak = process.resourceUsage().maxRSS * 1024;
  const bytes = statSync(path).size;
  const rows = [0, 1, 17, 1000, 4095];
  const answer = execFileSync(flags.python, ['-c', PYTHON, path, JSON.stringify(rows)], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  const { rss, values } = JSON.parse(answer.trim().split('\n').at(-1));
  const errors = rows.map((row, i) => Math.abs(values[i] - expected(row)));
  const worst = Math.max(...errors);
  if (worst > 1e-2 || rows.every((row) => expected(row) === 0)) throw new Error(`the interpreter is off by ${worst}`);
  const mebibytes = (count) => `${(count / 2 ** 20).toFixed(0)} MiB`;
  const report = `# A TFLite file above 2 GiB

    node bench/tflite-large.mjs --python <python with ai-edge-litert 2.3.0> --write

| | |
|---|---|
| file | ${bytes} bytes, ${LAYERS} matrices of ${SIZE} x ${SIZE} 8-bit integers |
| SHA-256 | ${sha256} |
| peak memory of the writer, whole process | ${mebibytes(peak)} |
| ai-edge-litert 2.3.0 loads and runs it | ${mebibytes(rss)} with its packed copy |
| largest error of ${rows.length} outputs against sums by hand | ${worst.toExponential(1)} of ${Math.max(...rows.map((row) => Math.abs(expected(row)))).toFixed(1)} |
`;
  console.log(report);
  if (flags.write) writeFileSync(fileURLToPath(new URL('results/tflite-large.md', import.meta.url)), report);
} finally {
  rmSync(folder, { recursive: true, force: true });
}

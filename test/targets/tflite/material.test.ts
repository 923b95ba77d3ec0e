import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { NpucError } from '../../../compiler/errors.ts';
import { DTYPES } from '../../../compiler/ir/dtype.ts';
import { elementCount, type TensorData } from '../../../compiler/ir/tensor.ts';
import { type LitertModel, loadLitert } from '../../../compiler/runtime/litert.ts';
import type { PortInfo } from '../../../compiler/runtime/runner.ts';
import { SourceBytes } from '../../../targets/tflite/byte-source.ts';
import { isCompiled, type TfliteModel } from '../../../targets/tflite/model.ts';
import { readTflite } from '../../../targets/tflite/read.ts';
import { encodeTflite } from '../../../targets/tflite/write.ts';
import { hasMaterial, materialPath } from '../../material.ts';
import { seededNumbers } from './tiny-models.ts';

const FOLDER = 'tflite/ai-edge-quantizer';

/** Files that break a promise of our own writer, so they are written as foreign ones only. */
const FOREIGN: Record<string, string> = {
  'duplicated_tensor_names.tflite': 'TF101',
  'embedding_lookup.tflite': 'TF102',
};

/** Files that LiteRT.js does not run, before or after, and why. All others must run. */
const NOT_RUN: Record<string, RegExp> = {
  // Its signature has no output, its subgraph has one.
  'embedding_lookup.tflite': /RT110 .*Signature has incorrect number of input\/outputs/,
  // The size of its output is computed at run time; the bindings want it known.
  'single_slice.tflite': /RT111 .*Failed to set custom allocation for output/,
};

/** The model with its buffers as texts, which compare a hundred times faster than arrays. */
function comparable(model: TfliteModel): object {
  const buffers = model.buffers.map((bytes) => {
    if (bytes instanceof SourceBytes) return Buffer.from(bytes.read()).toString('base64');
    return bytes;
  });
  return { ...model, buffers };
}

/** Random floats, small integers (indices and sizes must stay legal), both truths. */
function randomFeed(port: PortInfo, seed: number): TensorData {
  const { array, bits } = DTYPES[port.dtype];
  const count = elementCount(port.shape);
  const data = new array(new ArrayBuffer(count * Math.ceil(bits / 8)), 0, count);
  seededNumbers(seed, count).forEach((value, i) => {
    if (port.dtype === 'f32') data[i] = value * 2;
    else if (port.dtype === 'i8') data[i] = Math.trunc(value * 100);
    else data[i] = value < 0 ? 0 : 1;
  });
  return { dtype: port.dtype, shape: port.shape, data };
}

type Outcome = Record<string, Record<string, TensorData>> | string;

async function runAll(bytes: Uint8Array): Promise<Outcome> {
  let model: LitertModel | undefined;
  try {
    model = await loadLitert(bytes);
    const outcome: Exclude<Outcome, string> = {};
    for (const [key, signature] of Object.entries(model.signatures)) {
      const feeds = Object.fromEntries(signature.inputs.map((port, i) => [port.name, randomFeed(port, i + 1)]));
      outcome[key] = await signature.run(feeds);
    }
    return outcome;
  } catch (error) {
    if (!(error instanceof NpucError)) throw error;
    return `${error.code} ${error.message}`;
  } finally {
    model?.dispose();
  }
}

function sameBits(a: Outcome, b: Outcome): void {
  if (typeof a === 'string' || typeof b === 'string') {
    expect(b).toBe(a);
    return;
  }
  expect(Object.keys(b)).toEqual(Object.keys(a));
  for (const key of Object.keys(a)) {
    expect(Object.keys(b[key]!)).toEqual(Object.keys(a[key]!));
    for (const [name, { data, shape }] of Object.entries(a[key]!)) {
      const other = b[key]![name]!;
      expect(other.shape).toEqual(shape);
      // Bytes, because a square root of a negative number is NaN.
      expect(Buffer.from(other.data.buffer).equals(Buffer.from(data.buffer))).toBe(true);
    }
  }
}

describe.skipIf(!hasMaterial)('the 73 TFLite files of the material', () => {
  const files = hasMaterial ? readdirSync(materialPath(FOLDER)).filter((name) => name.endsWith('.tflite')) : [];

  it('are all there', () => {
    expect(files).toHaveLength(73);
    for (const name of [...Object.keys(FOREIGN), ...Object.keys(NOT_RUN)]) expect(files).toContain(name);
  });

  it.each(files)('%s: read, write, read is equal, and runs to the same bits', async (name) => {
    const bytes = new Uint8Array(readFileSync(materialPath(FOLDER, name)));
    const model = readTflite(bytes, name);
    const outcome = await runAll(bytes);
    if (NOT_RUN[name]) expect(outcome).toMatch(NOT_RUN[name]);
    else expect(outcome).toBeTypeOf('object');
    if (FOREIGN[name]) expect(() => encodeTflite(model)).toThrow(expect.objectContaining({ code: FOREIGN[name] }));
    else expect(Buffer.from(encodeTflite(model)).equals(encodeTflite(model, { foreign: true }))).toBe(true);
    for (const externalBuffers of [false, true]) {
      const written = encodeTflite(model, { foreign: true, externalBuffers });
      expect(comparable(readTflite(written))).toEqual(comparable(model));
      sameBits(outcome, await runAll(written));
    }
  });
});

describe.skipIf(!hasMaterial)('files that a vendor plugin compiled', () => {
  const folder = 'npu-artifacts/litert';
  const files = hasMaterial ? readdirSync(materialPath(folder)) : [];

  it.each(files)('%s can be read, and is neither rewritten nor run', async (name) => {
    const bytes = new Uint8Array(readFileSync(materialPath(folder, name)));
    const model = readTflite(bytes, name);
    expect(isCompiled(model)).toBe(true);
    expect(() => encodeTflite(model, { foreign: true })).toThrow(expect.objectContaining({ code: 'TF104' }));
    // Two were stamped by an older plugin, which the runtime notices before it misses the operator.
    expect(await runAll(bytes)).toMatch(/RT111 .*unresolved custom op: DISPATCH_OP|RT110 .*Build stamp size mismatch/);
  });
});

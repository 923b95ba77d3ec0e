import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { openOnnx } from '../compiler/import/onnx.ts';
import { FileSource } from '../compiler/ir/tensor.ts';
import { readWeightIndex } from './qnn/shared-weights.ts';
import type { ManifestTarget, TargetName } from './target.ts';
import { readTflite } from './tflite/read.ts';

/** Tensors under this lie in the models and are not listed by all targets. */
const LEAST_BYTES = 1024;
/** Tables that are made for the length of the context: they are no weights. */
const TABLES = /^rotary_/;

/**
 * SHA-256 over names and bytes of every weight that an artifact was written with, in the order of names: equal for all shapes of
 * one scheme, target and architecture class, or the weights are not shared.
 */
export function digestWeights(folder: string, name: TargetName, target: ManifestTarget): string {
  const weights = listWeights(folder, name, target);
  const hash = createHash('sha256');
  for (const [weight, digest] of [...weights].sort(([a], [b]) => (a < b ? -1 : 1)))
    hash.update(`${weight} ${digest}\n`);
  return hash.digest('hex');
}

function listWeights(folder: string, name: TargetName, target: ManifestTarget): Map<string, string> {
  const weights = new Map<string, string>();
  const add = (weight: string, bytes: Uint8Array): void => {
    if (bytes.byteLength < LEAST_BYTES || TABLES.test(weight)) return;
    weights.set(weight, createHash('sha256').update(bytes).digest('hex'));
  };
  if (name === 'qnn') {
    for (const { name: weight, sha256 } of readWeightIndex(folder)?.tensors ?? []) {
      if (!TABLES.test(weight)) weights.set(weight, sha256);
    }
    return weights;
  }
  for (const path of new Set(target.graphs.map(({ file }) => file))) {
    if (path.endsWith('.onnx')) {
      for (const { name: weight, data } of openOnnx(join(folder, path)).graph().values)
        if (data) add(weight, data.read());
      continue;
    }
    const file = new FileSource(join(folder, path));
    try {
      // Tensors are named after their graphs here, so a weight goes by its bytes alone.
      for (const buffer of readTflite(file, path).buffers) {
        if (!buffer || buffer.byteLength < LEAST_BYTES) continue;
        const hash = createHash('sha256');
        if (buffer instanceof Uint8Array) hash.update(buffer);
        else buffer.write((chunk) => hash.update(chunk));
        const digest = hash.digest('hex');
        weights.set(digest, digest);
      }
    } finally {
      file.close();
    }
  }
  return weights;
}

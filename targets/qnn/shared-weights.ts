import { createHash } from 'node:crypto';
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { NpucError } from '../../compiler/errors.ts';
import type { BundleTensor } from '../../compiler/export/onnx.ts';
import { FileSource } from '../../compiler/ir/tensor.ts';
import type { ManifestTarget, Sharing } from '../target.ts';

/** A tensor that graphs were compiled with, as `weights.json` lists it. */
export interface IndexedTensor {
  readonly name: string;
  /** Where it lies in `weights.data`. */
  readonly offset: number;
  readonly bytes: number;
  readonly sha256: string;
  /** How many graphs have it; the binary holds it once. */
  readonly graphs: number;
}

/** `weights.json` beside `weights.data`. Tensors under 1 KiB lie in the models themselves and are not listed. */
export interface WeightIndex {
  readonly format: 1;
  readonly tensors: readonly IndexedTensor[];
}

/** Relative to the output folder. */
export const WEIGHT_INDEX = 'qnn/qdq/weights.json';

const WINDOW_BYTES = 8 << 20;

/** Writes the index of a data file, with the digest of every tensor's bytes as they lie there. */
export function writeWeightIndex(out: string, data: string, tensors: readonly BundleTensor[]): WeightIndex {
  const file = new FileSource(join(out, data));
  try {
    const index: WeightIndex = {
      format: 1,
      tensors: tensors.map(({ name, offset, bytes, models }) => {
        const hash = createHash('sha256');
        for (let at = 0; at < bytes; at += WINDOW_BYTES)
          hash.update(file.read(offset + at, Math.min(WINDOW_BYTES, bytes - at)));
        return { name, offset, bytes, sha256: hash.digest('hex'), graphs: models.length };
      }),
    };
    writeFileSync(join(out, WEIGHT_INDEX), `${JSON.stringify(index, undefined, 1)}\n`);
    return index;
  } finally {
    file.close();
  }
}

/** The index of a compiled folder, where it has one. @throws IO003 when it is not one */
export function readWeightIndex(folder: string): WeightIndex | undefined {
  const path = join(folder, WEIGHT_INDEX);
  if (!existsSync(path)) return undefined;
  try {
    const index = JSON.parse(readFileSync(path, 'utf8')) as WeightIndex;
    if (index.format === 1 && Array.isArray(index.tensors)) return index;
    throw new Error('it has another format');
  } catch (cause) {
    throw new NpucError('IO003', {
      message: `${WEIGHT_INDEX} is not an index of weights: ${(cause as Error).message}`,
      where: path,
      hint: 'compile again',
      cause,
    });
  }
}

/**
 * What sharing saves, as facts of the manifest. The bytes of the graphs alone are estimated: their own weights, and the part
 * of the binary that is no weights.
 */
export function sharingFacts(index: WeightIndex, binaryBytes: number): Record<string, number> {
  const sum = (tensors: readonly IndexedTensor[], count: (tensor: IndexedTensor) => number): number =>
    tensors.reduce((total, tensor) => total + count(tensor), 0);
  const shared = index.tensors.filter(({ graphs }) => graphs > 1);
  const weightBytes = sum(index.tensors, ({ bytes }) => bytes);
  return {
    binaryBytes,
    aloneBytes: sum(index.tensors, ({ bytes, graphs }) => bytes * graphs) + binaryBytes - weightBytes,
    weightBytes,
    sharedWeights: shared.length,
    sharedWeightBytes: sum(shared, ({ bytes }) => bytes),
  };
}

/**
 * What the graphs of a target take alone and in one binary.
 * @param twins each graph's own binary, where all of them are there: then what they take alone is measured
 */
export function describeSharing({ facts }: ManifestTarget, twins?: readonly string[]): Sharing | undefined {
  if (facts.shared !== true || facts.aloneBytes === undefined) return undefined;
  const number = (key: string): number => Number(facts[key]);
  return {
    graphs: number('graphs'),
    binaryBytes: number('binaryBytes'),
    aloneBytes: twins ? twins.reduce((sum, path) => sum + statSync(path).size, 0) : number('aloneBytes'),
    measured: twins !== undefined,
    weightBytes: number('weightBytes'),
    sharedWeights: number('sharedWeights'),
    sharedWeightBytes: number('sharedWeightBytes'),
  };
}

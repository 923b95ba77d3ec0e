import { toFloats } from '../compiler/ir/tensor.ts';
import {
  cosineSimilarity,
  createDifferenceSums,
  type DifferenceSums,
  type Kernels,
  signalToNoise,
} from '../compiler/kernels/kernels.ts';
import type { Runner, Tensors } from '../compiler/runtime/runner.ts';

/** How far one output is from the reference, over all samples. */
export interface OutputComparison {
  readonly name: string;
  readonly sqnr: number;
  readonly cosine: number;
  readonly maxError: number;
  /** Elements that are not finite on either side; they are in no other figure. */
  readonly skipped: number;
}

/** The outputs of a runner for every sample, in order: a reference that several runs are compared with. */
export async function runSamples(
  runner: Runner,
  feeds: readonly Tensors[],
  outputs?: readonly string[],
): Promise<Tensors[]> {
  const results: Tensors[] = [];
  for (const feed of feeds) results.push(await runner.run(feed, outputs));
  return results;
}

/** Compares results by name, one figure over all samples each. Names are matched in the order given. */
export function compareResults(
  names: readonly string[],
  reference: readonly Tensors[],
  other: readonly Tensors[],
  kernels: Kernels,
): OutputComparison[] {
  const sums = new Map(names.map((name) => [name, createDifferenceSums()]));
  reference.forEach((expected, sample) => {
    for (const [name, sum] of sums) addDifference(sum, expected, other[sample]!, name, kernels);
  });
  return [...sums].map(([name, sum]) => describeSums(name, sum));
}

/** Adds one sample's difference of one value. */
export function addDifference(
  sums: DifferenceSums,
  reference: Tensors,
  other: Tensors,
  name: string,
  kernels: Kernels,
): void {
  kernels.accumulateDifference(toFloats(reference[name]!), toFloats(other[name]!), sums);
}

export function describeSums(name: string, sums: DifferenceSums): OutputComparison {
  return {
    name,
    sqnr: signalToNoise(sums),
    cosine: cosineSimilarity(sums),
    maxError: sums.maxDifference,
    skipped: sums.skipped,
  };
}

/** The smallest SQNR of some outputs: what a figure for the whole model is. */
export function worstSqnr(outputs: readonly OutputComparison[]): number {
  return Math.min(...outputs.map(({ sqnr }) => sqnr));
}

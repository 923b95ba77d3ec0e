import type { Encoding } from '../compiler/ir/encoding.ts';
import type { Graph, Value } from '../compiler/ir/graph.ts';
import { type TensorData, toFloats } from '../compiler/ir/tensor.ts';
import { cosineSimilarity, createDifferenceSums, type Kernels, signalToNoise } from '../compiler/kernels/kernels.ts';

/** One value of the graph, float against quantized. */
export interface ValueComparison {
  readonly name: string;
  /** The user's own nodes that it came from. */
  readonly from: readonly string[];
  readonly sqnr: number;
  readonly cosine: number;
  readonly maxError: number;
  /** maxError in steps of the value's encoding, where it has one. */
  readonly maxSteps: number | undefined;
  /**
   * Noise that came in here, as a share of the value's own power: its noise less that of its worst compared input. Absent
   * where no input was compared; negative where noise averages out.
   */
  readonly noiseAdded?: number;
}

/**
 * Compares values by name, in the order given: SQNR in dB, cosine, largest error. The first entry under a threshold is
 * where two runs part.
 */
export function compareValues(
  names: readonly string[],
  reference: Readonly<Record<string, TensorData>>,
  other: Readonly<Record<string, TensorData>>,
  encodings: ReadonlyMap<string, Encoding>,
  from: ReadonlyMap<string, readonly string[]>,
  kernels: Kernels,
): ValueComparison[] {
  return names.flatMap((name) => {
    const [a, b] = [reference[name], other[name]];
    if (!a || !b || a.data.length !== b.data.length) return [];
    const sums = createDifferenceSums();
    kernels.accumulateDifference(toFloats(a), toFloats(b), sums);
    const encoding = encodings.get(name);
    return {
      name,
      from: from.get(name) ?? [],
      sqnr: signalToNoise(sums),
      cosine: cosineSimilarity(sums),
      maxError: sums.maxDifference,
      maxSteps: encoding && encoding.scale.length === 1 ? sums.maxDifference / encoding.scale[0]! : undefined,
    };
  });
}

/**
 * The compared values that a value is computed from, looking through values that were not compared.
 * @param graph whose values are named as in the comparison
 */
export function comparedInputs(graph: Graph, compared: ReadonlySet<string>): Map<string, readonly string[]> {
  const reached = new Map<Value, ReadonlySet<string>>();
  const inputs = new Map<string, readonly string[]>();
  for (const node of graph.nodes) {
    const names = new Set<string>();
    for (const input of node.inputs) {
      if (!input) continue;
      if (compared.has(input.name)) names.add(input.name);
      else for (const name of reached.get(input) ?? []) names.add(name);
    }
    for (const output of node.outputs) {
      if (!output) continue;
      reached.set(output, names);
      if (compared.has(output.name)) inputs.set(output.name, [...names]);
    }
  }
  return inputs;
}

/** Inputs under this share of noise, 60 dB, count as exact: tables and masks. */
const EXACT = 1e-6;

/**
 * Adds to each value the noise that it brings in itself: where an error is made, not where it is passed on. dB would not do:
 * the first rounding of a clean value loses most of them and may not matter. A mask is most of the signal of masked scores,
 * so that their noise looks small until softmax takes the mask away: a value of one noisy input hands that input's noise on.
 * @param values in order of computation
 */
export function attributeNoise(
  values: readonly ValueComparison[],
  inputs: ReadonlyMap<string, readonly string[]>,
): ValueComparison[] {
  const passedOn = new Map<string, number>();
  return values.map((value) => {
    const noise = noiseShare(value.sqnr);
    const before = (inputs.get(value.name) ?? [])
      .map((name) => passedOn.get(name))
      .filter((each) => each !== undefined);
    const worst = Math.max(...before);
    const noisy = before.filter((each) => each > EXACT).length;
    passedOn.set(value.name, noisy === 1 ? Math.max(noise, worst) : noise);
    const noiseAdded = noise - worst;
    return before.length === 0 || Number.isNaN(noiseAdded) ? value : { ...value, noiseAdded };
  });
}

/** Power of the noise over that of the signal. Values that are no numbers are all noise. */
function noiseShare(sqnr: number): number {
  return Number.isNaN(sqnr) ? Number.POSITIVE_INFINITY : 10 ** (-sqnr / 10);
}

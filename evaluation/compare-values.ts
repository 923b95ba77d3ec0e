import { cloneModule } from '../compiler/ir/clone.ts';
import type { Encoding } from '../compiler/ir/encoding.ts';
import type { Graph, Module, Value } from '../compiler/ir/graph.ts';
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

/** A copy of a module whose graph also gives the named values: a tap build. Taps can change what a runtime fuses. */
export function tapModule(module: Module, names: Iterable<string>): Module {
  const copy = cloneModule(module);
  const graph = copy.graph();
  for (const name of names) {
    const value = graph.find(name);
    if (value && !graph.isOutput(value)) graph.outputs.push(value);
  }
  return copy;
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

/**
 * Adds to each value the noise that it brings in itself: where an error is made, not where it is passed on. dB would not do:
 * the first rounding of a clean value loses most of them and may not matter.
 */
export function attributeNoise(
  values: readonly ValueComparison[],
  inputs: ReadonlyMap<string, readonly string[]>,
): ValueComparison[] {
  const noise = new Map(values.map((value) => [value.name, noiseShare(value.sqnr)]));
  return values.map((value) => {
    const before = (inputs.get(value.name) ?? []).map((name) => noise.get(name)).filter((each) => each !== undefined);
    if (before.length === 0) return value;
    const noiseAdded = noise.get(value.name)! - Math.max(...before);
    return Number.isNaN(noiseAdded) ? value : { ...value, noiseAdded };
  });
}

/** Power of the noise over that of the signal. Values that are no numbers are all noise. */
function noiseShare(sqnr: number): number {
  return Number.isNaN(sqnr) ? Number.POSITIVE_INFINITY : 10 ** (-sqnr / 10);
}

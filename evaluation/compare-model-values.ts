import { clampedValues } from '../calibration/precision.ts';
import type { QuantizedGraph } from '../calibration/quantize-graph.ts';
import type { Value } from '../compiler/ir/graph.ts';
import { wasmKernels } from '../compiler/kernels/index.ts';
import { createDifferenceSums, type DifferenceSums } from '../compiler/kernels/kernels.ts';
import { openModule } from '../compiler/runtime/engine.ts';
import type { Runner, Tensors } from '../compiler/runtime/runner.ts';
import { groupByBytes, runTaps, tapModule } from '../compiler/runtime/taps.ts';
import { addDifference, describeSums } from './compare-runs.ts';
import { attributeNoise, comparedInputs, type ValueComparison } from './compare-values.ts';

/**
 * Every encoded value of a quantized graph, in order of computation, against the same value in float, over all samples.
 * Both run on ONNX Runtime. What an activation clamps is compared behind it.
 */
export async function compareModelValues(
  quantized: QuantizedGraph,
  feeds: readonly Tensors[],
): Promise<ValueComparison[]> {
  const float = await openModule(tapModule(quantized.float, comparedNames(quantized)));
  try {
    const other = await openModule(tapModule(quantized.module, comparedNames(quantized)));
    try {
      return await compareTaps(quantized, float, other, feeds);
    } finally {
      await other.close();
    }
  } finally {
    await float.close();
  }
}

/** Values that both graphs have and that nothing but a copy of another follows from. */
export function comparedNames({ module, float }: Pick<QuantizedGraph, 'module' | 'float'>): string[] {
  const graph = module.graph();
  const clamped = clampedValues(graph, module.opsets.get('') ?? 0);
  return graph.nodes
    .flatMap((node) => node.outputs)
    .filter((value): value is Value => value?.encoding !== undefined && !clamped.has(value))
    .map(({ name }) => name)
    .filter((name) => float.graph().find(name)?.dtype === 'f32');
}

/** Fetches the taps of two runners group by group and compares them; the taps are outputs of both. */
export async function compareTaps(
  quantized: QuantizedGraph,
  reference: Runner,
  other: Runner,
  feeds: readonly Tensors[],
): Promise<ValueComparison[]> {
  const names = comparedNames(quantized);
  const graph = quantized.module.graph();
  const sums = new Map<string, DifferenceSums>(names.map((name) => [name, createDifferenceSums()]));
  await runTaps(reference, other, groupByBytes(graph, names), feeds, (name, expected, got) =>
    addDifference(sums.get(name)!, expected, got, name, wasmKernels),
  );
  const values = names.map((name): ValueComparison => {
    const { sqnr, cosine, maxError } = describeSums(name, sums.get(name)!);
    const value = graph.find(name)!;
    const [scale] = value.encoding!.scale;
    return { name, from: value.producer?.from ?? [], sqnr, cosine, maxError, maxSteps: maxError / scale! };
  });
  return attributeNoise(values, comparedInputs(graph, new Set(names)));
}

import { quantizeGraph } from '../../../calibration/quantize-graph.ts';
import { litertFormat, makeRecipe } from '../../../calibration/recipe.ts';
import { randomSamples } from '../../../calibration/samples.ts';
import { cloneModule } from '../../../compiler/ir/clone.ts';
import type { Module } from '../../../compiler/ir/graph.ts';
import { toFloats } from '../../../compiler/ir/tensor.ts';
import { wasmKernels } from '../../../compiler/kernels/index.ts';
import { runPasses } from '../../../compiler/pass.ts';
import { quantizeValues } from '../../../compiler/runtime/decoder-session.ts';
import { openModule } from '../../../compiler/runtime/engine.ts';
import { openLitert } from '../../../compiler/runtime/litert.ts';
import type { Tensors } from '../../../compiler/runtime/runner.ts';
import { fuse, simplify } from '../../../passes/pipelines.ts';
import { findSoc } from '../../../targets/socs.ts';
import { type LoweredModel, lowerModel } from '../../../targets/tflite/graph/lower-model.ts';
import { operatorName } from '../../../targets/tflite/schema-enums.ts';
import { tfliteModelTarget } from '../../../targets/tflite/tflite-model.ts';
import { encodeTflite } from '../../../targets/tflite/write.ts';

export type FormScheme = 'float' | 'w8a8' | 'w8a16';

/** A graph as the target gets it: simplified, fused and lowered. */
export function lowerForm(module: Module, scheme: FormScheme): Module {
  runPasses(module, [...simplify, ...fuse, ...simplify], { untilStable: true });
  tfliteModelTarget.lower(module, findSoc('SM8650'), makeRecipe(scheme === 'float' ? 'fp16' : scheme));
  return module;
}

export interface GraphRun {
  readonly lowered: LoweredModel;
  /** Floats: the largest difference over the largest magnitude; integers: the largest difference in steps of an output. */
  readonly worst: number;
}

/** The operators of a lowered model, conversions left out. */
export function operatorsOf({ model }: LoweredModel): string[] {
  return model.subgraphs[0]!.operators.map(({ code }) => operatorName(code)).filter(
    (name) => name !== 'QUANTIZE' && name !== 'DEQUANTIZE',
  );
}

/**
 * Runs a graph in LiteRT and in ONNX Runtime: a float one as it was before it was lowered, a quantized one as QDQ on inputs that
 * are multiples of their steps, so that both see the same integers.
 */
export async function runBoth(module: Module, scheme: FormScheme, given?: readonly Tensors[]): Promise<GraphRun> {
  const before = cloneModule(module);
  lowerForm(module, scheme);
  const feeds = given ?? randomSamples(module.graph(), 2, 1).feeds;
  if (scheme === 'float') return await compare(module, before, feeds);
  const recipe = makeRecipe(scheme);
  const quantized = await quantizeGraph({
    module,
    feeds,
    recipe,
    format: litertFormat,
    kernels: wasmKernels,
    promote: false,
  });
  return await compare(
    quantized.module,
    quantized.module,
    feeds.map((feed) => snap(quantized.module, feed)),
  );
}

function snap(module: Module, feed: Tensors): Tensors {
  const entries = Object.entries(feed).map(([name, tensor]) => {
    const encoding = module.graph().find(name)?.encoding;
    if (!encoding || tensor.dtype !== 'f32') return [name, tensor] as const;
    const zero = encoding.zeroPoint?.[0] ?? 0;
    const integers = quantizeValues(tensor.data as Float32Array, encoding) as Int16Array;
    return [
      name,
      { ...tensor, data: Float32Array.from(integers, (each) => (each - zero) * encoding.scale[0]!) },
    ] as const;
  });
  return Object.fromEntries(entries);
}

async function compare(module: Module, reference: Module, feeds: readonly Tensors[]): Promise<GraphRun> {
  const graph = module.graph();
  const lowered = lowerModel(graph, 'float');
  const litert = await openLitert(encodeTflite(lowered.model), graph.name);
  const expected = await openModule(cloneModule(reference));
  let worst = 0;
  try {
    for (const feed of feeds) {
      const [wanted, got] = [await expected.run(feed), await litert.run(feed)];
      for (const [name, tensor] of Object.entries(wanted)) {
        if (String(got[name]!.shape) !== String(tensor.shape)) throw new Error(`${name} has shape ${got[name]!.shape}`);
        const [a, b] = [toFloats(tensor), toFloats(got[name]!)];
        const step = graph.find(name)?.encoding?.scale[0];
        const most = a.reduce((largest, each) => Math.max(largest, Math.abs(each)), 1e-30);
        a.forEach((each, i) => {
          const difference = Math.abs(each - b[i]!);
          worst = Math.max(worst, step === undefined ? difference / most : Math.round(difference / step));
        });
      }
    }
  } finally {
    await litert.close();
    await expected.close();
  }
  return { lowered, worst };
}

import { encodeOnnx } from '../../../compiler/export/onnx.ts';
import type { Encoding } from '../../../compiler/ir/encoding.ts';
import type { Graph, Module } from '../../../compiler/ir/graph.ts';
import { elementCount, type TensorData, toFloats } from '../../../compiler/ir/tensor.ts';
import { parseModule } from '../../../compiler/ir/text.ts';
import { loadLitert } from '../../../compiler/runtime/litert.ts';
import { lowerGraphs } from '../../../targets/tflite/lower-graph.ts';
import type { TfliteModel } from '../../../targets/tflite/model.ts';
import { encodeTflite } from '../../../targets/tflite/write.ts';
import { runOnnx } from '../../compiler/run-onnx.ts';
import { seededNumbers } from './tiny-models.ts';

/** The activation types that kernels take. */
export type Form = 'f32' | 'i8' | 'i16';

/** Text of an encoding that covers -limit..limit in a form; nothing for floats. */
export function encode(form: Form, limit: number): string {
  if (form === 'f32') return '';
  return ` q(${form}, scale ${Math.fround(limit / (form === 'i8' ? 127 : 32767))})`;
}

/** The fixed encoding of SOFTMAX and LOGISTIC. */
export function unit(form: Form): string {
  if (form === 'f32') return '';
  return form === 'i8' ? ' q(i8, scale 0.00390625, zero -128)' : ' q(i16, scale 3.0517578125e-5)';
}

export function parseGraph(body: string): Module {
  return parseModule(`npuir 1\nir 10\nopset 23\n\ngraph @g\n${body}`);
}

export interface Comparison {
  readonly model: TfliteModel;
  /** dB of LiteRT's outputs against ONNX Runtime's, over all outputs. */
  readonly sqnr: number;
  /** The largest difference in steps of the output's scale; 0 for floats. */
  readonly steps: number;
}

/** Runs a graph as TFLite in LiteRT and as QDQ ONNX in ONNX Runtime on the same seeded floats in -reach..reach. */
export async function compareEngines(module: Module, reach = 1): Promise<Comparison> {
  const graph = module.graph();
  const feeds: Record<string, TensorData> = {};
  graph.inputs.forEach((input, i) => {
    const numbers = seededNumbers(i + 1, elementCount(input.dims));
    feeds[input.name] = { dtype: 'f32', shape: input.dims, data: Float32Array.from(numbers, (x) => x * reach) };
  });
  const model = lowerGraphs([graph], 'float');
  const loaded = await loadLitert(encodeTflite(model));
  const got = await loaded.signatures.g!.run(feeds);
  loaded.dispose();
  const { outputs } = await runOnnx(encodeOnnx(module), () => feeds);
  return { model, ...difference(graph, outputs, got) };
}

function difference(
  graph: Graph,
  expected: Readonly<Record<string, TensorData>>,
  got: Readonly<Record<string, TensorData>>,
): { sqnr: number; steps: number } {
  let [signal, noise, steps] = [0, 0, 0];
  for (const output of graph.outputs) {
    const [a, b] = [toFloats(expected[output.name]!), toFloats(got[output.name]!)];
    if (a.length !== b.length || a.length === 0) throw new Error(`${a.length} and ${b.length} elements`);
    const scale = (output.encoding as Encoding | undefined)?.scale[0] ?? Number.POSITIVE_INFINITY;
    a.forEach((value, i) => {
      signal += value * value;
      noise += (value - b[i]!) ** 2;
      steps = Math.max(steps, Math.abs(value - b[i]!) / scale);
    });
  }
  return { sqnr: noise === 0 ? Number.POSITIVE_INFINITY : 10 * Math.log10(signal / noise), steps: Math.round(steps) };
}

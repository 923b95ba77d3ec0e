import { expect } from 'vitest';
import { encodeOnnx } from '../../../compiler/export/onnx.ts';
import { type Attribute, Graph, Module, tensorType } from '../../../compiler/ir/graph.ts';
import { elementCount, type TensorData } from '../../../compiler/ir/tensor.ts';
import { evaluateGraph } from '../../../compiler/ops/evaluate-graph.ts';
import { inferShapes } from '../../../compiler/ops/infer-shapes.ts';
import { runOnnx } from '../run-onnx.ts';
import { difference, type Tolerance } from './compare.ts';

/** One node with its inputs: what a differential test runs here and in ONNX Runtime. */
export interface NodeCase {
  readonly op: string;
  readonly domain?: string;
  readonly opset?: number;
  readonly inputs: readonly (TensorData | undefined)[];
  /** Number of outputs, 1 by default. */
  readonly outputs?: number;
  readonly attributes?: Readonly<Record<string, Attribute>>;
  readonly tolerance?: Tolerance;
}

/** Numbers in -1..1, the same on every run. */
export function noise(shape: readonly number[], seed = 1): TensorData {
  let state = seed >>> 0;
  const data = Float32Array.from({ length: elementCount(shape) }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
  return { dtype: 'f32', shape, data };
}

/** Whole numbers from `low` to `high`, the same on every run. */
export function integers(
  dtype: 'i8' | 'u8' | 'i32' | 'i64',
  shape: readonly number[],
  low: number,
  high: number,
): TensorData {
  const values = Array.from(noise(shape, 7).data as Float32Array, (x) =>
    Math.round(low + ((x + 1) / 2) * (high - low)),
  );
  if (dtype === 'i64') return { dtype, shape, data: BigInt64Array.from(values, BigInt) };
  const array = { i8: Int8Array, u8: Uint8Array, i32: Int32Array }[dtype];
  return { dtype, shape, data: array.from(values) };
}

export const int = (value: number): Attribute => ({ kind: 'int', value });
export const float = (value: number): Attribute => ({ kind: 'float', value: Math.fround(value) });
export const text = (value: string): Attribute => ({ kind: 'string', value });
export const ints = (...value: number[]): Attribute => ({ kind: 'ints', value });

/** A module of one node whose inputs are all graph inputs, so that neither side folds anything. */
export function moduleOf(entry: NodeCase): Module {
  const module = new Module();
  module.opsets.set('', entry.opset ?? 21);
  if (entry.domain) module.opsets.set(entry.domain, 1);
  module.irVersion = 11;
  const graph = new Graph('case');
  module.graphs.push(graph);
  const inputs = entry.inputs.map(
    (input, index) => input && graph.addInput(`x${index}`, tensorType(input.dtype, input.shape)),
  );
  const outputs = Array.from({ length: entry.outputs ?? 1 }, (_, index) => graph.addValue(`y${index}`));
  graph.addNode({
    op: entry.op,
    ...(entry.domain === undefined ? {} : { domain: entry.domain }),
    inputs,
    outputs,
    ...(entry.attributes === undefined ? {} : { attributes: entry.attributes }),
  });
  graph.outputs.push(...outputs);
  return module;
}

export function feedsOf(entry: NodeCase): Record<string, TensorData> {
  const feeds: Record<string, TensorData> = {};
  entry.inputs.forEach((input, index) => {
    if (input) feeds[`x${index}`] = input;
  });
  return feeds;
}

/** Evaluates a case here and in ONNX Runtime and expects the same; inferred types must fit what is evaluated. */
export async function expectAgreement(entry: NodeCase): Promise<void> {
  const module = moduleOf(entry);
  inferShapes(module);
  const graph = module.graph();
  const ours = evaluateGraph(graph, module.opsets, feedsOf(entry));
  for (const output of graph.outputs) {
    const data = ours[output.name]!;
    if (output.type?.kind !== 'tensor') throw new Error(`${output.name} has no inferred type`);
    expect(output.type.dtype).toBe(data.dtype);
    const fixed = output.type.shape?.map((dim, axis) => (typeof dim === 'number' ? dim : data.shape[axis]));
    expect(fixed).toEqual([...data.shape]);
  }
  const theirs = await runOnnx(encodeOnnx(module), () => feedsOf(entry));
  for (const [name, want] of Object.entries(theirs.outputs))
    expect(difference(ours[name]!, want, entry.tolerance ?? { relative: 1e-4, absolute: 2e-6 }), name).toBeUndefined();
}

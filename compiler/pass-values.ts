import { NpucError } from './errors.ts';
import { bindDim, dimSymbols } from './ir/dims.ts';
import { type DType, isFloat, numberToBfloat, numberToHalf } from './ir/dtype.ts';
import type { Dim, Graph, Module, Value } from './ir/graph.ts';
import { elementCount, type TensorData, toNumbers } from './ir/tensor.ts';
import { seededUniform } from './ir/text-data.ts';
import { newArray } from './ops/elements.ts';
import { evaluateGraph } from './ops/evaluate-graph.ts';

/** How graphs are evaluated before and after a pass. */
export interface ValueCheck {
  /** Of the random inputs (default 1). */
  readonly seed?: number;
  /** Lengths for symbolic dimensions; those not named are 2. */
  readonly dims?: Readonly<Record<string, number>>;
  /** Inputs by name instead of random ones. */
  readonly feeds?: Readonly<Record<string, TensorData>>;
  /** Largest difference of 32-bit floats, relative to the largest magnitude of the output (default 1e-4). */
  readonly tolerance?: number;
}

export interface ValueRemark {
  readonly where: string;
  readonly text: string;
}

/**
 * Evaluates every graph of two modules on the same inputs and compares the outputs.
 * @returns what could not be compared: graphs that the reference engine cannot evaluate, with its reason
 * @throws PS103 when outputs differ, with the pass, the output and the difference
 */
export function compareModules(pass: string, before: Module, after: Module, check: ValueCheck): ValueRemark[] {
  return after.graphs.flatMap((graph) => compareGraphs(pass, before, after, graph, check));
}

function compareGraphs(pass: string, before: Module, after: Module, graph: Graph, check: ValueCheck): ValueRemark[] {
  const old = before.graph(graph.name);
  const fail = (where: string, what: string): NpucError =>
    new NpucError('PS103', { message: `the pass ${pass} changed @${graph.name}: ${what}`, where, exitCode: 70 });
  const ports = (of: Graph): string =>
    JSON.stringify([of.inputs, of.outputs].map((list) => list.map(({ name }) => name)));
  if (ports(old) !== ports(graph)) throw fail(`@${graph.name}`, 'its inputs or outputs have other names');
  let feeds: Record<string, TensorData>;
  let expected: Record<string, TensorData>;
  try {
    feeds = { ...randomFeeds(graph, check), ...check.feeds };
    expected = evaluateGraph(old, before.opsets, feeds);
  } catch (error) {
    if (!(error instanceof NpucError) || error.code === 'XX001') throw error;
    return [{ where: `@${graph.name}`, text: `values are not compared: ${error.message}` }];
  }
  const actual = evaluateGraph(graph, after.opsets, feeds);
  for (const [name, wanted] of Object.entries(expected)) {
    const difference = findDifference(wanted, actual[name]!, check.tolerance ?? 1e-4);
    if (difference) throw fail(name, `${name} ${difference}`);
  }
  return [];
}

/** How two tensors differ by more than floating point does; undefined when they do not. */
export function findDifference(wanted: TensorData, found: TensorData, tolerance: number): string | undefined {
  const type = (data: TensorData): string => `${data.dtype}[${data.shape}]`;
  if (type(wanted) !== type(found)) return `was ${type(wanted)} and is ${type(found)}`;
  if (wanted.strings) return String(wanted.strings) === String(found.strings) ? undefined : 'holds other strings';
  const a = toNumbers(wanted);
  const b = toNumbers(found);
  const largest = a.reduce((most, x) => (Number.isFinite(x) ? Math.max(most, Math.abs(x)) : most), 0);
  const allowed = isFloat(wanted.dtype) ? (ROOM[wanted.dtype] ?? 1) * tolerance * Math.max(largest, 1e-3) : 0;
  for (let i = 0; i < a.length; i++) {
    if (Object.is(a[i], b[i]) || Math.abs(a[i]! - b[i]!) <= allowed) continue;
    return `was ${a[i]} and is ${b[i]} at element ${i} (allowed difference ${allowed})`;
  }
  return undefined;
}

/** How many times more than f32 another type may differ. */
const ROOM: Partial<Record<DType, number>> = { f16: 50, bf16: 400 };

/**
 * Random data for every input: floats in [-1, 1), integers 0 or 1 (so that they are indices of nearly anything), booleans.
 * @throws RT011 for an input that is no tensor, or whose rank is not known
 */
export function randomFeeds(graph: Graph, check: ValueCheck = {}): Record<string, TensorData> {
  const draw = seededUniform(check.seed ?? 1);
  const feeds: Record<string, TensorData> = {};
  for (const input of graph.inputs) if (!input.data) feeds[input.name] = randomData(input, draw, check.dims ?? {});
  return feeds;
}

function randomData(input: Value, draw: () => number, dims: Readonly<Record<string, number>>): TensorData {
  const { type } = input;
  if (type?.kind !== 'tensor' || !type.shape || type.dtype === 'string')
    throw new NpucError('RT011', { message: `no random data for the input ${input.name}`, where: input.name });
  const shape = type.shape.map((dim) => lengthOf(dim, dims));
  const { dtype } = type;
  const data = newArray(dtype, elementCount(shape));
  for (let i = 0; i < data.length; i++) {
    const real = draw() * 2 - 1;
    if (dtype === 'f16') data[i] = numberToHalf(real);
    else if (dtype === 'bf16') data[i] = numberToBfloat(real);
    else if (data instanceof BigInt64Array || data instanceof BigUint64Array) data[i] = BigInt(real < 0 ? 0 : 1);
    else data[i] = isFloat(dtype) ? real : real < 0 ? 0 : 1;
  }
  return { dtype, shape, data };
}

function lengthOf(dim: Dim, dims: Readonly<Record<string, number>>): number {
  const free = Object.fromEntries(dimSymbols(dim).map((name) => [name, dims[name] ?? 2]));
  const bound = bindDim(dim, free);
  return typeof bound === 'number' && bound >= 0 ? bound : 2;
}

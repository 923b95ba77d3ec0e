import { NpucError } from '../../compiler/errors.ts';
import { openOnnx } from '../../compiler/import/onnx.ts';
import type { Graph } from '../../compiler/ir/graph.ts';
import { elementCount, type TensorData, toFloats } from '../../compiler/ir/tensor.ts';
import { inferShapes } from '../../compiler/ops/infer-shapes.ts';
import { randomFeeds } from '../../compiler/pass-values.ts';
import { type OpenEngine, openModule } from '../../compiler/runtime/engine.ts';
import type { Tensors } from '../../compiler/runtime/runner.ts';
import { groupByBytes, tapModule } from '../../compiler/runtime/taps.ts';
import { type AlignedComparison, compareAligned, permute } from './align-values.ts';

/** Orders in which exporters lay images out: what an input of another layout is turned by. */
const LAYOUTS: readonly (readonly number[])[] = [
  [0, 2, 3, 1],
  [0, 3, 1, 2],
  [0, 2, 1],
  [1, 0],
];

/** Values of two models that were run on the same inputs, by the name in the first. */
export type RunComparison = ReadonlyMap<string, AlignedComparison>;

/**
 * Runs two ONNX models on the same made-up inputs and compares every value that both have, and their outputs in order. A
 * model of another layout is fed what lies in its own.
 * @returns undefined where the shapes are not fixed or the inputs are not the same
 */
export async function runArtifacts(a: string, b: string, open?: OpenEngine): Promise<RunComparison | undefined> {
  const [left, right] = [openOnnx(a), openOnnx(b)];
  for (const module of [left, right]) inferShapes(module);
  const feeds = makeFeeds(left.graph(), right.graph());
  if (!feeds) return undefined;
  const pairs = pairValues(left.graph(), right.graph());
  const [ours, theirs] = [pairs.map(([name]) => name), pairs.map(([, name]) => name)];
  const other = new Map(pairs);
  const first = await openModule(tapModule(left, ours), open);
  const found = new Map<string, AlignedComparison>();
  try {
    const second = await openModule(tapModule(right, theirs), open);
    try {
      for (const group of groupByBytes(left.graph(), ours)) {
        const expected = await first.run(feeds.a, group);
        const got = await second.run(
          feeds.b,
          group.map((name) => other.get(name)!),
        );
        for (const name of group) {
          const compared = compareAligned(realsOf(expected[name]!), realsOf(got[other.get(name)!]!));
          if (compared) found.set(name, compared);
        }
      }
    } finally {
      await second.close();
    }
  } catch (error) {
    // A model that its own runtime refuses has no values to compare; all else is compared.
    if (!(error instanceof NpucError) || !/^RT11/.test(error.code)) throw error;
    return undefined;
  } finally {
    await first.close();
  }
  return found;
}

function realsOf(tensor: TensorData): { shape: readonly number[]; data: Float32Array } {
  return { shape: tensor.shape, data: toFloats(tensor) };
}

/** Seeded inputs of the first model, and the same in the second one's layouts. */
function makeFeeds(a: Graph, b: Graph): { a: Tensors; b: Tensors } | undefined {
  if (a.inputs.length !== b.inputs.length || ![...a.inputs, ...b.inputs].every(isFixed)) return undefined;
  const feeds = randomFeeds(a, { seed: 1 });
  const turned: Record<string, TensorData> = {};
  for (const [i, input] of a.inputs.entries()) {
    const port = b.inputs.find(({ name }) => name === input.name) ?? b.inputs[i]!;
    const feed = feeds[input.name]!;
    if (port.dtype !== feed.dtype || elementCount(port.dims) !== elementCount(feed.shape)) return undefined;
    if (sameShape(port.dims, feed.shape)) turned[port.name] = feed;
    else {
      const order = LAYOUTS.find((each) =>
        sameShape(
          each.map((axis) => feed.shape[axis] ?? -1),
          port.dims,
        ),
      );
      if (!order || feed.dtype !== 'f32') return undefined;
      const data = permute({ shape: feed.shape, data: toFloats(feed) }, order);
      turned[port.name] = { dtype: 'f32', shape: port.dims, data };
    }
  }
  return { a: feeds, b: turned };
}

function isFixed({ type }: Graph['inputs'][number]): boolean {
  return type?.kind === 'tensor' && type.shape?.every((dim) => typeof dim === 'number') === true;
}

function sameShape(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((length, axis) => length === b[axis]);
}

/** Real values that both graphs compute under one name, and their outputs in order. */
function pairValues(a: Graph, b: Graph): [string, string][] {
  const real = (graph: Graph, name: string): boolean => {
    const value = graph.find(name);
    return value?.producer !== undefined && value.type?.kind === 'tensor' && value.dtype === 'f32' && isFixed(value);
  };
  const names = a.nodes.flatMap((node) => node.outputs.flatMap((value) => (value ? [value.name] : [])));
  const pairs = new Map(names.filter((name) => real(a, name) && real(b, name)).map((name) => [name, name]));
  for (const [i, output] of a.outputs.entries()) {
    const match = b.outputs.find(({ name }) => name === output.name) ?? b.outputs[i];
    if (match && real(a, output.name) && real(b, match.name)) pairs.set(output.name, match.name);
  }
  return [...pairs];
}

import { NpucError } from '../../compiler/errors.ts';
import { openOnnx } from '../../compiler/import/onnx.ts';
import { integerRange } from '../../compiler/ir/encoding.ts';
import type { Graph } from '../../compiler/ir/graph.ts';
import { elementCount, type TensorData, toFloats } from '../../compiler/ir/tensor.ts';
import { inferShapes } from '../../compiler/ops/infer-shapes.ts';
import { runPasses } from '../../compiler/pass.ts';
import { randomFeeds } from '../../compiler/pass-values.ts';
import { type OpenEngine, openModule } from '../../compiler/runtime/engine.ts';
import type { Tensors } from '../../compiler/runtime/runner.ts';
import { groupByBytes, tapModule } from '../../compiler/runtime/taps.ts';
import { foldQdq } from '../../passes/fold-qdq.ts';
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
  const feeds = makeFeeds(left.graph(), right.graph(), new Map([...inputRanges(a), ...inputRanges(b)]));
  if (!feeds) return undefined;
  const pairs = pairValues(left.graph(), right.graph());
  const [ours, theirs] = [pairs.map((each) => each.a), pairs.map((each) => each.b)];
  const byTap = new Map(pairs.map((each) => [each.a, each]));
  const first = await openModule(tapModule(left, ours), open);
  const found = new Map<string, AlignedComparison>();
  try {
    const second = await openModule(tapModule(right, theirs), open);
    try {
      for (const group of groupByBytes(left.graph(), ours)) {
        const expected = await first.run(feeds.a, group);
        const got = await second.run(
          feeds.b,
          group.map((tap) => byTap.get(tap)!.b),
        );
        for (const tap of group) {
          const each = byTap.get(tap)!;
          const compared = compareAligned(realsOf(expected[tap]!), realsOf(got[each.b]!));
          if (compared) found.set(each.name, compared);
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

/** What the integers of a quantized model's inputs reach: of other numbers it would make nothing but zeros. */
function inputRanges(path: string): Map<string, readonly [number, number]> {
  const module = openOnnx(path);
  runPasses(module, [foldQdq], { inferShapes: false, verify: false });
  const ranges = new Map<string, readonly [number, number]>();
  for (const { name, encoding } of module.graph().inputs) {
    if (encoding?.scale.length !== 1) continue;
    const [low, high] = integerRange(encoding.dtype);
    const zero = encoding.zeroPoint?.[0] ?? 0;
    ranges.set(name, [(low - zero) * encoding.scale[0]!, (high - zero) * encoding.scale[0]!]);
  }
  return ranges;
}

/** Seeded inputs of the first model over the ranges that either knows, and the same in the second one's layouts. */
function makeFeeds(
  a: Graph,
  b: Graph,
  ranges: ReadonlyMap<string, readonly [number, number]>,
): { a: Tensors; b: Tensors } | undefined {
  if (a.inputs.length !== b.inputs.length || ![...a.inputs, ...b.inputs].every(isFixed)) return undefined;
  const feeds = randomFeeds(a, { seed: 1 });
  for (const [name, [low, high]] of ranges) {
    const feed = feeds[name];
    if (feed?.dtype !== 'f32') continue;
    // Random data is in -1..1.
    const data = toFloats(feed).map((each) => low + ((each + 1) / 2) * (high - low));
    feeds[name] = { ...feed, data };
  }
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

/**
 * Real values that both graphs compute under one name, and their outputs in order: the name in the first, then what is looked
 * at in either. Of a quantized value that is what its integers stand for: saturation may do the work of an activation there.
 */
function pairValues(a: Graph, b: Graph): { name: string; a: string; b: string }[] {
  const names = a.nodes.flatMap((node) => node.outputs.flatMap((value) => (value ? [value.name] : [])));
  const pairs = new Map<string, { name: string; a: string; b: string }>();
  const add = (name: string, other: string): void => {
    const [left, right] = [findSeen(a, name), findSeen(b, other)];
    if (left !== undefined && right !== undefined) pairs.set(name, { name, a: left, b: right });
  };
  for (const name of names) {
    if (!a.find(name)?.producer?.op.endsWith('quantizeLinear')) add(name, name);
  }
  for (const [i, output] of a.outputs.entries()) {
    add(output.name, (b.outputs.find(({ name }) => name === output.name) ?? b.outputs[i])?.name ?? '');
  }
  return [...pairs.values()];
}

/** The value whose numbers count for one of a name: behind its quantization, where it has one. */
function findSeen(graph: Graph, name: string): string | undefined {
  const value = graph.find(name);
  if (!value?.producer) return undefined;
  const quantize = value.consumers.find(({ op }) => op === 'QuantizeLinear');
  const restored = quantize?.output().consumers.find(({ op }) => op === 'DequantizeLinear');
  const seen = restored?.output() ?? value;
  return seen.type?.kind === 'tensor' && seen.dtype === 'f32' && isFixed(seen) ? seen.name : undefined;
}

import { cloneModule } from '../ir/clone.ts';
import type { Graph, Module } from '../ir/graph.ts';
import type { Runner, Tensors } from './runner.ts';

/** Bytes of tapped values that are in memory at a time, per runner. */
const GROUP_BYTES = 64 << 20;

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

/** Cuts names of f32 values of fixed shape into groups that fit in memory together, in order. */
export function groupByBytes(graph: Graph, names: readonly string[]): string[][] {
  const groups: string[][] = [];
  let bytes = Number.POSITIVE_INFINITY;
  for (const name of names) {
    const size = 4 * graph.find(name)!.dims.reduce((product, dim) => product * dim, 1);
    if (bytes + size > GROUP_BYTES) {
      groups.push([]);
      bytes = 0;
    }
    groups.at(-1)!.push(name);
    bytes += size;
  }
  return groups;
}

/** Runs two tap builds on the same feeds, a group of values at a time, and hands over each pair of results. */
export async function runTaps(
  reference: Runner,
  other: Runner,
  groups: readonly (readonly string[])[],
  feeds: readonly Tensors[],
  visit: (name: string, expected: Tensors, got: Tensors) => void,
): Promise<void> {
  for (const group of groups) {
    for (const feed of feeds) {
      const expected = await reference.run(feed, group);
      const got = await other.run(feed, group);
      for (const name of group) visit(name, expected, got);
    }
  }
}

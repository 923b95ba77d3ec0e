import type { GraphRequest } from '../../calibration/quantize-decoder.ts';
import type { Module } from '../../compiler/ir/graph.ts';
import { ChainRunner } from '../../compiler/runtime/chain-runner.ts';
import type { SessionGraph } from '../../compiler/runtime/decoder-session.ts';
import type { Runner } from '../../compiler/runtime/runner.ts';
import { splitDecoder } from '../../passes/split-decoder.ts';
import type { ManifestGraph, ManifestPart } from '../target.ts';
import type { CompilePart, CompilePlan } from './plan-compile.ts';

/** One graph to compile. */
export interface PartGraph {
  readonly name: string;
  readonly module: Module;
}

/** What one compile process makes: a part of every graph. */
export interface BundlePart {
  readonly plan: CompilePart;
  readonly graphs: readonly PartGraph[];
}

/** All graphs of a bundle, cut alike. */
export interface CutBundle {
  readonly parts: readonly BundlePart[];
  /** Names of the part graphs that make up each request, in the order that they run in. */
  readonly chains: readonly (readonly string[])[];
}

/**
 * Cuts the graphs of a bundle as planned. A part that sees no cache (embedding, head) is made once for all cache sizes.
 * Genie runs the parts of one size in the order of their names, and takes the sizes of a part that has neither tokens nor
 * mask from its name: `p1of3_ar128_cl1024`.
 */
export function cutBundle(modules: readonly Module[], requests: readonly GraphRequest[], plan: CompilePlan): CutBundle {
  const count = plan.parts.length;
  if (count === 1) {
    const graphs = requests.map(({ name }, i) => ({ name, module: modules[i]! }));
    return { parts: [{ plan: plan.parts[0]!, graphs }], chains: requests.map(({ name }) => [name]) };
  }
  const largest = Math.max(...requests.map(({ cache }) => cache));
  const graphs = plan.parts.map(() => new Map<string, PartGraph>());
  const chains = requests.map((request, i) =>
    splitDecoder(modules[i]!, plan.cuts).map((module, part) => {
      const seesCache = plan.parts[part]!.graphs === requests.length;
      const name = `${partPrefix(part, count)}_ar${request.tokens}_cl${seesCache ? request.cache : largest}`;
      module.graph().name = name;
      if (!graphs[part]!.has(name)) graphs[part]!.set(name, { name, module });
      return name;
    }),
  );
  return { parts: plan.parts.map((part, i) => ({ plan: part, graphs: [...graphs[i]!.values()] })), chains };
}

function partPrefix(index: number, count: number): string {
  return `p${String(index + 1).padStart(String(count).length, '0')}of${count}`;
}

/** The parts of a graph in the order that they run in; a graph that was not cut is one part. */
export function partsOf(graph: ManifestGraph): readonly ManifestPart[] {
  return graph.parts ?? [{ graph: graph.name, file: graph.file, ...(graph.source ? { source: graph.source } : {}) }];
}

/** Every part of a target's graphs once, in order. */
export function listParts(graphs: readonly ManifestGraph[]): ManifestPart[] {
  return [...new Map(graphs.flatMap(partsOf).map((part) => [part.file, part])).values()];
}

/**
 * Opens every part once and chains them into graphs. A part that several graphs have is closed with the last of them.
 * @throws what `open` throws, with the parts closed that were open by then
 */
export async function openGraphs(
  graphs: readonly ManifestGraph[],
  open: (part: ManifestPart) => Promise<Runner>,
): Promise<SessionGraph[]> {
  const opened = new Map<string, Runner>();
  try {
    for (const part of listParts(graphs)) opened.set(part.file, await open(part));
  } catch (error) {
    for (const runner of opened.values()) await runner.close();
    throw error;
  }
  const uses = new Map<Runner, number>();
  const share = (runner: Runner): Runner => {
    uses.set(runner, (uses.get(runner) ?? 0) + 1);
    return {
      engine: runner.engine,
      inputs: runner.inputs,
      outputs: runner.outputs,
      run: (feeds, outputs) => runner.run(feeds, outputs),
      close: async () => {
        const left = uses.get(runner)! - 1;
        uses.set(runner, left);
        if (left === 0) await runner.close();
      },
    };
  };
  return graphs.map((graph) => {
    const runners = partsOf(graph).map(({ file }) => share(opened.get(file)!));
    return {
      tokens: graph.tokens,
      cache: graph.cache,
      runner: runners.length > 1 ? new ChainRunner(runners) : runners[0]!,
    };
  });
}

import { cloneModule } from '../compiler/ir/clone.ts';
import type { Encoding } from '../compiler/ir/encoding.ts';
import { type Graph, intAttribute, type Module, type Node, tensorType, type Value } from '../compiler/ir/graph.ts';
import { Tensor, type TensorData, toFloats } from '../compiler/ir/tensor.ts';
import { createDifferenceSums, type Kernels } from '../compiler/kernels/kernels.ts';
import { type OpenEngine, openModule } from '../compiler/runtime/engine.ts';
import type { Runner, Tensors } from '../compiler/runtime/runner.ts';
import { clampedValues, computes, isReal } from './precision.ts';
import { type NumberFormat, type Override, overrideOf, type Recipe } from './recipe.ts';
import { movementRoot } from './statistics.ts';

export interface PromoteInputs {
  /** The float graph. */
  readonly float: Module;
  readonly recipe: Recipe;
  readonly format: NumberFormat;
  readonly feeds: readonly Tensors[];
  readonly kernels: Kernels;
  readonly open?: OpenEngine;
  readonly onProgress?: (done: number, total: number) => void;
  /** The graph under a recipe, with encodings. */
  readonly quantize: (recipe: Recipe) => Promise<Module>;
}

export interface Promotions {
  /** Overrides of the recipe, the most effective first. */
  readonly overrides: readonly Override[];
  readonly remarks: readonly string[];
}

/** Samples that noise is measured on. */
const SAMPLES = 2;
/** Share of noise in an output at which there is nothing to mend: 35 dB. */
const GOOD = 10 ** -3.5;
/** How much noisier than with 16 bits everywhere an output may be: 6 dB. */
const BESIDE_WIDE = 4;
/** Above this share of the values at 16 bits there is no point in 8 bits. */
const MOST_PROMOTED = 0.5;

/** How a value is rounded to see what that costs: as its encoding does, or as a half float. */
export type Rounding = 'encoding' | 'half';

/** Share of noise in every output: power of the difference from float over power of the float output. */
export type Noise = ReadonlyMap<string, number>;

/**
 * Finds, by measuring, the few values that must have 16 bits in an 8-bit graph. Where an output is far noisier than with 16
 * bits everywhere, every value's own part in that is measured: the float graph is run with this one value rounded. Values
 * are promoted, the costliest first, until the sum of what is left is small enough; noise powers of independent roundings
 * add. Rounding is switched on by an input per value, so that one session serves all.
 */
export async function promoteValues(inputs: PromoteInputs): Promise<Promotions> {
  const { recipe } = inputs;
  const reference = await runOutputs(inputs, inputs.float);
  const measure = async (overrides: readonly Override[]): Promise<Noise> => {
    const module = await inputs.quantize({ ...recipe, overrides: [...recipe.overrides, ...overrides] });
    return noiseOf(reference, await runOutputs(inputs, module), inputs.kernels);
  };
  const narrow = await measure([]);
  if ([...narrow.values()].every((share) => !(share > GOOD))) return { overrides: [], remarks: [] };
  const wide = await measure([{ match: '', activation: 16 }]);
  const limits = new Map([...wide].map(([name, share]) => [name, Math.max(GOOD, BESIDE_WIDE * share)]));
  if ([...narrow].every(([name, share]) => share <= limits.get(name)!)) return { overrides: [], remarks: [] };

  const module = await inputs.quantize(recipe);
  const sites = findSites(inputs.float.graph(), module.graph(), inputs.float.opsets.get('') ?? 0, inputs.format);
  const parts = await measureParts(inputs, sites);
  const chosen = choose(parts, wide, limits);
  const overrides = chosen.flatMap(({ site, decibels }) =>
    site.nodes.map((node) => ({
      ...overrideOf(node.output().name),
      activation: 16 as const,
      why: `at 8 bits it alone leaves ${decibels.toFixed(0)} dB of an output`,
    })),
  );
  const remarks = chosen.map(
    ({ site, decibels }) => `${site.name}: 16 bits, at 8 bits it alone leaves ${decibels.toFixed(0)} dB of an output`,
  );
  if (chosen.length > MOST_PROMOTED * sites.length) {
    remarks.unshift(`${chosen.length} of ${sites.length} values need 16 bits: --scheme w8a16 suits this model better`);
  }
  return { overrides, remarks };
}

/** Values that share one rounding, and the nodes that must work at 16 bits to spare it: their makers and readers. */
export interface Site {
  readonly name: string;
  readonly encoding: Encoding;
  /** Values of the float graph that are rounded: those that are computed or fed, not those that only move them. */
  readonly values: readonly string[];
  readonly nodes: readonly Node[];
}

/** Every rounding of the quantized graph that the float graph can be given. */
export function findSites(float: Graph, quantized: Graph, opset: number, format: NumberFormat): Site[] {
  const fixed = new Set(Object.values(format.fixed).flatMap((widths) => Object.values(widths)));
  const clamped = clampedValues(float, opset);
  const shared = new Map<Encoding | Value, { encoding: Encoding; values: Value[]; nodes: Set<Node> }>();
  for (const value of float.values) {
    const encoding = quantized.find(value.name)?.encoding;
    if (!encoding || !isReal(value) || value.data || clamped.has(value)) continue;
    // Kernels of one kind share an encoding that is fixed for all of them; elsewhere it is shared by movement.
    const key = fixed.has(encoding) ? movementRoot(value) : encoding;
    const site = shared.get(key) ?? { encoding, values: [], nodes: new Set<Node>() };
    shared.set(key, site);
    const maker = value.producer;
    const moved = maker !== undefined && !computes(maker, opset);
    if (!moved) site.values.push(value);
    if (maker && !moved) site.nodes.add(maker);
    // A reader of 8 bits would round the value again.
    for (const reader of value.consumers) if (computes(reader, opset)) site.nodes.add(reader);
  }
  return [...shared.values()]
    .filter(({ values }) => values.length > 0)
    .map(({ encoding, values, nodes }) => ({
      name: values[0]!.name,
      encoding,
      values: values.map(({ name }) => name),
      nodes: [...nodes],
    }));
}

export interface Part {
  readonly site: Site;
  readonly noise: Noise;
}

/**
 * What each rounding alone does to the outputs.
 * @param least where all of them together leave no output with more noise than this, nothing is measured one by one
 * @returns none in that case
 */
export async function measureParts(
  inputs: Pick<PromoteInputs, 'float' | 'kernels' | 'open' | 'feeds' | 'onProgress'>,
  sites: readonly Site[],
  rounding: Rounding = 'encoding',
  least = 0,
): Promise<Part[]> {
  const { float, kernels, open, feeds } = inputs;
  const probe = cloneModule(float);
  const gates = sites.map((site) => addGate(probe.graph(), site, rounding));
  const names = float.graph().outputs.map(({ name }) => name);
  const runner = await openModule(probe, open);
  const run = async (...on: readonly string[]): Promise<Tensors[]> => {
    const switches = gates.map((gate): [string, TensorData] => [
      gate,
      { dtype: 'f32', shape: [], data: Float32Array.of(on.includes(gate) ? 1 : 0) },
    ]);
    const results: Tensors[] = [];
    for (const feed of feeds.slice(0, SAMPLES)) {
      const outputs = await runner.run({ ...feed, ...Object.fromEntries(switches) });
      const values = probe.graph().outputs.map(({ name }, i): [string, TensorData] => [names[i]!, outputs[name]!]);
      results.push(Object.fromEntries(values));
    }
    return results;
  };
  try {
    const base = await run();
    if (least > 0) {
      const together = noiseOf(base, await run(...gates), kernels);
      if ([...together.values()].every((share) => share <= least)) return [];
    }
    const parts: Part[] = [];
    for (const [index, site] of sites.entries()) {
      parts.push({ site, noise: noiseOf(base, await run(gates[index]!), kernels) });
      inputs.onProgress?.(index + 1, sites.length);
    }
    return parts;
  } finally {
    await runner.close();
  }
}

/**
 *     y = x + gate * (DequantizeLinear(QuantizeLinear(x)) - x)
 *
 * for every reader of x. @returns the gate's name
 */
function addGate(graph: Graph, site: Site, rounding: Rounding): string {
  const gate = graph.addInput(`${site.name}#gate`, tensorType('f32', []));
  const round = rounding === 'half' ? roundToHalf : roundToIntegers(graph, site);
  for (const name of site.values) {
    const value = graph.find(name)!;
    const readers = [...value.uses];
    const before = graph.nodes[value.producer ? graph.nodes.indexOf(value.producer) + 1 : 0];
    const options = { ...(value.type ? { type: value.type } : {}), ...(before ? { before } : {}) };
    const rounded = round(graph, value, options);
    const error = graph.emit('Sub', [rounded, value], options);
    const gated = graph.emit('Add', [value, graph.emit('Mul', [error, gate], options)], options);
    for (const { node, index } of readers) node.setInput(index, gated);
    graph.outputs.forEach((output, i) => {
      if (output === value) graph.outputs[i] = gated;
    });
  }
  return gate.name;
}

type Round = (graph: Graph, value: Value, options: { readonly type?: Value['type']; readonly before?: Node }) => Value;

function roundToIntegers(graph: Graph, { name, encoding: { dtype, scale, zeroPoint } }: Site): Round {
  const parameters = [
    graph.addConstant(`${name}#scale`, Tensor.of('f32', [], scale)),
    graph.addConstant(`${name}#zero`, Tensor.of(dtype, [], [zeroPoint?.[0] ?? 0])),
  ];
  return (_, value, options) => {
    const type = tensorType(dtype, value.shape);
    const integers = graph.emit('QuantizeLinear', [value, ...parameters], { ...options, type });
    return graph.emit('DequantizeLinear', [integers, ...parameters], options);
  };
}

function roundToHalf(graph: Graph, value: Value, options: Parameters<Round>[2]): Value {
  const cast = (from: Value, dtype: 'f16' | 'f32', to: number): Value =>
    graph.emit('Cast', [from], {
      ...options,
      type: tensorType(dtype, value.shape),
      attributes: { to: intAttribute(to) },
    });
  return cast(cast(value, 'f16', 10), 'f32', 1);
}

/** Promotes the costliest values until the noise that is left, with that of 16 bits everywhere, is within the limits. */
function choose(parts: readonly Part[], wide: Noise, limits: Noise): { site: Site; decibels: number }[] {
  const left = new Set(parts);
  const chosen: { site: Site; decibels: number }[] = [];
  for (;;) {
    const excess = [...limits].filter(([name, limit]) => {
      const rest = [...left].reduce((sum, { noise }) => sum + (noise.get(name) ?? 0), wide.get(name) ?? 0);
      return rest > limit;
    });
    if (excess.length === 0 || left.size === 0) return chosen;
    const cost = ({ noise }: Part): number =>
      excess.reduce((most, [name, limit]) => Math.max(most, (noise.get(name) ?? 0) / limit), 0);
    const worst = [...left].reduce((a, b) => (cost(b) > cost(a) ? b : a));
    left.delete(worst);
    chosen.push({ site: worst.site, decibels: -10 * Math.log10(Math.max(...worst.noise.values())) });
  }
}

async function runOutputs(inputs: PromoteInputs, module: Module): Promise<Tensors[]> {
  const runner: Runner = await openModule(module, inputs.open);
  try {
    const results: Tensors[] = [];
    for (const feed of inputs.feeds.slice(0, SAMPLES)) results.push(await runner.run(feed));
    return results;
  } finally {
    await runner.close();
  }
}

function noiseOf(reference: readonly Tensors[], other: readonly Tensors[], kernels: Kernels): Noise {
  const noise = new Map<string, number>();
  for (const name of Object.keys(reference[0] ?? {})) {
    const sums = createDifferenceSums();
    reference.forEach((expected, sample) => {
      kernels.accumulateDifference(toFloats(expected[name]!), toFloats(other[sample]![name]!), sums);
    });
    noise.set(name, sums.reference2 === 0 ? 0 : sums.difference2 / sums.reference2);
  }
  return noise;
}

import type { Graph, Module, Node, Value } from '../compiler/ir/graph.ts';
import type { Kernels } from '../compiler/kernels/kernels.ts';
import type { OpenEngine } from '../compiler/runtime/engine.ts';
import type { Tensors } from '../compiler/runtime/runner.ts';
import { computes, isReal } from './precision.ts';
import { findSites, measureParts, type Noise, type Site } from './promote-values.ts';
import { compileMatch, type NumberFormat, type Override } from './recipe.ts';

export interface HalfFloatInputs {
  /** The float graph. */
  readonly float: Module;
  /** The graph quantized at 16 bits. */
  readonly quantized: Module;
  readonly format: NumberFormat;
  /** The user's own: values whose width they decide keep it. */
  readonly overrides: readonly Override[];
  readonly feeds: readonly Tensors[];
  readonly kernels: Kernels;
  readonly open?: OpenEngine;
}

/** Share of noise in an output that a value may bring in alone at 16 bits: 40 dB. */
const TOO_MUCH = 1e-4;
/** A half float must bring in this much less, or nothing is won. */
const WORTHWHILE = 1 / 4;

/**
 * Element by element, or along an axis, with no weight: what they cost in half floats is next to nothing. Convolutions and
 * products stay integers.
 */
const LIGHT: ReadonlySet<string> = new Set([
  'Abs',
  'Add',
  'Div',
  'Exp',
  'Log',
  'Max',
  'Min',
  'Mul',
  'Neg',
  'Pow',
  'Reciprocal',
  'ReduceMax',
  'ReduceMean',
  'ReduceMin',
  'ReduceSum',
  'Sqrt',
  'Sub',
]);

/**
 * Names of values for which even 16 bits are not enough. A power spectrum spans more than 16 bits of equal steps can
 * hold: the root or the logarithm that follows brings the lost small values back to sight. A half float holds them. Only values
 * that light operators both make and read; only where a half float, rounded the same way in the float graph, costs less.
 */
export async function findHalfFloats(inputs: HalfFloatInputs): Promise<{ names: string[]; remarks: string[] }> {
  const { float, quantized, format } = inputs;
  const opset = float.opsets.get('') ?? 0;
  const graph = float.graph();
  const sites = findSites(graph, quantized.graph(), opset, format).filter(
    (site) => isLight(graph, site, opset) && !isDecided(graph, site, inputs.overrides),
  );
  if (sites.length === 0) return { names: [], remarks: [] };
  const costly = (await measureParts(inputs, sites, 'encoding', TOO_MUCH)).filter(
    ({ noise }) => most(noise) > TOO_MUCH,
  );
  if (costly.length === 0) return { names: [], remarks: [] };
  const halves = await measureParts(
    inputs,
    costly.map(({ site }) => site),
    'half',
  );
  const chosen = costly.filter(({ noise }, i) => most(halves[i]!.noise) < WORTHWHILE * most(noise));
  const encodings = new Set(chosen.map(({ site }) => site.encoding));
  const names = [...quantized.graph().values].flatMap(({ name, encoding }) =>
    encoding && encodings.has(encoding) ? [name] : [],
  );
  const remarks = chosen.map(
    ({ site, noise }) => `${site.name}: half floats, at 16 bits it alone leaves ${decibels(noise)} dB of an output`,
  );
  return { names, remarks };
}

/**
 * Takes the encodings of values away, and of constants that only they are computed with.
 * @returns a plan's activations without them
 */
export function dropEncodings<T>(
  graph: Graph,
  names: ReadonlySet<string>,
  activations: ReadonlyMap<string, T>,
): Map<string, T> {
  const left = new Map(activations);
  const drop = (value: Value): void => {
    delete value.encoding;
    left.delete(value.name);
  };
  for (const name of names) {
    const value = graph.find(name);
    if (!value) continue;
    drop(value);
    // What was to bring it to a reader's width.
    for (const { op, outputs } of value.consumers)
      if (op === 'Identity' && outputs[0]?.name.startsWith(`${name}.as`)) drop(outputs[0]);
  }
  for (const node of graph.nodes) {
    if (!node.outputs.some((output) => output && names.has(output.name))) continue;
    for (const input of node.inputs) if (input?.data && input.consumers.every(isFloat)) drop(input);
  }
  return left;
}

const isFloat = (node: Node): boolean => node.outputs.every((output) => !output?.encoding);

/** Whether the user has chosen the width of what makes a site. */
function isDecided(graph: Graph, site: Site, overrides: readonly Override[]): boolean {
  const expressions = overrides.flatMap(({ match, activation }) => (activation ? [compileMatch(match)] : []));
  return site.values.some((name) =>
    [name, ...(graph.find(name)?.producer?.from ?? [])].some((each) =>
      expressions.some((expression) => expression.test(each)),
    ),
  );
}

/** Whether light operators make and read all values of a site, and none is a port. */
function isLight(graph: Graph, site: Site, opset: number): boolean {
  const isPort = (value: Value): boolean => graph.inputs.includes(value) || graph.isOutput(value);
  const members = site.values.map((name) => graph.find(name)!);
  if (members.some((value) => isPort(value) || !value.producer || !LIGHT.has(value.producer.op))) return false;
  // Through movement, to whatever computes with the elements.
  const open = [...members];
  for (let value = open.pop(); value; value = open.pop()) {
    if (isPort(value)) return false;
    for (const reader of value.consumers) {
      if (computes(reader, opset)) {
        if (!LIGHT.has(reader.op)) return false;
      } else open.push(...reader.outputs.filter(isReal));
    }
  }
  return true;
}

/** NaN, an overflow, is more than anything. */
function most(noise: Noise): number {
  const shares = [...noise.values()];
  return shares.some((share) => Number.isNaN(share)) ? Number.POSITIVE_INFINITY : Math.max(...shares);
}

function decibels(noise: Noise): string {
  return (-10 * Math.log10(most(noise))).toFixed(0);
}

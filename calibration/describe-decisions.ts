import { type Encoding, encodingForm, integerRange } from '../compiler/ir/encoding.ts';
import type { Graph, Value } from '../compiler/ir/graph.ts';
import { decoderSites, type Migration } from './migrate-outliers.ts';
import { type Plan, rangeOf } from './plan.ts';
import { clampedValues } from './precision.ts';
import type { NumberFormat, Recipe } from './recipe.ts';
import { movementRoot, type Statistics } from './statistics.ts';

/** How one encoding came about. `plan.json` beside an artifact is a list of these; `npuc explain` prints them. */
export interface Decision {
  /** What has the encoding: values that ops only move share one. */
  readonly values: readonly string[];
  /** The user's own nodes that make them, or read them where they are constants. */
  readonly nodes: readonly string[];
  readonly kind: 'activation' | 'cache' | 'constant' | 'weight' | 'table';
  readonly dtype: Encoding['dtype'];
  readonly form: 'tensor' | 'channel' | 'block' | 'lpbq';
  readonly block?: number;
  /** Of all scales the least and the most; of LPBQ the channels'. */
  readonly scales: { readonly count: number; readonly least: number; readonly most: number };
  /** Of a single scale. */
  readonly zeroPoint?: number;
  /** The real numbers that the integers span, of a single scale. */
  readonly spans?: readonly [number, number];
  readonly why: string;
  /** Where the range comes from. */
  readonly range?: DecisionRange;
  /** Scale that was moved out of an activation into the weights that read it. */
  readonly moved?: { readonly from: string; readonly into: readonly string[]; readonly exponent: number };
  readonly rotation?: 'hadamard';
  /** Of weights. */
  readonly rounding?: 'nearest' | 'gptq' | 'taken over';
  /** Of a weight: the activation whose channels' mean squares weighted the search for its scales. */
  readonly weighedBy?: string;
}

export interface DecisionRange {
  readonly source: 'calibration' | 'kernel' | 'constant' | 'file';
  readonly method?: Recipe['range'];
  /** What calibration saw of the values that give the range. */
  readonly seen?: readonly SeenValue[];
  /** Constants whose elements the range holds as well, such as a table that a value is a row of. */
  readonly constants?: readonly string[];
}

export interface SeenValue {
  readonly value: string;
  readonly min: number;
  readonly max: number;
  /** Median over rows of the row's root mean square. */
  readonly typical: number;
  /** The range that was taken of it, where that is another one. */
  readonly taken?: readonly [number, number];
}

export interface DecisionInputs {
  /** The graph that was planned, with its conversions. */
  readonly graph: Graph;
  readonly opset: number;
  readonly plan: Plan;
  readonly recipe: Recipe;
  readonly format: NumberFormat;
  readonly statistics: Statistics;
  readonly weightEncodings: ReadonlyMap<string, Encoding>;
  /** Weights whose integers were chosen with error feedback, and those that were taken over. */
  readonly compensated: ReadonlySet<string>;
  readonly taken?: ReadonlySet<string>;
  readonly migration?: Pick<Migration, 'exponents'>;
  /** Layers of a decoder. */
  readonly layers?: number;
}

/** Every decision of a plan with what it was made from: activations in the order of the plan, then weights and tables. */
export function describeDecisions(inputs: DecisionInputs): Decision[] {
  const moves = findMoves(inputs);
  const groups = new Map<Encoding, string[]>();
  for (const [name, { encoding }] of inputs.plan.activations)
    groups.set(encoding, [...(groups.get(encoding) ?? []), name]);
  const activations = [...groups].map(([encoding, names]) => describeActivation(encoding, names, inputs, moves));
  const weights = [...inputs.weightEncodings].map(([name, encoding]) => describeWeight(name, encoding, inputs, moves));
  return [...activations, ...weights];
}

type Moves = ReadonlyMap<string, NonNullable<Decision['moved']>>;

function findMoves({ migration, layers = 0 }: DecisionInputs): Moves {
  const moves = new Map<string, NonNullable<Decision['moved']>>();
  for (const { value, before, readers } of decoderSites(layers)) {
    const exponent = migration?.exponents.get(value) ?? 0;
    if (exponent === 0) continue;
    const move = { from: value, into: readers, exponent };
    const between = before.kind === 'linear' ? before.values : [];
    for (const name of [value, ...between, before.weight, ...readers]) moves.set(name, move);
  }
  return moves;
}

function describeActivation(
  encoding: Encoding,
  names: readonly string[],
  inputs: DecisionInputs,
  moves: Moves,
): Decision {
  const { graph, plan, recipe } = inputs;
  const values = names.flatMap((name) => graph.find(name) ?? []);
  const caches = new Set([...graph.states.values()].flatMap(({ input, output }) => [input, output]));
  const constant = values.every(({ data }) => data !== undefined);
  const cache = values.some((value) => caches.has(value));
  const moved = names.flatMap((name) => moves.get(name) ?? [])[0];
  const nodes = constant
    ? values.flatMap(({ consumers }) => consumers.flatMap(({ from }) => from))
    : values.flatMap(({ producer }) => producer?.from ?? []);
  return {
    values: names,
    nodes: [...new Set(nodes)],
    kind: constant ? 'constant' : cache ? 'cache' : 'activation',
    ...describeEncoding(encoding),
    why: plan.activations.get(names[0]!)!.why,
    range: describeRange(encoding, values, inputs),
    ...(moved ? { moved } : {}),
    ...(recipe.rotation === 'hadamard' && names.some(isRotated) ? { rotation: 'hadamard' } : {}),
  };
}

function describeRange(encoding: Encoding, values: readonly Value[], inputs: DecisionInputs): DecisionRange {
  const { graph, opset, plan, recipe, format, statistics } = inputs;
  if (plan.activations.get(values[0]?.name ?? '')?.why.startsWith('given by')) return { source: 'file' };
  const fixed = Object.values(format.fixed).flatMap((widths) => Object.values(widths));
  if (fixed.includes(encoding)) return { source: 'kernel' };
  const clamped = clampedValues(graph, opset);
  const bits = Number(encoding.dtype.slice(1)) > 8 ? 16 : 8;
  const seen = new Map<string, SeenValue>();
  for (const value of values) {
    if (value.data || clamped.has(value)) continue;
    const name = [movementRoot(value).name, movementRoot(value).name.replace(/(\.(wide|as8|as16|right))+$/, '')].find(
      (each) => statistics.has(each),
    );
    if (name === undefined || seen.has(name)) continue;
    const found = statistics.get(name)!;
    const { min, max, typical } = found;
    const taken = rangeOf(value, recipe, bits, statistics)!;
    const other = taken.min !== min || taken.max !== max;
    seen.set(name, { value: name, min, max, typical, ...(other ? { taken: [taken.min, taken.max] as const } : {}) });
  }
  if (seen.size === 0) return { source: 'constant' };
  const method = bits === 16 ? 'min-max' : recipe.range;
  const constants = values.filter(({ data }) => data).map(({ name }) => name);
  return { source: 'calibration', method, seen: [...seen.values()], ...(constants.length > 0 ? { constants } : {}) };
}

function describeWeight(name: string, encoding: Encoding, inputs: DecisionInputs, moves: Moves): Decision {
  const { graph, plan, recipe, statistics, compensated, taken } = inputs;
  const planned = plan.weights.get(name);
  const nodes = graph.find(name)?.consumers.flatMap(({ from }) => from) ?? [];
  const moved = moves.get(name);
  const weighed = planned?.matrix && statistics.get(planned.input)?.channels && !taken?.has(name);
  return {
    values: [name],
    nodes: [...new Set(nodes)],
    kind: planned ? 'weight' : 'table',
    ...describeEncoding(encoding),
    why: planned?.why ?? 'embedding table, a scale per row',
    ...(moved ? { moved } : {}),
    ...(recipe.rotation === 'hadamard' ? { rotation: 'hadamard' } : {}),
    rounding: taken?.has(name) ? 'taken over' : compensated.has(name) ? 'gptq' : 'nearest',
    ...(weighed ? { weighedBy: planned.input } : {}),
  };
}

function describeEncoding(
  encoding: Encoding,
): Pick<Decision, 'dtype' | 'form' | 'block' | 'scales' | 'zeroPoint' | 'spans'> {
  const { dtype, scale, zeroPoint, block } = encoding;
  const single = scale.length === 1;
  const zero = zeroPoint?.[0] ?? 0;
  const [low, high] = integerRange(dtype);
  let [least, most] = [scale[0]!, scale[0]!];
  for (const each of scale) {
    if (each < least) least = each;
    if (each > most) most = each;
  }
  return {
    dtype,
    form: encodingForm(encoding),
    ...(block === undefined ? {} : { block }),
    scales: { count: scale.length, least, most },
    ...(single ? { zeroPoint: zero, spans: [least * (low - zero), least * (high - zero)] as const } : {}),
  };
}

/** Values of a decoder that a rotation turns: the residual stream, what norms make of it, and the values of the heads. */
function isRotated(name: string): boolean {
  return /residual|_norm|embed|o_proj|down_proj|v_proj|mixed|context|value/.test(name);
}

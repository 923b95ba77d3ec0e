import { NpucError } from '../compiler/errors.ts';
import { affineEncoding, type Encoding, sameEncoding, symmetricEncoding } from '../compiler/ir/encoding.ts';
import type { Graph, Use, Value } from '../compiler/ir/graph.ts';
import { insertCacheConversions, insertConversion } from '../passes/insert-conversions.ts';
import { planWeights, type WeightPlan } from './plan-weights.ts';
import {
  type Bits,
  clampedValues,
  computes,
  isReal,
  movesData,
  type PrecisionPlan,
  planPrecision,
  readsAsData,
  type ValueGroup,
} from './precision.ts';
import { chooseRange } from './range.ts';
import { cacheBits, hasFloatActivations, type NumberFormat, type Recipe } from './recipe.ts';
import { movementRoot, type Statistics } from './statistics.ts';

/** Decisions by value name: they hold for every graph (prefill, decode, any shape) of one checkpoint and target. */
export interface Plan {
  readonly activations: ReadonlyMap<string, { readonly encoding: Encoding; readonly why: string }>;
  readonly weights: ReadonlyMap<string, WeightPlan>;
  /** Embedding tables with a scale per row. */
  readonly tables: ReadonlySet<string>;
  readonly remarks: readonly string[];
}

/**
 * Inserts the requantizations that the recipe calls for; do it to every graph before planning or applying.
 * Deterministic in names, so that one plan serves all graphs.
 */
export function prepareGraph(
  graph: Graph,
  opset: number,
  recipe: Recipe,
  format: NumberFormat,
  statistics: Statistics,
): void {
  if (hasFloatActivations(recipe)) return;
  const before = planPrecision(graph, opset, recipe, format, statistics);
  const cacheType = format.cache[cacheBits(recipe, format)];
  insertCacheConversions(graph, (output) => {
    const maker = movementRoot(output).producer;
    const bits = (maker && before.nodes.get(maker)) ?? recipe.activation;
    return format.activation[bits].dtype !== cacheType;
  });
  const precision = planPrecision(graph, opset, recipe, format, statistics);
  for (const value of [...graph.values]) {
    const group = precision.groups.get(value);
    if (!group || value.data) continue;
    const wrong = new Map<Bits, Use[]>();
    for (const use of value.uses) {
      const bits = precision.nodes.get(use.node);
      if (bits === undefined || use.node.op === 'Identity' || bits === group.bits) continue;
      if (group.cache && format.mixedProducts && use.node.op === 'MatMul' && use.index === 1) continue;
      wrong.set(bits, [...(wrong.get(bits) ?? []), use]);
    }
    for (const [bits, uses] of wrong) insertConversion(graph, value, `as${bits}`, uses);
  }
  if (format.rightOperand) convertRightOperands(graph, precision);
}

const RIGHT = '.right';

/** Puts a change of format before the right operand of every 16-bit product of two computed values. */
function convertRightOperands(graph: Graph, precision: PrecisionPlan): void {
  for (const [node, bits] of precision.nodes) {
    if (node.op !== 'MatMul' || bits !== 16) continue;
    const value = node.input(1);
    // A cache has a format of its own.
    if (value.data || precision.groups.get(value)?.cache) continue;
    insertConversion(graph, value, RIGHT.slice(1), [{ node, index: 1 }]);
  }
}

/**
 * Makes the plan from a prepared graph that has every value (the decode graph).
 * @param embeddings names of lookup tables whose rows may have a scale each
 * @throws QT103 when a value was never seen in calibration
 */
export function planQuantization(
  graph: Graph,
  opset: number,
  recipe: Recipe,
  format: NumberFormat,
  statistics: Statistics,
  embeddings: ReadonlySet<string> = new Set(),
): Plan {
  const activations = new Map<string, { encoding: Encoding; why: string }>();
  if (recipe.scheme === 'fp16') return { activations, weights: new Map(), tables: new Set(), remarks: [] };
  const tables = new Set(format.table === 'row' ? [...embeddings].filter((name) => graph.find(name)) : []);
  if (hasFloatActivations(recipe)) {
    const remarks: string[] = [];
    return { activations, weights: planWeights(graph, recipe, format, remarks), tables, remarks };
  }
  const precision = planPrecision(graph, opset, recipe, format, statistics);
  const remarks = [...precision.remarks];
  const weights = planWeights(graph, recipe, format, remarks);
  const biases = new Set([...weights.values()].flatMap((weight) => weight.biases.map(({ name }) => name)));
  const clamped = clampedValues(graph, opset);
  const context: PlanContext = { opset, recipe, format, statistics, precision, clamped };
  for (const group of new Set(precision.groups.values())) {
    if (group.why === '' && !group.cache) continue;
    const values = group.values.filter(({ name }) => !weights.has(name) && !tables.has(name) && !biases.has(name));
    const computed = values.filter((value) => value.data === undefined);
    if (computed.length > 0) {
      const encoding = encodeGroup({ ...group, values }, context);
      for (const value of computed) activations.set(value.name, { encoding, why: group.why });
      for (const value of values) if (value.data) activations.set(value.name, { encoding, why: group.why });
      continue;
    }
    for (const value of values) planConstant(value, precision, format, activations);
  }
  return { activations, weights, tables, remarks };
}

/** What every encoding is decided from. */
interface PlanContext {
  readonly opset: number;
  readonly recipe: Recipe;
  readonly format: NumberFormat;
  readonly statistics: Statistics;
  readonly precision: PrecisionPlan;
  readonly clamped: ReadonlySet<Value>;
}

function encodeGroup(group: ValueGroup, context: PlanContext): Encoding {
  const { format, recipe, statistics } = context;
  const fixed = group.cache ? undefined : fixedEncoding(group, context);
  if (fixed) return fixed;
  let min = Number.POSITIVE_INFINITY;
  let max = Number.NEGATIVE_INFINITY;
  for (const value of group.values) {
    const range = context.clamped.has(value) ? undefined : rangeOf(value, recipe, group.bits, statistics);
    if (!range) continue;
    if (!Number.isFinite(range.min) || !Number.isFinite(range.max)) throw notFinite(value, range);
    min = Math.min(min, range.min);
    max = Math.max(max, range.max);
  }
  if (min > max) {
    throw new NpucError('QT103', {
      message: `${group.values[0]!.name} was never seen in calibration`,
      where: group.values[0]!.name,
      exitCode: 70,
    });
  }
  if (group.cache) return symmetricEncoding(format.cache[group.bits], Math.max(-min, max));
  if (format.rightOperand && group.values.some((value) => isRightOperand(value)))
    return symmetricEncoding(format.rightOperand, Math.max(-min, max));
  const { dtype, symmetric } = format.activation[group.bits];
  return symmetric ? symmetricEncoding(dtype, Math.max(-min, max)) : affineEncoding(dtype, min, max);
}

function isRightOperand(value: Value): boolean {
  return value.producer?.op === 'Identity' && value.name.endsWith(RIGHT);
}

function notFinite(value: Value, range: { min: number; max: number }): NpucError {
  const where = value.producer?.from[0] ?? value.producer?.name;
  return new NpucError('QT010', {
    message: `${value.name} is not finite in calibration: ${range.min} to ${range.max}`,
    where: where || value.name,
    hint: 'a mask of -inf or an overflow cannot be quantized: limit it in the model, or check the samples',
  });
}

/** The encoding that the target's kernels fix, where all that the group's elements come from has the same one. */
function fixedEncoding(group: ValueGroup, { format, opset }: PlanContext): Encoding | undefined {
  const roots = group.values.filter((value) => !value.producer || !movesData(value.producer, opset));
  const encodings = roots.map((value) => value.producer && format.fixed[value.producer.op]?.[group.bits]);
  const [first] = encodings;
  return first && encodings.every((other) => other && sameEncoding(first, other)) ? first : undefined;
}

/** The range that a value's encoding must hold, by what calibration saw of it or of what it consists of. */
export function rangeOf(
  value: Value,
  recipe: Recipe,
  bits: Bits,
  statistics: Statistics,
): { min: number; max: number } | undefined {
  if (value.data) return rangeOfConstant(value);
  const root = movementRoot(value);
  const seen = statistics.get(root.name) ?? statistics.get(root.name.replace(/(\.(wide|as8|as16|right))+$/, ''));
  return seen && withinBounds(root, chooseRange(seen, recipe, bits, isProduct(root)));
}

/** Whether a value is the product of two computed ones, with bounds or without. */
function isProduct({ producer }: Value): boolean {
  if (producer?.op === 'Clip') return isProduct(producer.input(0));
  return producer?.op === 'Mul' && producer.inputs.every((input) => input && isReal(input) && !input.data);
}

/** No headroom beyond the constant bounds of a Clip. */
function withinBounds(value: Value, range: { min: number; max: number }): { min: number; max: number } {
  if (value.producer?.op !== 'Clip') return range;
  const [low, high] = [1, 2].map((index) => value.producer?.inputs[index]?.data?.toFloats()[0]);
  return { min: Math.max(range.min, low ?? range.min), max: Math.min(range.max, high ?? range.max) };
}

function rangeOfConstant(value: Value): { min: number; max: number } {
  let min = 0;
  let max = 0;
  for (const element of value.data!.toFloats()) {
    if (element < min) min = element;
    if (element > max) max = element;
  }
  return { min, max };
}

/** Constants that are operands of computing ops (norm weights, biases): the reader's width, one scale. */
function planConstant(
  value: Value,
  precision: PrecisionPlan,
  format: NumberFormat,
  activations: Map<string, { encoding: Encoding; why: string }>,
): void {
  const readers = [...value.uses].filter(readsAsData).flatMap(({ node }) => (precision.nodes.has(node) ? [node] : []));
  if (readers.length === 0 || readers.every((node) => format.floatConstants.has(node.op))) return;
  const bits = readers.reduce<Bits>((most, node) => (precision.nodes.get(node)! > most ? 16 : most), 8);
  const { min, max } = rangeOfConstant(value);
  const { dtype, symmetric } = format.activation[bits];
  const encoding = symmetric ? symmetricEncoding(dtype, Math.max(-min, max)) : affineEncoding(dtype, min, max);
  activations.set(value.name, { encoding, why: 'constant operand' });
}

/**
 * Writes the plan's encodings into a prepared graph.
 * @param weightEncodings chosen scales by weight name (calibration/weights.ts)
 * @throws QT103 when a computed value of this graph is not in the plan
 */
export function applyPlan(
  graph: Graph,
  opset: number,
  plan: Plan,
  weightEncodings: ReadonlyMap<string, Encoding>,
): void {
  for (const weight of plan.weights.values()) encodeBiases(graph, weight, plan, weightEncodings);
  for (const value of graph.values) {
    const encoding = weightEncodings.get(value.name) ?? plan.activations.get(value.name)?.encoding;
    if (encoding) value.encoding = encoding;
    else if (plan.activations.size === 0) continue;
    else if (isReal(value) && value.producer && computes(value.producer, opset)) {
      throw new NpucError('QT103', {
        message: `${value.name} is not in the quantization plan`,
        where: value.name,
        exitCode: 70,
      });
    }
  }
}

/** Integer biases, i32: scale = input scale * weight scale of each output channel, zero point 0 (ONNX QLinearConv). */
function encodeBiases(
  graph: Graph,
  weight: WeightPlan,
  plan: Plan,
  weightEncodings: ReadonlyMap<string, Encoding>,
): void {
  const scales = weightEncodings.get(weight.name)?.scale;
  if (!scales) return;
  for (const { name, input } of weight.biases) {
    const bias = graph.find(name);
    const step = plan.activations.get(input)?.encoding.scale[0];
    if (!bias || step === undefined) continue;
    const scale = Float32Array.from({ length: bias.dims[0]! }, (_, n) => step * scales[scales.length === 1 ? 0 : n]!);
    bias.encoding = { dtype: 'i32', scale, axis: 0 };
  }
}

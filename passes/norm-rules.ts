import { dtypeOfOnnxCode } from '../compiler/ir/dtype.ts';
import {
  type Attribute,
  floatAttribute,
  type Graph,
  intAttribute,
  type Node,
  type Value,
} from '../compiler/ir/graph.ts';
import { any, constant, either, type Match, number, op, type Pattern } from '../compiler/match.ts';
import type { Builder, Rule } from '../compiler/rewrite.ts';
import {
  filledVector,
  isFloatValue,
  knownDType,
  knownShape,
  lastLength,
  reducesLastAxis,
  reshapeTensor,
} from '../compiler/value-facts.ts';

/** What the fusions of RMSNormalization and LayerNormalization share: statistics over the last axis, scale, bias, casts. */

export type NormOp = 'RMSNormalization' | 'LayerNormalization';

/** x squared, in the two ways exporters write it. */
export function squared(x: Pattern): Pattern {
  return either(op('Pow', [x, number(2)]), op('Mul', [x, x]));
}

/** The mean of x; axes are an attribute before opset 18 and an input since. */
export function meanOf(x: Pattern, as: string): Pattern {
  return either(op('ReduceMean', [x], { as }), op('ReduceMean', [x, constant(`${as}-axes`)], { as }));
}

/** x / sqrt(square + eps), in the ways that exporters write it. */
export function dividedByRoot(x: Pattern, square: Pattern): Pattern {
  const sum = op('Add', [square, any('eps')]);
  const root = op('Sqrt', [sum]);
  return either(
    op('Div', [x, root]),
    op('Mul', [x, op('Reciprocal', [root])]),
    op('Mul', [x, op('Div', [number(1), root])]),
    op('Mul', [x, op('Pow', [sum, number(-0.5)])]),
  );
}

/** Why statistics are not what a norm over the last axis needs; true when they are. */
export function checkStatistics(match: Match, means: readonly string[]): true | string {
  const x = match.value('x');
  if (match.number('eps') === undefined) return `epsilon %${match.value('eps').name} is not a constant number`;
  for (const mean of means)
    if (!reducesLastAxis(match.node(mean))) return `${match.node(mean).name} does not reduce the last axis only`;
  if (lastLength(x) === undefined) return `the last dimension of %${x.name} is not known`;
  return isFloatValue(x) ? true : `%${x.name} is not a float`;
}

/** A norm of x with a scale of ones: the rules for scale and bias follow. */
export function buildNorm(norm: NormOp, match: Match, build: Builder): Value {
  const x = match.value('x');
  return build.emit(norm, [x, ones(build.graph, x)], {
    attributes: { axis: intAttribute(-1), epsilon: floatAttribute(Math.fround(match.number('eps')!)) },
  });
}

function ones(graph: Graph, like: Value): Value {
  return graph.addConstant('ones', filledVector(like.dtype, lastLength(like)!, 1));
}

/** Whether a norm's scale is the ones that `buildNorm` made. */
function hasUnitScale(node: Node): boolean {
  const scale = node.inputs[1];
  return scale?.data !== undefined && !scale.encoding && scale.data.toFloats().every((entry) => entry === 1);
}

/** Why a value cannot be a norm's scale or bias, or undefined when it can. */
function unfitVector(value: Value, x: Value): string | undefined {
  const length = lastLength(x);
  const shape = knownShape(value);
  const isVector = shape?.at(-1) === length && (shape?.length === 1 || (value.data && value.data.size === length));
  if (!isVector) return `%${value.name} is not a vector of ${length}`;
  if (knownDType(value) !== knownDType(x)) return `%${value.name} has another type than %${x.name}`;
  return shape!.length > 1 && value.encoding ? `the encoding of %${value.name} would be lost` : undefined;
}

/** A scale or bias as a vector: constants of shape [1,1,n] are relabelled. */
function asVector(value: Value, build: Builder): Value {
  if (value.shape.length === 1) return value;
  return build.graph.addConstant(value.name, reshapeTensor(value.data!, [value.data!.size]));
}

const attributesOf = (node: Node): Record<string, Attribute> => Object.fromEntries(node.attributes);

/** Mul(norm(x, ones), w) -> norm(x, w) */
export function scaleRule(norm: NormOp): Rule {
  return {
    pattern: op('Mul', [op(norm, [any('x'), constant('ones')], { as: 'norm' }), any('w')]),
    check: (match) => {
      const node = match.node('norm');
      if (node.int('axis', -1) !== -1) return `${node.name} does not normalize the last axis only`;
      if (!hasUnitScale(node)) return `${node.name} has a scale already`;
      return unfitVector(match.value('w'), match.value('x')) ?? true;
    },
    rewrite: (match, build) =>
      build.emit(norm, [match.value('x'), asVector(match.value('w'), build)], {
        attributes: attributesOf(match.node('norm')),
      }),
  };
}

/** Add(norm(x, w), b) -> norm(x, w, b), for LayerNormalization */
export const biasRule: Rule = {
  pattern: op('Add', [op('LayerNormalization', [any('x'), any('w')], { as: 'norm' }), constant('b')]),
  check: (match) => {
    const node = match.node('norm');
    if (node.int('axis', -1) !== -1) return `${node.name} does not normalize the last axis only`;
    return unfitVector(match.value('b'), match.value('x')) ?? true;
  },
  rewrite: (match, build) =>
    build.emit('LayerNormalization', [match.value('x'), match.value('w'), asVector(match.value('b'), build)], {
      attributes: attributesOf(match.node('norm')),
    }),
};

/**
 * Cast(norm(Cast(x, f32), ones), f16) -> norm(x, ones): with stash_type 1, its default, a norm computes in f32 by itself.
 */
export function castRule(norm: NormOp): Rule {
  return {
    pattern: op('Cast', [op(norm, [op('Cast', [any('x')]), constant('ones')], { as: 'norm' })]),
    check: (match) => {
      const node = match.node('norm');
      const x = match.value('x');
      const to = dtypeOfOnnxCode(match.root.int('to', 0));
      if (to !== knownDType(x) || (to !== 'f16' && to !== 'bf16')) return `%${x.name} is not of the type cast back to`;
      if (knownDType(node.input(0)) !== 'f32' || node.int('stash_type', 1) !== 1) return `${node.name} is not in f32`;
      if (lastLength(x) === undefined) return `the last dimension of %${x.name} is not known`;
      return hasUnitScale(node) ? true : `${node.name} has a scale in f32`;
    },
    rewrite: (match, build) => {
      const x = match.value('x');
      return build.emit(norm, [x, ones(build.graph, x)], { attributes: attributesOf(match.node('norm')) });
    },
  };
}

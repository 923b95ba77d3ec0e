import { DTYPES, type DType } from '../compiler/ir/dtype.ts';
import { intAttribute, intsAttribute, type Node, type Value } from '../compiler/ir/graph.ts';
import type { Match } from '../compiler/match.ts';
import type { Builder } from '../compiler/rewrite.ts';
import { knownDType, knownRank, scalarTensor } from '../compiler/value-facts.ts';

/** What the decompositions of RMSNormalization and LayerNormalization share. */

/** Why a norm cannot be written out, or true when it can. */
export function checkNorm(match: Match): true | string {
  const { root } = match;
  if (normAxes(root) === undefined) return `the rank of %${root.input(0).name} is not known`;
  return knownDType(root.input(0)) === undefined ? `the type of %${root.input(0).name} is not known` : true;
}

/** The normalized axes, counted from the back: `axis` up to the last one. */
export function normAxes(node: Node): number[] | undefined {
  const axis = node.int('axis', -1);
  const rank = knownRank(node.inputs[0]);
  if (axis >= 0 && rank === undefined) return undefined;
  const count = axis < 0 ? -axis : rank! - axis;
  return Array.from({ length: count }, (_, index) => index - count);
}

/** ReduceMean in the form of the opset: axes are an input since 18. */
export function reduceMean(x: Value, axes: readonly number[], build: Builder): Value {
  const keepdims = intAttribute(1);
  if (build.opset < 18) return build.emit('ReduceMean', [x], { attributes: { axes: intsAttribute(axes), keepdims } });
  return build.emit('ReduceMean', [x, build.integers('axes', axes)], { attributes: { keepdims } });
}

/** x / sqrt(mean(x^2) + epsilon) */
export function divideByRoot(x: Value, dtype: DType, node: Node, build: Builder): Value {
  const square = build.emit('Mul', [x, x]);
  const mean = reduceMean(square, normAxes(node)!, build);
  const epsilon = build.graph.addConstant('epsilon', scalarTensor(dtype, node.float('epsilon', 1e-5)));
  const root = build.emit('Sqrt', [build.emit('Add', [mean, epsilon])]);
  return build.emit('Div', [x, root]);
}

/** Computes in f32 where the norm's stash_type says so, and casts back. */
export function stashed(node: Node, build: Builder, compute: (x: Value, dtype: DType) => Value): Value {
  const x = node.input(0);
  if (x.dtype === 'f32' || node.int('stash_type', 1) !== 1) return compute(x, x.dtype);
  const wide = build.emit('Cast', [x], { attributes: { to: intAttribute(DTYPES.f32.code) } });
  return build.emit('Cast', [compute(wide, 'f32')], { attributes: { to: intAttribute(DTYPES[x.dtype].code) } });
}

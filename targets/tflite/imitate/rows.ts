import type { Value } from '../../../compiler/ir/graph.ts';
import type { Arithmetic } from './arithmetic.ts';

/**
 * The integers that a dynamic kernel makes of floats, less their zero points, and their scales: every row of the last axis, or
 * every sample, gets signed bytes of its own (XNNPACK's qd8: xnnpack/quantization.h and f32-qs8-vcvt).
 *
 *     q = clip(round(x * m), -128 - z, 127 - z),   scale = 1 / m,   m = 255 / (max(x, 0) - min(x, 0)),   z = its zero point
 *
 * @param axes that share a scale
 */
export function quantizeRows(
  x: Value,
  axes: readonly number[],
  math: Arithmetic,
): { readonly integers: Value; readonly scale: Value } {
  const number = (value: number): Value => math.constant('f32', [], [value]);
  const over = math.constant('i64', [axes.length], axes);
  const [zero, low, high] = [number(0), number(-128), number(127)];
  const least = math.op('Min', [math.op('ReduceMin', [x, over]), zero]);
  const most = math.op('Max', [math.op('ReduceMax', [x, over]), zero]);
  const range = math.op('Sub', [most, least]);
  const multiplier = math.op('Where', [
    math.op('Equal', [range, zero]),
    number(1),
    math.op('Div', [number(255), range]),
  ]);
  const [from, to] = [math.op('Mul', [least, multiplier]), math.op('Mul', [most, multiplier])];
  const errors = math.op('Add', [math.op('Add', [low, from]), math.op('Add', [high, to])]);
  const exact = math.op('Where', [
    math.op('Greater', [errors, zero]),
    math.op('Sub', [low, from]),
    math.op('Sub', [high, to]),
  ]);
  const zeroPoint = math.op('Round', [math.op('Clip', [exact, low, high])]);
  const scale = math.op('Reciprocal', [multiplier]);
  const scaled = math.op('Mul', [x, math.op('Reciprocal', [scale])]);
  const limited = math.op('Min', [
    math.op('Max', [scaled, math.op('Sub', [low, zeroPoint])]),
    math.op('Sub', [high, zeroPoint]),
  ]);
  return { integers: math.op('Round', [limited]), scale };
}

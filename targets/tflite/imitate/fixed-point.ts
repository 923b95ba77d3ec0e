import { type Encoding, integerRange, roundEven } from '../../../compiler/ir/encoding.ts';
import type { Node, Value } from '../../../compiler/ir/graph.ts';
import type { Arithmetic } from './arithmetic.ts';

function finish(node: Node, integers: Value, math: Arithmetic): Value {
  return saturate(integers, node.output().encoding!, math);
}

/** Integers less their zero point, limited to the encoding's type, as real numbers. */
function saturate(integers: Value, encoding: Encoding, math: Arithmetic): Value {
  const [low, high] = integerRange(encoding.dtype);
  const zero = encoding.zeroPoint?.[0] ?? 0;
  const limited = math.op('Clip', [integers, math.number(low - zero), math.number(high - zero)]);
  return math.reals(limited, encoding);
}

const step = (value: Value): number => value.encoding!.scale[0]!;

/**
 * QUANTIZE of floats. The delegate, which takes 8 bits, multiplies in 32-bit floats and rounds ties to even; the runtime's own
 * kernel divides in 64 bits and rounds them away from zero.
 */
export function imitateQuantize(x: Value, encoding: Encoding, math: Arithmetic): Value {
  const scale = encoding.scale[0]!;
  const narrow = (): Value => math.op('Round', [math.op('Mul', [x, math.constant('f32', [], [1 / scale])])]);
  const wide = (): Value => math.roundAway(math.op('Div', [math.cast(x, 'f64'), math.number(scale)]));
  return saturate(encoding.dtype === 'i8' ? math.cast(narrow(), 'f64') : wide(), encoding, math);
}

/** QUANTIZE between integer formats (reference/requantize.h). */
export function imitateRequantize(node: Node, math: Arithmetic): Value {
  const x = node.input(0);
  return finish(node, math.multiply(math.integers(x), step(x) / step(node.output())), math);
}

/** MUL of 16-bit integers. */
export function imitateMul(node: Node, math: Arithmetic): Value {
  const [a, b] = [node.input(0), node.input(1)];
  const product = math.op('Mul', [math.integers(a), math.integers(b)]);
  return finish(node, math.multiply(product, productFactor(step(a), step(b), step(node.output()))), math);
}

/** ADD and SUB of 16-bit integers of any scale: both become steps of 2^-15 of twice the larger scale (kernels/add.cc). */
export function imitateAdd(node: Node, math: Arithmetic): Value {
  const [a, b] = [node.input(0), node.input(1)];
  const common = 2 * Math.max(step(a), step(b));
  const term = (value: Value): Value =>
    math.multiply(math.op('Mul', [math.integers(value), math.number(2 ** 15)]), step(value) / common);
  const sum = math.op(node.op, [term(a), term(b)]);
  return finish(node, math.multiply(sum, common / (2 ** 15 * step(node.output()))), math);
}

/**
 * ADD and SUB of 8-bit integers, as the delegate computes them: both factors in steps of one power of two, so that the larger
 * has 21 bits, and ties up (XNNPACK's qs8-vadd).
 */
export function imitateNarrowAdd(node: Node, math: Arithmetic): Value {
  const [a, b] = [node.input(0), node.input(1)];
  const factors = [a, b].map((value) => Math.fround(step(value) / step(node.output())));
  const shift = 20 - Math.floor(Math.log2(Math.max(...factors)));
  const [first, second] = [a, b].map((value, i) =>
    math.op('Mul', [math.integers(value), math.number(roundEven(factors[i]! * 2 ** shift))]),
  );
  const scaled = math.op('Mul', [math.op(node.op, [first!, second!]), math.number(2 ** -shift)]);
  return finish(node, math.roundUp(scaled), math);
}

/** Sums of 8-bit products times a factor in 32-bit floats, ties to even, as the delegate requantizes. */
function requantizeNarrow(node: Node, sums: Value, factors: readonly number[], math: Arithmetic): Value {
  const rounded = math.op('Round', [math.op('Mul', [sums, math.constant('f32', [factors.length], factors)])]);
  return finish(node, math.cast(rounded, 'f64'), math);
}

/** MUL of 8-bit integers (XNNPACK's qs8-vmul). */
export function imitateNarrowMul(node: Node, math: Arithmetic): Value {
  const [a, b] = [node.input(0), node.input(1)];
  const product = math.op('Mul', [math.steps(a), math.steps(b)]);
  return requantizeNarrow(node, product, [productFactor(step(a), step(b), step(node.output()))], math);
}

/** BATCH_MATMUL of 8-bit integers. Their sums are integers that 32-bit floats hold up to 2^24. */
export function imitateNarrowMatMul(node: Node, math: Arithmetic): Value {
  const [a, b] = [node.input(0), node.input(1)];
  const sums = math.op('MatMul', [math.steps(a), math.steps(b)]);
  return requantizeNarrow(node, sums, [productFactor(step(a), step(b), step(node.output()))], math);
}

/** FULLY_CONNECTED of 8-bit integers. @param weight integers as floats, [K, N] */
export function imitateNarrowProduct(node: Node, weight: Value, scales: Float32Array, math: Arithmetic): Value {
  const x = node.input(0);
  const factors = Array.from(scales, (scale) => productFactor(step(x), scale, step(node.output())));
  return requantizeNarrow(node, math.op('MatMul', [math.steps(x), weight]), factors, math);
}

/** The factor from steps of a product to those of the result, divided in 32-bit floats. */
function productFactor(a: number, b: number, result: number): number {
  return Math.fround(Math.fround(a * b) / result);
}

/**
 * FULLY_CONNECTED of 16-bit integers without a bias: sums of 32 bits. The upper and the lower byte are multiplied apart, so that 32-bit floats
 * hold the sums.
 * @param weight integers as floats, [K, N]
 * @param scales of the weight's columns
 */
export function imitateWideProduct(node: Node, weight: Value, scales: Float32Array, math: Arithmetic): Value {
  const x = node.input(0);
  const integers = math.steps(x);
  const byte = math.constant('f32', [], [256]);
  const upper = math.op('Floor', [math.op('Div', [integers, byte])]);
  const lower = math.op('Sub', [integers, math.op('Mul', [upper, byte])]);
  const product = (part: Value): Value => math.cast(math.op('MatMul', [part, weight]), 'f64');
  const sums = math.op('Add', [math.op('Mul', [product(upper), math.number(256)]), product(lower)]);
  const factors = Array.from(scales, (scale) => (step(x) * scale) / step(node.output()));
  return finish(node, math.multiplyOnce(sums, factors), math);
}

/** BATCH_MATMUL of 16-bit integers: sums of 64 bits. */
export function imitateMatMul(node: Node, math: Arithmetic): Value {
  const [a, b] = [node.input(0), node.input(1)];
  const sums = math.op('MatMul', [math.integers(a), math.integers(b)]);
  return finish(node, math.multiplyWide(sums, (step(a) * step(b)) / step(node.output())), math);
}

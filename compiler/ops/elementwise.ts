import type { DType } from '../ir/dtype.ts';
import { roundEven } from '../ir/encoding.ts';
import type { Node } from '../ir/graph.ts';
import type { TensorData } from '../ir/tensor.ts';
import { type BinaryRule, combineElements, mapElements } from './broadcast.ts';
import { encodeReals, isInteger, need, newReals, readReals, withShape } from './elements.ts';
import { normalizeAxis } from './indexing.ts';
import { defineOp, type OpDefinition, type QuantizationRule } from './op.ts';
import { broadcastShapes, inputDtype, likeInput, nodeName, typeOrUnknown } from './shape-rules.ts';
import { erf } from './special.ts';

/** An op of two broadcast inputs whose output has the first one's type. */
function binary(
  name: string,
  since: number,
  rule: BinaryRule | ((dtype: DType, fmod: boolean) => BinaryRule),
  quantization: QuantizationRule = 'independent',
): OpDefinition {
  return defineOp({
    name,
    since,
    quantization,
    infer: (context) => [
      typeOrUnknown(
        inputDtype(context, 0) ?? (name === 'Pow' ? undefined : inputDtype(context, 1)),
        legacyAxis(context.node) === undefined
          ? broadcastShapes([context.shape(0), context.shape(1)], nodeName(context.node))
          : context.shape(0),
      ),
    ],
    evaluate: (inputs, { node }) => {
      const a = need(inputs, 0, nodeName(node));
      const b = alignLegacy(a.shape, need(inputs, 1, nodeName(node)), node);
      const chosen = typeof rule === 'function' ? rule(a.dtype, node.int('fmod', 0) === 1) : rule;
      return [combineElements(a, b, chosen, a.dtype, nodeName(node))];
    },
  });
}

/** Up to opset 6 `broadcast` with `axis` says at which axis of the first input the second one starts. */
function legacyAxis(node: Node): number | undefined {
  return node.int('broadcast', 0) === 1 ? node.int('axis') : undefined;
}

function alignLegacy(shape: readonly number[], b: TensorData, node: Node): TensorData {
  const axis = legacyAxis(node);
  if (axis === undefined) return b;
  const trailing = shape.length - normalizeAxis(axis, shape.length, nodeName(node)) - b.shape.length;
  return withShape(b, [...b.shape, ...new Array<number>(trailing).fill(1)]);
}

/** An op on every element of input 0, type kept. */
function unary(
  name: string,
  since: number,
  real: (x: number) => number,
  quantization: QuantizationRule = 'independent',
  big?: (x: bigint) => bigint,
): OpDefinition {
  return defineOp({
    name,
    since,
    quantization,
    infer: likeInput(),
    evaluate: (inputs, { node }) => [mapElements(need(inputs, 0, nodeName(node)), real, big)],
  });
}

/** An op that folds any number of broadcast inputs, two at a time. */
function variadic(name: string, since: number, rule: BinaryRule): OpDefinition {
  return defineOp({
    name,
    since,
    quantization: 'independent',
    infer: (context) => [
      typeOrUnknown(
        inputDtype(context, 0),
        broadcastShapes(
          context.node.inputs.map((_, index) => context.shape(index)),
          nodeName(context.node),
        ),
      ),
    ],
    evaluate: (inputs, { node }) => {
      const where = nodeName(node);
      const first = need(inputs, 0, where);
      const rest = inputs.slice(1).map((_, index) => need(inputs, index + 1, where));
      return [rest.reduce((sum, next) => combineElements(sum, next, rule, sum.dtype, where), first)];
    },
  });
}

/** 32-bit products beyond 2^53 must wrap exactly. */
const multiply = (dtype: DType): BinaryRule => ({
  real: dtype === 'i32' || dtype === 'u32' ? Math.imul : (x, y) => x * y,
  big: (x, y) => x * y,
});

/** Integer division truncates; a division by zero, undefined in ONNX, gives 0. */
const divide = (dtype: DType): BinaryRule => ({
  real: isInteger(dtype) ? (x, y) => (y === 0 ? 0 : Math.trunc(x / y)) : (x, y) => x / y,
  big: (x, y) => (y === 0n ? 0n : x / y),
});

/** fmod 1: the sign of the dividend (C fmod); 0: the sign of the divisor (Python). */
const modulo = (_: DType, fmod: boolean): BinaryRule => ({
  real: fmod ? (x, y) => x % y : (x, y) => (x % y !== 0 && x % y < 0 !== y < 0 ? (x % y) + y : x % y),
  big: (x, y) => {
    const rest = y === 0n ? 0n : x % y;
    return !fmod && rest !== 0n && rest < 0n !== y < 0n ? rest + y : rest;
  },
});

const bigMax = (x: bigint, y: bigint): bigint => (x > y ? x : y);
const bigMin = (x: bigint, y: bigint): bigint => (x < y ? x : y);

const mean = defineOp({
  name: 'Mean',
  since: 6,
  quantization: 'independent',
  infer: (context) => [
    typeOrUnknown(
      inputDtype(context, 0),
      broadcastShapes(
        context.node.inputs.map((_, index) => context.shape(index)),
        nodeName(context.node),
      ),
    ),
  ],
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const all = inputs.map((_, index) => need(inputs, index, where));
    const sum = all
      .slice(1)
      .reduce((total, next) => combineElements(total, next, { real: (x, y) => x + y }, 'f64', where), {
        ...all[0]!,
        dtype: 'f64' as DType,
        data: Float64Array.from(readReals(all[0]!)),
      } as TensorData);
    const out = newReals(all[0]!.dtype, sum.data.length);
    for (let i = 0; i < out.length; i++) out[i] = (sum.data[i] as number) / all.length;
    return [encodeReals(all[0]!.dtype, sum.shape, out)];
  },
});

const bitShift = defineOp({
  name: 'BitShift',
  since: 11,
  quantization: 'never',
  infer: (context) => [
    typeOrUnknown(
      inputDtype(context, 0),
      broadcastShapes([context.shape(0), context.shape(1)], nodeName(context.node)),
    ),
  ],
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const left = node.string('direction', 'LEFT') === 'LEFT';
    const rule: BinaryRule = {
      real: left ? (x, y) => (y > 31 ? 0 : x << y) : (x, y) => (y > 31 ? 0 : x >>> y),
      big: left ? (x, y) => x << y : (x, y) => x >> y,
    };
    const a = need(inputs, 0, where);
    return [combineElements(a, need(inputs, 1, where), rule, a.dtype, where)];
  },
});

const clip = defineOp({
  name: 'Clip',
  since: 6,
  quantization: 'independent',
  infer: likeInput(),
  evaluate: (inputs, { node, opset }) => {
    const x = need(inputs, 0, nodeName(node));
    const limit = (index: number, name: string, fallback: number): number => {
      if (opset < 11) return node.float(name, fallback);
      const bound = inputs[index];
      return bound ? readReals(bound)[0]! : fallback;
    };
    const low = limit(1, 'min', Number.NEGATIVE_INFINITY);
    const high = limit(2, 'max', Number.POSITIVE_INFINITY);
    // Only 64-bit integers use these, whose limits are integers; a float's limit need not be one.
    const whole = (bound: number): bigint => BigInt(Math.trunc(Math.max(-(2 ** 63), Math.min(2 ** 63, bound))));
    const bigLow = Number.isNaN(low) ? 0n : whole(low);
    const bigHigh = Number.isNaN(high) ? 0n : whole(high);
    return [
      mapElements(
        x,
        (value) => Math.min(high, Math.max(low, value)),
        (value) => bigMin(bigHigh, bigMax(bigLow, value)),
      ),
    ];
  },
});

/** A test on every element. */
function test(
  name: string,
  since: number,
  holds: (x: number, node: { int(name: string, fallback: number): number }) => boolean,
): OpDefinition {
  return defineOp({
    name,
    since,
    quantization: 'never',
    infer: likeInput('bool'),
    evaluate: (inputs, { node }) => [
      mapElements(need(inputs, 0, nodeName(node)), (x) => (holds(x, node) ? 1 : 0), undefined, 'bool'),
    ],
  });
}

export const ELEMENTWISE_OPS: readonly OpDefinition[] = [
  binary('Add', 1, { real: (x, y) => x + y, big: (x, y) => x + y }),
  binary('Sub', 1, { real: (x, y) => x - y, big: (x, y) => x - y }),
  binary('Mul', 1, multiply),
  binary('Div', 1, divide),
  binary('Pow', 1, { real: (x, y) => x ** y, big: (x, y) => (y < 0n ? 0n : x ** y) }),
  binary('Mod', 10, modulo),
  binary('BitwiseAnd', 18, { real: (x, y) => x & y, big: (x, y) => x & y }, 'never'),
  binary('BitwiseOr', 18, { real: (x, y) => x | y, big: (x, y) => x | y }, 'never'),
  binary('BitwiseXor', 18, { real: (x, y) => x ^ y, big: (x, y) => x ^ y }, 'never'),
  bitShift,
  variadic('Max', 1, { real: Math.max, big: bigMax }),
  variadic('Min', 1, { real: Math.min, big: bigMin }),
  variadic('Sum', 1, { real: (x, y) => x + y }),
  mean,
  clip,
  unary('Abs', 6, Math.abs, 'independent', (x) => (x < 0n ? -x : x)),
  unary(
    'Neg',
    6,
    (x) => -x,
    'independent',
    (x) => -x,
  ),
  unary('Sign', 9, Math.sign, 'independent', (x) => (x > 0n ? 1n : x < 0n ? -1n : 0n)),
  unary('Ceil', 6, Math.ceil),
  unary('Floor', 6, Math.floor),
  unary('Round', 11, (x) => (Number.isFinite(x) ? roundEven(x) : x)),
  unary('Sqrt', 6, Math.sqrt),
  unary('Reciprocal', 6, (x) => 1 / x),
  unary('Exp', 6, Math.exp),
  unary('Log', 6, Math.log),
  unary('Sin', 7, Math.sin, { fixed: [-1, 1] }),
  unary('Cos', 7, Math.cos, { fixed: [-1, 1] }),
  unary('Tan', 7, Math.tan),
  unary('Asin', 7, Math.asin),
  unary('Acos', 7, Math.acos),
  unary('Atan', 7, Math.atan),
  unary('Sinh', 9, Math.sinh),
  unary('Cosh', 9, Math.cosh),
  unary('Asinh', 9, Math.asinh),
  unary('Acosh', 9, Math.acosh),
  unary('Atanh', 9, Math.atanh),
  unary('Erf', 9, erf, { fixed: [-1, 1] }),
  unary(
    'BitwiseNot',
    18,
    (x) => ~x,
    'never',
    (x) => ~x,
  ),
  test('IsNaN', 9, Number.isNaN),
  test(
    'IsInf',
    10,
    (x, node) =>
      (x === Number.POSITIVE_INFINITY && node.int('detect_positive', 1) === 1) ||
      (x === Number.NEGATIVE_INFINITY && node.int('detect_negative', 1) === 1),
  ),
];

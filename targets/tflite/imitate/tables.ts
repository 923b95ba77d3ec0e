import { intAttribute, type Node, type Value } from '../../../compiler/ir/graph.ts';
import type { Arithmetic } from './arithmetic.ts';

const ENTRIES = 513;

/** Nearest integer, ties away from zero, as std::round. */
const round = (x: number): number => Math.sign(x) * Math.floor(Math.abs(x) + 0.5);
const clamp = (x: number, low: number, high: number): number => Math.min(high, Math.max(low, x));

/** Samples of a function at 513 places in steps of 1/32768, moved by half of what interpolation errs at midpoints. */
function sampleTable(f: (x: number) => number, from: number, to: number): Int32Array {
  const step = (to - from) / (ENTRIES - 1);
  const at = (x: number): number => round(f(x) * 32768);
  return Int32Array.from({ length: ENTRIES }, (_, i) => {
    if (i === ENTRIES - 1) return clamp(at(to), -32768, 32767);
    const x = from + i * step;
    const sample = at(x);
    const between = round((f(x + step) * 32768 + sample) / 2);
    const error = between - at(x + step / 2);
    return clamp(sample - round(error / 2), -32768, 32767);
  });
}

/** What looking up every 16-bit integer in a table of 513 gives, by integer + 32768: the low 7 bits interpolate. */
function expandTable(table: Int32Array): Float64Array {
  return Float64Array.from({ length: 65536 }, (_, i) => {
    const [base, next] = [table[i >> 7]!, table[(i >> 7) + 1]!];
    return base + (((next - base) * (i & 127) + 64) >> 7);
  });
}

let softmaxTables: { readonly exponential: Float64Array; readonly reciprocal: Float64Array } | undefined;

/**
 * SOFTMAX of 16-bit integers (reference/softmax.h, SoftmaxInt16): exponentials and the reciprocal of their sum from tables of
 * 1/32768. Differences below -10 count as e^-10, which the table has as 2: a masked slot is never nothing.
 */
export function imitateSoftmax(node: Node, math: Arithmetic): Value {
  softmaxTables ??= {
    exponential: expandTable(sampleTable(Math.exp, -10, 0)),
    reciprocal: expandTable(sampleTable((x) => 1 / (1 + x), 0, 1)),
  };
  const x = node.input(0);
  const last = math.constant('i64', [1], [-1]);
  const look = (table: Float64Array, integers: Value): Value => {
    const places = math.op('Clip', [integers, math.number(-32768), math.number(32767)]);
    const index = math.cast(math.op('Add', [places, math.number(32768)]), 'i64');
    return math.op('Gather', [math.constant('f64', [65536], table), index], { axis: intAttribute(0) });
  };
  const integers = math.integers(x);
  const below = math.op('Sub', [integers, math.op('ReduceMax', [integers, last])]);
  const scaled = math.multiply(below, x.encoding!.scale[0]! / (10 / 65535));
  const exponentials = look(softmaxTables.exponential, math.op('Add', [scaled, math.number(32767)]));
  const sum = math.op('ReduceSum', [exponentials, last]);
  // The sum's highest bit, of those above the 14th: a row's largest exponential alone is 32767.
  const powers = Array.from({ length: 16 }, (_, i) => 2 ** (15 + i));
  const reached = math.cast(math.op('GreaterOrEqual', [sum, math.constant('f64', [powers.length], powers)]), 'f64');
  const bit = math.cast(math.op('ReduceSum', [reached, last]), 'i64');
  const unit = math.op('Gather', [math.constant('f64', [17], [2 ** 14, ...powers]), bit], { axis: intAttribute(0) });
  // The sum in 1..2, in steps of 2^-16, and from -32768 for 1.
  const shifted = math.op('Floor', [
    math.op('Add', [math.op('Mul', [math.op('Div', [sum, unit]), math.number(65536)]), math.number(0.5)]),
  ]);
  const reciprocal = look(softmaxTables.reciprocal, math.op('Sub', [shifted, math.number(65536 + 32768)]));
  const product = math.op('Div', [math.op('Mul', [exponentials, reciprocal]), unit]);
  const rounded = math.roundUp(product);
  const result = math.op('Clip', [rounded, math.number(0), math.number(32767)]);
  return math.reals(result, node.output().encoding!);
}

/** Entries of the runtime's table that lie one above the nearest integer: it is fitted to the interpolation. */
const RAISED: ReadonlySet<number> = new Set([
  4, 8, 12, 14, 15, 16, 17, 19, 20, 21, 22, 25, 27, 28, 29, 30, 31, 33, 34, 35, 37, 39, 40, 41, 43, 44, 45, 46, 49, 50,
  54, 62, 63, 64, 66, 82, 86, 93, 100, 103, 112, 116, 135, 255,
]);

/** sigmoid(i / 24) in steps of 1/65536 (sigmoid_table_uint16 in kernels/internal/common.h). */
const SIGMOID = Int32Array.from({ length: 256 }, (_, i) => {
  return round(65536 / (1 + Math.exp(-i / 24))) + (RAISED.has(i) ? 1 : 0);
});

/** LOGISTIC of every 16-bit integer of a scale, by integer + 32768 (reference/integer_ops/logistic.h). */
export function logisticTable(scale: number): Float64Array {
  let factor = scale * 4096 * 3;
  let shift = 0;
  while (factor <= 32767 / 2 && shift <= 30) {
    shift++;
    factor *= 2;
  }
  const multiplier = Math.trunc(factor);
  return Float64Array.from({ length: 65536 }, (_, i) => {
    const input = Math.floor(((i - 32768) * multiplier + (shift > 0 ? 2 ** (shift - 1) : 0)) / 2 ** shift);
    const size = Math.abs(input);
    const place = Math.floor(size / 512);
    const [a, b] = [SIGMOID[place]!, SIGMOID[place + 1]!];
    const value = place >= 255 ? 0x7fff * 1024 : a * 512 + (size % 512) * (b - a);
    const signed = input >= 0 ? value + 512 : 2 ** 25 - value + 512 - 1;
    return Math.floor(signed / 1024);
  });
}

export function imitateLogistic(node: Node, math: Arithmetic): Value {
  const x = node.input(0);
  const table = math.constant('f64', [65536], logisticTable(x.encoding!.scale[0]!));
  const index = math.cast(math.op('Add', [math.integers(x), math.number(32768)]), 'i64');
  return math.reals(math.op('Gather', [table, index], { axis: intAttribute(0) }), node.output().encoding!);
}

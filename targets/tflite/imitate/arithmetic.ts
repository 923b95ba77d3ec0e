import { DTYPES } from '../../../compiler/ir/dtype.ts';
import type { Encoding } from '../../../compiler/ir/encoding.ts';
import { type Attribute, type Graph, intAttribute, type Node, type Value } from '../../../compiler/ir/graph.ts';
import { Tensor } from '../../../compiler/ir/tensor.ts';

/**
 * Writes the integer arithmetic of a kernel in front of a node, as operators on 64-bit floats: they hold every integer that
 * these kernels make and divide by powers of two exactly.
 */
export class Arithmetic {
  readonly #graph: Graph;
  readonly #before: Node;
  readonly #stem: string;

  constructor(graph: Graph, before: Node) {
    this.#graph = graph;
    this.#before = before;
    this.#stem = before.output().name;
  }

  op(name: string, inputs: readonly Value[], attributes: Record<string, Attribute> = {}): Value {
    return this.#graph.emit(name, inputs, {
      name: this.#graph.uniqueName(`${this.#stem}.${name.toLowerCase()}`),
      before: this.#before,
      attributes,
    });
  }

  constant(dtype: 'f32' | 'f64' | 'i64', shape: readonly number[], values: readonly number[] | Float64Array): Value {
    return this.tensor(Tensor.of(dtype, shape, Array.from(values)));
  }

  tensor(data: Tensor): Value {
    return this.#graph.addConstant(this.#graph.uniqueName(`${this.#stem}.constant`), data);
  }

  number(value: number): Value {
    return this.constant('f64', [], [value]);
  }

  cast(value: Value, dtype: 'f32' | 'f64' | 'i64'): Value {
    return this.op('Cast', [value], { to: intAttribute(DTYPES[dtype].code) });
  }

  /** The integers of an encoded value, less its zero point, in 32-bit floats. */
  steps(value: Value): Value {
    return this.op('Round', [this.op('Div', [value, this.constant('f32', [], [value.encoding!.scale[0]!])])]);
  }

  /** The same in 64-bit floats. */
  integers(value: Value): Value {
    return this.cast(this.steps(value), 'f64');
  }

  /** Integers less their zero point as the real numbers that they stand for, saturated by the encoding's type. */
  reals(integers: Value, encoding: Encoding): Value {
    return this.op('Mul', [this.cast(integers, 'f32'), this.constant('f32', [], [encoding.scale[0]!])]);
  }

  /** Nearest integers, ties up. */
  roundUp(value: Value): Value {
    return this.op('Floor', [this.op('Add', [value, this.number(0.5)])]);
  }

  /** Nearest integers, ties away from zero: gemmlowp's RoundingDivideByPOT. */
  roundAway(value: Value): Value {
    return this.op('Mul', [
      this.op('Sign', [value]),
      this.op('Floor', [this.op('Add', [this.op('Abs', [value]), this.number(0.5)])]),
    ]);
  }

  /**
   * MultiplyByQuantizedMultiplier of 32-bit integers (kernels/internal/common.cc): two roundings, ties up in the first, away
   * from zero in the second.
   */
  multiply(value: Value, factor: number): Value {
    const { mantissa, exponent } = fixedPoint(factor);
    const first = this.op('Mul', [value, this.number((mantissa / 2 ** 31) * 2 ** Math.max(0, exponent))]);
    const high = this.roundUp(first);
    if (exponent >= 0) return high;
    return this.roundAway(this.op('Mul', [high, this.number(2 ** exponent)]));
  }

  /** The same multiplier with one rounding, ties up: ruy's. @param factors one for each element of the last axis */
  multiplyOnce(value: Value, factors: readonly number[]): Value {
    const numbers = factors.map((factor) => {
      const { mantissa, exponent } = fixedPoint(factor);
      return mantissa * 2 ** (exponent - 31);
    });
    const scaled = this.op('Mul', [value, this.constant('f64', [numbers.length], numbers)]);
    return this.roundUp(scaled);
  }

  /** MultiplyByQuantizedMultiplier of 64-bit integers: a multiplier of 15 bits, one rounding, ties up. */
  multiplyWide(value: Value, factor: number): Value {
    const { mantissa, exponent } = fixedPoint(factor);
    const reduced = mantissa < 0x7fff0000 ? Math.floor((mantissa + 2 ** 15) / 2 ** 16) : 0x7fff;
    const scaled = this.op('Mul', [value, this.number(reduced * 2 ** (exponent - 15))]);
    return this.roundUp(scaled);
  }
}

/** A positive factor as QuantizeMultiplier writes it: mantissa of 31 bits, times 2^(exponent - 31). */
export function fixedPoint(factor: number): { readonly mantissa: number; readonly exponent: number } {
  if (factor === 0) return { mantissa: 0, exponent: 0 };
  let exponent = Math.floor(Math.log2(factor)) + 1;
  if (factor / 2 ** exponent >= 1) exponent++;
  if (factor / 2 ** exponent < 0.5) exponent--;
  // std::round of a positive number.
  let mantissa = Math.floor((factor / 2 ** exponent) * 2 ** 31 + 0.5);
  if (mantissa === 2 ** 31) {
    mantissa /= 2;
    exponent++;
  }
  return exponent < -31 ? { mantissa: 0, exponent: 0 } : { mantissa, exponent };
}

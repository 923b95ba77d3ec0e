import { NpucError } from '../errors.ts';
import type { DType } from '../ir/dtype.ts';
import type { Node } from '../ir/graph.ts';
import type { TensorData } from '../ir/tensor.ts';
import { castTarget } from './constant.ts';
import { encodeReals, isBig, isInteger, isMiniFloat, need, newArray, readReals } from './elements.ts';
import { encodeMiniFloat, encodeScale } from './float8.ts';
import { defineOp, type OpDefinition } from './op.ts';
import { inputDtype, nodeName, typeOrUnknown } from './shape-rules.ts';

/** How Cast treats numbers that the target cannot hold. */
interface CastOptions {
  /** 8-bit floats: the largest finite number (true) or infinity / NaN (false). */
  readonly saturate: boolean;
  /** f8e8m0 only. */
  readonly roundMode: 'up' | 'down' | 'nearest';
}

/** Converts elements: floats to integers truncate, integers to narrower ones wrap, anything to bool tests for non-zero. */
export function castData(
  x: TensorData,
  dtype: DType,
  options: CastOptions = { saturate: true, roundMode: 'up' },
): TensorData {
  if (x.dtype === dtype) return x;
  if (dtype === 'string') return toStrings(x);
  if (x.dtype === 'string') return encodeNumbers(dtype, x.shape, x.strings!.map(parseNumber), options);
  if (isBig(x.dtype) && isInteger(dtype)) {
    // BigInts keep every bit of 64-bit integers; typed arrays wrap them.
    const source = x.data as BigInt64Array;
    if (isBig(dtype)) {
      const out = newArray(dtype, source.length) as BigInt64Array;
      for (let i = 0; i < out.length; i++) out[i] = source[i]!;
      return { dtype, shape: x.shape, data: out };
    }
    return encodeReals(
      dtype,
      x.shape,
      Array.from(source, (value) => Number(BigInt.asIntN(32, value))),
    );
  }
  return encodeNumbers(dtype, x.shape, readReals(x), options);
}

function encodeNumbers(
  dtype: DType,
  shape: readonly number[],
  values: ArrayLike<number>,
  options: CastOptions,
): TensorData {
  if (dtype === 'bool') return { dtype, shape, data: Uint8Array.from(values, (value) => (value !== 0 ? 1 : 0)) };
  if (isMiniFloat(dtype)) {
    const data = Uint8Array.from(values, (value) =>
      dtype === 'f8e8m0'
        ? encodeScale(value, options.roundMode, options.saturate)
        : encodeMiniFloat(dtype, value, options.saturate),
    );
    return { dtype, shape, data };
  }
  return encodeReals(dtype, shape, values);
}

function parseNumber(text: string): number {
  const value = text.trim().toLowerCase();
  if (/^[+-]?inf(inity)?$/.test(value))
    return value.startsWith('-') ? Number.NEGATIVE_INFINITY : Number.POSITIVE_INFINITY;
  return value === 'nan' ? Number.NaN : Number(value);
}

/** Floats print as the shortest decimal that reads back, the form of numpy and C++ in ONNX's own tests. */
function toStrings(x: TensorData): TensorData {
  const wide = x.dtype === 'f64' || isInteger(x.dtype);
  const source = isBig(x.dtype) ? (x.data as BigInt64Array) : readReals(x);
  const strings = Array.from(source as ArrayLike<number | bigint>, (value) => {
    if (typeof value === 'bigint' || wide) return String(value);
    if (Number.isNaN(value)) return 'NaN';
    if (!Number.isFinite(value)) return value > 0 ? 'INF' : '-INF';
    return String(shortest(value));
  });
  return { dtype: 'string', shape: x.shape, data: new Uint8Array(0), strings };
}

/** The shortest decimal that rounds to the same f32. */
function shortest(value: number): number {
  for (let digits = 1; digits < 17; digits++) {
    const text = value.toPrecision(digits);
    if (Math.fround(Number(text)) === value) return Number(text);
  }
  return value;
}

function castOptions(node: Node): CastOptions {
  const mode = node.string('round_mode', 'up');
  return {
    saturate: node.int('saturate', 1) === 1,
    roundMode: mode === 'down' || mode === 'nearest' ? mode : 'up',
  };
}

const cast = defineOp({
  name: 'Cast',
  since: 6,
  quantization: 'never',
  infer: (context) => [typeOrUnknown(castTarget(context.node, 'to'), context.shape(0))],
  evaluate: (inputs, { node }) => {
    const dtype = castTarget(node, 'to');
    if (!dtype) throw new NpucError('IR022', { message: 'Cast has no attribute `to`', where: nodeName(node) });
    return [castData(need(inputs, 0, nodeName(node)), dtype, castOptions(node))];
  },
});

const castLike = defineOp({
  name: 'CastLike',
  since: 15,
  quantization: 'never',
  infer: (context) => [typeOrUnknown(inputDtype(context, 1), context.shape(0))],
  evaluate: (inputs, { node }) => [
    castData(need(inputs, 0, nodeName(node)), need(inputs, 1, nodeName(node)).dtype, castOptions(node)),
  ],
});

export const CAST_OPS: readonly OpDefinition[] = [cast, castLike];

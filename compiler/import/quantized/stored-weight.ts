import { dequantizeLazily } from '../../export/quantize-constant.ts';
import type { Encoding } from '../../ir/encoding.ts';
import { packSubByte, Tensor, transposeTensor } from '../../ir/tensor.ts';

/** A quantized matrix as its file has it, in the terms that all formats share: real = scale * (integer - zero). */
export interface StoredWeight {
  readonly inputs: number;
  readonly outputs: number;
  readonly bits: 4 | 8;
  /** Integers counted from 0, [inputs, outputs], one an entry; read when asked for. */
  readonly integers: () => Uint8Array;
  /** [groups, outputs] */
  readonly scales: Float32Array;
  /** Counted from 0 as the integers are, [groups, outputs]; absent: the middle everywhere. */
  readonly zeros?: Int32Array;
  /** Input channels that share a scale: neighbours, but for `order`. */
  readonly group: number;
  /** The group of every input channel where groups are no neighbours (activation order). */
  readonly order?: Uint32Array;
  /** Such as "gptq, 4 bits, groups of 128". */
  readonly format: string;
}

/** The integers of a matrix of a checkpoint, as a decoder's [K, N] weight has them. */
export interface TakenWeight {
  /** Absent where no encoding can say how the integers are to be read: `why` then says why. */
  readonly exact?: { readonly integers: Tensor; readonly encoding: Encoding };
  readonly why?: string;
  readonly format: string;
}

/** What stands in the place of a float weight: the numbers, [N, K] as checkpoints have them, and the integers behind them. */
export interface OpenedWeight {
  readonly floats: Tensor;
  readonly taken: TakenWeight;
}

/**
 * Integers and encoding of a stored matrix. Where every zero is the middle the integers are signed and symmetric, as NPUs
 * want them; otherwise they stay unsigned with their zero points.
 */
export function openWeight(stored: StoredWeight): OpenedWeight {
  const { inputs, outputs, bits, group, order, scales, format } = stored;
  const middle = 2 ** (bits - 1);
  const symmetric = stored.zeros === undefined || stored.zeros.every((zero) => zero === middle);
  const dtype = bits === 4 ? (symmetric ? 'i4' : 'u4') : symmetric ? 'i8' : 'u8';
  const shape = [inputs, outputs];
  const compute = (): Uint8Array => {
    const integers = stored.integers();
    if (symmetric) for (let i = 0; i < integers.length; i++) integers[i] = integers[i]! - middle;
    return bits === 4 ? packSubByte(integers, 4) : integers;
  };
  const integers = new Tensor(dtype, shape, { kind: 'derived', compute });
  const zeros = symmetric ? {} : { zeroPoint: stored.zeros! };
  if (order) {
    return {
      floats: transposeTensor(ordered(integers, stored, order, symmetric ? undefined : stored.zeros)),
      taken: { format, why: 'its groups are not neighbouring input channels (activation order)' },
    };
  }
  const encoding: Encoding =
    scales.length === outputs
      ? { dtype, scale: scales, axis: 1, ...zeros }
      : { dtype, scale: scales, axis: 0, block: group, ...zeros };
  return {
    floats: transposeTensor(dequantizeLazily(integers, encoding)),
    taken: { format, exact: { integers, encoding } },
  };
}

/** Real numbers [inputs, outputs] of integers whose groups lie anywhere. */
function ordered(
  integers: Tensor,
  { inputs, outputs, scales }: StoredWeight,
  order: Uint32Array,
  zeros: Int32Array | undefined,
): Tensor {
  const compute = (): Uint8Array => {
    const { data } = integers.toData();
    const floats = new Float32Array(inputs * outputs);
    for (let k = 0; k < inputs; k++) {
      const at = order[k]! * outputs;
      for (let n = 0; n < outputs; n++)
        floats[k * outputs + n] = (Number(data[k * outputs + n]!) - (zeros?.[at + n] ?? 0)) * scales[at + n]!;
    }
    return new Uint8Array(floats.buffer);
  };
  return new Tensor('f32', [inputs, outputs], { kind: 'derived', compute });
}

/** Multiplies what the integers stand for, as the attention scale that a decoder carries in q_proj does. */
export function scaleTaken(taken: TakenWeight, factor: number): TakenWeight {
  if (!taken.exact) return taken;
  const { integers, encoding } = taken.exact;
  return {
    ...taken,
    exact: { integers, encoding: { ...encoding, scale: encoding.scale.map((scale) => scale * factor) } },
  };
}

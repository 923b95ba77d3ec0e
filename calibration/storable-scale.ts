import { roundEven } from '../compiler/ir/encoding.ts';

/** The scales that both a half float and the bfloat16 that XNNPACK packs it into hold exactly: 8 bits, from 2^-17 up. */
const [LEAST_SCALE, MOST_SCALE] = [2 ** -17, 65280];

/** The nearest scale that block-wise kernels do not round. */
export function storableScale(scale: number): number {
  const limited = Math.min(MOST_SCALE, Math.max(LEAST_SCALE, scale));
  const step = 2 ** (Math.floor(Math.log2(limited)) - 7);
  return roundEven(limited / step) * step;
}

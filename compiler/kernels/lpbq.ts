import { roundEven } from '../ir/encoding.ts';
import type { Layout } from './kernels.ts';

/** Two-level scales: effective block scale = blockScale (1..15) * channelScale, one f32 product (facts/qnn-htp.md 2). */
export interface TwoLevelScales {
  /** One per row. */
  readonly channelScales: Float32Array;
  /** One per block, row-major. */
  readonly blockScales: Uint8Array;
}

/** The f32 scale of each block, exactly as ONNX DequantizeLinear of the u8 block scales gives it. */
export function expandTwoLevelScales({ channelScales, blockScales }: TwoLevelScales): Float32Array {
  const blocks = blockScales.length / channelScales.length;
  return Float32Array.from(blockScales, (scale, i) => scale * channelScales[Math.floor(i / blocks)]);
}

/**
 * Float block scales to two levels by rounding: channelScale = largest / 15, blockScale = round(scale / channelScale), at
 * least 1. What is left to do where the block scales are given (an imported checkpoint); `searchLpbq` does better.
 */
export function splitBlockScales(scales: Float32Array, { rows, columns, block }: Layout): TwoLevelScales {
  const blocks = columns / block;
  const channelScales = new Float32Array(rows);
  const blockScales = new Uint8Array(scales.length);
  for (let row = 0; row < rows; row++) {
    const ofRow = scales.subarray(row * blocks, (row + 1) * blocks);
    const channelScale = Math.fround(ofRow.reduce((a, b) => Math.max(a, b), 0) / 15);
    channelScales[row] = channelScale;
    for (let j = 0; j < blocks; j++) {
      const rounded = roundEven(Math.fround(ofRow[j] / channelScale));
      blockScales[row * blocks + j] = Math.min(15, Math.max(1, rounded));
    }
  }
  return { channelScales, blockScales };
}

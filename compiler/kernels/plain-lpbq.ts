import { roundEven } from '../ir/encoding.ts';
import type { QuantRange } from './kernels.ts';
import { fullScale, type SearchInput, searchInput, searchScale, weightedError } from './plain-search.ts';

/** Twin of assembly/lpbq.ts: see there for the method. */

const { fround } = Math;
const LARGEST_BLOCK_SCALE = 15;
const COARSE_FROM = 92;
const COARSE_TO = 158;
const COARSE_STEP = 6;
const FINE_STEP = 3;

export function searchLpbq(
  weights: Float32Array,
  importance: Float32Array,
  block: number,
  range: QuantRange,
  channelScales: Float32Array,
  blockScales: Uint8Array,
  errors: Float64Array,
): void {
  const input = searchInput(weights, importance, range);
  const blocks = importance.length / block;
  for (let row = 0; row < channelScales.length; row++) {
    const chosen = blockScales.subarray(row * blocks, (row + 1) * blocks);
    const found = searchRow(input, row * importance.length, block, chosen);
    channelScales[row] = found.channelScale;
    errors[row] = found.error;
  }
}

function searchRow(
  input: SearchInput,
  at: number,
  block: number,
  chosen: Uint8Array,
): { channelScale: number; error: number } {
  const blocks = chosen.length;
  const full = new Float32Array(blocks);
  const wanted = new Float32Array(blocks);
  for (let j = 0; j < blocks; j++) {
    full[j] = fullScale(input, at + j * block, block);
    if (full[j] > 0) wanted[j] = searchScale(input, at + j * block, j * block, block, full[j]).scale;
  }
  const largestFull = full.reduce((a, b) => Math.max(a, b), 0);
  const largestWanted = wanted.reduce((a, b) => Math.max(a, b), 0);

  let channelScale = largestFull > 0 ? fround(largestFull / LARGEST_BLOCK_SCALE) : 1;
  let error = 0;
  for (let j = 0; j < blocks; j++) {
    chosen[j] = clampBlockScale(roundEven(fround(full[j] / channelScale)));
    error += weightedError(input, at + j * block, j * block, block, fround(chosen[j] * channelScale), Infinity);
  }
  if (largestFull === 0) return { channelScale, error };

  const unit = fround(largestWanted / LARGEST_BLOCK_SCALE);
  const trial = new Uint8Array(blocks);
  let center = COARSE_FROM;
  let coarse = Infinity;
  for (let k = COARSE_FROM; k <= COARSE_TO; k += COARSE_STEP) {
    const candidate = chooseBlockScales(input, at, block, fround(unit * (k / 128)), wanted, 0, 1, trial, coarse);
    if (candidate < coarse) {
      coarse = candidate;
      center = k;
    }
  }
  let fine = Infinity;
  for (let step = FINE_STEP; step > 0; step -= 2) {
    const around = center;
    for (let k = around - step; k <= around + step; k += step) {
      if (k === around && step < FINE_STEP) continue;
      const scale = fround(unit * (k / 128));
      const candidate = chooseBlockScales(input, at, block, scale, wanted, 1, 2, trial, fine);
      if (candidate >= fine) continue;
      fine = candidate;
      center = k;
      if (candidate < error) {
        error = candidate;
        channelScale = scale;
        chosen.set(trial);
      }
    }
  }
  return { channelScale, error };
}

function chooseBlockScales(
  input: SearchInput,
  at: number,
  block: number,
  channelScale: number,
  wanted: Float32Array,
  below: number,
  above: number,
  chosen: Uint8Array,
  bound: number,
): number {
  let total = 0;
  for (let j = 0; j < chosen.length && total < bound; j++) {
    const middle = Math.floor(fround(wanted[j] / channelScale));
    const last = clampBlockScale(middle + above);
    let best = Infinity;
    chosen[j] = clampBlockScale(middle - below);
    for (let b = chosen[j]; b <= last; b++) {
      const error = weightedError(input, at + j * block, j * block, block, fround(b * channelScale), best);
      if (error < best) {
        best = error;
        chosen[j] = b;
      }
    }
    total += best;
  }
  return total;
}

function clampBlockScale(b: number): number {
  return Math.min(Math.max(b, 1), LARGEST_BLOCK_SCALE);
}

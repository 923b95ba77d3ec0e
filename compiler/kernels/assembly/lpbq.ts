// Two-level scales: w ~ q * (blockScale * channelScale) with an integer block scale 1..15 and one f32 scale for each row.
import { fullScale, searchScale, weightedError } from './search';

const LARGEST_BLOCK_SCALE: i32 = 15;

/** Channel scale candidates are 128ths of (largest best block scale) / 15. */
const COARSE_FROM: i32 = 92;
const COARSE_TO: i32 = 158;
const COARSE_STEP: i32 = 6;
const FINE_STEP: i32 = 3;

/**
 * Chooses an integer for each block among those from `below` under to `above` over floor(wanted / channelScale), by the
 * weighted error. Answers the row's error, or something not below `bound` (then the integers are incomplete).
 */
function chooseBlockScales(
  weights: usize, importance: usize, block: i32, blocks: i32, channelScale: f32, wanted: usize,
  below: i32, above: i32, chosen: usize, min: f32, max: f32, bound: f64,
): f64 {
  const bytes = <usize>block << 2;
  let total: f64 = 0;
  for (let j = 0; j < blocks; j++, weights += bytes, importance += bytes) {
    const middle = <i32>floor(load<f32>(wanted + (<usize>j << 2)) / channelScale);
    const first = clampBlockScale(middle - below);
    const last = clampBlockScale(middle + above);
    let best: f64 = Infinity;
    let bestScale = first;
    for (let b = first; b <= last; b++) {
      const error = weightedError(weights, importance, block, <f32>b * channelScale, min, max, best);
      if (error < best) {
        best = error;
        bestScale = b;
      }
    }
    store<u8>(chosen + <usize>j, <u8>bestScale);
    total += best;
    if (total >= bound) break;
  }
  return total;
}

// @ts-ignore: decorator
@inline
function clampBlockScale(b: i32): i32 {
  return min<i32>(max<i32>(b, 1), LARGEST_BLOCK_SCALE);
}

/**
 * `rows` rows of `columns` values in blocks of `block`. Writes one f32 channel scale, columns / block u8 block scales and
 * one f64 error for each row. scratch: (columns / block) * 9 bytes.
 *
 * For each row: the block scales one would want if they were free; then coarse channel scale candidates with the two
 * nearest integers, and finer ones around the best with the four nearest. The plain derivation (absmax scales over their
 * largest / 15, rounded) is a candidate too, so the result is never worse than it.
 */
export function searchLpbq(
  source: usize, importance: usize, columns: i32, block: i32, rows: i32,
  channelScales: usize, blockScales: usize, errors: usize, min: f32, max: f32, scratch: usize,
): void {
  const blocks = columns / block;
  const bytes = <usize>block << 2;
  const wanted = scratch;
  const full = scratch + (<usize>blocks << 2);
  const trial = full + (<usize>blocks << 2);
  for (let row = 0; row < rows; row++) {
    let largestWanted: f32 = 0;
    let largestFull: f32 = 0;
    for (let j = 0; j < blocks; j++) {
      const at = <usize>j * bytes;
      const fullOfBlock = fullScale(source + at, block, max);
      const best = fullOfBlock > 0 ? searchScale(source + at, importance + at, block, fullOfBlock, min, max) : 0;
      store<f32>(full + (<usize>j << 2), fullOfBlock);
      store<f32>(wanted + (<usize>j << 2), best);
      if (fullOfBlock > largestFull) largestFull = fullOfBlock;
      if (best > largestWanted) largestWanted = best;
    }

    // The plain derivation; a row of zeros stays with channel scale 1 and block scales 1.
    let channelScale: f32 = largestFull > 0 ? largestFull / <f32>LARGEST_BLOCK_SCALE : 1;
    let best: f64 = 0;
    for (let j = 0; j < blocks; j++) {
      const at = <usize>j * bytes;
      const b = clampBlockScale(<i32>nearest(load<f32>(full + (<usize>j << 2)) / channelScale));
      store<u8>(blockScales + <usize>j, <u8>b);
      best += weightedError(source + at, importance + at, block, <f32>b * channelScale, min, max, Infinity);
    }

    if (largestFull > 0) {
      const unit = largestWanted / <f32>LARGEST_BLOCK_SCALE;
      let coarse: f64 = Infinity;
      let center = COARSE_FROM;
      for (let k = COARSE_FROM; k <= COARSE_TO; k += COARSE_STEP) {
        const candidate = unit * (<f32>k / 128);
        const error = chooseBlockScales(
          source, importance, block, blocks, candidate, wanted, 0, 1, trial, min, max, coarse,
        );
        if (error < coarse) {
          coarse = error;
          center = k;
        }
      }
      let fine: f64 = Infinity;
      for (let step = FINE_STEP; step > 0; step -= 2) {
        const around = center;
        for (let k = around - step; k <= around + step; k += step) {
          if (k == around && step < FINE_STEP) continue;
          const candidate = unit * (<f32>k / 128);
          const error = chooseBlockScales(
            source, importance, block, blocks, candidate, wanted, 1, 2, trial, min, max, fine,
          );
          if (error < fine) {
            fine = error;
            center = k;
            if (error < best) {
              best = error;
              channelScale = candidate;
              memory.copy(blockScales, trial, blocks);
            }
          }
        }
      }
    }
    store<f32>(channelScales, channelScale);
    store<f64>(errors, best);
    source += <usize>columns << 2;
    channelScales += 4;
    blockScales += <usize>blocks;
    errors += 8;
  }
}

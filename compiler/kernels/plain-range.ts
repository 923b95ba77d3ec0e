import { INFINITE_BITS } from './engine.ts';
import type { FiniteRange } from './kernels.ts';

/** Twins of assembly/range.ts: same order of every f64 sum, same treatment of what is not finite. */

/** The same memory as integers. */
export function bitsOf(values: Float32Array): Int32Array {
  return new Int32Array(values.buffer, values.byteOffset, values.length);
}

/** Largest absolute value of from..to, given as bits and answered as bits. */
export function absmaxBits(bits: Int32Array, from = 0, to = bits.length): number {
  let largest = 0;
  for (let i = from; i < to; i++) {
    const magnitude = bits[i] & 0x7fffffff;
    if (magnitude > largest) largest = magnitude;
  }
  return largest;
}

export function absmax(source: Float32Array, group: number, target: Float32Array): number {
  const from = bitsOf(source);
  const to = bitsOf(target);
  let largest = 0;
  for (let g = 0; g < to.length; g++) {
    to[g] = absmaxBits(from, g * group, (g + 1) * group);
    largest = Math.max(largest, to[g]);
  }
  return largest;
}

export function minMax(source: Float32Array, group: number, minima: Float32Array, maxima: Float32Array): number {
  for (let g = 0; g < minima.length; g++) {
    let low = Infinity;
    let high = -Infinity;
    for (let i = g * group; i < (g + 1) * group; i++) {
      if (source[i] < low) low = source[i];
      if (source[i] > high) high = source[i];
    }
    minima[g] = low + 0;
    maxima[g] = high + 0;
  }
  return absmaxBits(bitsOf(source));
}

export function finiteRange(source: Float32Array): FiniteRange {
  let min = Infinity;
  let max = -Infinity;
  let skipped = 0;
  for (let i = 0; i < source.length; i++) {
    if (!Number.isFinite(source[i])) skipped++;
    else {
      if (source[i] < min) min = source[i];
      if (source[i] > max) max = source[i];
    }
  }
  return { min: min + 0, max: max + 0, skipped };
}

export function channelStatistics(source: Float32Array, maxima: Float32Array, squares: Float64Array): number {
  const columns = maxima.length;
  const bits = bitsOf(source);
  const largest = bitsOf(maxima);
  for (let from = 0; from < source.length; from += columns) {
    for (let c = 0; c < columns; c++) {
      const value = source[from + c];
      const magnitude = bits[from + c] & 0x7fffffff;
      if (magnitude > largest[c]) largest[c] = magnitude;
      squares[c] += value * value;
    }
  }
  return absmaxBits(bits);
}

export function histogram(source: Float32Array, low: number, perUnit: number, counts: Float64Array): void {
  const bins = counts.length - 1;
  const from = Math.fround(low);
  const factor = Math.fround(perUnit);
  for (let i = 0; i < source.length; i++) {
    const value = source[i];
    if (!Number.isFinite(value)) counts[bins]++;
    else {
      const scaled = Math.fround(Math.fround(value - from) * factor);
      counts[scaled < 0 ? 0 : scaled > bins - 1 ? bins - 1 : Math.trunc(scaled)]++;
    }
  }
}

/** Four lanes by index, then (0 + 2) + (1 + 3). */
export function difference(a: Float32Array, b: Float32Array, result: Float64Array): number {
  const bitsA = bitsOf(a);
  const bitsB = bitsOf(b);
  const aa = new Float64Array(4);
  const bb = new Float64Array(4);
  const ab = new Float64Array(4);
  const dd = new Float64Array(4);
  let most = 0;
  let skipped = 0;
  for (let i = 0; i < a.length; i++) {
    if ((bitsA[i] & 0x7fffffff) >= INFINITE_BITS || (bitsB[i] & 0x7fffffff) >= INFINITE_BITS) {
      skipped++;
      continue;
    }
    const lane = i & 3;
    const d = a[i] - b[i];
    aa[lane] += a[i] * a[i];
    bb[lane] += b[i] * b[i];
    ab[lane] += a[i] * b[i];
    dd[lane] += d * d;
    most = Math.max(most, Math.abs(d));
  }
  result.set([sumLanes(aa), sumLanes(bb), sumLanes(ab), sumLanes(dd), most]);
  return skipped;
}

function sumLanes(lanes: Float64Array): number {
  return lanes[0] + lanes[2] + (lanes[1] + lanes[3]);
}

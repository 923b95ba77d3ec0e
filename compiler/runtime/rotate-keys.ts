import { type Encoding, integerRange, roundEven } from '../ir/encoding.ts';
import { elementCount, type TensorData } from '../ir/tensor.ts';

/** How keys are turned. */
export interface Rotation {
  /** The axis of the cache along which tokens lie: 3 where they lie last, and a head's numbers before them. */
  readonly timeAxis: number;
  /** Inverse rotary frequencies, half as many as a head has numbers. */
  readonly frequencies: readonly number[];
  /** Positions to move by, negative for backwards. */
  readonly by: number;
}

/**
 * Turns keys that were rotated for one position to another, in place: rotations add up, so it takes no key that was not rotated.
 * Real numbers are computed in float64; integers are read and rounded to their grid again, ties to even.
 * @param cache keys of all heads, four axes
 * @param slots first slot, and the one behind the last
 */
export function rotateKeys(
  cache: TensorData,
  { timeAxis, frequencies, by }: Rotation,
  [start, end]: readonly [number, number],
  encoding: Encoding | undefined,
): void {
  const half = frequencies.length;
  const cos = Float64Array.from(frequencies, (frequency) => Math.cos(by * frequency));
  const sin = Float64Array.from(frequencies, (frequency) => Math.sin(by * frequency));
  const strides = cache.shape.map((_, axis) => elementCount(cache.shape.slice(axis + 1)));
  const dimAxis = timeAxis === 3 ? 2 : 3;
  const [time, dim] = [strides[timeAxis]!, strides[dimAxis]!];
  const [outer, inner] = [0, 1, 2, 3].filter((axis) => axis !== timeAxis && axis !== dimAxis) as [number, number];
  const scale = encoding?.scale[0] ?? 1;
  const zero = encoding?.zeroPoint?.[0] ?? 0;
  const [low, high] = encoding ? integerRange(encoding.dtype) : [0, 0];
  const data = cache.data as Float32Array;
  const store = (at: number, value: number): void => {
    data[at] = encoding ? Math.min(high, Math.max(low, roundEven(Math.fround(value / scale)) + zero)) : value;
  };
  for (let a = 0; a < cache.shape[outer]!; a++) {
    for (let b = 0; b < cache.shape[inner]!; b++) {
      const head = a * strides[outer]! + b * strides[inner]!;
      for (let slot = start; slot < end; slot++) {
        for (let i = 0; i < half; i++) {
          const first = head + slot * time + i * dim;
          const second = first + half * dim;
          const x = (data[first]! - zero) * scale;
          const y = (data[second]! - zero) * scale;
          store(first, x * cos[i]! - y * sin[i]!);
          store(second, x * sin[i]! + y * cos[i]!);
        }
      }
    }
  }
}

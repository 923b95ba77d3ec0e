import { NpucError } from '../errors.ts';
import { numberToHalf } from '../ir/dtype.ts';
import { Tensor, transposeTensor } from '../ir/tensor.ts';

/** One tensor of half floats per constant, so that graphs which share it share the bytes they write. */
const halves = new WeakMap<Tensor, Tensor>();

/** The half floats of an f32 constant, computed when they are asked for. A transpose stays the transpose of what is stored. */
export function halveLazily(data: Tensor, name: string): Tensor {
  let half = halves.get(data);
  if (!half) {
    const stored = data.storage.kind === 'derived' ? data.storage.transposeOf : undefined;
    half = stored
      ? transposeTensor(halveLazily(stored, name))
      : new Tensor('f16', data.shape, {
          kind: 'derived',
          compute: () => new Uint8Array(toHalves(data.toFloats(), name).buffer),
        });
    halves.set(data, half);
  }
  return half;
}

const INFINITY = 0x7c00;

/**
 * IEEE half bits of f32 numbers, ties to even.
 * @throws QT011 when a number is too large (above 65,504), QT010 when one is not finite
 */
export function toHalves(floats: Float32Array, name: string): Uint16Array {
  const bits = new Uint16Array(floats.length);
  for (let i = 0; i < floats.length; i++) {
    const half = numberToHalf(floats[i]!);
    // Infinities and NaN have all bits of the exponent set.
    if ((half & INFINITY) === INFINITY) throw refuse(floats[i]!, i, name);
    bits[i] = half;
  }
  return bits;
}

function refuse(value: number, index: number, name: string): NpucError {
  if (!Number.isFinite(value)) {
    return new NpucError('QT010', { message: `element ${index} of ${name} is ${value}`, where: name });
  }
  return new NpucError('QT011', {
    message: `element ${index} of ${name} is ${value}: half floats end at 65504`,
    where: name,
    hint: 'use an integer scheme, such as --scheme w8a16',
  });
}

import { NpucError } from '../errors.ts';
import type { Histogram, Layout, QuantRange } from './kernels.ts';

/** Argument checks of the kernels: the user's data gets a QT code, a caller's mistake XX001. */

export function checkLength(what: string, actual: number, expected: number): void {
  if (actual !== expected) {
    throw new NpucError('XX001', { message: `kernel argument ${what} has ${actual} entries, ${expected} are needed` });
  }
}

export function checkLayout(layout: Layout, length: number): void {
  const { rows, columns, block } = layout;
  if (![rows, columns, block].every((n) => Number.isInteger(n) && n > 0)) {
    throw new NpucError('XX001', { message: `kernel layout ${rows} x ${columns}, block ${block} is not positive` });
  }
  checkLength('data', length, rows * columns);
  if (columns % block !== 0) {
    throw new NpucError('QT104', {
      message: `block size ${block} does not divide the ${columns} input channels`,
      where: layout.name,
      hint: 'use a block size that divides it, or one scale per channel',
    });
  }
}

export function checkRange({ min, max }: QuantRange): void {
  if (!Number.isInteger(min) || !Number.isInteger(max) || min < -128 || max > 127 || min >= 0 || max <= 0) {
    throw new NpucError('XX001', { message: `${min}..${max} is not a signed integer range of at most 8 bits` });
  }
}

export function checkScales(scales: Float32Array, layout: Layout): void {
  checkLength('scales', scales.length, (layout.rows * layout.columns) / layout.block);
  const at = scales.findIndex((scale) => !(scale > 0 && scale < Infinity));
  if (at >= 0) {
    throw new NpucError('QT012', {
      message: `scale ${scales[at]} at index ${at} is not a positive finite number`,
      where: layout.name,
    });
  }
}

export function checkImportance(importance: Float32Array, layout: Layout): void {
  checkLength('importance', importance.length, layout.columns);
  const at = importance.findIndex((weight) => !(weight >= 0 && weight < Infinity));
  if (at >= 0) {
    throw new NpucError('QT013', {
      message: `importance ${importance[at]} of input channel ${at} is not a finite number of at least 0`,
      where: layout.name,
      hint: 'the calibration statistics of this tensor are broken: calibrate again',
    });
  }
}

export function checkHistogram({ min, max }: Histogram): void {
  if (!Number.isFinite(min) || !Number.isFinite(max) || min >= max) {
    throw new NpucError('XX001', { message: `histogram range ${min}..${max} is empty or not finite` });
  }
}

/** Throws QT010 with the place of the first value in start..end that is not finite; there must be one. */
export function refuseNonFinite(values: Float32Array, start: number, end: number, layout: Layout): never {
  const index = start + values.subarray(start, end).findIndex((value) => !Number.isFinite(value));
  const row = Math.floor(index / layout.columns);
  throw new NpucError('QT010', {
    message: `value ${values[index]} at [${row}, ${index - row * layout.columns}] is not finite`,
    where: layout.name,
    hint: 'the checkpoint, or the run that made it, is damaged: such a value cannot be quantized',
  });
}

export function outsideInt4(what: string): NpucError {
  return new NpucError('QT014', { message: `${what} does not fit int4, which holds -8..7` });
}

export function rowTooLong(layout: Layout): NpucError {
  return new NpucError('QT015', {
    message: `a row of ${layout.columns} values in blocks of ${layout.block} does not fit the kernels' window`,
    where: layout.name,
    hint: 'quantize this tensor in smaller blocks, or reshape it to shorter rows',
  });
}

export function notPositive(column: number, name: string | undefined): NpucError {
  return new NpucError('QT017', {
    message: `the second moments of the inputs are not positive definite at input channel ${column}`,
    ...(name === undefined ? {} : { where: name }),
    hint: 'calibrate with more text',
  });
}

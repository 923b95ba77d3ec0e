import type { Engine } from './engine.ts';
import { factorHessian, roundCompensated } from './plain-compensate.ts';
import { decodeBf16, decodeF16, encodeF16, transpose } from './plain-convert.ts';
import { searchLpbq } from './plain-lpbq.ts';
import {
  dequantizeI4,
  dequantizeI8,
  fakeQuantize,
  fakeQuantizeAffine,
  packI4,
  quantizeI4,
  quantizeI8,
  unpackI4,
} from './plain-quantize.ts';
import { absmax, channelStatistics, difference, finiteRange, histogram, minMax } from './plain-range.ts';
import { searchScales, weightedErrors } from './plain-search.ts';

/** The plain TypeScript engine: the reading version of the kernels, and what tests compare WebAssembly with. */
export const plainEngine: Engine = {
  decodeBf16,
  decodeF16,
  encodeF16,
  absmax,
  minMax,
  finiteRange,
  channelStatistics,
  histogram,
  difference,
  quantizeI8,
  quantizeI4,
  fakeQuantize,
  fakeQuantizeAffine,
  packI4,
  unpackI4,
  dequantizeI8,
  dequantizeI4,
  weightedErrors,
  searchScales,
  searchLpbq,
  factorHessian,
  roundCompensated,
  transpose32: transpose,
  transpose8: transpose,
};

// Entry of the kernels: exported functions take addresses in the instance's memory; TypeScript owns the layout above it.
export { decodeBf16, decodeF16, encodeF16 } from './convert';
export { absmax, minMax, finiteRange, channelStatistics, histogram, difference } from './range';
export { quantizeI8, fakeQuantize, fakeQuantizeAffine, packI4, unpackI4, dequantizeI8 } from './quantize';
export { weightedErrors, searchScales } from './search';
export { searchLpbq } from './lpbq';
export { factorHessian, roundCompensated } from './compensate';
export { transpose32, transpose8 } from './transpose';

/** First free byte of the memory. */
export function heapBase(): usize {
  return __heap_base;
}

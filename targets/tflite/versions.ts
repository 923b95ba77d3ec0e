/**
 * Kernel versions by op and activation type: the lowest that does the job, because runtimes refuse versions that they do
 * not know (facts litert 2, after LiteRT's converter/tools/versioning/op_version.cc).
 */
const VERSIONS = {
  ADD: { f32: 1, i8: 2, i16: 3 },
  SUB: { f32: 1, i8: 2, i16: 5 },
  MUL: { f32: 1, i8: 2, i16: 4 },
  RESHAPE: { f32: 1, i8: 1, i16: 1 },
  TRANSPOSE: { f32: 1, i8: 2, i16: 5 },
  SLICE: { f32: 1, i8: 2, i16: 4 },
  CONCATENATION: { f32: 1, i8: 2, i16: 3 },
  SOFTMAX: { f32: 1, i8: 2, i16: 3 },
  LOGISTIC: { f32: 1, i8: 2, i16: 3 },
  BATCH_MATMUL: { f32: 1, i8: 2, i16: 3 },
  QUANTIZE: { f32: 1, i8: 1, i16: 2 },
  DEQUANTIZE: { f32: 1, i8: 2, i16: 3 },
  MEAN: { f32: 1, i8: 2, i16: 3 },
  RSQRT: { f32: 1, i8: 2, i16: 3 },
} as const;

export type ActivationType = 'f32' | 'i8' | 'i16';
export type VersionedOp = keyof typeof VERSIONS;

export function opVersion(op: VersionedOp, type: ActivationType): number {
  return VERSIONS[op][type];
}

/** FULLY_CONNECTED by activation and weight type; `keepNumDims` alone needs 5. */
export function fullyConnectedVersion(activation: ActivationType, weight: 'f32' | 'i4' | 'i8'): number {
  if (activation === 'f32') return weight === 'f32' ? 5 : 12;
  if (activation === 'i16') return weight === 'i4' ? 13 : 9;
  return weight === 'i4' ? 10 : 9;
}

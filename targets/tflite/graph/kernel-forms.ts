import type { KernelName } from '../versions.ts';

/**
 * How a kernel treats the scales of its integers:
 * - any: it rescales, every tensor has its own;
 * - equal: it copies or compares raw integers, without a check and silently wrong where scales differ (facts litert 2);
 * - keeps: the output has the input's scale, because a mean over fewer integers than the input's would cut them off;
 * - none: there is no kernel for integers of this width on LiteRT's CPU, the operator runs on floats between conversions.
 */
export type KernelForm = 'any' | 'equal' | 'keeps' | 'none';

const ANY = { 8: 'any', 16: 'any' } as const;
const EQUAL = { 8: 'equal', 16: 'equal' } as const;
const KEEPS = { 8: 'keeps', 16: 'keeps' } as const;
const NONE = { 8: 'none', 16: 'none' } as const;
const NARROW = { 8: 'any', 16: 'none' } as const;

/** By kernel and bits of the activations; measured on LiteRT 2.3 (facts litert 2). */
export const KERNEL_FORMS: Readonly<Record<KernelName, Readonly<Record<8 | 16, KernelForm>>>> = {
  ABS: ANY,
  ADD: ANY,
  ARG_MAX: NARROW,
  ARG_MIN: NARROW,
  AVERAGE_POOL_2D: KEEPS,
  BATCH_MATMUL: ANY,
  BROADCAST_TO: EQUAL,
  CAST: NONE,
  CEIL: NONE,
  CONCATENATION: EQUAL,
  CONV_2D: ANY,
  COS: NONE,
  CUMSUM: NONE,
  DEPTH_TO_SPACE: { 8: 'equal', 16: 'none' },
  DEPTHWISE_CONV_2D: ANY,
  DEQUANTIZE: ANY,
  DIV: ANY,
  DYNAMIC_UPDATE_SLICE: EQUAL,
  ELU: NARROW,
  EMBEDDING_LOOKUP: NONE,
  EQUAL: NARROW,
  // At 16 bits the tables of EXP and LOG are off by 3 and 130 steps (measured against floats).
  EXP: NARROW,
  FLOOR: NONE,
  FLOOR_MOD: NONE,
  FULLY_CONNECTED: ANY,
  GATHER: EQUAL,
  GATHER_ND: EQUAL,
  GELU: ANY,
  GREATER: NARROW,
  GREATER_EQUAL: NARROW,
  HARD_SWISH: NARROW,
  LEAKY_RELU: ANY,
  LESS: NARROW,
  LESS_EQUAL: NARROW,
  LOCAL_RESPONSE_NORMALIZATION: NONE,
  LOG: NARROW,
  LOG_SOFTMAX: NONE,
  LOGICAL_AND: NONE,
  LOGICAL_NOT: NONE,
  LOGICAL_OR: NONE,
  LOGISTIC: ANY,
  MAX_POOL_2D: EQUAL,
  MAXIMUM: EQUAL,
  MEAN: ANY,
  MINIMUM: EQUAL,
  MIRROR_PAD: EQUAL,
  MUL: ANY,
  NEG: NONE,
  NOT_EQUAL: NARROW,
  PAD: EQUAL,
  PADV2: EQUAL,
  POW: NONE,
  PRELU: NARROW,
  QUANTIZE: ANY,
  REDUCE_MAX: EQUAL,
  REDUCE_MIN: EQUAL,
  REDUCE_PROD: NONE,
  RELU: ANY,
  RELU6: ANY,
  RELU_N1_TO_1: NONE,
  RESHAPE: EQUAL,
  RESIZE_BILINEAR: EQUAL,
  RESIZE_NEAREST_NEIGHBOR: EQUAL,
  REVERSE_V2: EQUAL,
  ROUND: NONE,
  RSQRT: ANY,
  SCATTER_ND: { 8: 'equal', 16: 'none' },
  SELECT_V2: EQUAL,
  SIGN: NONE,
  SIN: NONE,
  SLICE: EQUAL,
  SOFTMAX: ANY,
  SPACE_TO_DEPTH: { 8: 'equal', 16: 'none' },
  SQRT: ANY,
  STABLEHLO_COMPOSITE: ANY,
  STRIDED_SLICE: EQUAL,
  SUB: ANY,
  SUM: ANY,
  TANH: ANY,
  TILE: EQUAL,
  TOPK_V2: EQUAL,
  TRANSPOSE: EQUAL,
  TRANSPOSE_CONV: ANY,
};

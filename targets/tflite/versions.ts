import type { TfliteTensor } from './model.ts';
import type { UnionValue } from './schema.ts';
import { TensorType, type TensorTypeCode } from './schema-enums.ts';

/** The kernel version that an operator needs, from the types and shapes of its tensors and from its options. */
type Rule = (
  inputs: readonly (TfliteTensor | undefined)[],
  outputs: readonly TfliteTensor[],
  options: UnionValue<'BuiltinOptions'> | undefined,
) => number;

/** By the type of the first input: float, int8, int16. */
function byType(float: number, int8: number, int16: number): Rule {
  return ([first]) => (isType(first, TensorType.INT16) ? int16 : isType(first, TensorType.INT8) ? int8 : float);
}

function isType(tensor: TfliteTensor | undefined, type: TensorTypeCode): boolean {
  return tensor?.type === type;
}

/** At least `version` when the first input has more than `rank` dimensions. */
function aboveRank(rank: number, version: number, rule: Rule): Rule {
  return (inputs, outputs, options) =>
    Math.max(rule(inputs, outputs, options), inputs[0]!.shape.length > rank ? version : 1);
}

/** At least `version` when the operands differ in shape and one has more than `rank` dimensions. */
function whenSpread(rank: number, version: number, rule: Rule): Rule {
  return (inputs, outputs, options) => {
    const shapes = inputs.map((tensor) => tensor!.shape);
    const spread = shapes.some((shape) => shape.join() !== shapes[0]!.join());
    const high = spread && shapes.some((shape) => shape.length > rank);
    return Math.max(rule(inputs, outputs, options), high ? version : 1);
  };
}

/** At least `version` when the elements are of a type. */
function forType(type: TensorTypeCode, version: number, rule: Rule): Rule {
  return (inputs, outputs, options) => Math.max(rule(inputs, outputs, options), isType(inputs[0], type) ? version : 1);
}

const isPerChannel = (tensor: TfliteTensor | undefined): boolean => (tensor?.quantization?.scale?.length ?? 0) > 1;

const convolution: Rule = ([input, weight]) => {
  if (input!.shape.at(-1) !== weight!.shape.at(-1)) return 6;
  if (isType(input, TensorType.INT16)) return 4;
  if (isType(input, TensorType.INT8)) return isType(weight, TensorType.INT4) ? 7 : 3;
  if (!isType(weight, TensorType.INT8)) return 1;
  return isPerChannel(weight) ? 5 : 2;
};

const depthwise: Rule = ([input, weight], _, options) => {
  if (isType(input, TensorType.INT16)) return 5;
  if (isType(input, TensorType.INT8)) return isType(weight, TensorType.INT4) ? 7 : 3;
  if (isType(weight, TensorType.INT8)) return isPerChannel(weight) ? 6 : 4;
  const dilated =
    options?.kind === 'DepthwiseConv2DOptions' && (options.dilationWFactor !== 1 || options.dilationHFactor !== 1);
  return dilated ? 2 : 1;
};

const resizing: Rule = (inputs, outputs, options) => {
  const bilinear = options?.kind === 'ResizeBilinearOptions';
  const nearest = options?.kind === 'ResizeNearestNeighborOptions';
  const moved = ((bilinear || nearest) && options.halfPixelCenters) || (nearest && options.alignCorners) ? 3 : 1;
  return Math.max(moved, byType(1, 2, 4)(inputs, outputs, options));
};

function scaleOf(tensor: TfliteTensor | undefined): number {
  return tensor?.quantization?.scale?.[0] ?? 0;
}

/**
 * The lowest version whose kernel does the job: runtimes refuse versions that they do not know. Source: LiteRT's
 * converter/tools/versioning/op_version.cc; where that file stops at an earlier condition than the kernel's own
 * (FULLY_CONNECTED: keepNumDims hides the integer types), the kernel's own counts.
 */
const RULES = {
  ABS: byType(1, 2, 3),
  ADD: forType(TensorType.INT64, 4, byType(1, 2, 3)),
  ARG_MAX: byType(1, 2, 2),
  ARG_MIN: byType(1, 2, 2),
  AVERAGE_POOL_2D: byType(1, 2, 3),
  BROADCAST_TO: byType(2, 3, 3),
  CAST: () => 1,
  CEIL: () => 1,
  CONV_2D: convolution,
  COS: () => 1,
  CUMSUM: () => 1,
  DEPTH_TO_SPACE: byType(1, 2, 1),
  DEPTHWISE_CONV_2D: depthwise,
  DIV: whenSpread(4, 2, () => 1),
  DYNAMIC_UPDATE_SLICE: byType(1, 1, 4),
  ELU: () => 1,
  EMBEDDING_LOOKUP: () => 4,
  EQUAL: byType(1, 2, 4),
  EXP: byType(1, 2, 2),
  FLOOR: () => 1,
  FLOOR_MOD: byType(1, 2, 2),
  GATHER: forType(TensorType.BOOL, 3, byType(1, 2, 4)),
  GATHER_ND: forType(TensorType.BOOL, 5, byType(1, 1, 3)),
  GELU: byType(1, 2, 1),
  GREATER: byType(1, 2, 1),
  GREATER_EQUAL: byType(1, 2, 3),
  HARD_SWISH: () => 1,
  LEAKY_RELU: byType(1, 1, 2),
  LESS: byType(1, 2, 3),
  LESS_EQUAL: byType(1, 2, 1),
  LOCAL_RESPONSE_NORMALIZATION: () => 1,
  LOG: byType(1, 2, 2),
  LOG_SOFTMAX: byType(1, 2, 1),
  LOGICAL_AND: () => 1,
  LOGICAL_NOT: () => 1,
  LOGICAL_OR: () => 1,
  MAX_POOL_2D: byType(1, 2, 3),
  MAXIMUM: whenSpread(4, 3, byType(1, 2, 4)),
  MINIMUM: whenSpread(4, 3, byType(1, 2, 4)),
  MIRROR_PAD: byType(1, 2, 3),
  NEG: () => 1,
  NOT_EQUAL: byType(1, 2, 1),
  PAD: aboveRank(4, 4, byType(1, 2, 3)),
  PADV2: aboveRank(4, 4, byType(1, 2, 3)),
  POW: () => 1,
  PRELU: () => 1,
  REDUCE_MAX: byType(1, 2, 3),
  REDUCE_MIN: byType(1, 2, 3),
  REDUCE_PROD: byType(1, 2, 2),
  RELU: byType(1, 2, 3),
  RELU6: byType(1, 2, 3),
  RELU_N1_TO_1: () => 1,
  RESIZE_BILINEAR: resizing,
  RESIZE_NEAREST_NEIGHBOR: resizing,
  REVERSE_V2: byType(1, 3, 1),
  ROUND: () => 1,
  SCATTER_ND: () => 1,
  SELECT_V2: () => 1,
  SIGN: forType(TensorType.INT32, 2, () => 1),
  SIN: () => 1,
  SPACE_TO_DEPTH: byType(1, 2, 1),
  SQRT: byType(1, 2, 2),
  STRIDED_SLICE: aboveRank(4, 4, forType(TensorType.BOOL, 3, byType(1, 2, 1))),
  SUM: byType(1, 2, 1),
  TANH: byType(1, 2, 3),
  TILE: byType(1, 3, 1),
  TOPK_V2: byType(1, 2, 3),
  TRANSPOSE_CONV: () => 3,
  SUB: forType(TensorType.INT64, 4, whenSpread(4, 3, byType(1, 2, 5))),
  MUL: ([a, b], [out]) => {
    if (isType(a, TensorType.INT64)) return 5;
    if (isType(a, TensorType.INT16)) return 4;
    if (!isType(a, TensorType.INT8)) return 1;
    return scaleOf(a) * scaleOf(b) >= scaleOf(out) ? 3 : 2;
  },
  RESHAPE: () => 1,
  TRANSPOSE: aboveRank(5, 6, aboveRank(4, 4, forType(TensorType.BOOL, 3, byType(1, 2, 5)))),
  SLICE: aboveRank(4, 5, byType(1, 2, 4)),
  CONCATENATION: byType(1, 2, 3),
  SOFTMAX: byType(1, 2, 3),
  LOGISTIC: byType(1, 2, 3),
  MEAN: byType(1, 2, 3),
  RSQRT: byType(1, 2, 3),
  BATCH_MATMUL: byType(1, 2, 3),
  FULLY_CONNECTED: ([input, weight]) => {
    const narrow = isType(weight, TensorType.INT4);
    if (isType(input, TensorType.FLOAT32) && (narrow || isType(weight, TensorType.INT8))) return 12;
    if (isType(input, TensorType.INT16)) return narrow ? 13 : 7;
    return narrow ? 10 : 5;
  },
  QUANTIZE: ([input], [out]) => (isType(input, TensorType.INT16) || isType(out, TensorType.INT16) ? 2 : 1),
  DEQUANTIZE: ([input]) => (isType(input, TensorType.INT16) || isType(input, TensorType.FLOAT16) ? 3 : 2),
  STABLEHLO_COMPOSITE: () => 1,
} as const satisfies Record<string, Rule>;

/** Operators that lowerings emit. */
export type KernelName = keyof typeof RULES;

/** Whether lowerings can emit an operator of this name. */
export function isKernelName(name: string): name is KernelName {
  return Object.hasOwn(RULES, name);
}

/** @param inputs undefined for an optional input that is left out */
export function kernelVersion(
  op: KernelName,
  inputs: readonly (TfliteTensor | undefined)[],
  outputs: readonly TfliteTensor[],
  options?: UnionValue<'BuiltinOptions'>,
): number {
  const rule: Rule = RULES[op];
  return rule(inputs, outputs, options);
}

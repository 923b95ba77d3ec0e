import type { TfliteTensor } from './model.ts';
import { TensorType, type TensorTypeCode } from './schema-enums.ts';

/** The kernel version that an operator needs, from the types and shapes of its tensors. */
type Rule = (inputs: readonly (TfliteTensor | undefined)[], outputs: readonly TfliteTensor[]) => number;

/** By the type of the first input: float, int8, int16. */
function byType(float: number, int8: number, int16: number): Rule {
  return ([first]) => (isType(first, TensorType.INT16) ? int16 : isType(first, TensorType.INT8) ? int8 : float);
}

function isType(tensor: TfliteTensor | undefined, type: TensorTypeCode): boolean {
  return tensor?.type === type;
}

/** At least `version` when the first input has more than `rank` dimensions. */
function aboveRank(rank: number, version: number, rule: Rule): Rule {
  return (inputs, outputs) => Math.max(rule(inputs, outputs), inputs[0]!.shape.length > rank ? version : 1);
}

function scaleOf(tensor: TfliteTensor | undefined): number {
  return tensor?.quantization?.scale?.[0] ?? 0;
}

/**
 * The lowest version whose kernel does the job: runtimes refuse versions that they do not know. Source: LiteRT's
 * converter/tools/versioning/op_version.cc; where that file stops at an earlier condition than the kernel's own
 * (FULLY_CONNECTED: keepNumDims hides the integer types), the kernel's own counts.
 */
const RULES = {
  ADD: byType(1, 2, 3),
  SUB: aboveRank(4, 3, byType(1, 2, 5)),
  MUL: ([a, b], [out]) => {
    if (isType(a, TensorType.INT16)) return 4;
    if (!isType(a, TensorType.INT8)) return 1;
    return scaleOf(a) * scaleOf(b) >= scaleOf(out) ? 3 : 2;
  },
  RESHAPE: () => 1,
  TRANSPOSE: aboveRank(5, 6, aboveRank(4, 4, byType(1, 2, 5))),
  SLICE: aboveRank(4, 5, byType(1, 2, 4)),
  CONCATENATION: byType(1, 2, 3),
  SOFTMAX: byType(1, 2, 3),
  LOGISTIC: byType(1, 2, 3),
  MEAN: byType(1, 2, 3),
  RSQRT: byType(1, 2, 3),
  BATCH_MATMUL: byType(1, 2, 3),
  FULLY_CONNECTED: ([input, weight]) => {
    const narrow = isType(weight, TensorType.INT4);
    if (isType(input, TensorType.INT16)) return narrow ? 13 : 7;
    return narrow ? 10 : 5;
  },
  QUANTIZE: ([input], [out]) => (isType(input, TensorType.INT16) || isType(out, TensorType.INT16) ? 2 : 1),
  DEQUANTIZE: ([input]) => (isType(input, TensorType.INT16) || isType(input, TensorType.FLOAT16) ? 3 : 2),
  STABLEHLO_COMPOSITE: () => 1,
} as const satisfies Record<string, Rule>;

/** Operators that lowerings emit. */
export type KernelName = keyof typeof RULES;

/** @param inputs undefined for an optional input that is left out */
export function kernelVersion(
  op: KernelName,
  inputs: readonly (TfliteTensor | undefined)[],
  outputs: readonly TfliteTensor[],
): number {
  const rule: Rule = RULES[op];
  return rule(inputs, outputs);
}

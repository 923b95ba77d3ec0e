import { ACTIVATION_OPS } from './activation.ts';
import { ATTENTION_OPS } from './attention.ts';
import { BATCH_NORM_OPS } from './batch-norm.ts';
import { CARRIED_OPS } from './carried.ts';
import { CAST_OPS } from './cast.ts';
import { CONSTANT_OPS } from './constant.ts';
import { CONTRIB_OPS } from './contrib.ts';
import { CONV_OPS } from './conv.ts';
import { CONV_TRANSPOSE_OPS } from './conv-transpose.ts';
import { DETECTION_OPS } from './detection.ts';
import { EINSUM_OPS } from './einsum.ts';
import { ELEMENTWISE_OPS } from './elementwise.ts';
import { GATHER_OPS } from './gather.ts';
import { GRID_SAMPLE_OPS } from './grid-sample.ts';
import { INTEGER_MATH_OPS } from './integer-math.ts';
import { LOGICAL_OPS } from './logical.ts';
import { LOSS_OPS } from './loss.ts';
import { MATMUL_OPS } from './matmul.ts';
import { MOVEMENT_OPS } from './movement.ts';
import { NORM_OPS } from './norm.ts';
import type { OpDefinition } from './op.ts';
import { POOL_OPS } from './pool.ts';
import { QUANTIZE_OPS } from './quantize.ts';
import { RANDOM_OPS } from './random.ts';
import { RECURRENT_OPS } from './recurrent.ts';
import { REDUCE_OPS } from './reduce.ts';
import { RESHAPE_OPS } from './reshape.ts';
import { RESIZE_OPS } from './resize.ts';
import { SCATTER_OPS } from './scatter.ts';
import { SIGNAL_OPS } from './signal.ts';
import { SLICE_PAD_OPS } from './slice-pad.ts';
import { SOFTMAX_OPS } from './softmax.ts';
import { SORT_OPS } from './sort.ts';
import { TEXT_OPS } from './text.ts';

/** Every op that is known, by family. */
export const OPS: readonly OpDefinition[] = [
  ...ELEMENTWISE_OPS,
  ...LOGICAL_OPS,
  ...ACTIVATION_OPS,
  ...SOFTMAX_OPS,
  ...REDUCE_OPS,
  ...RESHAPE_OPS,
  ...MOVEMENT_OPS,
  ...SLICE_PAD_OPS,
  ...CONSTANT_OPS,
  ...CAST_OPS,
  ...GATHER_OPS,
  ...MATMUL_OPS,
  ...CONV_OPS,
  ...POOL_OPS,
  ...NORM_OPS,
  ...ATTENTION_OPS,
  ...QUANTIZE_OPS,
  ...BATCH_NORM_OPS,
  ...CONV_TRANSPOSE_OPS,
  ...INTEGER_MATH_OPS,
  ...SCATTER_OPS,
  ...SORT_OPS,
  ...RESIZE_OPS,
  ...GRID_SAMPLE_OPS,
  ...RECURRENT_OPS,
  ...EINSUM_OPS,
  ...SIGNAL_OPS,
  ...DETECTION_OPS,
  ...LOSS_OPS,
  ...RANDOM_OPS,
  ...TEXT_OPS,
  ...CARRIED_OPS,
  ...CONTRIB_OPS,
];

const byName = new Map(OPS.map((op) => [`${op.domain}:${op.name}`, op]));

/**
 * The record of an op; `ai.onnx` is the domain ''. Undefined for unknown ops, and for opsets before the first one whose
 * semantics are followed.
 */
export function findOp(domain: string, name: string, opset: number): OpDefinition | undefined {
  const op = byName.get(`${domain === 'ai.onnx' ? '' : domain}:${name}`);
  return op && opset >= op.since ? op : undefined;
}

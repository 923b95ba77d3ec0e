import { ACTIVATION_OPS } from './activation.ts';
import { ATTENTION_OPS } from './attention.ts';
import { CAST_OPS } from './cast.ts';
import { CONSTANT_OPS } from './constant.ts';
import { CONV_OPS } from './conv.ts';
import { ELEMENTWISE_OPS } from './elementwise.ts';
import { GATHER_OPS } from './gather.ts';
import { LOGICAL_OPS } from './logical.ts';
import { MATMUL_OPS } from './matmul.ts';
import { MOVEMENT_OPS } from './movement.ts';
import { NORM_OPS } from './norm.ts';
import type { OpDefinition } from './op.ts';
import { POOL_OPS } from './pool.ts';
import { QUANTIZE_OPS } from './quantize.ts';
import { REDUCE_OPS } from './reduce.ts';
import { RESHAPE_OPS } from './reshape.ts';
import { SLICE_PAD_OPS } from './slice-pad.ts';
import { SOFTMAX_OPS } from './softmax.ts';

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

import type { ValueType } from '../ir/graph.ts';
import { castTarget } from './constant.ts';
import { defineOp, type InferContext, type OpDefinition } from './op.ts';
import { inputDtype, typeOrUnknown, unknownDim } from './shape-rules.ts';

/** Ops whose result is random: their shapes are known, but they are never evaluated nor folded. */

function random(name: string, since: number, infer: (context: InferContext) => ValueType | undefined): OpDefinition {
  return defineOp({ name, since, quantization: 'never', infer: (context) => [infer(context)] });
}

const fromAttributes = (context: InferContext): ValueType | undefined =>
  typeOrUnknown(castTarget(context.node) ?? 'f32', context.node.ints('shape'));

const likeInput = (context: InferContext): ValueType | undefined =>
  typeOrUnknown(castTarget(context.node) ?? inputDtype(context, 0), context.shape(0));

export const RANDOM_OPS: readonly OpDefinition[] = [
  random('RandomNormal', 1, fromAttributes),
  random('RandomUniform', 1, fromAttributes),
  random('RandomNormalLike', 1, likeInput),
  random('RandomUniformLike', 1, likeInput),
  random('Bernoulli', 15, likeInput),
  random('Multinomial', 7, (context) =>
    typeOrUnknown(castTarget(context.node) ?? 'i32', [
      context.shape(0)?.[0] ?? unknownDim(context.node, 0, 0),
      context.node.int('sample_size', 1),
    ]),
  ),
];

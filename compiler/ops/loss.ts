import type { Node, ValueType } from '../ir/graph.ts';
import { elementCount, type TensorData } from '../ir/tensor.ts';
import { encodeReals, need, readReals } from './elements.ts';
import { splitAtAxis } from './indexing.ts';
import { defineOp, type InferContext, type OpDefinition } from './op.ts';
import { inputDtype, nodeName, typeOrUnknown } from './shape-rules.ts';

/** Classification losses, as in models exported with their training loss. */

function inferLoss(context: InferContext): ValueType | undefined {
  const none = context.node.string('reduction', 'mean') === 'none';
  return typeOrUnknown(inputDtype(context, 0), none ? context.shape(1) : []);
}

/** -weight[target] * logits[target], ignored targets left out; `mean` divides by the sum of the weights. */
function reduceLoss(logProbabilities: TensorData, inputs: readonly (TensorData | undefined)[], node: Node): TensorData {
  const where = nodeName(node);
  const target = need(inputs, 1, where);
  const { outer, size, inner } = splitAtAxis(logProbabilities.shape, 1);
  const values = readReals(logProbabilities);
  const targets = readReals(target);
  const weights = inputs[2] && readReals(inputs[2]);
  const ignored = node.int('ignore_index');
  const losses = new Float64Array(outer * inner);
  let total = 0;
  for (let o = 0; o < outer; o++) {
    for (let i = 0; i < inner; i++) {
      const at = o * inner + i;
      const label = targets[at]!;
      if (label === ignored) continue;
      const weight = weights ? weights[label]! : 1;
      total += weight;
      losses[at] = -weight * values[(o * size + label) * inner + i]!;
    }
  }
  const { dtype } = logProbabilities;
  const give = (shape: readonly number[], list: Float64Array): TensorData =>
    encodeReals(dtype, shape, dtype === 'f64' ? list : Array.from(list));
  const reduction = node.string('reduction', 'mean');
  if (reduction === 'none') return give(target.shape, losses);
  const sum = losses.reduce((all, loss) => all + loss, 0);
  return give([], Float64Array.of(reduction === 'mean' ? sum / total : sum));
}

const negativeLogLikelihoodLoss = defineOp({
  name: 'NegativeLogLikelihoodLoss',
  since: 12,
  quantization: 'independent',
  infer: (context) => [inferLoss(context)],
  evaluate: (inputs, { node }) => [reduceLoss(need(inputs, 0, nodeName(node)), inputs, node)],
});

const softmaxCrossEntropyLoss = defineOp({
  name: 'SoftmaxCrossEntropyLoss',
  since: 12,
  quantization: 'independent',
  infer: (context) => [inferLoss(context), typeOrUnknown(inputDtype(context, 0), context.shape(0))],
  evaluate: (inputs, { node }) => {
    const scores = need(inputs, 0, nodeName(node));
    const { outer, size, inner } = splitAtAxis(scores.shape, 1);
    const source = readReals(scores);
    const logs = new Float64Array(elementCount(scores.shape));
    for (let o = 0; o < outer; o++) {
      for (let i = 0; i < inner; i++) {
        const start = o * size * inner + i;
        let max = Number.NEGATIVE_INFINITY;
        for (let k = 0; k < size; k++) max = Math.max(max, source[start + k * inner]!);
        let sum = 0;
        for (let k = 0; k < size; k++) sum += Math.exp(source[start + k * inner]! - max);
        for (let k = 0; k < size; k++) logs[start + k * inner] = source[start + k * inner]! - max - Math.log(sum);
      }
    }
    const probabilities = encodeReals(scores.dtype, scores.shape, scores.dtype === 'f64' ? logs : Array.from(logs));
    return [reduceLoss(probabilities, inputs, node), probabilities];
  },
});

export const LOSS_OPS: readonly OpDefinition[] = [negativeLogLikelihoodLoss, softmaxCrossEntropyLoss];

import { intAttribute, type Value } from '../compiler/ir/graph.ts';
import { any, op } from '../compiler/match.ts';
import { type Builder, rewritePass } from '../compiler/rewrite.ts';
import { isFloatValue, knownRank, reshapeTensor } from '../compiler/value-facts.ts';

/**
 *     InstanceNormalization(x, s, b) {epsilon e}   ->   d = x - mean(x);  d / sqrt(mean(d * d) + e) * s + b
 *
 * with means over rows and columns, and s and b along axis 1.
 */
export const decomposeInstanceNorm = rewritePass({
  name: 'decompose-instance-norm',
  about: 'InstanceNormalization becomes ReduceMean, Sub, Mul, Add, Sqrt and Div',
  rules: [
    {
      opset: 18,
      pattern: op('InstanceNormalization', [any('x'), any('scale'), any('bias')]),
      check: (match) => {
        const x = match.value('x');
        if (!isFloatValue(x) || knownRank(x) === undefined) return `the type of %${x.name} is not known`;
        const wrong = ['scale', 'bias'].map((name) => match.value(name)).find((value) => !value.data);
        return wrong ? `%${wrong.name} is not constant` : true;
      },
      rewrite: (match, build) => {
        const x = match.value('x');
        const rank = knownRank(x)!;
        const axes = Array.from({ length: rank - 2 }, (_, i) => i + 2);
        const mean = (value: Value): Value =>
          build.emit('ReduceMean', [value, build.integers('axes', axes)], {
            attributes: { keepdims: intAttribute(1) },
          });
        const centred = build.emit('Sub', [x, mean(x)]);
        const variance = mean(build.emit('Mul', [centred, centred]));
        const epsilon = build.scalar('epsilon', match.root.float('epsilon', 1e-5), x);
        const deviation = build.emit('Sqrt', [build.emit('Add', [variance, epsilon])]);
        const normed = build.emit('Div', [centred, deviation]);
        const scaled = build.emit('Mul', [normed, perChannel(match.value('scale'), rank, build)]);
        return build.emit('Add', [scaled, perChannel(match.value('bias'), rank, build)]);
      },
    },
  ],
});

/** A vector along axis 1 of a value of so many axes. */
function perChannel(vector: Value, rank: number, build: Builder): Value {
  const shape = [vector.data!.size, ...new Array<number>(rank - 2).fill(1)];
  return build.graph.addConstant(vector.name, reshapeTensor(vector.data!, shape));
}

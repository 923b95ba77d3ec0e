import { DTYPES, isFloat } from '../compiler/ir/dtype.ts';
import { intsAttribute, type Value } from '../compiler/ir/graph.ts';
import { transposeTensor } from '../compiler/ir/tensor.ts';
import { any, either, op } from '../compiler/match.ts';
import { type Builder, rewritePass } from '../compiler/rewrite.ts';
import { knownDType } from '../compiler/value-facts.ts';

/**
 *     Gemm(a, b, c) {alpha, beta, transA, transB}   ->   alpha * MatMul(a', b') + beta * c
 *
 * A constant operand is transposed as a promise: nothing is read until it is written.
 */
export const decomposeGemm = rewritePass({
  name: 'decompose-gemm',
  about: 'Gemm becomes MatMul and Add',
  rules: [
    {
      pattern: either(op('Gemm', [any('a'), any('b')]), op('Gemm', [any('a'), any('b'), any('c')])),
      check: (match) => {
        const dtype = knownDType(match.value('a'));
        if (dtype === undefined || !isFloat(dtype)) return `%${match.value('a').name} is not a float`;
        const flipped = match.root.int('transB', 0) === 1 ? match.value('b') : undefined;
        return flipped?.encoding?.axis !== undefined ? `the encoding of %${flipped.name} has axes` : true;
      },
      rewrite: ({ root }, build) => {
        const a = flip(root.input(0), root.int('transA', 0), build);
        const b = flip(root.input(1), root.int('transB', 0), build);
        const product = scale(build.emit('MatMul', [a, b]), root.float('alpha', 1), root.input(0), build);
        const c = root.inputs[2];
        return c ? build.emit('Add', [product, scale(c, root.float('beta', 1), c, build)]) : product;
      },
    },
  ],
});

function flip(value: Value, transposed: number, build: Builder): Value {
  if (!transposed) return value;
  const { data } = value;
  if (data && !value.encoding && DTYPES[data.dtype].bits >= 8)
    return build.graph.addConstant(`${value.name}_t`, transposeTensor(data));
  return build.emit('Transpose', [value], { attributes: { perm: intsAttribute([1, 0]) } });
}

function scale(value: Value, factor: number, like: Value, build: Builder): Value {
  return factor === 1 ? value : build.emit('Mul', [value, build.scalar('factor', factor, like)]);
}

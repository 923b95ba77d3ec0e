import { DTYPES, isFloat } from '../compiler/ir/dtype.ts';
import { intsAttribute, type Node, type Value } from '../compiler/ir/graph.ts';
import { transposeTensor } from '../compiler/ir/tensor.ts';
import { any, either, op } from '../compiler/match.ts';
import { type Builder, type Rule, rewritePass } from '../compiler/rewrite.ts';
import { knownDType } from '../compiler/value-facts.ts';

/**
 *     Gemm(a, b, c) {alpha, beta, transA, transB}   ->   alpha * MatMul(a', b') + beta * c
 *
 * A constant operand is transposed as a promise: nothing is read until it is written.
 */
const GEMM: Rule = {
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
};

export const decomposeGemm = rewritePass({
  name: 'decompose-gemm',
  about: 'Gemm becomes MatMul and Add',
  rules: [GEMM],
});

/** The same for every Gemm that is no plain linear layer: runtimes with an operator for x W + b keep those. */
export const decomposeGeneralGemm = rewritePass({
  name: 'decompose-general-gemm',
  about: 'Gemm with factors, a transposed input or a computed matrix becomes MatMul and Add',
  rules: [{ ...GEMM, check: (match, context) => checkGeneral(match.root) ?? GEMM.check!(match, context) }],
});

function checkGeneral(gemm: Node): string | undefined {
  const plain = gemm.float('alpha', 1) === 1 && gemm.float('beta', 1) === 1 && gemm.int('transA', 0) === 0;
  return plain && gemm.input(1).data ? `${gemm.name} is a linear layer` : undefined;
}

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

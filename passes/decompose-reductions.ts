import { type Attribute, intAttribute } from '../compiler/ir/graph.ts';
import { any, either, type Match, op, type Pattern } from '../compiler/match.ts';
import { type Builder, type Rule, rewritePass } from '../compiler/rewrite.ts';
import { isFloatValue } from '../compiler/value-facts.ts';

/**
 *     ReduceL1(x)          ->   ReduceSum(Abs(x))
 *     ReduceSumSquare(x)   ->   ReduceSum(x * x)
 *     ReduceLogSum(x)      ->   Log(ReduceSum(x))
 *     ReduceLogSumExp(x)   ->   Log(ReduceSum(Exp(x - m))) + m      m = ReduceMax(x)
 *
 * HTP has none of them for integers (SUPPORT.md).
 */
export const decomposeReductions = rewritePass({
  name: 'decompose-reductions',
  about: 'ReduceL1, ReduceSumSquare, ReduceLogSum and ReduceLogSumExp become ReduceSum and elementwise ops',
  rules: [
    reduction('ReduceL1', (match, build) => reduce('ReduceSum', build.emit('Abs', [match.value('x')]), match, build)),
    reduction('ReduceSumSquare', (match, build) => {
      const x = match.value('x');
      return reduce('ReduceSum', build.emit('Mul', [x, x]), match, build);
    }),
    reduction('ReduceLogSum', (match, build) =>
      build.emit('Log', [reduce('ReduceSum', match.value('x'), match, build)]),
    ),
    reduction('ReduceLogSumExp', (match, build) => {
      const x = match.value('x');
      const top = reduce('ReduceMax', x, match, build, { keepdims: intAttribute(1) });
      const sum = reduce('ReduceSum', build.emit('Exp', [build.emit('Sub', [x, top])]), match, build);
      const kept = match.root.int('keepdims', 1) === 1 ? top : reduce('ReduceMax', x, match, build);
      return build.emit('Add', [build.emit('Log', [sum]), kept]);
    }),
  ],
});

function reduction(name: string, rewrite: Rule['rewrite']): Rule {
  const forms: Pattern[] = [op(name, [any('x')]), op(name, [any('x'), any('axes')])];
  return {
    // Since then all of them take their axes as an input.
    opset: 18,
    pattern: either(...forms),
    check: (match) => isFloatValue(match.value('x')) || `%${match.value('x').name} is not a float`,
    rewrite,
  };
}

/** Another reduction over the axes of the matched one. */
function reduce(
  name: string,
  x: ReturnType<Match['value']>,
  match: Match,
  build: Builder,
  change: Record<string, Attribute> = {},
): ReturnType<Match['value']> {
  const attributes = { ...Object.fromEntries(match.root.attributes), ...change };
  return build.emit(name, match.has('axes') ? [x, match.value('axes')] : [x], { attributes });
}

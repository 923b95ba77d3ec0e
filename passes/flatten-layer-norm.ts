import { intAttribute, type Node, type Value } from '../compiler/ir/graph.ts';
import { any, constant, either, op } from '../compiler/match.ts';
import { type Builder, rewritePass } from '../compiler/rewrite.ts';
import { knownShape, reshapeTensor } from '../compiler/value-facts.ts';

/**
 *     LayerNormalization(x : [b, t, h, w], g : [h, w]) {axis 2}
 *         ->   Reshape(LayerNormalization(Reshape(x) : [b, t, h w], g : [h w]))
 *
 * HTP normalizes over the last axis only.
 */
export const flattenLayerNorm = rewritePass({
  name: 'flatten-layer-norm',
  about: 'LayerNormalization over several axes is done over one that joins them',
  rules: [
    {
      opset: 17,
      pattern: either(
        op('LayerNormalization', [any('x'), constant('weight')], { as: 'norm' }),
        op('LayerNormalization', [any('x'), constant('weight'), constant('bias')], { as: 'norm' }),
      ),
      check: (match) => {
        const x = match.value('x');
        const shape = knownShape(x);
        if (!shape?.every((dim) => typeof dim === 'number')) return `the shape of %${x.name} is not fixed`;
        const joined = joinedLength(match.node('norm'), shape as number[]);
        if (axisOf(match.node('norm'), shape.length) === shape.length - 1) return 'it is over the last axis';
        return match.value('weight').data!.size === joined || 'the weight is broadcast';
      },
      rewrite: (match, build) => {
        const [x, norm] = [match.value('x'), match.node('norm')];
        const axis = axisOf(norm, x.dims.length);
        const flat = flatten(match.value('weight'), build);
        const bias = match.has('bias') ? [flatten(match.value('bias'), build)] : [];
        const shape = [...x.dims.slice(0, axis), joinedLength(norm, x.dims)];
        const attributes = { ...Object.fromEntries(norm.attributes), axis: intAttribute(-1) };
        const rows = build.emit('Reshape', [x, build.integers('rows', shape)]);
        const result = build.emit('LayerNormalization', [rows, flat, ...bias], { attributes });
        return build.emit('Reshape', [result, build.integers('shape', x.dims)]);
      },
    },
  ],
});

function axisOf(norm: Node, rank: number): number {
  const axis = norm.int('axis', -1);
  return axis < 0 ? axis + rank : axis;
}

function joinedLength(norm: Node, shape: readonly number[]): number {
  return shape.slice(axisOf(norm, shape.length)).reduce((product, length) => product * length, 1);
}

function flatten(value: Value, build: Builder): Value {
  const data = value.data!;
  return build.graph.addConstant(`${value.name}_flat`, reshapeTensor(data, [data.size]));
}

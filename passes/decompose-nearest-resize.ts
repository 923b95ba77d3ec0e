import { intAttribute, type Node, type Value } from '../compiler/ir/graph.ts';
import { Tensor } from '../compiler/ir/tensor.ts';
import { any, constant, either, type Match, op } from '../compiler/match.ts';
import { findOp } from '../compiler/ops/index.ts';
import { rewritePass } from '../compiler/rewrite.ts';
import { knownShape } from '../compiler/value-facts.ts';

/**
 *     Resize(x) {mode nearest}   ->   Gather(.. Gather(x, rows) .., columns)      with constant indices
 *
 * HTP computes nearest neighbours rightly where every element is repeated a whole number of times; of what is shrunk, or
 * rounded up, it takes others (SUPPORT.md: -3 dB). Those become gathers, which are exact.
 */
export const decomposeNearestResize = rewritePass({
  name: 'decompose-nearest-resize',
  about: 'Resize to the nearest neighbour becomes Gather where HTP takes other neighbours',
  rules: [
    {
      opset: 13,
      pattern: either(
        op('Resize', [any('x'), undefined, constant('scales')], { as: 'resize' }),
        op('Resize', [any('x'), undefined, undefined, constant('sizes')], { as: 'resize' }),
      ),
      check: (match, context) => {
        const plan = planGathers(match, context.opset());
        return typeof plan === 'string' ? plan : true;
      },
      rewrite: (match, build) => {
        let value = match.value('x');
        for (const { axis, indices } of planGathers(match, build.opset) as AxisGather[])
          value = build.emit('Gather', [value, build.integers('nearest', indices)], {
            attributes: { axis: intAttribute(axis) },
          });
        return value.producer ? value : build.emit('Identity', [value]);
      },
    },
  ],
});

interface AxisGather {
  readonly axis: number;
  readonly indices: readonly number[];
}

/** The neighbours along each axis that changes, or why the op stays. */
function planGathers(match: Match, opset: number): AxisGather[] | string {
  const node = match.node('resize');
  const x = match.value('x');
  if (node.string('mode', 'nearest') !== 'nearest') return 'it interpolates';
  if (node.string('coordinate_transformation_mode', '') === 'tf_crop_and_resize') return 'it crops';
  if (node.string('keep_aspect_ratio_policy', 'stretch') !== 'stretch') return 'it keeps the aspect ratio';
  if (node.attributes.has('axes')) return 'it names axes';
  const shape = knownShape(x);
  if (!shape?.every((dim) => typeof dim === 'number')) return `the shape of %${x.name} is not fixed`;
  const gathers = (shape as number[])
    .map((length, axis) => ({ axis, length, indices: neighbours(match, node, x, axis, opset) }))
    .filter(({ length, indices }) => indices.length !== length || indices.some((at, i) => at !== i));
  return gathers.every(({ length, indices }) => isRepeated(length, indices)) ? 'HTP repeats elements rightly' : gathers;
}

/** Which element each output reads along an axis: the op itself, run on 0, 1, 2 ... */
function neighbours(match: Match, node: Node, x: Value, axis: number, opset: number): number[] {
  const dims = x.dims;
  const shape = dims.map((length, at) => (at === axis ? length : 1));
  const ramp = Float32Array.from({ length: dims[axis]! }, (_, i) => i);
  const own = (name: 'scales' | 'sizes', dtype: 'f32' | 'i64'): Tensor | undefined => {
    if (!match.has(name)) return undefined;
    const values = match
      .value(name)
      .data!.toNumbers()
      .map((value, at) => (at === axis ? value : 1));
    return dtype === 'f32'
      ? Tensor.of('f32', [values.length], Float32Array.from(values))
      : Tensor.of('i64', [values.length], BigInt64Array.from(values, BigInt));
  };
  const inputs = [Tensor.of('f32', shape, ramp), undefined, own('scales', 'f32'), own('sizes', 'i64')];
  const [output] = findOp('', 'Resize', opset)!.evaluate!(
    inputs.map((tensor) => tensor?.toData()),
    { node, opset },
  );
  return Array.from(output!.data as Float32Array);
}

/** 0 0 1 1 2 2: each element a whole number of times. */
function isRepeated(length: number, indices: readonly number[]): boolean {
  const times = indices.length / length;
  return Number.isInteger(times) && indices.every((at, i) => at === Math.floor(i / times));
}

import { intAttribute, type Node, type Value } from '../compiler/ir/graph.ts';
import { Tensor } from '../compiler/ir/tensor.ts';
import { any, constant, either, op } from '../compiler/match.ts';
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
        const plan = planGathers(match.node('resize'), context.opset());
        return typeof plan === 'string' ? plan : true;
      },
      rewrite: (match, build) => {
        let value = match.value('x');
        for (const { axis, indices } of planGathers(match.node('resize'), build.opset) as AxisGather[])
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
function planGathers(node: Node, opset: number): AxisGather[] | string {
  const gathers = findGathers(node, opset);
  if (typeof gathers === 'string') return gathers;
  return gathers.every(({ length, indices }) => isRepeated(length, indices)) ? 'HTP repeats elements rightly' : gathers;
}

/**
 * Whether a Resize repeats each element a whole number of times, which HTP computes rightly; undefined where it interpolates
 * or what it reads is not known.
 */
export function isRepeatedNearest(node: Node, opset: number): boolean | undefined {
  const gathers = findGathers(node, opset);
  return typeof gathers === 'string' ? undefined : gathers.every(({ length, indices }) => isRepeated(length, indices));
}

function findGathers(node: Node, opset: number): (AxisGather & { readonly length: number })[] | string {
  const x = node.input(0);
  if (!node.inputs[2]?.data && !node.inputs[3]?.data) return 'its lengths are computed';
  if (node.string('mode', 'nearest') !== 'nearest') return 'it interpolates';
  if (node.string('coordinate_transformation_mode', '') === 'tf_crop_and_resize') return 'it crops';
  if (node.string('keep_aspect_ratio_policy', 'stretch') !== 'stretch') return 'it keeps the aspect ratio';
  if (node.attributes.has('axes')) return 'it names axes';
  const shape = knownShape(x);
  if (!shape?.every((dim) => typeof dim === 'number')) return `the shape of %${x.name} is not fixed`;
  return (shape as number[])
    .map((length, axis) => ({ axis, length, indices: neighbours(node, axis, opset) }))
    .filter(({ length, indices }) => indices.length !== length || indices.some((at, i) => at !== i));
}

/** Which element each output reads along an axis: the op itself, run on 0, 1, 2 ... */
function neighbours(node: Node, axis: number, opset: number): number[] {
  const { dims } = node.input(0);
  const shape = dims.map((length, at) => (at === axis ? length : 1));
  const ramp = Float32Array.from({ length: dims[axis]! }, (_, i) => i);
  const along = (value: Value | undefined): number[] | undefined =>
    value?.data?.toNumbers().map((number, at) => (at === axis ? number : 1));
  const [scales, sizes] = [along(node.inputs[2]), along(node.inputs[3])];
  const inputs = [
    Tensor.of('f32', shape, ramp),
    undefined,
    scales?.length ? Tensor.of('f32', [scales.length], Float32Array.from(scales)) : undefined,
    sizes && Tensor.of('i64', [sizes.length], BigInt64Array.from(sizes, BigInt)),
  ];
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

import { type Attribute, intsAttribute, type Node } from '../compiler/ir/graph.ts';
import { elementCount, Tensor } from '../compiler/ir/tensor.ts';
import type { Pass } from '../compiler/pass.ts';
import { remakeNode } from '../compiler/rewrite.ts';

/**
 *     ConvTranspose(x, w) {group g, dilations d}   ->   ConvTranspose(x, w')
 *
 * with zeros in w' where an input channel is of another group, and between the taps. Exact, for runtimes that know neither.
 */
export const mergeTransposedGroups: Pass = {
  name: 'merge-transposed-groups',
  about: 'ConvTranspose in groups or with dilations becomes a dense one with zeros in its weight',
  run(graph, context) {
    let changed = false;
    for (const node of [...graph.nodes]) {
      if (node.op !== 'ConvTranspose' || node.domain !== '') continue;
      if (node.int('group', 1) === 1 && (node.ints('dilations') ?? []).every((each) => each === 1)) continue;
      const weight = node.inputs[1];
      if (weight?.data?.dtype !== 'f32') {
        context.remark(node, 'its weight is not constant');
        continue;
      }
      const dense = spread(node, weight.data);
      const value = graph.addConstant(weight.name, dense);
      const attributes = new Map<string, Attribute>(node.attributes);
      attributes.delete('group');
      attributes.delete('dilations');
      if (attributes.has('kernel_shape')) attributes.set('kernel_shape', intsAttribute(dense.shape.slice(2)));
      remakeNode(node, { inputs: [node.inputs[0], value, ...node.inputs.slice(2)], attributes });
      if (!graph.isUsed(weight)) graph.removeValue(weight);
      changed = true;
    }
    return changed;
  },
};

/** A weight [C, M / group, kernel...] as [C, M, spread kernel...]. */
function spread(node: Node, weight: Tensor): Tensor {
  const group = node.int('group', 1);
  const [inputs, perGroup, ...kernel] = weight.shape as [number, number, ...number[]];
  const dilations = node.ints('dilations') ?? kernel.map(() => 1);
  const extents = kernel.map((size, axis) => (size - 1) * dilations[axis]! + 1);
  const taps = elementCount(kernel);
  const area = elementCount(extents);
  const places = Array.from({ length: taps }, (_, tap) => placeOf(tap, kernel, dilations, extents));
  const source = weight.toFloats();
  const dense = new Float32Array(inputs * perGroup * group * area);
  for (let i = 0; i < inputs; i++) {
    const first = Math.floor(i / (inputs / group)) * perGroup;
    for (let o = 0; o < perGroup; o++)
      for (let tap = 0; tap < taps; tap++)
        dense[(i * perGroup * group + first + o) * area + places[tap]!] = source[(i * perGroup + o) * taps + tap]!;
  }
  return Tensor.of('f32', [inputs, perGroup * group, ...extents], dense);
}

/** Where a tap lies in the spread kernel. */
function placeOf(
  tap: number,
  kernel: readonly number[],
  dilations: readonly number[],
  extents: readonly number[],
): number {
  let rest = tap;
  let place = 0;
  let stride = 1;
  for (let axis = kernel.length - 1; axis >= 0; axis--) {
    place += (rest % kernel[axis]!) * dilations[axis]! * stride;
    rest = Math.floor(rest / kernel[axis]!);
    stride *= extents[axis]!;
  }
  return place;
}

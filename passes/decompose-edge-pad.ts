import { intAttribute, type Node, type Value } from '../compiler/ir/graph.ts';
import { any, constant, either, type Match, op } from '../compiler/match.ts';
import { type Builder, rewritePass } from '../compiler/rewrite.ts';
import { knownShape } from '../compiler/value-facts.ts';

/**
 *     Pad(x, pads) {mode edge}   ->   Concat(first, .., x, .., last)      axis by axis
 *
 * HTP pads with edges wrongly in half floats (facts of the vendor's simulator: -87 dB); slices and concatenation are exact.
 */
export const decomposeEdgePad = rewritePass({
  name: 'decompose-edge-pad',
  about: 'Pad with edges becomes Slice and Concat',
  rules: [
    {
      opset: 13,
      pattern: either(
        op('Pad', [any('x'), constant('pads')], { as: 'pad' }),
        op('Pad', [any('x'), constant('pads'), undefined, constant('axes')], { as: 'pad' }),
      ),
      check: (match) => {
        const node = match.node('pad');
        if (node.string('mode', 'constant') !== 'edge') return `${node.name} does not pad with edges`;
        const plan = planPad(match, node);
        return typeof plan === 'string' ? plan : true;
      },
      rewrite: (match, build) => {
        let value = match.value('x');
        for (const side of planPad(match, match.node('pad')) as AxisPad[]) value = padAxis(value, side, build);
        return value.producer ? value : build.emit('Identity', [value]);
      },
    },
  ],
});

interface AxisPad {
  readonly axis: number;
  readonly length: number;
  readonly before: number;
  readonly after: number;
}

/** What is added along each axis, or why that is not known. */
function planPad(match: Match, node: Node): AxisPad[] | string {
  const x = match.value('x');
  const shape = knownShape(x);
  if (!shape?.every((dim) => typeof dim === 'number')) return `the shape of %${x.name} is not fixed`;
  const pads = match.value('pads').data!.toNumbers();
  const axes = match.has('axes') ? match.value('axes').data!.toNumbers() : shape.map((_, axis) => axis);
  if (pads.some((pad) => pad < 0)) return `${node.name} crops`;
  return axes.map((axis, i) => {
    const at = axis < 0 ? axis + shape.length : axis;
    return { axis: at, length: shape[at] as number, before: pads[i]!, after: pads[i + axes.length]! };
  });
}

function padAxis(value: Value, { axis, length, before, after }: AxisPad, build: Builder): Value {
  if (before === 0 && after === 0) return value;
  const edge = (at: number): Value =>
    build.emit('Slice', [
      value,
      build.integers('starts', [at]),
      build.integers('ends', [at + 1]),
      build.integers('axes', [axis]),
    ]);
  const first = before > 0 ? new Array<Value>(before).fill(edge(0)) : [];
  const last = after > 0 ? new Array<Value>(after).fill(edge(length - 1)) : [];
  return build.emit('Concat', [...first, value, ...last], { attributes: { axis: intAttribute(axis) } });
}

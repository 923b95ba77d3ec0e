import { intAttribute, tensorType, type Value } from '../compiler/ir/graph.ts';
import { Tensor } from '../compiler/ir/tensor.ts';
import { any, op } from '../compiler/match.ts';
import { type Builder, rewritePass } from '../compiler/rewrite.ts';
import { knownShape } from '../compiler/value-facts.ts';

/**
 *     OneHot(i, depth, [off, on]) {axis}   ->   Where(Equal(i', 0..depth-1), on, off)
 *     Hardmax(x) {axis}                    ->   Where(Equal(ArgMax(x), 0..n-1), 1, 0)
 *
 * i' counts from the start and has a dimension of 1 at the axis.
 */
export const decomposeOneHot = rewritePass({
  name: 'decompose-one-hot',
  about: 'OneHot and Hardmax become comparisons with the numbers of places',
  rules: [
    {
      pattern: op('OneHot', [any('indices'), any('depth'), any('values')]),
      check: ({ root }) => {
        if (!root.input(1).data || !root.input(2).data) return 'its depth or its values are not constant';
        return isFixed(root.input(0)) || 'the shape of its indices is not fixed';
      },
      rewrite: ({ root }, build) => {
        const indices = root.input(0);
        const [depth] = root.input(1).data!.toNumbers() as [number];
        const rank = indices.dims.length + 1;
        const axis = (root.int('axis', -1) + rank) % rank;
        const wide = toInt64(indices, build);
        const count = build.graph.addConstant('depth', Tensor.of('i64', [], [depth]));
        const zero = build.graph.addConstant('zero', Tensor.of('i64', [], [0]));
        const turned = build.emit('Where', [build.emit('Less', [wide, zero]), build.emit('Add', [wide, count]), wide]);
        const [off, on] = pick(root.input(2), build);
        return compare(turned, indices.dims, axis, depth, on, off, build);
      },
    },
    {
      opset: 13,
      pattern: op('Hardmax', [any('x')]),
      check: ({ root }) => isFixed(root.input(0)) || 'the shape of its input is not fixed',
      rewrite: ({ root }, build) => {
        const x = root.input(0);
        const rank = x.dims.length;
        const axis = (root.int('axis', -1) + rank) % rank;
        const attributes = { axis: intAttribute(axis), keepdims: intAttribute(0) };
        const best = build.emit('ArgMax', [x], { attributes });
        const dims = x.dims.filter((_, each) => each !== axis);
        const [on, off] = [1, 0].map((each) => build.scalar('value', each, x)) as [Value, Value];
        return compare(best, dims, axis, x.dims[axis]!, on, off, build);
      },
    },
  ],
});

function isFixed(value: Value): boolean {
  return knownShape(value)?.every((dim) => typeof dim === 'number') ?? false;
}

function toInt64(value: Value, build: Builder): Value {
  if (value.dtype === 'i64') return value;
  return build.emit('Cast', [value], { attributes: { to: intAttribute(7) }, type: tensorType('i64', value.shape) });
}

/** The two values of a OneHot as scalars. */
function pick(values: Value, build: Builder): readonly [Value, Value] {
  const [off, on] = values.data!.toNumbers() as [number, number];
  return [build.scalar('off', off, values), build.scalar('on', on, values)];
}

function compare(
  places: Value,
  dims: readonly number[],
  axis: number,
  depth: number,
  on: Value,
  off: Value,
  build: Builder,
): Value {
  const shape = [...dims.slice(0, axis), 1, ...dims.slice(axis)];
  const wide = build.emit('Reshape', [places, build.integers('shape', shape)]);
  const numbers = Tensor.of(
    'i64',
    shape.map((_, each) => (each === axis ? depth : 1)),
    BigInt64Array.from({ length: depth }, (_, i) => BigInt(i)),
  );
  const hits = build.emit('Equal', [wide, build.graph.addConstant('numbers', numbers)]);
  return build.emit('Where', [hits, on, off]);
}

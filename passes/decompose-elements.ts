import { type Graph, intAttribute, type Node, stringAttribute, tensorType, type Value } from '../compiler/ir/graph.ts';
import { elementCount, Tensor } from '../compiler/ir/tensor.ts';
import type { Pass } from '../compiler/pass.ts';
import { Builder, replaceByIdentities } from '../compiler/rewrite.ts';
import { knownShape } from '../compiler/value-facts.ts';

/**
 *     GatherElements(x, i) {axis}        ->   GatherND(x, places)
 *     ScatterElements(x, i, u) {axis}    ->   ScatterND(x, places, u)
 *     GatherND(x, i) {batch_dims b}      ->   GatherND(x, places)
 *
 *     places = Concat(coordinates of the other axes, i)      a whole place for every element
 *
 * For runtimes that gather and scatter by whole places only. Indices that count from the end are turned round.
 */
export const decomposeElements: Pass = {
  name: 'decompose-elements',
  about: 'GatherElements, ScatterElements and batched GatherND become GatherND and ScatterND',
  run(graph, context) {
    let changed = false;
    for (const node of [...graph.nodes]) {
      if (node.domain !== '' || !['GatherElements', 'ScatterElements', 'Scatter', 'GatherND'].includes(node.op))
        continue;
      if (node.op === 'GatherND' && node.int('batch_dims', 0) === 0) continue;
      const refusal = refuse(node);
      if (refusal) {
        context.remark(node, refusal);
        continue;
      }
      rewrite(graph, node, context.opset());
      changed = true;
    }
    return changed;
  },
};

function refuse(node: Node): string | undefined {
  for (const input of node.inputs) {
    const shape = knownShape(input);
    if (!shape?.every((dim) => typeof dim === 'number')) return 'a shape is not fixed';
    if (elementCount(shape as number[]) === 0) return 'there is nothing to move';
  }
  const type = node.input(1).dtype;
  return type === 'i64' || type === 'i32' ? undefined : `its indices are ${type}`;
}

function rewrite(graph: Graph, node: Node, opset: number): void {
  const build = new Builder(graph, node, node.from, opset);
  const [x, indices] = [node.input(0), node.input(1)];
  if (node.op === 'GatherND') {
    const places = batchPlaces(x, indices, node.int('batch_dims', 0), build);
    replaceByIdentities(graph, node, [build.emit('GatherND', [x, places])], opset);
    return;
  }
  const rank = x.dims.length;
  const places = elementPlaces(x, indices, (node.int('axis', 0) + rank) % rank, build);
  const result =
    node.op === 'GatherElements'
      ? build.emit('GatherND', [x, places])
      : build.emit('ScatterND', [x, places, node.input(2)], {
          attributes: { reduction: stringAttribute(node.string('reduction', 'none')) },
        });
  replaceByIdentities(graph, node, [result], opset);
}

/** Coordinates of every place of a shape along an axis, [..shape, 1]. */
function coordinates(shape: readonly number[], axis: number): Tensor {
  const inner = elementCount(shape.slice(axis + 1));
  const data = BigInt64Array.from({ length: elementCount(shape) }, (_, i) =>
    BigInt(Math.floor(i / inner) % shape[axis]!),
  );
  return Tensor.of('i64', [...shape, 1], data);
}

function elementPlaces(x: Value, indices: Value, axis: number, build: Builder): Value {
  const shape = indices.dims;
  const own = build.emit('Reshape', [fromStart(indices, x.dims[axis]!, build), build.integers('shape', [...shape, 1])]);
  const parts = shape.map((_, each) =>
    each === axis ? own : build.graph.addConstant('coordinates', coordinates(shape, each)),
  );
  return concat(parts, build);
}

function batchPlaces(x: Value, indices: Value, batch: number, build: Builder): Value {
  const shape = indices.dims.slice(0, -1);
  const depth = indices.dims.at(-1)!;
  const limits = Tensor.of('i64', [depth], BigInt64Array.from(x.dims.slice(batch, batch + depth), BigInt));
  const leading = Array.from({ length: batch }, (_, axis) =>
    build.graph.addConstant('coordinates', coordinates(shape, axis)),
  );
  return concat([...leading, fromStart(indices, build.graph.addConstant('limits', limits), build)], build);
}

function concat(parts: readonly Value[], build: Builder): Value {
  return parts.length === 1 ? parts[0]! : build.emit('Concat', parts, { attributes: { axis: intAttribute(-1) } });
}

/** 64-bit indices that count from the start. */
function fromStart(indices: Value, limit: number | Value, build: Builder): Value {
  const size = typeof limit === 'number' ? build.graph.addConstant('limit', Tensor.of('i64', [], [limit])) : limit;
  const wide =
    indices.dtype === 'i64'
      ? indices
      : build.emit('Cast', [indices], { attributes: { to: intAttribute(7) }, type: tensorType('i64', indices.shape) });
  const zero = build.graph.addConstant('zero', Tensor.of('i64', [], [0]));
  return build.emit('Where', [build.emit('Less', [wide, zero]), build.emit('Add', [wide, size]), wide]);
}

import { elementCount, type TensorData } from '../ir/tensor.ts';
import { combineElements, expandTo, mapElements } from './broadcast.ts';
import { isBig, need } from './elements.ts';
import { broadcastDims, broadcastOffsets } from './indexing.ts';
import { defineOp, type OpDefinition } from './op.ts';
import { broadcastShapes, inputDtype, likeInput, nodeName, typeOrUnknown } from './shape-rules.ts';

type Comparable = number | bigint | string;

/** A comparison or connective of two broadcast inputs. 64-bit integers and strings are compared as such. */
function comparison(name: string, since: number, holds: (x: Comparable, y: Comparable) => boolean): OpDefinition {
  return defineOp({
    name,
    since,
    quantization: 'never',
    infer: (context) => [
      typeOrUnknown('bool', broadcastShapes([context.shape(0), context.shape(1)], nodeName(context.node))),
    ],
    evaluate: (inputs, { node }) => {
      const where = nodeName(node);
      const a = need(inputs, 0, where);
      const b = need(inputs, 1, where);
      if (isBig(a.dtype) || a.dtype === 'string') return [compareExactly(a, b, holds, where)];
      return [combineElements(a, b, { real: (x, y) => (holds(x, y) ? 1 : 0) }, 'bool', where)];
    },
  });
}

function compareExactly(
  a: TensorData,
  b: TensorData,
  holds: (x: Comparable, y: Comparable) => boolean,
  where: string,
): TensorData {
  const shape = broadcastDims([a.shape, b.shape], where);
  const x: ArrayLike<Comparable> = a.strings ?? a.data;
  const y: ArrayLike<Comparable> = b.strings ?? b.data;
  const xAt = broadcastOffsets(a.shape, shape);
  const yAt = broadcastOffsets(b.shape, shape);
  const out = new Uint8Array(elementCount(shape));
  for (let i = 0; i < out.length; i++) out[i] = holds(x[xAt[i]!]!, y[yAt[i]!]!) ? 1 : 0;
  return { dtype: 'bool', shape, data: out };
}

const not = defineOp({
  name: 'Not',
  since: 1,
  quantization: 'never',
  infer: likeInput('bool'),
  evaluate: (inputs, { node }) => [mapElements(need(inputs, 0, nodeName(node)), (x) => (x === 0 ? 1 : 0))],
});

const where = defineOp({
  name: 'Where',
  since: 9,
  quantization: 'independent',
  infer: (context) => [
    typeOrUnknown(
      inputDtype(context, 1) ?? inputDtype(context, 2),
      broadcastShapes([context.shape(0), context.shape(1), context.shape(2)], nodeName(context.node)),
    ),
  ],
  evaluate: (inputs, { node }) => {
    const name = nodeName(node);
    const condition = need(inputs, 0, name);
    const yes = need(inputs, 1, name);
    const no = need(inputs, 2, name);
    const shape = broadcastDims([condition.shape, yes.shape, no.shape], name);
    // A copy of the broadcast `no`, overwritten where the condition holds.
    const out = expandTo(no, shape, name);
    const conditionAt = broadcastOffsets(condition.shape, shape);
    const yesAt = broadcastOffsets(yes.shape, shape);
    if (out.strings) {
      const strings = out.strings.map((text, i) => (condition.data[conditionAt[i]!] ? yes.strings![yesAt[i]!]! : text));
      return [{ ...out, strings }];
    }
    const data = out.data.slice() as Float32Array;
    const source = yes.data as Float32Array;
    for (let i = 0; i < data.length; i++) if (condition.data[conditionAt[i]!]) data[i] = source[yesAt[i]!]!;
    return [{ dtype: out.dtype, shape, data }];
  },
});

export const LOGICAL_OPS: readonly OpDefinition[] = [
  comparison('Equal', 7, (x, y) => x === y),
  comparison('Less', 7, (x, y) => x < y),
  comparison('Greater', 7, (x, y) => x > y),
  comparison('LessOrEqual', 12, (x, y) => x <= y),
  comparison('GreaterOrEqual', 12, (x, y) => x >= y),
  comparison('And', 7, (x, y) => x !== 0 && y !== 0),
  comparison('Or', 7, (x, y) => x !== 0 || y !== 0),
  comparison('Xor', 7, (x, y) => (x !== 0) !== (y !== 0)),
  not,
  where,
];

import type { DType } from '../compiler/ir/dtype.ts';
import { type Graph, intsAttribute, type Node, type Value } from '../compiler/ir/graph.ts';
import { soleNumber } from '../compiler/match.ts';
import type { Pass, PassContext } from '../compiler/pass.ts';
import { Builder, bondOf, bypass, removeDeadNodes, replaceByFresh } from '../compiler/rewrite.ts';
import { knownDType, knownShape, sameKnownShape } from '../compiler/value-facts.ts';

/**
 *     %y = Identity(%x), Dropout(%x), Cast to the same type, Reshape to the same shape, Transpose that moves nothing,
 *          Slice of everything, Pad by nothing, Add(%x, 0), Mul(%x, 1), Concat(%x) ...        ->   %x
 *     Transpose(Transpose(%x))                                                                ->   one Transpose, or %x
 *     Reshape(Reshape(%x)), and Flatten, Squeeze and Unsqueeze in the place of the inner one  ->   one Reshape, or %x
 *     Cast(Cast(%x: i32, i64), i32)                                                           ->   %x
 */
export const eliminateNoops: Pass = {
  name: 'eliminate-noops',
  about: 'removes operators that return their input, and joins consecutive Transposes and Reshapes',
  run: (graph, context) => {
    let changed = false;
    for (const node of [...graph.nodes]) {
      if (node.graph !== graph || node.domain !== '') continue;
      if (
        removeNoop(graph, node, context) ||
        joinTransposes(graph, node, context) ||
        joinReshapes(graph, node, context)
      )
        changed = true;
    }
    return changed;
  },
};

function removeNoop(graph: Graph, node: Node, context: PassContext): boolean {
  const same =
    NOOPS[node.op]?.(node, context) ?? sourceOfSameShape(node) ?? sourceOfCasts(node) ?? sourceOfTransposes(node);
  const [output, ...others] = node.outputs;
  if (!same || !output || others.some((value) => value && (value.uses.size > 0 || graph.isOutput(value)))) return false;
  const outcome = bypass(graph, output, same, context);
  if (outcome === true) return true;
  context.remark(node, outcome);
  return false;
}

/** For each operator, the input that its output equals, when it does. */
const NOOPS: Readonly<Record<string, (node: Node, context: PassContext) => Value | undefined>> = {
  Identity: (node) => node.inputs[0],
  Dropout: (node, context) => {
    const training = node.inputs[2];
    const isInference = context.opset() < 12 || training === undefined || soleNumber(training) === 0;
    return isInference ? node.inputs[0] : undefined;
  },
  Cast: (node) => when(node, knownDType(node.inputs[0]) !== undefined && sameDType(node)),
  CastLike: (node) => when(node, knownDType(node.inputs[0]) !== undefined && sameDType(node)),
  Reshape: (node) => when(node, keepsShape(node)),
  Flatten: (node) => when(node, keepsShape(node)),
  Squeeze: (node) => when(node, keepsShape(node)),
  Expand: (node) => when(node, keepsShape(node)),
  Tile: (node) =>
    when(
      node,
      numbers(node.inputs[1])?.every((count) => count === 1),
    ),
  Transpose: (node) =>
    when(
      node,
      node.ints('perm')?.every((axis, index) => axis === index),
    ),
  Slice: (node) => when(node, keepsShape(node) && (stepsOf(node)?.every((step) => step > 0) ?? false)),
  Pad: (node) =>
    when(
      node,
      (node.ints('pads') ?? numbers(node.inputs[1]))?.every((pad) => pad === 0),
    ),
  Concat: (node) => when(node, node.inputs.length === 1),
  Sum: (node) => when(node, node.inputs.length === 1),
  Max: (node) => when(node, node.inputs.length === 1),
  Min: (node) => when(node, node.inputs.length === 1),
  Mean: (node) => when(node, node.inputs.length === 1),
  Split: (node) => when(node, node.outputs.length === 1 && keepsShape(node)),
  Add: (node) => neutral(node, 0, 'both'),
  Sub: (node) => neutral(node, 0, 'right'),
  Mul: (node) => neutral(node, 1, 'both'),
  Div: (node) => neutral(node, 1, 'right'),
  Pow: (node) => neutral(node, 1, 'right'),
};

function when(node: Node, condition: boolean | undefined): Value | undefined {
  return condition ? node.inputs[0] : undefined;
}

function sameDType(node: Node): boolean {
  return knownDType(node.inputs[0]) === knownDType(node.outputs[0]);
}

function keepsShape(node: Node): boolean {
  return sameKnownShape(node.inputs[0], node.outputs[0]);
}

function numbers(value: Value | undefined): number[] | undefined {
  return value?.data?.toNumbers();
}

/** Steps of a Slice; 1 everywhere when absent or before opset 10. */
function stepsOf(node: Node): number[] | undefined {
  return node.inputs[4] ? numbers(node.inputs[4]) : [1];
}

/** The other operand of a constant that changes nothing, unless broadcasting makes the result larger. */
function neutral(node: Node, element: number, side: 'both' | 'right'): Value | undefined {
  const [left, right] = node.inputs;
  const keeps = (kept: Value | undefined, constant: Value | undefined): boolean =>
    soleNumber(constant) === element && !constant?.encoding && sameKnownShape(kept, node.outputs[0]);
  if (keeps(left, right)) return left;
  return side === 'both' && keeps(right, left) ? right : undefined;
}

const RESHAPES: ReadonlySet<string> = new Set(['Reshape', 'Flatten', 'Squeeze', 'Unsqueeze']);

/** Up a chain of operators that only relabel elements, the first value of the same shape. */
function sourceOfSameShape(node: Node): Value | undefined {
  let value: Value | undefined = node.outputs[0];
  let source: Value | undefined;
  while (value?.producer && value.producer.domain === '' && RESHAPES.has(value.producer.op)) {
    value = value.producer.inputs[0];
    if (sameKnownShape(value, node.outputs[0])) source = value;
    if (value?.encoding !== node.outputs[0]?.encoding) break;
  }
  return source;
}

/** Types that hold every number of another one. */
const WIDER: Partial<Record<DType, readonly DType[]>> = {
  f16: ['f32', 'f64'],
  bf16: ['f32', 'f64'],
  f32: ['f64'],
  bool: ['u8', 'i8', 'i16', 'i32', 'i64', 'u16', 'u32', 'u64', 'f16', 'f32', 'f64', 'bf16'],
  u8: ['i16', 'i32', 'i64', 'u16', 'u32', 'u64', 'f16', 'f32', 'f64'],
  i8: ['i16', 'i32', 'i64', 'f16', 'f32', 'f64', 'bf16'],
  i16: ['i32', 'i64', 'f32', 'f64'],
  u16: ['i32', 'i64', 'u32', 'u64', 'f32', 'f64'],
  i32: ['i64', 'f64'],
  u32: ['i64', 'u64', 'f64'],
};

/** Cast there and back again through a wider type. */
function sourceOfCasts(node: Node): Value | undefined {
  const inner = node.inputs[0];
  const outer = inner?.producer;
  if (node.op !== 'Cast' || outer?.op !== 'Cast' || outer.domain !== '' || inner?.encoding) return undefined;
  const from = knownDType(outer.inputs[0]);
  const through = knownDType(inner);
  const isBack = from !== undefined && from === knownDType(node.outputs[0]);
  return isBack && through !== undefined && WIDER[from]?.includes(through) ? outer.inputs[0] : undefined;
}

/** Why an inner value must stay, although a later node could skip it. */
function mustStay(graph: Graph, inner: Value, context: PassContext): boolean {
  return inner.uses.size > 1 || bondOf(graph, inner, context.module) !== undefined;
}

/** The permutation of a Transpose over a Transpose, from the first one's input. */
function jointPermutation(node: Node): number[] | undefined {
  const inner = node.inputs[0];
  const first = inner?.producer;
  if (node.op !== 'Transpose' || first?.op !== 'Transpose' || first.domain !== '') return undefined;
  const rank = knownShape(inner)?.length;
  const reverse = rank === undefined ? undefined : Array.from({ length: rank }, (_, axis) => rank - 1 - axis);
  const before = first.ints('perm') ?? reverse;
  const after = node.ints('perm') ?? reverse;
  return before && after?.map((axis) => before[axis]!);
}

/** A Transpose that undoes the one it reads. */
function sourceOfTransposes(node: Node): Value | undefined {
  const isUndone = jointPermutation(node)?.every((axis, index) => axis === index);
  return isUndone && !node.input(0).encoding ? node.input(0).producer!.inputs[0] : undefined;
}

function joinTransposes(graph: Graph, node: Node, context: PassContext): boolean {
  const perm = jointPermutation(node);
  if (!perm || mustStay(graph, node.input(0), context)) return false;
  const first = node.input(0).producer!;
  return join(graph, node, context, (build) =>
    build.emit('Transpose', [first.input(0)], { attributes: { perm: intsAttribute(perm) } }),
  );
}

/** A Reshape over another relabelling reads its source; the shape is written out where it is known. */
function joinReshapes(graph: Graph, node: Node, context: PassContext): boolean {
  const inner = node.inputs[0];
  const first = inner?.producer;
  if (!RESHAPES.has(node.op) || !first || first.domain !== '' || !RESHAPES.has(first.op)) return false;
  const shape = knownShape(node.outputs[0]);
  if (!shape || mustStay(graph, inner!, context)) return false;
  const symbolic = shape.filter((dim) => typeof dim !== 'number').length;
  if (symbolic > 1 || shape.includes(0)) return false;
  const target = shape.map((dim) => (typeof dim === 'number' ? dim : -1));
  return join(graph, node, context, (build) =>
    build.emit('Reshape', [first.input(0), build.integers('shape', target)]),
  );
}

function join(graph: Graph, node: Node, context: PassContext, make: (build: Builder) => Value): boolean {
  const first = node.input(0).producer!;
  const build = new Builder(graph, node, [...first.from, ...node.from], context.opset());
  replaceByFresh(graph, node.output(), make(build));
  removeDeadNodes(graph, [first]);
  return true;
}

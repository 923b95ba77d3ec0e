import { NpucError } from '../errors.ts';
import type { Dim, Shape } from '../ir/graph.ts';
import { elementCount } from '../ir/tensor.ts';
import { encodeReals, need, newReals, readReals } from './elements.ts';
import { stridedOffsets, stridesOf } from './indexing.ts';
import { defineOp, type OpDefinition } from './op.ts';
import { broadcastDim, inputDtype, nodeName, typeOrUnknown } from './shape-rules.ts';

/** An equation with its ellipsis spelled out: one label per axis of every operand and of the output. */
interface Equation {
  readonly operands: readonly (readonly string[])[];
  readonly output: readonly string[];
}

/** @throws IR022 when the equation does not fit the ranks */
function parseEquation(text: string, ranks: readonly number[], where: string): Equation {
  const [left, right] = text.replaceAll(' ', '').split('->') as [string, string | undefined];
  const terms = left.split(',');
  if (terms.length !== ranks.length)
    throw new NpucError('IR022', {
      message: `equation ${text} has ${terms.length} terms for ${ranks.length} inputs`,
      where,
    });
  const letters = (term: string): string[] => [...term.replace('...', '')];
  const free = terms.map((term, index) => (term.includes('...') ? ranks[index]! - letters(term).length : 0));
  const widest = Math.max(0, ...free);
  const expand = (term: string, count: number): string[] => {
    const [before, after] = term.split('...') as [string, string | undefined];
    if (after === undefined) return [...before];
    // Broadcast axes align at the right.
    const dots = Array.from({ length: count }, (_, k) => `.${widest - count + k}`);
    return [...before, ...dots, ...after];
  };
  const operands = terms.map((term, index) => expand(term, free[index]!));
  operands.forEach((labels, index) => {
    if (labels.length !== ranks[index])
      throw new NpucError('IR022', {
        message: `equation ${text} does not fit input ${index} of rank ${ranks[index]}`,
        where,
      });
  });
  if (right !== undefined) return { operands, output: expand(right, widest) };
  const counts = new Map<string, number>();
  for (const label of operands.flat()) counts.set(label, (counts.get(label) ?? 0) + 1);
  const dots = Array.from({ length: widest }, (_, k) => `.${k}`);
  const single = [...counts].filter(([label, count]) => count === 1 && !label.startsWith('.')).map(([label]) => label);
  return { operands, output: [...dots, ...single.sort()] };
}

function labelSizes(equation: Equation, shapes: readonly Shape[], where: string): Map<string, Dim> {
  const sizes = new Map<string, Dim>();
  equation.operands.forEach((labels, index) =>
    labels.forEach((label, axis) => {
      const dim = shapes[index]![axis]!;
      const known = sizes.get(label);
      sizes.set(label, known === undefined ? dim : broadcastDim(known, dim, where));
    }),
  );
  return sizes;
}

const einsum = defineOp({
  name: 'Einsum',
  since: 12,
  quantization: 'independent',
  infer: (context) => {
    const { node } = context;
    const shapes = node.inputs.map((_, index) => context.shape(index));
    if (!shapes.every((shape): shape is Shape => shape !== undefined))
      return [typeOrUnknown(inputDtype(context, 0), undefined)];
    const equation = parseEquation(
      node.string('equation', ''),
      shapes.map((shape) => shape.length),
      nodeName(node),
    );
    const sizes = labelSizes(equation, shapes, nodeName(node));
    return [
      typeOrUnknown(
        inputDtype(context, 0),
        equation.output.map((label) => sizes.get(label)!),
      ),
    ];
  },
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const operands = inputs.map((_, index) => need(inputs, index, where));
    const equation = parseEquation(
      node.string('equation', ''),
      operands.map((x) => x.shape.length),
      where,
    );
    const sizes = labelSizes(
      equation,
      operands.map((x) => x.shape),
      where,
    ) as Map<string, number>;
    const summed = [...sizes.keys()].filter((label) => !equation.output.includes(label));
    const shape = equation.output.map((label) => sizes.get(label)!);
    const inner = summed.map((label) => sizes.get(label)!);
    // Each operand is read at (output index, summed index) by strides: a label twice in one operand walks its diagonal.
    const readers = operands.map((x, index) => {
      const strides = stridesOf(x.shape);
      const step = (label: string): number =>
        equation.operands[index]!.reduce(
          (sum, own, axis) => (own === label && x.shape[axis] !== 1 ? sum + strides[axis]! : sum),
          0,
        );
      return {
        data: readReals(x),
        outer: stridedOffsets(shape, equation.output.map(step)),
        inner: stridedOffsets(inner, summed.map(step)),
      };
    });
    const dtype = operands[0]!.dtype;
    const out = newReals(dtype, elementCount(shape));
    const terms = elementCount(inner);
    for (let i = 0; i < out.length; i++) {
      let sum = 0;
      for (let k = 0; k < terms; k++) {
        let term = 1;
        for (const reader of readers) term *= reader.data[reader.outer[i]! + reader.inner[k]!]!;
        sum += term;
      }
      out[i] = sum;
    }
    return [encodeReals(dtype, shape, out)];
  },
});

/** Determinants of the last two axes, by elimination with pivots. */
const det = defineOp({
  name: 'Det',
  since: 11,
  quantization: 'independent',
  infer: (context) => [typeOrUnknown(inputDtype(context, 0), context.shape(0)?.slice(0, -2))],
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const n = x.shape[x.shape.length - 1]!;
    const shape = x.shape.slice(0, -2);
    const source = readReals(x);
    const out = newReals(x.dtype, elementCount(shape));
    for (let m = 0; m < out.length; m++)
      out[m] = determinant(Float64Array.from(source.subarray(m * n * n, (m + 1) * n * n)), n);
    return [encodeReals(x.dtype, shape, out)];
  },
});

function determinant(a: Float64Array, n: number): number {
  let product = 1;
  for (let column = 0; column < n; column++) {
    let pivot = column;
    for (let row = column + 1; row < n; row++)
      if (Math.abs(a[row * n + column]!) > Math.abs(a[pivot * n + column]!)) pivot = row;
    const value = a[pivot * n + column]!;
    if (value === 0) return 0;
    if (pivot !== column) {
      product = -product;
      for (let k = 0; k < n; k++) [a[pivot * n + k], a[column * n + k]] = [a[column * n + k]!, a[pivot * n + k]!];
    }
    product *= value;
    for (let row = column + 1; row < n; row++) {
      const factor = a[row * n + column]! / value;
      for (let k = column; k < n; k++) a[row * n + k] = a[row * n + k]! - factor * a[column * n + k]!;
    }
  }
  return product;
}

export const EINSUM_OPS: readonly OpDefinition[] = [einsum, det];

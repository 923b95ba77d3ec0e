import { intsAttribute, type Value } from '../compiler/ir/graph.ts';
import { any, op } from '../compiler/match.ts';
import { type Builder, rewritePass } from '../compiler/rewrite.ts';
import { isFloatValue, knownShape } from '../compiler/value-facts.ts';

/**
 *     Einsum(a, b) {equation "bhid,bhjd->bhij"}   ->   MatMul(a as [b h, i, d], b as [b h, d, j]) as [b, h, i, j]
 *
 * Any product of two operands without a repeated or summed-out label. Transposes and reshapes stand only where the labels are
 * not in that order already. HTP takes few equations, and those at 8 bits only (SUPPORT.md).
 */
export const decomposeEinsum = rewritePass({
  name: 'decompose-einsum',
  about: 'Einsum of two operands becomes Transpose, Reshape and MatMul',
  rules: [
    {
      opset: 12,
      pattern: op('Einsum', [any('a'), any('b')], { as: 'einsum' }),
      check: (match) => {
        const plan = planProduct(match.node('einsum').string('equation', ''), match.value('a'), match.value('b'));
        return typeof plan === 'string' ? plan : true;
      },
      rewrite: (match, build) => {
        const [a, b] = [match.value('a'), match.value('b')];
        return multiply(planProduct(match.node('einsum').string('equation', ''), a, b) as Product, a, b, build);
      },
    },
  ],
});

interface Product {
  readonly left: string;
  readonly right: string;
  readonly out: string;
  /** Labels of both operands and the output, of both only, of one and the output. */
  readonly batch: string;
  readonly summed: string;
  readonly rows: string;
  readonly columns: string;
  readonly lengths: ReadonlyMap<string, number>;
}

/** What is multiplied with what, or why it is no plain product. */
function planProduct(equation: string, a: Value, b: Value): Product | string {
  const parts = /^([a-zA-Z]+),([a-zA-Z]+)->([a-zA-Z]*)$/.exec(equation.replace(/\s/g, ''));
  if (!parts) return `"${equation}" is no product of two operands`;
  const [, left = '', right = '', out = ''] = parts;
  if ([left, right, out].some((labels) => new Set(labels).size !== labels.length)) return 'a label is repeated';
  if (!isFloatValue(a)) return `%${a.name} is not a float`;
  const lengths = new Map<string, number>();
  for (const [labels, value] of [
    [left, a],
    [right, b],
  ] as const) {
    const shape = knownShape(value);
    if (shape?.length !== labels.length || !shape.every((dim) => typeof dim === 'number'))
      return `the shape of %${value.name} is not fixed`;
    for (const [axis, label] of [...labels].entries()) {
      const length = shape[axis] as number;
      if ((lengths.get(label) ?? length) !== length) return `${label} is broadcast`;
      lengths.set(label, length);
    }
  }
  const pick = (labels: string, wanted: (label: string) => boolean): string => [...labels].filter(wanted).join('');
  const [inRight, inOut] = [(label: string) => right.includes(label), (label: string) => out.includes(label)];
  const product = {
    left,
    right,
    out,
    batch: pick(out, (label) => left.includes(label) && inRight(label)),
    summed: pick(left, (label) => inRight(label) && !inOut(label)),
    rows: pick(out, (label) => left.includes(label) && !inRight(label)),
    columns: pick(out, (label) => inRight(label) && !left.includes(label)),
    lengths,
  };
  const used = product.batch.length + product.summed.length;
  if (product.summed === '') return 'nothing is summed';
  if (used + product.rows.length !== left.length || used + product.columns.length !== right.length)
    return 'a label of one operand is summed out';
  return product;
}

function multiply(product: Product, a: Value, b: Value, build: Builder): Value {
  const { left, right, out, batch, summed, rows, columns } = product;
  const lengthOf = (labels: string): number =>
    [...labels].reduce((size, label) => size * product.lengths.get(label)!, 1);
  const dims = (labels: string): number[] => [...labels].map((label) => product.lengths.get(label)!);
  const arrange = (value: Value, from: string, to: string): Value =>
    from === to
      ? value
      : build.emit('Transpose', [value], {
          attributes: { perm: intsAttribute([...to].map((label) => from.indexOf(label))) },
        });
  const shape = (value: Value, from: readonly number[], to: readonly number[]): Value =>
    String(from) === String(to) ? value : build.emit('Reshape', [value, build.integers('shape', to)]);
  // Groups of one label each keep the operand's own shape.
  const group = (labels: string): number[] => (labels.length === 1 ? dims(labels) : [lengthOf(labels)]);
  const [from, onto] = [batch + rows + summed, batch + summed + columns];
  const operandA = shape(arrange(a, left, from), dims(from), [...dims(batch), ...group(rows), ...group(summed)]);
  const operandB = shape(arrange(b, right, onto), dims(onto), [...dims(batch), ...group(summed), ...group(columns)]);
  const joined = batch + rows + columns;
  const result = build.emit('MatMul', [operandA, operandB]);
  const whole = shape(result, [...dims(batch), ...group(rows), ...group(columns)], dims(joined));
  return arrange(whole, joined, out);
}

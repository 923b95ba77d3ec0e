import { NpucError } from '../compiler/errors.ts';
import type { Graph, Node, Value } from '../compiler/ir/graph.ts';
import {
  compileMatch,
  isDynamic,
  type NumberFormat,
  type Recipe,
  takesBlocks,
  usableForm,
  type WeightForm,
} from './recipe.ts';
import { conversionSource } from './statistics.ts';

/** A weight that the plan wants quantized, and by which of its inputs' channels its error counts. */
export interface WeightPlan {
  readonly name: string;
  readonly form: WeightForm;
  /** The axis of output channels. */
  readonly axis: number;
  /** Whether the weight is a [K, N] or [N, K] matrix whose scales are searched against its input's channels. */
  readonly matrix: boolean;
  /** The value whose last axis are this weight's input channels. */
  readonly input: string;
  /** Biases that ops with this weight add in integers: their scale is the input's times the weight's. */
  readonly biases: readonly { readonly name: string; readonly input: string }[];
  readonly why: string;
}

/** The axis of a weight's output channels, by op. */
function outputAxis(node: Node, weight: Value): number | undefined {
  const rank = weight.shape.length;
  switch (node.op) {
    case 'MatMul':
      return rank === 2 ? 1 : undefined;
    case 'Gemm':
      return node.int('transB', 0) === 1 ? 0 : 1;
    case 'Conv':
      return 0;
    case 'ConvTranspose':
      // [C, M / group, ..]: with groups one axis does not separate the outputs, and a single scale is right for all.
      return node.int('group', 1) === 1 ? 1 : undefined;
    default:
      return undefined;
  }
}

/**
 * Decides the form of every constant weight: the scheme's for matrices, 8 bits per channel for convolutions, overrides by
 * regular expression on the weight's or the source node's name.
 * @throws QT104 when an override's block does not divide the input channels
 */
export function planWeights(
  graph: Graph,
  recipe: Recipe,
  format: NumberFormat,
  remarks: string[],
): Map<string, WeightPlan> {
  const weights = new Map<string, WeightPlan>();
  const overrides = recipe.overrides
    .filter((override) => override.weight)
    .map((override) => ({ ...override, expression: compileMatch(override.match) }));
  for (const node of graph.nodes) {
    const weight = node.inputs[1];
    if (weight?.data?.dtype !== 'f32') continue;
    const axis = outputAxis(node, weight);
    if (axis === undefined) continue;
    const matrix = node.op === 'MatMul' || node.op === 'Gemm';
    const head = matrix && graph.isOutput(node.output()) && node.output().name === 'logits';
    let form: WeightForm = head ? recipe.head : matrix ? recipe.weight : { bits: 8, block: 0 };
    let why = head ? 'language model head' : matrix ? `scheme ${recipe.scheme}` : `${node.op}: 8 bits per channel`;
    const override = overrides.find(
      ({ expression }) => expression.test(weight.name) || node.from.some((name) => expression.test(name)),
    );
    if (override) {
      form = isDynamic(recipe) ? { ...override.weight!, scales: 'f16' } : override.weight!;
      why = override.why ?? `override ${override.match}`;
    }
    const inputs = weight.dims[matrix ? 1 - axis : axis === 0 ? 1 : 0]!;
    // LPBQ as a Gemm is refused or computed wrongly by HTP (facts qnn-htp 2).
    const noBlocks = !takesBlocks(form, format) || (form.scales === undefined && node.op !== 'MatMul');
    const usable = usableForm(form, inputs, format);
    if (form.block > 0 && noBlocks) {
      form = { bits: form.bits, block: 0 };
      why += ', per channel: the target has no block form for it';
    } else if (form.block > 0 && inputs % form.block !== 0) {
      if (override) {
        throw new NpucError('QT104', {
          message: `blocks of ${form.block} do not divide the ${inputs} input channels of ${weight.name}`,
          where: node.from[0] ?? node.name,
          hint: 'choose a block that divides them, or drop the override to get 8 bits per channel',
        });
      }
      remarks.push(
        `${weight.name}: 8 bits per channel, blocks of ${form.block} do not divide ${inputs} input channels`,
      );
      form = usable;
    } else if (usable.block !== form.block) {
      remarks.push(
        `${weight.name}: blocks of ${usable.block}, the target's runtime cannot take ${inputs / form.block} blocks of ${form.block}`,
      );
      form = usable;
    }
    const bias = node.op === 'MatMul' ? undefined : node.inputs[2];
    const integer = bias?.data?.dtype === 'f32' && bias.shape.length === 1 && bias.dims[0] === weight.dims[axis];
    const others = weights.get(weight.name)?.biases ?? [];
    weights.set(weight.name, {
      name: weight.name,
      form,
      axis,
      matrix,
      input: conversionSource(node.input(0)).name,
      biases: integer ? [...others, { name: bias.name, input: node.input(0).name }] : others,
      why,
    });
  }
  return weights;
}

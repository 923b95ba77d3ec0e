import type { Encoding } from '../compiler/ir/encoding.ts';
import type { Module, Node } from '../compiler/ir/graph.ts';
import { Tensor } from '../compiler/ir/tensor.ts';
import { INT4, INT8_SYMMETRIC, type Kernels } from '../compiler/kernels/kernels.ts';
import type { OpenEngine } from '../compiler/runtime/engine.ts';
import type { Tensors } from '../compiler/runtime/runner.ts';
import type { WeightPlan } from './plan-weights.ts';
import type { WeightForm } from './recipe.ts';
import { factorMoments, roundRows } from './round-rows.ts';
import { collectMoments, hasMoments, type LayerMoments } from './second-moments.ts';
import { storableScale } from './storable-scale.ts';

/** A weight on its grid: rounding `values` under `encoding` gives the chosen integers. */
export interface CompensatedWeight {
  readonly encoding: Encoding;
  readonly values: Tensor;
}

export interface CompensateWeightsInputs {
  /** The float graph. */
  readonly float: Module;
  readonly plans: ReadonlyMap<string, WeightPlan>;
  readonly feeds: readonly Tensors[];
  readonly kernels: Kernels;
  readonly open?: OpenEngine;
}

/**
 * Rounds the weights of convolutions and matrices so that each one makes up for the errors of those before it (GPTQ), by what
 * its layer reads on the samples. Scales are those that clip nothing: no smaller one was ever better in this form. Weights that
 * several layers share, and layers whose moments are not determined, are left to the plain search.
 * @returns by weight name
 */
export async function compensateWeights(inputs: CompensateWeightsInputs): Promise<Map<string, CompensatedWeight>> {
  const { float, plans, feeds, kernels, open } = inputs;
  const layers = float.graph().nodes.filter((node) => {
    const plan = node.inputs[1] && plans.get(node.input(1).name);
    return plan !== undefined && roundable(plan.form) && hasMoments(node) && node.input(1).uses.size === 1;
  });
  const rounded = new Map<string, CompensatedWeight>();
  if (layers.length === 0) return rounded;
  const onLayer = (moments: LayerMoments): void => {
    const plan = plans.get(moments.node.input(1).name)!;
    rounded.set(plan.name, roundLayer(moments, plan, kernels));
  };
  await collectMoments(float, layers, feeds, onLayer, open);
  return rounded;
}

/** One scale a row, or blocks whose scales are numbers of their own. */
function roundable({ block, scales }: WeightForm): boolean {
  return block === 0 || scales === 'f16';
}

function roundLayer({ node, columns, groups }: LayerMoments, plan: WeightPlan, kernels: Kernels): CompensatedWeight {
  const weight = node.input(1).data!;
  const { rows, write } = unrollWeight(node, columns);
  const count = rows.length / columns;
  const perGroup = count / groups.length;
  const range = plan.form.bits === 4 ? INT4 : INT8_SYMMETRIC;
  const block = plan.form.block || columns;
  const blocks = columns / block;
  const places = Uint32Array.from({ length: columns }, (_, k) => Math.floor(k / block));
  const scales = new Float32Array(count * blocks);
  const values = new Float32Array(weight.size);
  for (const [index, moments] of groups.entries()) {
    const from = index * perGroup;
    const part = rows.subarray(from * columns, (from + perGroup) * columns);
    const steps = new Float32Array(perGroup * blocks);
    for (let at = 0; at < steps.length; at++) {
      let largest = 0;
      for (let k = 0; k < block; k++) largest = Math.max(largest, Math.abs(part[at * block + k]!));
      const step = largest > 0 ? largest / range.max : 1;
      steps[at] = plan.form.block > 0 ? storableScale(step) : step;
    }
    const factored = factorMoments(moments, columns, kernels, plan.name);
    const integers = roundRows(part, factored, steps, places, range, kernels, plan.name);
    scales.set(steps, from * blocks);
    for (let n = 0; n < perGroup; n++) {
      for (let k = 0; k < columns; k++) {
        const step = steps[n * blocks + places[k]!]!;
        write(values, from + n, k, Math.fround(integers[n * columns + k]! * step));
      }
    }
  }
  const dtype = plan.form.bits === 4 ? 'i4' : 'i8';
  if (plan.form.block > 0) {
    // Scales lie as the weight does: along the rows of [N, K], or down the columns of [K, N].
    const turned = new Float32Array(scales.length);
    if (plan.axis === 1) kernels.transposeF32(scales, count, blocks, turned);
    const scale = plan.axis === 1 ? turned : scales;
    return {
      encoding: { dtype, scale, axis: 1 - plan.axis, block: plan.form.block },
      values: Tensor.of('f32', weight.shape, values),
    };
  }
  return {
    encoding: { dtype, scale: scales, axis: plan.axis },
    values: Tensor.of('f32', weight.shape, values),
  };
}

/** A weight as rows of what each output multiplies, and how a row's element is written back. */
function unrollWeight(
  node: Node,
  columns: number,
): { rows: Float32Array; write(values: Float32Array, row: number, column: number, value: number): void } {
  const data = node.input(1).data!.toFloats();
  const stored = node.op === 'Conv' || (node.op === 'Gemm' && node.int('transB', 0) === 1);
  const count = data.length / columns;
  const place = stored
    ? (row: number, column: number): number => row * columns + column
    : (row: number, column: number): number => column * count + row;
  const rows = new Float32Array(data.length);
  for (let row = 0; row < count; row++)
    for (let column = 0; column < columns; column++) rows[row * columns + column] = data[place(row, column)]!;
  return {
    rows,
    write: (values, row, column, value) => {
      values[place(row, column)] = value;
    },
  };
}

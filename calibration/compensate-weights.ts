import type { Encoding } from '../compiler/ir/encoding.ts';
import type { Module, Node } from '../compiler/ir/graph.ts';
import { Tensor } from '../compiler/ir/tensor.ts';
import { INT4, INT8_SYMMETRIC, type Kernels } from '../compiler/kernels/kernels.ts';
import type { OpenEngine } from '../compiler/runtime/engine.ts';
import type { Tensors } from '../compiler/runtime/runner.ts';
import type { WeightPlan } from './plan-weights.ts';
import { collectMoments, hasMoments, type LayerMoments } from './second-moments.ts';

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

/** Added to the diagonal of the second moments, as a share of its mean (GPTQ 2210.17323, section 3.3). */
const DAMPING = 0.01;

/**
 * Rounds the weights of convolutions and matrices so that each one makes up for the errors of those before it (GPTQ), by what
 * its layer reads on the samples. Scales are those that clip nothing: no smaller one was ever better in this form. Weights that several layers share, and layers whose moments are not determined, are left to the plain search.
 * @returns by weight name
 */
export async function compensateWeights(inputs: CompensateWeightsInputs): Promise<Map<string, CompensatedWeight>> {
  const { float, plans, feeds, kernels, open } = inputs;
  const layers = float.graph().nodes.filter((node) => {
    const plan = node.inputs[1] && plans.get(node.input(1).name);
    return plan?.form.block === 0 && hasMoments(node) && node.input(1).uses.size === 1;
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

function roundLayer({ node, columns, groups }: LayerMoments, plan: WeightPlan, kernels: Kernels): CompensatedWeight {
  const weight = node.input(1).data!;
  const { rows, write } = unrollWeight(node, columns);
  const count = rows.length / columns;
  const perGroup = count / groups.length;
  const range = plan.form.bits === 4 ? INT4 : INT8_SYMMETRIC;
  const scales = new Float32Array(count);
  const values = new Float32Array(weight.size);
  for (const [index, moments] of groups.entries()) {
    const order = orderColumns(moments, columns);
    const factors = kernels.factorHessian(dampen(moments, columns, order), columns, plan.name);
    const from = index * perGroup;
    const turned = new Float32Array(perGroup * columns);
    const largest = new Float32Array(perGroup);
    for (let n = 0; n < perGroup; n++) {
      for (let k = 0; k < columns; k++) {
        const each = rows[(from + n) * columns + order[k]!]!;
        turned[n * columns + k] = each;
        largest[n] = Math.max(largest[n]!, Math.abs(each));
      }
    }
    const layout = { rows: perGroup, columns, block: columns, name: plan.name };
    const steps = largest.map((max) => (max > 0 ? Math.fround(max / range.max) : 1));
    const { integers } = kernels.roundCompensated(turned, layout, factors, steps, new Uint32Array(columns), range);
    scales.set(steps, from);
    for (let n = 0; n < perGroup; n++)
      for (let k = 0; k < columns; k++)
        write(values, from + n, order[k]!, Math.fround(integers[n * columns + k]! * steps[n]!));
  }
  const dtype = plan.form.bits === 4 ? 'i4' : 'i8';
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

/** The columns that carry most are rounded first, while there are others left to make up for it. */
function orderColumns(moments: Float64Array, columns: number): Uint32Array {
  const power = (k: number): number => moments[k * columns + k]!;
  return Uint32Array.from({ length: columns }, (_, k) => k).sort((a, b) => power(b) - power(a) || a - b);
}

/** The moments in the order of rounding, damped so that columns that never carried anything do no harm. */
function dampen(moments: Float64Array, columns: number, order: Uint32Array): Float32Array {
  let trace = 0;
  for (let k = 0; k < columns; k++) trace += moments[k * columns + k]!;
  const damping = trace > 0 ? (DAMPING * trace) / columns : 1;
  const turned = new Float32Array(moments.length);
  for (let i = 0; i < columns; i++) {
    for (let j = 0; j <= i; j++) {
      const [a, b] = [order[i]!, order[j]!];
      turned[i * columns + j] = moments[Math.max(a, b) * columns + Math.min(a, b)]!;
    }
    turned[i * columns + i] = turned[i * columns + i]! + damping;
  }
  return turned;
}

import { NpucError } from '../compiler/errors.ts';
import { cloneModule } from '../compiler/ir/clone.ts';
import type { Graph, Module, Node, Value } from '../compiler/ir/graph.ts';
import { Tensor } from '../compiler/ir/tensor.ts';
import type { Kernels } from '../compiler/kernels/kernels.ts';
import { findOp } from '../compiler/ops/index.ts';
import type { OpenEngine } from '../compiler/runtime/engine.ts';
import type { Tensors } from '../compiler/runtime/runner.ts';
import { adoptEncodings, adoptWeights, widthsOf } from './adopt-encodings.ts';
import { type CompensatedWeight, compensateWeights } from './compensate-weights.ts';
import { correctBiases, replaceBiases } from './correct-biases.ts';
import { type Decision, describeDecisions } from './describe-decisions.ts';
import { equalizeLayers } from './equalize-layers.ts';
import { collectGraphStatistics } from './graph-statistics.ts';
import { dropEncodings, findHalfFloats } from './keep-half-floats.ts';
import { applyPlan, type Plan, planQuantization, prepareGraph } from './plan.ts';
import { planWeights } from './plan-weights.ts';
import { isReal } from './precision.ts';
import { promoteValues } from './promote-values.ts';
import type { GivenEncodings } from './read-encodings.ts';
import { isDynamic, type NumberFormat, type Override, overrideOf, type Recipe } from './recipe.ts';
import { encodeWeights } from './weights.ts';

/** A graph quantized for one target. */
export interface QuantizedGraph {
  /** The graph with its encodings; writing it makes QDQ of them. */
  readonly module: Module;
  /** The same graph in float, value for value: the reference of every comparison. */
  readonly float: Module;
  readonly recipe: Recipe;
  readonly format: NumberFormat;
  readonly plan: Plan;
  /** How every encoding came about. */
  explain(): Decision[];
}

export interface QuantizeGraphInputs {
  /** Frozen, simplified and lowered for the target; it stays as it is. */
  readonly module: Module;
  /** Calibration samples by input name. */
  readonly feeds: readonly Tensors[];
  readonly recipe: Recipe;
  readonly format: NumberFormat;
  readonly kernels: Kernels;
  readonly open?: OpenEngine;
  /** Whether costly values may get 16 bits at w8a8 (default): not where an op is to be measured at the width asked for. */
  readonly promote?: boolean;
  /** Encodings to use in the place of calibrated ones, and the names of the user's own model: those are known too. */
  readonly given?: { readonly encodings: GivenEncodings; readonly known: ReadonlySet<string> };
  readonly onProgress?: (done: number, total: number) => void;
}

/** A quarter costs a third of a bit; mnist_8 gains 5 dB on inputs that it was not calibrated on, ppocr-cls 5. */
const HEADROOM = 0.25;

/**
 * Quantizes any graph for one target: runs it in float on the samples, decides every encoding, and writes them into a copy.
 * Subgraphs of If, Loop and Scan, and operators that no rule is known for, stay float; a remark names them.
 * @throws QT010 when a value is not finite in calibration, QT121 when the graph computes in half floats, QT131 when given
 *   encodings do not fit
 */
export async function quantizeGraph(inputs: QuantizeGraphInputs): Promise<QuantizedGraph> {
  const { recipe, format, kernels, given } = inputs;
  const float = cloneModule(inputs.module);
  if (recipe.scheme === 'fp16') {
    const plan = { activations: new Map(), weights: new Map(), tables: new Set<string>(), remarks: [] };
    return { module: cloneModule(float), float, recipe, format, plan, explain: () => [] };
  }
  requireSingle(float.graph());
  separateBiases(float.graph());
  // Given encodings are of the values and weights as they are.
  const dynamic = isDynamic(recipe);
  if (!given && !dynamic) await equalizeLayers(float, inputs.feeds, recipe.activation, inputs.open);
  const opset = float.opsets.get('') ?? 0;
  const statistics = await collectGraphStatistics(float, inputs.feeds, {
    histograms: recipe.range !== 'min-max' && recipe.activation === 8,
    kernels,
    ...(inputs.open ? { open: inputs.open } : {}),
    ...(inputs.onProgress ? { onProgress: inputs.onProgress } : {}),
  });
  const rounded = given
    ? new Map<string, CompensatedWeight>()
    : await compensateWeights({
        float,
        plans: planWeights(float.graph(), recipe, format, []),
        feeds: inputs.feeds,
        kernels,
        ...(inputs.open ? { open: inputs.open } : {}),
      });
  const halves = new Set<string>();
  const quantize = async (chosen: Recipe): Promise<{ module: Module; plan: Plan; explain: () => Decision[] }> => {
    const module = cloneModule(float);
    const graph = module.graph();
    prepareGraph(graph, opset, chosen, format, statistics);
    const own = planQuantization(graph, opset, chosen, format, statistics);
    const plan = given ? adoptEncodings(given.encodings, graph, own, format, given.known) : own;
    for (const [name, { values }] of rounded) graph.find(name)!.data = values;
    const weights = await encodeWeights(graph, plan, statistics, kernels, undefined, kernels, rounded);
    if (given) adoptWeights(given.encodings, graph, plan, format, weights);
    replaceBiases(graph, await correctBiases(float, weights, inputs.feeds, rounded, inputs.open));
    applyPlan(graph, opset, plan, weights);
    const kept = { ...plan, activations: dropEncodings(graph, halves, plan.activations) };
    const explain = (): Decision[] =>
      describeDecisions({
        ...{ graph, opset, plan: kept, recipe: chosen, format, statistics, weightEncodings: weights },
        compensated: new Set(rounded.keys()),
      });
    return { module, plan: kept, explain };
  };
  // The rows of an image are no rows of a language model: what 8 bits cost is measured, not guessed from them.
  const overrides = [
    ...recipe.overrides,
    ...widthOverrides(float.graph(), format),
    ...(given ? widthsOf(given.encodings, float.graph(), recipe) : []),
  ];
  const measured: Recipe = {
    ...recipe,
    overrides,
    headroom: HEADROOM,
    productHeadroom: HEADROOM,
    promoteBelow: Number.NEGATIVE_INFINITY,
  };
  const sixteen = { match: '', activation: 16 as const };
  const { names, remarks: halfRemarks } =
    format.halfFloats && inputs.promote !== false && !given && !dynamic
      ? await findHalfFloats({
          float,
          quantized: (await quantize({ ...measured, overrides: [...overrides, sixteen] })).module,
          format,
          overrides: recipe.overrides,
          feeds: inputs.feeds,
          kernels,
          ...(inputs.open ? { open: inputs.open } : {}),
        })
      : { names: [], remarks: [] };
  for (const name of names) halves.add(name);
  const promotions =
    // Given encodings say the widths themselves.
    recipe.activation === 8 && inputs.promote !== false && !given && !dynamic
      ? await promoteValues({
          float,
          recipe: measured,
          format,
          feeds: inputs.feeds,
          kernels,
          quantize: async (chosen) => (await quantize(chosen)).module,
          ...(inputs.open ? { open: inputs.open } : {}),
          ...(inputs.onProgress ? { onProgress: inputs.onProgress } : {}),
        })
      : { overrides: [], remarks: [] };
  const { module, plan, explain } = await quantize({ ...measured, overrides: [...overrides, ...promotions.overrides] });
  const remarks = [
    ...halfRemarks,
    ...promotions.remarks,
    ...plan.remarks,
    ...describeFloatNodes(module.graph(), opset),
  ];
  return { module, float, recipe, format, plan: { ...plan, remarks }, explain };
}

/** What the target takes at one width only. */
function widthOverrides(graph: Graph, format: NumberFormat): Override[] {
  return graph.nodes.flatMap((node) => {
    const activation = node.domain === '' ? format.widths[node.op] : undefined;
    if (activation === undefined) return [];
    return [
      {
        ...overrideOf(node.output().name),
        activation,
        why: `the target computes ${node.op} rightly at ${activation} bits only`,
      },
    ];
  });
}

/** @throws QT121: integers are chosen for 32-bit floats only, as QuantizeLinear of most runtimes takes nothing else */
function requireSingle(graph: Graph): void {
  const half = [...graph.values].find(({ type }) => type?.kind === 'tensor' && type.dtype === 'f16');
  if (!half) return;
  throw new NpucError('QT121', {
    message: `${half.name} is in half floats`,
    where: half.producer?.from[0] ?? half.name,
    hint: 'export the model in 32-bit floats, or use --scheme fp16',
  });
}

const WITH_BIAS: ReadonlySet<string> = new Set(['Conv', 'ConvTranspose', 'Gemm']);

/**
 *     Conv(x, w, b)   Conv(y, v, b)        ->   Conv(x, w, b)   Conv(y, v, b_0)
 *     Conv(x, w)                           ->   Conv(x, w, zeros)
 *     Gemm(x, w, b : [1, n])               ->   Gemm(x, w, b_0 : [n])
 *
 * An integer bias has the steps of its op's input and weight, and takes up what rounding the weights does to the mean: ops that
 * share one, be it only the same zeros, cannot.
 */
function separateBiases(graph: Graph): void {
  for (const node of graph.nodes) {
    if (!WITH_BIAS.has(node.op) || node.inputs[1]?.data?.dtype !== 'f32') continue;
    const bias = node.inputs[2] ?? addBias(graph, node);
    if (bias.data?.dtype !== 'f32') continue;
    const flat = node.op === 'Gemm' ? flattenBias(node, bias.data) : undefined;
    if (flat) node.setInput(2, graph.addConstant(bias.name, flat));
    else if (bias.uses.size > 1) node.setInput(2, graph.addConstant(bias.name, bias.data));
    if (!graph.isUsed(bias)) graph.removeValue(bias);
  }
}

/** A bias of zeros for an op without one. */
function addBias(graph: Graph, node: Node): Value {
  const channels = node.output().dims[1]!;
  const bias = graph.addConstant(
    `${node.output().name}_bias`,
    Tensor.of('f32', [channels], new Float32Array(channels)),
  );
  node.setInput(2, bias);
  return bias;
}

/** A Gemm's addend as one number per output channel, where it is one but is not written so. */
function flattenBias(node: Node, bias: Tensor): Tensor | undefined {
  const channels = node.output().dims[1]!;
  if (bias.shape.length === 1 && bias.shape[0] === channels) return undefined;
  if (bias.size === channels && bias.shape.at(-1) === channels) return Tensor.of('f32', [channels], bias.toFloats());
  if (bias.size !== 1) return undefined;
  return Tensor.of('f32', [channels], new Float32Array(channels).fill(bias.toFloats()[0]!));
}

/** One remark for every kind of node that computes on real numbers and stays float. */
function describeFloatNodes(graph: Graph, opset: number): string[] {
  const kinds = new Map<string, string[]>();
  for (const node of graph.nodes) {
    const op = findOp(node.domain, node.op, opset);
    if (op && op.quantization !== 'never' && node.subgraphs.length === 0) continue;
    if (!node.inputs.some(isReal) && !node.outputs.some(isReal) && node.subgraphs.length === 0) continue;
    const reason =
      node.subgraphs.length > 0 ? 'what its branches compute is not quantized' : op ? 'never quantized' : 'not known';
    const kind = `${node.domain ? `${node.domain}::` : ''}${node.op} stays float (${reason})`;
    kinds.set(kind, [...(kinds.get(kind) ?? []), node.from[0] ?? (node.name || node.output().name)]);
  }
  return [...kinds].map(
    ([kind, nodes]) =>
      `${kind}: ${nodes.slice(0, 3).join(', ')}${nodes.length > 3 ? ` and ${nodes.length - 3} more` : ''}`,
  );
}

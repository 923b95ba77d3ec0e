import { quantizeLazily } from '../compiler/export/quantize-constant.ts';
import { cloneModule } from '../compiler/ir/clone.ts';
import type { Encoding } from '../compiler/ir/encoding.ts';
import { type Graph, intAttribute, intsAttribute, type Module, type Node, tensorType } from '../compiler/ir/graph.ts';
import { Tensor, toFloats } from '../compiler/ir/tensor.ts';
import { type OpenEngine, openModule } from '../compiler/runtime/engine.ts';
import type { Tensors } from '../compiler/runtime/runner.ts';
import type { CompensatedWeight } from './compensate-weights.ts';

const TAP = '#bias_error';

/** Ops that add a bias per output channel, and the axis of their output's channels. */
const CHANNEL_AXIS: Readonly<Record<string, number>> = { Conv: 1, ConvTranspose: 1, Gemm: 1 };

/**
 * What rounding the weights does to the mean of every output channel, taken out of the biases.
 *
 *     y = Conv(x, w, b)   ->   b' = b - mean(Conv(x, q(w) - w))
 *
 * Inputs behind an activation are all positive, so rounding errors do not cancel and shift whole channels (Nagel et al.,
 * "Data-free quantization through weight equalization and bias correction", 2019, section 4.2, here with the samples'
 * true inputs). All layers are measured at once, each on the float graph's own values.
 * @param module the float graph, whose weights `encodings` are for
 * @param rounded weights whose integers were chosen otherwise than by rounding to nearest
 * @returns new biases by name
 */
export async function correctBiases(
  module: Module,
  encodings: ReadonlyMap<string, Encoding>,
  feeds: readonly Tensors[],
  rounded: ReadonlyMap<string, CompensatedWeight> = new Map(),
  open?: OpenEngine,
): Promise<Map<string, Tensor>> {
  const sites = module.graph().nodes.filter((node) => isSite(node, encodings));
  if (sites.length === 0) return new Map();
  const probe = cloneModule(module);
  for (const node of sites) {
    const { name } = node.input(1);
    addProbe(probe, node, encodings.get(name)!, rounded.get(name)?.values);
  }
  const taps = sites.map((node) => node.output().name + TAP);
  const sums = new Map<string, Float64Array>();
  const runner = await openModule(probe, open);
  try {
    for (const feed of feeds) {
      const results = await runner.run(feed, taps);
      for (const tap of taps) {
        const error = toFloats(results[tap]!);
        const sum = sums.get(tap) ?? new Float64Array(error.length);
        error.forEach((each, channel) => {
          sum[channel] = sum[channel]! + each / feeds.length;
        });
        sums.set(tap, sum);
      }
    }
  } finally {
    await runner.close();
  }
  return new Map(
    sites.map((node) => {
      const bias = node.input(2);
      const error = sums.get(node.output().name + TAP)!;
      const corrected = bias.data!.toFloats().map((each, channel) => each - error[channel]!);
      return [bias.name, Tensor.of('f32', bias.data!.shape, corrected)];
    }),
  );
}

/** Writes corrected biases into a graph. */
export function replaceBiases(graph: Graph, biases: ReadonlyMap<string, Tensor>): void {
  for (const [name, tensor] of biases) graph.find(name)!.data = tensor;
}

function isSite(node: Node, encodings: ReadonlyMap<string, Encoding>): boolean {
  const [, weight, bias] = node.inputs;
  if (CHANNEL_AXIS[node.op] === undefined || !weight?.data || !bias?.data || bias.uses.size > 1) return false;
  return bias.shape.length === 1 && encodings.get(weight.name)?.block === undefined && encodings.has(weight.name);
}

/** A second node of the same kind that multiplies the same input with the weights' rounding errors, reduced to channels. */
function addProbe(module: Module, site: Node, encoding: Encoding, rounded: Tensor | undefined): void {
  const graph = module.graph();
  const output = graph.find(site.output().name)!;
  const node = output.producer!;
  const weight = node.input(1);
  const error = graph.addConstant(
    `${weight.name}#error`,
    roundingErrors(weight.data!, rounded ?? weight.data!, encoding, weight.name),
  );
  const probed = graph.emit(node.op, [node.input(0), error], {
    ...(output.type ? { type: output.type } : {}),
    attributes: Object.fromEntries(node.attributes),
  });
  const axes = output.dims.map((_, axis) => axis).filter((axis) => axis !== CHANNEL_AXIS[node.op]);
  const fromInput = (module.opsets.get('') ?? 0) >= 18;
  const axesInput = fromInput ? [graph.addConstant(`${output.name}#axes`, Tensor.of('i64', [axes.length], axes))] : [];
  const mean = graph.emit('ReduceMean', [probed, ...axesInput], {
    name: output.name + TAP,
    type: tensorType('f32', [output.dims[CHANNEL_AXIS[node.op]!]!]),
    attributes: { keepdims: intAttribute(0), ...(fromInput ? {} : { axes: intsAttribute(axes) }) },
  });
  graph.outputs.push(mean);
}

/** Every weight's distance from what its integer stands for. */
function roundingErrors(data: Tensor, rounded: Tensor, encoding: Encoding, name: string): Tensor {
  const integers = quantizeLazily(rounded, encoding, name).toData().data as Int8Array;
  const weights = data.toFloats();
  const axis = encoding.axis ?? 0;
  const inner = data.shape.slice(axis + 1).reduce((product, dim) => product * dim, 1);
  const channels = encoding.axis === undefined ? 1 : data.shape[axis]!;
  const errors = weights.map((weight, i) => {
    const scale = encoding.scale[Math.floor(i / inner) % channels]!;
    return integers[i]! * scale - weight;
  });
  return Tensor.of('f32', data.shape, errors);
}

import { cloneModule } from '../compiler/ir/clone.ts';
import {
  type Graph,
  intAttribute,
  intsAttribute,
  type Module,
  type Node,
  tensorType,
  type Value,
} from '../compiler/ir/graph.ts';
import { Tensor, toFloats } from '../compiler/ir/tensor.ts';
import { capturedOutputs } from '../compiler/rewrite.ts';
import { type OpenEngine, openModule } from '../compiler/runtime/engine.ts';
import type { Tensors } from '../compiler/runtime/runner.ts';

/** Ops for which f(s x) = s f(x) for every channel and s > 0: a scale moves through them. */
const HOMOGENEOUS: ReadonlySet<string> = new Set(['Relu', 'MaxPool', 'AveragePool', 'GlobalAveragePool', 'LeakyRelu']);
const WEIGHT_STEPS = 127;
/** Predicted noise must fall by this share, or a pair is left alone. */
const LEAST_GAIN = 0.05;
/** Shares of the way to equal channels that are tried, for the value and for the weight that reads it. */
const EXPONENTS = [0, 0.25, 0.5, 0.75, 1];
/** Beyond this a channel is as good as empty, and scaling it up would only scale up noise. */
const MOST = 2 ** 12;
/** At 16 bits a channel is lifted to this part of the range at most: what is left is room for inputs that nobody has seen. */
const WIDE_ROOM = 4;

/** Two convolutions with nothing between them that minds the scale of a channel. */
interface Pair {
  readonly first: Node;
  readonly second: Node;
}

interface ChannelRange {
  readonly low: Float32Array;
  readonly high: Float32Array;
  readonly meanSquare: Float64Array;
}

/**
 * Cross-layer equalization, in place: scales of channels move from a convolution into the one that reads it.
 *
 *     Conv(Relu(Conv(x, w, b)), v)   ->   Conv(Relu(Conv(x, s w, s b)), v / s)      s > 0 per channel
 *
 * The function stays as it is. Output channels of a weight have scales of their own, so the first convolution loses nothing,
 * and a depthwise second one neither: there all channels come to fill the value's range. Elsewhere the scales are those of a few
 * candidates with the least predicted noise, of rounding the value and of rounding the second weight together (Nagel et al.,
 * "Data-free quantization through weight equalization and bias correction", 2019, section 4.1, with measured ranges).
 * @param bits of the activations
 * @returns the names of the values that were scaled
 */
export async function equalizeLayers(
  module: Module,
  feeds: readonly Tensors[],
  bits: 8 | 16,
  open?: OpenEngine,
): Promise<string[]> {
  const graph = module.graph();
  const pairs = findPairs(graph);
  if (pairs.length === 0) return [];
  const ranges = await measureChannels(module, pairs, feeds, open);
  const scaled: string[] = [];
  // Scaling one pair leaves the ranges of every other value as they are; shares of a weight's columns are read when it is its turn.
  for (const { first, second } of pairs) {
    const input = second.input(0).name;
    const scales = chooseScales(second, ranges.get(input)!, bits);
    if (!scales) continue;
    scaleRows(graph, first, scales);
    scaleColumns(graph, second, scales);
    scaled.push(input);
  }
  return scaled;
}

function findPairs(graph: Graph): Pair[] {
  const captured = capturedOutputs(graph);
  const isPrivate = (value: Value): boolean => value.uses.size === 1 && !graph.isOutput(value) && !captured.has(value);
  const ownsWeights = (node: Node): boolean =>
    node.op === 'Conv' &&
    node.inputs.slice(1).every((value) => !value || (value.data?.dtype === 'f32' && value.uses.size === 1));
  const pairs: Pair[] = [];
  for (const first of graph.nodes) {
    if (!ownsWeights(first) || !first.inputs[2]) continue;
    let value = first.output();
    while (isPrivate(value) && HOMOGENEOUS.has(value.consumers[0]!.op)) value = value.consumers[0]!.output();
    if (!isPrivate(value)) continue;
    const second = value.consumers[0]!;
    if (ownsWeights(second) && second.inputs[0] === value) pairs.push({ first, second });
  }
  return pairs;
}

const TAPS = {
  low: ['ReduceMin', '#low'],
  high: ['ReduceMax', '#high'],
  squares: ['ReduceSumSquare', '#squares'],
} as const;

/** Ranges and mean squares of every channel of what the second convolutions read; the graph itself reduces them. */
async function measureChannels(
  module: Module,
  pairs: readonly Pair[],
  feeds: readonly Tensors[],
  open: OpenEngine | undefined,
): Promise<Map<string, ChannelRange>> {
  const probe = cloneModule(module);
  const graph = probe.graph();
  const fromInput = (module.opsets.get('') ?? 0) >= 18;
  const names = pairs.map(({ second }) => second.input(0).name);
  const taps: string[] = [];
  for (const name of names) {
    const value = graph.find(name)!;
    const axes = value.dims.map((_, axis) => axis).filter((axis) => axis !== 1);
    const axesInput = fromInput ? [graph.addConstant(`${name}#axes`, Tensor.of('i64', [axes.length], axes))] : [];
    for (const [op, suffix] of Object.values(TAPS)) {
      const tap = graph.emit(op, [value, ...axesInput], {
        name: name + suffix,
        type: tensorType('f32', [value.dims[1]!]),
        attributes: { keepdims: intAttribute(0), ...(fromInput ? {} : { axes: intsAttribute(axes) }) },
      });
      graph.outputs.push(tap);
      taps.push(tap.name);
    }
  }
  const ranges = new Map<string, ChannelRange>();
  const runner = await openModule(probe, open);
  try {
    for (const feed of feeds) {
      const results = await runner.run(feed, taps);
      for (const name of names) {
        const { dims } = graph.find(name)!;
        const [low, high, squares] = Object.values(TAPS).map(([, suffix]) => toFloats(results[name + suffix]!));
        const elements = feeds.length * dims.reduce((product, dim, axis) => (axis === 1 ? product : product * dim), 1);
        const seen = ranges.get(name) ?? {
          low: new Float32Array(low!.length),
          high: new Float32Array(low!.length),
          meanSquare: new Float64Array(low!.length),
        };
        ranges.set(name, seen);
        for (let c = 0; c < low!.length; c++) {
          seen.low[c] = Math.min(seen.low[c]!, low![c]!);
          seen.high[c] = Math.max(seen.high[c]!, high![c]!);
          seen.meanSquare[c] = seen.meanSquare[c]! + squares![c]! / elements;
        }
      }
    }
  } finally {
    await runner.close();
  }
  return ranges;
}

/** The factor of each channel of what `second` reads, or undefined where none is worth it. */
function chooseScales(second: Node, range: ChannelRange, bits: 8 | 16): Float64Array | undefined {
  const sizes = Float64Array.from(range.low, (low, c) => Math.max(-low, range.high[c]!));
  const largest = sizes.reduce((a, b) => Math.max(a, b), 0);
  if (!(largest > 0)) return undefined;
  const towards = (of: Float64Array, most: number): Float64Array =>
    of.map((size) => Math.min(MOST, size > 0 ? most / size : 1));
  const lifts = towards(sizes, largest).map((lift) => Math.max(1, lift / (bits === 16 ? WIDE_ROOM : 1)));
  if (isDepthwise(second)) return lifts.some((lift) => lift > 1) ? lifts : undefined;
  const columns = columnSizes(second);
  const widest = columns.reduce((a, b) => Math.max(a, b), 0);
  if (!(widest > 0)) return undefined;
  const drops = towards(columns, widest);
  const before = predictNoise(
    second,
    range,
    lifts.map(() => 1),
    bits,
  );
  let least = before;
  let best: Float64Array | undefined;
  for (const lift of EXPONENTS)
    for (const drop of EXPONENTS) {
      const wanted = lifts.map((each, c) => each ** lift / drops[c]! ** drop);
      const most = wanted.reduce((a, scale) => Math.max(a, scale), 0);
      const scales = wanted.map((scale, c) => Math.min(scale / most, lifts[c]!));
      const noise = predictNoise(second, range, scales, bits);
      if (!(noise < least)) continue;
      least = noise;
      best = scales;
    }
  return least < (1 - LEAST_GAIN) * before ? best : undefined;
}

function isDepthwise(node: Node): boolean {
  return node.int('group', 1) > 1 && node.input(1).dims[1] === 1;
}

/** Calls back for every element of a weight with its output row and the input channel that it reads. */
function eachElement(node: Node, visit: (row: number, channel: number, index: number) => void): void {
  const [rows, depth, ...kernel] = node.input(1).dims as [number, number, ...number[]];
  const taps = kernel.reduce((product, size) => product * size, 1);
  const perGroup = rows / node.int('group', 1);
  for (let row = 0, index = 0; row < rows; row++)
    for (let c = 0; c < depth; c++)
      for (let tap = 0; tap < taps; tap++) visit(row, Math.floor(row / perGroup) * depth + c, index++);
}

function columnSizes(node: Node): Float64Array {
  const weights = node.input(1).data!.toFloats();
  const sizes = new Float64Array(node.input(0).dims[1]!);
  eachElement(node, (_, channel, index) => {
    sizes[channel] = Math.max(sizes[channel]!, Math.abs(weights[index]!));
  });
  return sizes;
}

/** Noise power in the outputs of a convolution: of rounding what it reads, and of rounding its weight, both under scales. */
function predictNoise(node: Node, range: ChannelRange, scales: Float64Array, bits: 8 | 16): number {
  const weights = node.input(1).data!.toFloats();
  const rows = node.input(1).dims[0]!;
  const largest = new Float64Array(rows);
  const read = new Float64Array(rows);
  let gain = 0;
  eachElement(node, (row, channel, index) => {
    const scaled = weights[index]! / scales[channel]!;
    gain += scaled * scaled;
    largest[row] = Math.max(largest[row]!, Math.abs(scaled));
    read[row] = read[row]! + scales[channel]! ** 2 * range.meanSquare[channel]!;
  });
  let [low, high] = [0, 0];
  scales.forEach((scale, c) => {
    low = Math.min(low, scale * range.low[c]!);
    high = Math.max(high, scale * range.high[c]!);
  });
  const step = (high - low) / (2 ** bits - 1);
  return largest.reduce((sum, most, row) => sum + (most / WEIGHT_STEPS) ** 2 * read[row]!, step * step * gain);
}

function scaleRows(graph: Graph, node: Node, scales: Float64Array): void {
  for (const index of [1, 2]) {
    const { name, data } = node.input(index);
    const inner = data!.size / scales.length;
    const values = data!.toFloats().map((value, i) => value * scales[Math.floor(i / inner)]!);
    graph.find(name)!.data = Tensor.of('f32', data!.shape, values);
  }
}

function scaleColumns(graph: Graph, node: Node, scales: Float64Array): void {
  const { name, data } = node.input(1);
  const values = data!.toFloats().slice();
  eachElement(node, (_, channel, index) => {
    values[index] = values[index]! / scales[channel]!;
  });
  graph.find(name)!.data = Tensor.of('f32', data!.shape, values);
}

import { cloneModule } from '../compiler/ir/clone.ts';
import type { Module, Node } from '../compiler/ir/graph.ts';
import { elementCount, type TensorData, toFloats } from '../compiler/ir/tensor.ts';
import { parseModule } from '../compiler/ir/text.ts';
import { windowOffsets, windowPlan } from '../compiler/ops/window.ts';
import { type OpenEngine, openModule } from '../compiler/runtime/engine.ts';
import type { Runner, Tensors } from '../compiler/runtime/runner.ts';

/** Mean of x x^T over what a layer's weights are multiplied with, one symmetric [K, K] for each of its groups. */
export interface LayerMoments {
  readonly node: Node;
  readonly columns: number;
  readonly groups: readonly Float64Array[];
}

/** Activations that are fetched at a time. */
const GROUP_BYTES = 64 << 20;
/** Windows that are looked at: enough for the rank of any layer, and few enough for a second's work. */
const FEWEST_WINDOWS = 2048;
const MOST_WINDOWS = 8192;
const WINDOWS_PER_COLUMN = 4;
/** Products below this size are made here: a call of the engine would cost more. */
const SMALL = 32;
/** Of a layer wider than this the [K, K] would take more memory than the rest of the compile. */
const MOST_COLUMNS = 4608;
const GOLDEN = (Math.sqrt(5) - 1) / 2;

/** The unrolled columns of a layer's weight: input channels of a group times the taps of its kernel. */
export function layerColumns(node: Node): number {
  const { dims } = node.input(1);
  if (node.op === 'Conv') return elementCount(dims.slice(1));
  return node.op === 'Gemm' && node.int('transB', 0) === 1 ? dims[1]! : dims[0]!;
}

/** Whether the second moments of a layer can be collected: a Conv, or a product with a constant matrix. */
export function hasMoments(node: Node): boolean {
  const [input, weight] = node.inputs;
  if (!input || input.data || weight?.data?.dtype !== 'f32' || input.dtype !== 'f32') return false;
  if (node.op === 'Gemm' && node.int('transA', 0) === 1) return false;
  if (node.op !== 'Conv' && (weight.shape.length !== 2 || !['MatMul', 'Gemm'].includes(node.op))) return false;
  return layerColumns(node) <= MOST_COLUMNS;
}

/**
 * Runs a float graph on the samples and gives the second moments of every layer, one after the other: only the layers whose
 * inputs are fetched together are in memory. Windows of large images are picked at places that are spread evenly.
 * @param nodes layers for which hasMoments holds, in order
 */
export async function collectMoments(
  module: Module,
  nodes: readonly Node[],
  feeds: readonly Tensors[],
  onLayer: (moments: LayerMoments) => void,
  open?: OpenEngine,
): Promise<void> {
  const inputs = [...new Set(nodes.map((node) => node.input(0).name))];
  const tapped = cloneModule(module);
  const graph = tapped.graph();
  for (const name of inputs) {
    const value = graph.find(name)!;
    if (!graph.isOutput(value) && !graph.inputs.includes(value)) graph.outputs.push(value);
  }
  const groups: Node[][] = [];
  let bytes = Number.POSITIVE_INFINITY;
  for (const node of nodes) {
    const size = 4 * elementCount(node.input(0).dims) * feeds.length;
    if (bytes + size > GROUP_BYTES) {
      groups.push([]);
      bytes = 0;
    }
    groups.at(-1)!.push(node);
    bytes += size;
  }
  const runner = await openModule(tapped, open);
  const gram = await openModule(parseModule(GRAM), open);
  try {
    for (const group of groups) {
      const wanted = [...new Set(group.map((node) => node.input(0).name))];
      const fetched = wanted.filter((name) => !graph.inputs.includes(graph.find(name)!));
      const seen: Tensors[] = [];
      for (const feed of feeds) {
        const results = fetched.length > 0 ? await runner.run(feed, fetched) : {};
        seen.push(Object.fromEntries(wanted.map((name) => [name, results[name] ?? feed[name]!])));
      }
      for (const node of group) {
        const samples = seen.map((results) => results[node.input(0).name]!);
        onLayer(await layerMoments(node, samples, gram));
      }
    }
  } finally {
    await gram.close();
    await runner.close();
  }
}

const GRAM = `npuir 1
opset 13
graph @gram
  in %x : f32[windows,columns]
  %t = Transpose(%x)
  %y = MatMul(%t, %x)
  out %y
`;

async function layerMoments(node: Node, samples: readonly TensorData[], gram: Runner): Promise<LayerMoments> {
  const columns = layerColumns(node);
  const groupCount = node.op === 'Conv' ? node.int('group', 1) : 1;
  const groups = Array.from({ length: groupCount }, () => new Float64Array(columns * columns));
  const most = Math.min(MOST_WINDOWS, Math.max(FEWEST_WINDOWS, WINDOWS_PER_COLUMN * columns));
  const perSample = Math.ceil(most / samples.length);
  let total = 0;
  for (const sample of samples) {
    const windows = node.op === 'Conv' ? unrollImage(node, sample) : unrollRows(sample, columns);
    const places = pickPlaces(windows.count, perSample);
    total += places.length;
    for (const [index, sums] of groups.entries()) {
      const rows = new Float32Array(places.length * columns);
      places.forEach((place, row) => {
        windows.read(index, place, rows.subarray(row * columns, (row + 1) * columns));
      });
      if (columns <= SMALL) addProducts(rows, columns, sums);
      else {
        const shape = [places.length, columns];
        const { y } = await gram.run({ x: { dtype: 'f32', shape, data: rows } });
        const products = toFloats(y!);
        for (let i = 0; i < sums.length; i++) sums[i] = sums[i]! + products[i]!;
      }
    }
  }
  for (const sums of groups) for (let i = 0; i < sums.length; i++) sums[i] = sums[i]! / total;
  return { node, columns, groups };
}

/** Places that a layer's weights are applied at. */
interface Windows {
  readonly count: number;
  /** Writes what a group of the layer reads at a place. */
  read(group: number, place: number, row: Float32Array): void;
}

function unrollRows(sample: TensorData, columns: number): Windows {
  const data = toFloats(sample);
  return {
    count: data.length / columns,
    read: (_, place, row) => row.set(data.subarray(place * columns, (place + 1) * columns)),
  };
}

/** The windows of a convolution over [N, C, spatial...]; padding reads as 0. */
function unrollImage(node: Node, sample: TensorData): Windows {
  const data = toFloats(sample);
  const [batch, channels] = sample.shape as [number, number];
  const spatial = sample.shape.slice(2);
  const plan = windowPlan(node, node.input(1).dims.slice(2));
  const out = node.output().dims.slice(2);
  const positions = elementCount(out);
  const offsets = windowOffsets(spatial, out, plan);
  const taps = elementCount(plan.kernel);
  const area = elementCount(spatial);
  const depth = channels / node.int('group', 1);
  return {
    count: batch * positions,
    read(group, place, row) {
      const position = place % positions;
      const image = (Math.floor(place / positions) * channels + group * depth) * area;
      for (let tap = 0; tap < taps; tap++) {
        const offset = offsets[tap * positions + position]!;
        for (let c = 0; c < depth; c++) row[c * taps + tap] = offset < 0 ? 0 : data[image + c * area + offset]!;
      }
    },
  };
}

/** All places, or so many of them, spread by the golden ratio so that no row or column of an image is preferred. */
function pickPlaces(count: number, most: number): number[] {
  if (count <= most) return Array.from({ length: count }, (_, i) => i);
  return Array.from({ length: most }, (_, i) => Math.floor(((i * GOLDEN) % 1) * count));
}

function addProducts(rows: Float32Array, columns: number, sums: Float64Array): void {
  for (let at = 0; at < rows.length; at += columns) {
    for (let i = 0; i < columns; i++) {
      const x = rows[at + i]!;
      if (x === 0) continue;
      for (let j = 0; j <= i; j++) sums[i * columns + j] = sums[i * columns + j]! + x * rows[at + j]!;
    }
  }
}

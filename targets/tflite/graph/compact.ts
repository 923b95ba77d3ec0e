import type { TfliteModel, TfliteSubgraph, TfliteTensor } from '../model.ts';

/**
 * Takes out what nothing reads: operators whose results go nowhere, their tensors, and constants that only they read. Dead
 * tensors make the vendors' tools fail (facts litert 7).
 */
export function compactModel(model: TfliteModel): void {
  const moved = model.subgraphs.map(compactSubgraph);
  model.signatures = model.signatures.map((signature) => {
    const indices = moved[signature.subgraph]!;
    const ports = (list: typeof signature.inputs): typeof signature.inputs =>
      list.map(({ name, tensor }) => ({ name, tensor: indices.get(tensor)! }));
    return { ...signature, inputs: ports(signature.inputs), outputs: ports(signature.outputs) };
  });
  const used = new Set(model.subgraphs.flatMap(({ tensors }) => tensors.map(({ buffer }) => buffer)));
  for (const { buffer } of model.metadata) used.add(buffer);
  const kept = model.buffers.map((_, index) => index).filter((index) => index === 0 || used.has(index));
  const places = new Map(kept.map((from, to) => [from, to]));
  model.buffers = kept.map((index) => model.buffers[index]);
  for (const { tensors } of model.subgraphs) for (const tensor of tensors) tensor.buffer = places.get(tensor.buffer)!;
  model.metadata = model.metadata.map((entry) => ({ ...entry, buffer: places.get(entry.buffer)! }));
}

/** The tensor that holds the scales of a tensor's blocks. */
function blockScales({ quantization }: TfliteTensor): number | undefined {
  const details = quantization?.details;
  return details?.kind === 'BlockwiseQuantization' ? details.scales : undefined;
}

/** @returns the new index of every tensor that is left */
function compactSubgraph(graph: TfliteSubgraph): Map<number, number> {
  const read = new Set(graph.outputs);
  const kept: TfliteSubgraph['operators'] = [];
  for (const operator of [...graph.operators].reverse()) {
    if (!operator.outputs.some((tensor) => read.has(tensor))) continue;
    kept.push(operator);
    for (const tensor of operator.inputs) read.add(tensor);
  }
  const used = new Set([
    ...graph.inputs,
    ...graph.outputs,
    ...kept.flatMap(({ inputs, outputs }) => [...inputs, ...outputs]),
  ]);
  // Tensors that no operator reads, but another tensor does.
  for (const index of [...used]) {
    const scales = index < 0 ? undefined : blockScales(graph.tensors[index]!);
    if (scales !== undefined) used.add(scales);
  }
  const left = graph.tensors.map((_, index) => index).filter((index) => used.has(index));
  const places = new Map(left.map((from, to) => [from, to]));
  const move = (indices: readonly number[]): number[] =>
    indices.map((index) => (index < 0 ? index : places.get(index)!));
  graph.tensors = left.map((index) => {
    const tensor = graph.tensors[index]!;
    const details = tensor.quantization?.details;
    if (details?.kind !== 'BlockwiseQuantization' || details.scales === undefined) return tensor;
    const moved = { ...details, scales: places.get(details.scales)! };
    return { ...tensor, quantization: { ...tensor.quantization, details: moved } };
  });
  graph.inputs = move(graph.inputs);
  graph.outputs = move(graph.outputs);
  graph.operators = kept.reverse().map((operator) => ({
    ...operator,
    inputs: move(operator.inputs),
    outputs: move(operator.outputs),
  }));
  return places;
}

import type { Graph, Node, Value } from '../compiler/ir/graph.ts';

/**
 * Puts an Identity where a value changes its number format; the two sides get encodings of their own and export writes a
 * requantization. Names come from the value and the format, so that prefill and decode graphs get the same ones.
 */
export function insertConversion(
  graph: Graph,
  value: Value,
  suffix: string,
  readers: readonly { node: Node; index: number }[],
): Value {
  const first = readers.reduce((a, b) => (graph.nodes.indexOf(a.node) <= graph.nodes.indexOf(b.node) ? a : b)).node;
  const converted = graph.emit('Identity', [value], {
    name: `${value.name}.${suffix}`,
    ...(value.type ? { type: value.type } : {}),
    from: value.producer?.from ?? [],
    before: first,
  });
  for (const reader of readers) reader.node.setInput(reader.index, converted);
  return converted;
}

/**
 * Splits states' outputs from what computes them, so that the cache can have a format of its own: `<name>` stays the
 * output, its producer now writes `<name>.wide`.
 * @param isNeeded whether what computes an output writes another format than the cache's
 */
export function insertCacheConversions(graph: Graph, isNeeded: (output: Value) => boolean): void {
  for (const [state, port] of graph.states) {
    const output = port.output;
    const producer = output.producer;
    const update = updateOf(output);
    if (update) {
      // A cache that the graph updates has one format from input to output: what is written into it changes.
      if (isNeeded(update.input(1))) insertConversion(graph, update.input(1), 'stored', [{ node: update, index: 1 }]);
      continue;
    }
    if (!producer || !isNeeded(output)) continue;
    const name = output.name;
    graph.renameValue(output, `${name}.wide`);
    const at = graph.nodes.indexOf(producer) + 1;
    const stored = graph.emit('Identity', [output], {
      name,
      ...(output.type ? { type: output.type } : {}),
      from: producer.from,
      ...(graph.nodes[at] ? { before: graph.nodes[at] } : {}),
    });
    for (const use of [...output.uses]) if (use.node !== stored.producer) use.node.setInput(use.index, stored);
    const index = graph.outputs.indexOf(output);
    if (index >= 0) graph.outputs[index] = stored;
    graph.states.set(state, { input: port.input, output: stored });
  }
}

/** What writes new rows into a cache inside the graph, behind an output that is the whole cache. */
function updateOf(output: Value): Node | undefined {
  const maker = output.producer?.op === 'Slice' ? output.producer.input(0).producer : output.producer;
  return maker?.op === 'TensorScatter' || (maker?.op === 'Concat' && maker !== output.producer) ? maker : undefined;
}

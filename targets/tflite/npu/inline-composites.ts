import type { TfliteModel, TfliteOperator, TfliteSubgraph, TfliteTensor } from '../model.ts';

/**
 * Writes the bodies of composites out in the place of the operators that call them, for compilers that misread a composite:
 * Intel's takes `odml.rms_norm` as its own operator and forgets that the tensors are integers (measured).
 *
 *     y = STABLEHLO_COMPOSITE(x, w; body)   ->   ...the body's operators over x, w and y
 *
 * Buffers are shared with the model; subgraphs that were bodies are left out, all others keep their order. The decomposition
 * must stand behind the subgraphs that call it, as the lowerings here write it.
 */
export function inlineComposites(model: TfliteModel): TfliteModel {
  const bodies = new Set(model.subgraphs.flatMap(({ operators }) => operators.flatMap(bodyOf)));
  const kept = model.subgraphs.flatMap((_, index) => (bodies.has(index) ? [] : [index]));
  return {
    ...model,
    subgraphs: kept.map((index) => inlineInto(model, model.subgraphs[index]!)),
    signatures: model.signatures.map((signature) => ({ ...signature, subgraph: kept.indexOf(signature.subgraph) })),
  };
}

/** The subgraph that a composite runs; none for any other operator. */
function bodyOf({ options2 }: TfliteOperator): number[] {
  return options2?.kind === 'StableHLOCompositeOptions' ? [options2.decompositionSubgraphIndex ?? 0] : [];
}

function inlineInto(model: TfliteModel, graph: TfliteSubgraph): TfliteSubgraph {
  const tensors: TfliteTensor[] = [...graph.tensors];
  const expand = (operator: TfliteOperator): TfliteOperator[] => {
    const [index] = bodyOf(operator);
    if (index === undefined) return [operator];
    const body = model.subgraphs[index]!;
    const places = new Map<number, number>();
    for (const [ports, outer] of [
      [body.inputs, operator.inputs],
      [body.outputs, operator.outputs],
    ] as const) {
      ports.forEach((port, i) => places.set(port, outer[i]!));
    }
    const place = (tensor: number): number => {
      if (tensor === -1) return tensor;
      let found = places.get(tensor);
      if (found === undefined) {
        // The body's own names are unique over the file, and its subgraph is left out.
        found = tensors.push(body.tensors[tensor]!) - 1;
        places.set(tensor, found);
      }
      return found;
    };
    return body.operators
      .map((inner) => ({ ...inner, inputs: inner.inputs.map(place), outputs: inner.outputs.map(place) }))
      .flatMap(expand);
  };
  const operators = graph.operators.flatMap(expand);
  return { ...graph, tensors, operators };
}

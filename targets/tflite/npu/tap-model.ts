import type { TfliteModel } from '../model.ts';
import { inlineComposites } from './inline-composites.ts';

/**
 * One signature of a model with the given tensors as its outputs, so that a runtime shows what lies between the partitions
 * of a compiled file. Composites are written out, which computes the same bits on a CPU (docs/decisions/0004).
 * @param tensors names of tensors of the signature's subgraph; inputs and names that it does not have are left out
 * @returns a model whose outputs have the tensors' own names, and its inputs too
 */
export function tapModel(model: TfliteModel, signature: string, tensors: readonly string[]): TfliteModel {
  const whole = inlineComposites(model);
  const { subgraph } = whole.signatures.find(({ key }) => key === signature)!;
  const graph = whole.subgraphs[subgraph]!;
  const inputs = new Set(graph.inputs);
  const indices = new Map(graph.tensors.map(({ name }, index) => [name, index]));
  const outputs = tensors.flatMap((name) => {
    const tensor = indices.get(name);
    return tensor === undefined || inputs.has(tensor) ? [] : [{ name, tensor }];
  });
  return {
    ...whole,
    subgraphs: [{ ...graph, outputs: outputs.map(({ tensor }) => tensor) }],
    signatures: [
      {
        key: signature,
        subgraph: 0,
        inputs: graph.inputs.map((tensor) => ({ name: graph.tensors[tensor]!.name, tensor })),
        outputs,
      },
    ],
    metadata: [],
  };
}

import { basename } from 'node:path';
import type { ByteSource } from '../../targets/tflite/byte-source.ts';
import { isCompiled } from '../../targets/tflite/model.ts';
import { type DispatchedSignature, readDispatch } from '../../targets/tflite/npu/read-dispatch.ts';
import { printTflite } from '../../targets/tflite/print.ts';
import { readTflite } from '../../targets/tflite/read.ts';
import { operatorName, tensorTypeName } from '../../targets/tflite/schema-enums.ts';
import { formatBytes } from '../render-plan.ts';
import { countBy, type Description } from './description.ts';

/** The model in a TFLite file, or in a section of a bundle. */
export function describeTfliteModel(file: ByteSource, path: string, asText: boolean): Description {
  const bytes = file.size;
  const model = readTflite(file, path);
  if (asText)
    return { kind: 'tflite', data: { text: printTflite(model) }, lines: printTflite(model).trimEnd().split('\n') };
  const subgraphs = model.subgraphs.map((graph) => ({
    name: graph.name ?? '',
    ops: Object.fromEntries(countBy(graph.operators.map((operator) => operatorName(operator.code)))),
    types: Object.fromEntries(countBy(graph.tensors.map((tensor) => tensorTypeName(tensor.type)))),
  }));
  const port = (subgraph: number, { name, tensor }: { name: string; tensor: number }): string => {
    const { type, shape } = model.subgraphs[subgraph]!.tensors[tensor]!;
    return `${name} ${tensorTypeName(type)}[${shape.join(',')}]`;
  };
  const signatures = model.signatures.map((signature) => ({
    key: signature.key,
    inputs: signature.inputs.map((each) => port(signature.subgraph, each)),
    outputs: signature.outputs.map((each) => port(signature.subgraph, each)),
  }));
  // A composite has a body of its own for every use: a line for all of one name.
  const bodies = new Map<number, string>();
  for (const { options2 } of model.subgraphs.flatMap((graph) => graph.operators)) {
    if (options2?.kind === 'StableHLOCompositeOptions')
      bodies.set(options2.decompositionSubgraphIndex ?? 0, options2.name ?? '');
  }
  const list = (counts: Readonly<Record<string, number>>): string =>
    Object.entries(counts)
      .map(([name, count]) => `${name} ${count}`)
      .join(', ');
  const composites = countBy([...bodies.values()]).map(([name, count]) => {
    const [first] = [...bodies].find(([, each]) => each === name)!;
    return `  composite ${name}  ${count} bodies of ${list(subgraphs[first]!.ops)}`;
  });
  const dispatched = isCompiled(model) ? readDispatch(model, bytes) : undefined;
  const constant = model.buffers.reduce((sum, buffer) => sum + (buffer?.byteLength ?? 0), 0);
  return {
    kind: 'tflite',
    data: { bytes, constantBytes: constant, subgraphs, signatures, ...(dispatched ? { npu: dispatched } : {}) },
    lines: [
      `tflite ${basename(path)}  ${formatBytes(bytes)}, constants ${formatBytes(constant)} in ${model.buffers.length} buffers`,
      ...subgraphs
        .filter((_, index) => !bodies.has(index))
        .flatMap((graph) => [`  subgraph ${graph.name}`, `    ${list(graph.ops)}`, `    tensors ${list(graph.types)}`]),
      ...composites,
      ...signatures.flatMap((signature) => [
        `  signature ${signature.key}`,
        ...signature.inputs.map((each) => `    in   ${each}`),
        ...signature.outputs.map((each) => `    out  ${each}`),
      ]),
      ...(dispatched ?? []).flatMap(describeDispatched),
    ],
  };
}

/** What a vendor's plugin compiled of a signature: the byte code of each partition, and what stays on the CPU. */
function describeDispatched({ name, partitions, left }: DispatchedSignature): string[] {
  const parts = partitions.map(
    ({ name: graph, offset, size, inputs, outputs }) =>
      `    ${graph}  ${formatBytes(size)} of byte code at ${offset}, ${inputs.length} inputs, ${outputs.length} outputs`,
  );
  const ops = countBy(left.map(({ op }) => op)).map(([op, count]) => `${op} ${count}`);
  return [`  compiled ${name}`, ...parts, ...(ops.length > 0 ? [`    on the CPU: ${ops.join(', ')}`] : [])];
}

import { basename } from 'node:path';
import { NpucError } from '../../compiler/errors.ts';
import { openCheckpoint } from '../../compiler/import/checkpoint.ts';
import { openOnnx } from '../../compiler/import/onnx.ts';
import type { Graph, Module } from '../../compiler/ir/graph.ts';
import { FileSource } from '../../compiler/ir/tensor.ts';
import { printModule } from '../../compiler/ir/text.ts';
import { findOp } from '../../compiler/ops/index.ts';
import { inferShapes } from '../../compiler/ops/infer-shapes.ts';
import { describeClaims } from '../../evaluation/describe-npu.ts';
import { isModelManifest, isOutputFolder, readAnyManifest } from '../../targets/manifest.ts';
import type { ModelTargetManifest } from '../../targets/model-target.ts';
import type { ManifestTarget, TargetName } from '../../targets/target.ts';
import { isCompiled } from '../../targets/tflite/model.ts';
import { type DispatchedSignature, readDispatch } from '../../targets/tflite/npu/read-dispatch.ts';
import { printTflite } from '../../targets/tflite/print.ts';
import { readTflite } from '../../targets/tflite/read.ts';
import { operatorName, tensorTypeName } from '../../targets/tflite/schema-enums.ts';
import { formatBytes } from '../render-plan.ts';
import { describeBinaries, describeContext } from './describe-context.ts';
import { describeSharedWeights } from './describe-sharing.ts';

/** What `npuc inspect` says of a file: lines for people and the same as data. */
export interface Description {
  readonly kind: 'onnx' | 'tflite' | 'context-binary' | 'checkpoint' | 'compiled';
  readonly data: unknown;
  readonly lines: readonly string[];
}

/** @throws CL001 for a file of no known kind */
export async function describePath(path: string, asText: boolean): Promise<Description> {
  if (isOutputFolder(path)) return await describeCompiled(path);
  if (path.endsWith('.onnx')) return describeOnnx(path, asText);
  if (path.endsWith('.tflite')) return describeTflite(path, asText);
  if (asText) throw new NpucError('CL001', { message: '--text prints ONNX and TFLite models only', where: path });
  if (path.endsWith('.bin') && !path.endsWith('pytorch_model.bin')) return await describeContext(path);
  return await describeCheckpoint(path);
}

function countBy(names: Iterable<string>): [string, number][] {
  const counts = new Map<string, number>();
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
}

function describeOnnx(path: string, asText: boolean): Description {
  const module = openOnnx(path);
  inferShapes(module);
  const graph = module.graph();
  const opset = module.opsets.get('') ?? 0;
  const ops = countBy(allNodes(graph).map((node) => (node.domain ? `${node.domain}::${node.op}` : node.op)));
  const unknown = allNodes(graph).filter(
    (node) => !findOp(node.domain, node.op, module.opsets.get(node.domain) ?? opset)?.evaluate,
  );
  const weights = [...module.weights].reduce((sum, tensor) => sum + tensor.byteLength, 0);
  const port = (value: Graph['inputs'][number]): { name: string; dtype: string; shape: string } => ({
    name: value.name,
    dtype: value.type?.kind === 'tensor' ? value.type.dtype : (value.type?.kind ?? '?'),
    shape: value.type?.kind === 'tensor' && value.type.shape ? `[${value.type.shape.join(',')}]` : '[?]',
  });
  const symbols = [
    ...new Set(graph.inputs.flatMap((value) => (value.type?.kind === 'tensor' ? (value.type.shape ?? []) : []))),
  ].filter((dim) => typeof dim === 'string');
  const data = {
    opsets: Object.fromEntries(module.opsets),
    producer: `${module.producerName} ${module.producerVersion}`.trim(),
    inputs: graph.inputs.map(port),
    outputs: graph.outputs.map(port),
    nodes: graph.nodes.length,
    ops: Object.fromEntries(ops),
    withoutReference: [...new Set(unknown.map((node) => node.op))],
    weightBytes: weights,
    symbolicDims: symbols,
  };
  if (asText)
    return { kind: 'onnx', data: { ...data, text: printModule(module) }, lines: [printModule(module).trimEnd()] };
  return {
    kind: 'onnx',
    data,
    lines: [
      `onnx ${basename(path)}  opset ${opset}  ${data.producer}`,
      ...data.inputs.map(({ name, dtype, shape }) => `  in   ${name} ${dtype}${shape}`),
      ...data.outputs.map(({ name, dtype, shape }) => `  out  ${name} ${dtype}${shape}`),
      `  ${data.nodes} nodes, weights ${formatBytes(weights)}`,
      `  ${ops.map(([op, count]) => `${op} ${count}`).join(', ')}`,
      ...(symbols.length > 0 ? [`  dynamic: ${symbols.join(', ')} (compile with --bind ${symbols[0]}=<number>)`] : []),
      ...(data.withoutReference.length > 0
        ? [`  carried through without reference semantics: ${data.withoutReference.join(', ')}`]
        : []),
    ],
  };
}

function allNodes(graph: Graph): Module['graphs'][number]['nodes'] {
  return graph.nodes.flatMap((node) => [node, ...node.subgraphs.flatMap(allNodes)]);
}

function describeTflite(path: string, asText: boolean): Description {
  const file = new FileSource(path);
  try {
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
          .flatMap((graph) => [
            `  subgraph ${graph.name}`,
            `    ${list(graph.ops)}`,
            `    tensors ${list(graph.types)}`,
          ]),
        ...composites,
        ...signatures.flatMap((signature) => [
          `  signature ${signature.key}`,
          ...signature.inputs.map((each) => `    in   ${each}`),
          ...signature.outputs.map((each) => `    out  ${each}`),
        ]),
        ...(dispatched ?? []).flatMap(describeDispatched),
      ],
    };
  } finally {
    file.close();
  }
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

async function describeCheckpoint(path: string): Promise<Description> {
  const checkpoint = await openCheckpoint(path);
  try {
    const tensors = [...checkpoint.tensors.values()];
    const parameters = tensors.reduce((sum, tensor) => sum + tensor.size, 0);
    const types = countBy(tensors.map((tensor) => tensor.dtype));
    const { config } = checkpoint;
    const keys = [
      'hidden_size',
      'intermediate_size',
      'num_hidden_layers',
      'num_attention_heads',
      'num_key_value_heads',
      'vocab_size',
      'max_position_embeddings',
    ];
    const shape = keys.filter((key) => config[key] !== undefined).map((key) => `${key} ${String(config[key])}`);
    const architecture = String((config.architectures as unknown[] | undefined)?.[0] ?? config.model_type ?? 'unknown');
    return {
      kind: 'checkpoint',
      data: {
        name: checkpoint.name,
        architecture,
        parameters,
        tensors: tensors.length,
        dtypes: Object.fromEntries(types),
        config,
      },
      lines: [
        `checkpoint ${checkpoint.name}  ${architecture}  ${parameters.toLocaleString('en-US')} parameters in ${tensors.length} tensors (${types.map(([type, count]) => `${type} ${count}`).join(', ')})`,
        `  ${shape.join(', ')}`,
        `  tokenizer ${checkpoint.tokenizer ? `${checkpoint.tokenizer.vocabSize} tokens` : 'none'}, chat template ${checkpoint.chatTemplate ? 'yes' : 'no'}`,
      ],
    };
  } finally {
    checkpoint.close();
  }
}

async function describeCompiled(path: string): Promise<Description> {
  const manifest = readAnyManifest(path);
  const bytes = new Map(manifest.files.map((file) => [file.path, file.bytes]));
  const shapes = isModelManifest(manifest)
    ? Object.entries(manifest.bindings).map(([name, length]) => `${name} ${[length].flat().join('x')}`)
    : [`tokens ${manifest.shapes.tokens.join(',')}`, `cache ${manifest.shapes.cache.join(',')}`];
  const entries = Object.entries(manifest.targets) as [TargetName, ManifestTarget | ModelTargetManifest][];
  const targets = entries.map(([name, target]) => ({
    name,
    title: [name, 'contract' in target ? target.contract : '', target.execution].filter(Boolean).join('  '),
    files: target.files,
    npu: (target.npu ?? []).flatMap(describeClaims),
  }));
  const shared = describeSharedWeights(path, manifest);
  const { contexts, lines } = await describeBinaries(path, manifest);
  const made = Object.entries(manifest.toolchain ?? {}).map(([tool, version]) => `${tool} ${version}`);
  return {
    kind: 'compiled',
    data: { ...manifest, ...(shared ? { sharing: shared.sharing } : {}), contexts },
    lines: [
      [
        `compiled ${manifest.source.name}`,
        `${manifest.soc.name} (${manifest.soc.arch})`,
        manifest.recipe.scheme,
        ...shapes,
      ].join('  '),
      ...(made.length > 0 ? [`  made by npuc ${manifest.npuc}, ${made.join(', ')}`] : []),
      ...targets.flatMap(({ name, title, files, npu }) => [
        `  ${title}`,
        ...files.flatMap((file) => [`    ${file}  ${formatBytes(bytes.get(file) ?? 0)}`, ...(lines.get(file) ?? [])]),
        ...(name === 'qnn' && shared ? shared.lines : []),
        ...npu.map((line) => `    ${line}`),
      ]),
    ],
  };
}

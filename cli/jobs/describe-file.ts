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
import { formatBytes } from '../render-plan.ts';
import { describeBinaries, describeContext } from './describe-context.ts';
import { describeLitertLm } from './describe-litertlm.ts';
import { describeSharedWeights } from './describe-sharing.ts';
import { describeTfliteModel } from './describe-tflite.ts';
import { countBy, type Description } from './description.ts';

/** @throws CL001 for a file of no known kind */
export async function describePath(path: string, asText: boolean): Promise<Description> {
  if (isOutputFolder(path)) return await describeCompiled(path);
  if (path.endsWith('.onnx')) return describeOnnx(path, asText);
  if (path.endsWith('.tflite')) return describeTflite(path, asText);
  if (path.endsWith('.litertlm')) return describeLitertLm(path, asText);
  if (asText) throw new NpucError('CL001', { message: '--text prints ONNX and TFLite models only', where: path });
  if (path.endsWith('.bin') && !path.endsWith('pytorch_model.bin')) return await describeContext(path);
  return await describeCheckpoint(path);
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
    return describeTfliteModel(file, path, asText);
  } finally {
    file.close();
  }
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

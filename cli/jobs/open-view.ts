import { existsSync } from 'node:fs';
import { basename, join } from 'node:path';
import { NpucError } from '../../compiler/errors.ts';
import { dequantizeLazily } from '../../compiler/export/quantize-constant.ts';
import { openOnnx } from '../../compiler/import/onnx.ts';
import type { Encoding } from '../../compiler/ir/encoding.ts';
import { FileSource, Tensor } from '../../compiler/ir/tensor.ts';
import { runPasses } from '../../compiler/pass.ts';
import { describeForm, meanScale, measureDecoder } from '../../evaluation/check/measure-decoder.ts';
import { measureModel } from '../../evaluation/check/measure-model.ts';
import { viewMeasurement } from '../../evaluation/check/view-measurement.ts';
import type { BuildView, ViewFigure, ViewValue, ViewWeight } from '../../evaluation/diff/build-view.ts';
import type { TargetReport } from '../../evaluation/report.ts';
import { readReport } from '../../evaluation/write-report.ts';
import { foldQdq } from '../../passes/fold-qdq.ts';
import { TARGET_NAMES } from '../../targets/index.ts';
import {
  isModelManifest,
  isOutputFolder,
  type Manifest,
  type ModelManifest,
  readAnyManifest,
} from '../../targets/manifest.ts';
import type { TargetName } from '../../targets/target.ts';
import type { TfliteModel, TfliteTensor } from '../../targets/tflite/model.ts';
import { readTflite } from '../../targets/tflite/read.ts';
import { operatorName, TensorType } from '../../targets/tflite/schema-enums.ts';
import { compileOptions } from '../compile.ts';
import { mergeConfig, readConfig } from '../config.ts';
import { openSubject } from './check-decoder.ts';
import { openModelSubject } from './check-model.ts';

/** Whether a side of a comparison is a file of settings: two of them compare two recipes. */
export function isRecipe(path: string): boolean {
  return /\.(ya?ml|json)$/.test(path) && existsSync(path);
}

/** Whether a side is an artifact on its own. */
export function isArtifact(path: string): boolean {
  return /\.(onnx|tflite)$/.test(path);
}

/**
 * Opens a side of a comparison: a compiled folder with an optional `:target`, an ONNX or TFLite file, or a configuration file,
 * whose recipe is then tried out.
 * @param quiet no progress
 * @throws IO001 where there is nothing, TG110, TG111 for a folder that is not whole, IM and IO errors for a bad file
 */
export async function openView(name: string, quiet: boolean): Promise<BuildView> {
  if (isRecipe(name)) return await viewRecipe(name, quiet);
  if (name.endsWith('.onnx')) return { ...viewOnnx(name), title: name };
  if (name.endsWith('.tflite')) return { ...viewTflite(name, new Map()), title: name };
  const cut = name.lastIndexOf(':');
  const [folder, wanted] =
    cut > 0 && !isOutputFolder(name) ? [name.slice(0, cut), name.slice(cut + 1)] : [name, undefined];
  const manifest = readAnyManifest(folder);
  const names = TARGET_NAMES.filter((each) => manifest.targets[each as 'onnx'] !== undefined);
  const target = wanted === undefined ? names[0] : names.find((each) => each === wanted);
  if (target) return viewFolder(folder, target, manifest, name);
  throw new NpucError('CL001', {
    message: `${folder} has no target ${wanted ?? ''}`,
    where: folder,
    hint: `it has ${names.join(', ')}`,
  });
}

async function viewRecipe(path: string, quiet: boolean): Promise<BuildView> {
  const file = await readConfig(path);
  const { target, ...config } = mergeConfig(file.config, {}, path);
  const options = compileOptions({ ...config, target: ['onnx'] }, { force: false, quiet });
  options.progress.stage(`measure ${path}`);
  const name = target?.[0] ?? 'onnx';
  if (options.source.endsWith('.onnx')) {
    if (name === 'hf')
      throw new NpucError('CL001', { message: 'target hf is for checkpoints, not for ONNX models', where: path });
    const { measurement } = await measureModel(openModelSubject(options, config.bind, name)(0));
    return viewMeasurement(measurement, path, 'recipe');
  }
  const opened = await openSubject(options, name);
  try {
    const { measurement } = await measureDecoder(await opened.calibrate(0));
    return viewMeasurement(measurement, path, 'recipe');
  } finally {
    opened.close();
    options.progress.finish();
  }
}

type Graph = Pick<BuildView, 'ops' | 'values' | 'weights'>;

function viewFolder(folder: string, target: TargetName, manifest: Manifest | ModelManifest, title: string): BuildView {
  const made = manifest.targets[target as 'onnx']!;
  const graph = viewTarget(folder, made.files, isModelManifest(manifest) ? new Map() : contractNames(manifest, target));
  const report = existsSync(join(folder, 'report.json')) ? readTargetReport(folder, target) : undefined;
  const seen = new Map(report?.values.map((value) => [value.name, value]));
  const renamed = isModelManifest(manifest) ? new Map<string, string>() : contractNames(manifest, target);
  for (const [name, value] of [...seen]) if (renamed.has(name)) seen.set(renamed.get(name)!, value);
  const known = new Set(graph.values.map(({ name }) => name));
  const figures = (name: string): Partial<ViewValue> => {
    const found = seen.get(name);
    if (!found) return {};
    const { sqnr, noiseAdded } = found;
    return { from: found.from, sqnr, ...(noiseAdded === undefined ? {} : { noiseAdded }) };
  };
  const shipped = manifest.files.filter(
    ({ path }) => made.files.includes(path) && !/\/(qdq|dlc)\//.test(path) && !path.endsWith('encodings.json'),
  );
  return {
    title,
    kind: 'build',
    facts: [
      ['model', `${manifest.source.name} ${manifest.source.digest.slice(0, 12)}`],
      ['target', target],
      ['soc', manifest.soc.name],
      ...Object.entries(manifest.recipe).map(([key, value]): [string, string] => [key, spell(value)]),
      ...(isModelManifest(manifest)
        ? []
        : ([
            ['tokens', manifest.shapes.tokens.join(', ')],
            ['cache', manifest.shapes.cache.join(', ')],
          ] as [string, string][])),
      ['calibration', manifest.calibration.digest.slice(0, 12)],
      ['npuc', manifest.npuc],
      ...Object.entries(manifest.toolchain),
    ],
    ops: graph.ops,
    weights: graph.weights,
    // The order of the report is that of computation; values that only the graph knows follow.
    values: [
      ...graph.values.map((value) => ({ ...value, ...figures(value.name) })),
      ...[...seen.keys()]
        .filter((name) => !known.has(name) && !renamed.has(name))
        .map((name) => ({ name, from: [], ...figures(name) })),
    ],
    files: shipped.map(({ path, bytes }) => ({ path: path.replace(`${target}/`, ''), bytes })),
    quality: report ? listFigures(report) : [],
  };
}

function readTargetReport(folder: string, target: TargetName): TargetReport | undefined {
  try {
    return readReport(folder).targets[target];
  } catch (error) {
    // The report of an ONNX model is another one; a build is compared by its graph all the same.
    if (error instanceof NpucError && error.code === 'IO003') return undefined;
    throw error;
  }
}

function listFigures({ logits, chunk }: TargetReport): ViewFigure[] {
  if (!logits && !chunk) return [];
  const both = (logits ?? chunk)!;
  return [
    { name: 'kl', value: both.divergence, better: 'lower' },
    { name: 'top1', value: both.topAgreement, better: 'higher' },
    { name: 'sqnr', value: both.sqnr, better: 'higher' },
    ...(logits
      ? ([
          { name: 'perplexity', value: logits.perplexity, better: 'lower' },
          { name: 'perplexity ratio', value: logits.ratio, better: 'lower' },
        ] as const)
      : []),
  ];
}

function spell(value: unknown): string {
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}

/** What a target's contract calls the ports, as the plain contract does. */
function contractNames(manifest: Manifest, target: TargetName): Map<string, string> {
  const names = manifest.targets[target]?.protocol.names;
  const map = new Map<string, string>();
  if (!names) return map;
  map.set(names.tokens, 'input_ids').set(names.mask, 'attention_mask').set(names.logits, 'logits');
  for (const [list, plain] of [
    [names.pastKey, 'past_key'],
    [names.pastValue, 'past_value'],
    [names.newKey, 'new_key'],
    [names.newValue, 'new_value'],
  ] as const)
    list.forEach((name, layer) => map.set(name, `${plain}_${layer}`));
  return map;
}

/** The decode graph of a target: of ONNX and QNN the QDQ model, of LiteRT the file itself. */
function viewTarget(folder: string, files: readonly string[], names: ReadonlyMap<string, string>): Graph {
  const graphs = files.filter((path) => path.endsWith('.onnx') && !/_ctx|context/.test(basename(path)));
  const decode = graphs.find((path) => /decode/.test(path)) ?? graphs[0];
  if (decode) return renameGraph(viewOnnx(join(folder, decode)), names);
  const tflite = files.find((path) => path.endsWith('.tflite'));
  if (tflite) return viewTflite(join(folder, tflite), names);
  return { ops: new Map(), values: [], weights: [] };
}

function renameGraph(graph: Graph, names: ReadonlyMap<string, string>): Graph {
  return { ...graph, values: graph.values.map((value) => ({ ...value, name: names.get(value.name) ?? value.name })) };
}

/** An ONNX model: its QDQ pairs as encodings. */
function viewOnnx(path: string): BuildView {
  const module = openOnnx(path);
  runPasses(module, [foldQdq], { inferShapes: false, verify: false });
  const graph = module.graph();
  const ops = new Map<string, number>();
  for (const { op } of graph.nodes) ops.set(op, (ops.get(op) ?? 0) + 1);
  const values: ViewValue[] = [];
  const weights: ViewWeight[] = [];
  for (const value of graph.nodes.flatMap((node) => node.outputs)) {
    if (value?.encoding?.scale.length !== 1) continue;
    const { dtype, scale, zeroPoint } = value.encoding;
    values.push({
      name: value.name,
      from: value.producer?.from ?? [],
      encoding: { dtype, scale: scale[0]!, zero: zeroPoint?.[0] ?? 0 },
    });
  }
  for (const { name, data, encoding } of graph.values) {
    if (!data || data.shape.length < 2 || !/^(f|bf|[iu]\d)/.test(data.dtype)) continue;
    const read = (): { shape: readonly number[]; data: Float32Array } => ({ shape: data.shape, data: data.toFloats() });
    if (encoding) weights.push({ name, form: describeForm(encoding), scale: meanScale(encoding), read });
    else if (/^(f|bf)/.test(data.dtype)) weights.push({ name, form: data.dtype, scale: 1, read });
  }
  return {
    title: path,
    kind: 'artifact',
    facts: [
      ['format', 'onnx'],
      ['opset', String(module.opsets.get('') ?? 0)],
      ['nodes', String(graph.nodes.length)],
      ...graph.inputs.map((input): [string, string] => [`input ${input.name}`, spellType(input.type)]),
    ],
    ops,
    values,
    weights,
    files: [{ path: basename(path), bytes: sizeOf(path) + externalBytes(module, path) }],
    quality: [],
  };
}

function spellType(type: unknown): string {
  const { dtype, shape } = (type ?? {}) as { dtype?: string; shape?: readonly (number | string)[] };
  return `${dtype ?? '?'}[${shape?.join(',') ?? '?'}]`;
}

function sizeOf(path: string): number {
  const file = new FileSource(path);
  const { size } = file;
  file.close();
  return size;
}

/** Bytes of the weights that lie in other files. */
function externalBytes(module: { weights: Iterable<Tensor> }, path: string): number {
  const others = new Map<string, number>();
  for (const { storage } of module.weights)
    if (storage.kind === 'file' && storage.file.path !== path) others.set(storage.file.path, storage.file.size);
  return [...others.values()].reduce((sum, bytes) => sum + bytes, 0);
}

/** Integers of TFLite that this comparison knows, as npuc writes them. */
const INTEGERS: Readonly<Partial<Record<number, Encoding['dtype']>>> = {
  [TensorType.INT4]: 'i4',
  [TensorType.INT8]: 'i8',
  [TensorType.INT16]: 'i16',
  [TensorType.UINT8]: 'u8',
  [TensorType.INT32]: 'i32',
};

/** A TFLite model: the subgraph of its decode signature, or the first. */
function viewTflite(path: string, names: ReadonlyMap<string, string>): BuildView {
  const file = new FileSource(path);
  const model = readTflite(file, path);
  const signature = model.signatures.find(({ key }) => /decode/.test(key)) ?? model.signatures[0];
  const subgraph = model.subgraphs[signature?.subgraph ?? 0]!;
  const ops = new Map<string, number>();
  for (const { code } of subgraph.operators) {
    const op = operatorName(code);
    ops.set(op, (ops.get(op) ?? 0) + 1);
  }
  const prefix = `${subgraph.name ?? ''}/`;
  const nameOf = (tensor: TfliteTensor): string => {
    const name = tensor.name.startsWith(prefix) ? tensor.name.slice(prefix.length) : tensor.name;
    return names.get(name) ?? name;
  };
  const values: ViewValue[] = [];
  const weights: ViewWeight[] = [];
  for (const tensor of subgraph.tensors) {
    const encoding = encodingOf(tensor);
    if (!encoding) continue;
    const constant = model.buffers[tensor.buffer] !== undefined;
    if (constant && tensor.shape.length > 1) {
      const read = (): { shape: readonly number[]; data: Float32Array } => readConstant(model, tensor, encoding);
      weights.push({ name: nameOf(tensor), form: describeForm(encoding), scale: meanScale(encoding), read });
    } else if (!constant && encoding.scale.length === 1) {
      const { dtype, scale, zeroPoint } = encoding;
      values.push({
        name: nameOf(tensor),
        from: [],
        encoding: { dtype, scale: scale[0]!, zero: zeroPoint?.[0] ?? 0 },
      });
    }
  }
  return {
    title: path,
    kind: 'artifact',
    facts: [
      ['format', 'tflite'],
      ['operators', String(subgraph.operators.length)],
      ['signatures', model.signatures.map(({ key }) => key).join(', ') || '-'],
    ],
    ops,
    values,
    weights,
    files: [{ path: basename(path), bytes: file.size }],
    quality: [],
  };
}

function encodingOf({ type, quantization }: TfliteTensor): Encoding | undefined {
  const dtype = INTEGERS[type];
  const scale = quantization?.scale;
  if (!dtype || !scale || scale.length === 0) return undefined;
  const zeroPoint = Int32Array.from(quantization?.zeroPoint ?? []);

  return {
    dtype,
    scale: Float32Array.from(scale),
    ...(zeroPoint.some((zero) => zero !== 0) ? { zeroPoint } : {}),
    ...(scale.length > 1 ? { axis: quantization?.quantizedDimension ?? 0 } : {}),
  };
}

function readConstant(
  model: TfliteModel,
  tensor: TfliteTensor,
  encoding: Encoding,
): { shape: readonly number[]; data: Float32Array } {
  const buffer = model.buffers[tensor.buffer]!;
  const chunks: Uint8Array[] = [];
  if (buffer instanceof Uint8Array) chunks.push(buffer);
  else buffer.write((chunk) => chunks.push(chunk.slice()));
  const bytes = new Uint8Array(Buffer.concat(chunks));
  const integers = new Tensor(encoding.dtype, tensor.shape, { kind: 'memory', bytes });
  return { shape: tensor.shape, data: dequantizeLazily(integers, encoding).toFloats() };
}

import { join } from 'node:path';
import type { GraphRequest, QuantizedDecoder } from '../../calibration/quantize-decoder.ts';
import type { QuantizedGraph } from '../../calibration/quantize-graph.ts';
import { cloneModule } from '../../compiler/ir/clone.ts';
import type { Encoding } from '../../compiler/ir/encoding.ts';
import type { Graph } from '../../compiler/ir/graph.ts';
import type { Progress } from '../../compiler/progress.ts';
import { ChainRunner } from '../../compiler/runtime/chain-runner.ts';
import { DecoderSession, quantizeValues } from '../../compiler/runtime/decoder-session.ts';
import { makeTemporaryFolder } from '../../compiler/runtime/engine.ts';
import { type LitertModel, loadLitert } from '../../compiler/runtime/litert.ts';
import type { Runner, Tensors } from '../../compiler/runtime/runner.ts';
import { compareNpu, type NpuReport } from '../../evaluation/compare-npu.ts';
import { openEmbedding } from '../../targets/embedding-file.ts';
import { cacheSlots, contractRequests, type ShapeRequest } from '../../targets/graph-requests.ts';
import type { ModelTargetManifest } from '../../targets/model-target.ts';
import type { SplitRequest } from '../../targets/qnn/plan-compile.ts';
import { requireToolchain } from '../../targets/qnn/toolchain.ts';
import type { ManifestTarget } from '../../targets/target.ts';
import { lowerModel } from '../../targets/tflite/graph/lower-model.ts';
import { lowerGraphs } from '../../targets/tflite/lower-graph.ts';
import type { PortForm } from '../../targets/tflite/lowering.ts';
import type { TfliteModel } from '../../targets/tflite/model.ts';
import {
  type CompiledNpu,
  compileForNpu,
  type ManifestNpu,
  type NpuOptions,
  npuBytes,
} from '../../targets/tflite/npu/compile-npu.ts';
import { type NpuRequest, VENDOR_FACTS } from '../../targets/tflite/npu/vendors.ts';
import { shardDecoder } from '../../targets/tflite/shard-decoder.ts';

/** Tokens that the decode graph is compared on. */
const DECODED = 4;
/** Products of weights and tokens that one simulated run may take: the simulator does some 30 million a second. */
const LARGEST_RUN = 4e9;

export interface AddNpuInputs {
  readonly npu: NpuOptions;
  /** The output folder. */
  readonly out: string;
  readonly progress: Progress;
}

/** A target's manifest with what the plugins made, and their part of the report. */
export interface AddedNpu<Target> {
  readonly manifest: Target;
  readonly reports: readonly NpuReport[];
}

/**
 * Compiles a decoder's graphs with the vendors' LiteRT plugins, beside the plain file, and runs what was compiled beside
 * LiteRT: every graph of the largest cache on a chunk of the text, and the decode graph on the tokens behind it.
 * @param ids tokens to run on; without them nothing is run
 * @throws as compileForNpu
 */
export async function addDecoderNpu(
  made: ManifestTarget,
  decoder: QuantizedDecoder,
  { shapes, split }: { readonly shapes: ShapeRequest; readonly split: SplitRequest['split'] },
  ids: readonly number[] | undefined,
  inputs: AddNpuInputs,
): Promise<AddedNpu<ManifestTarget>> {
  const requests = contractRequests(shapes, decoder.contract);
  return await addAll(made, inputs, {
    lower: (ports) =>
      shardDecoder(decoder, requests, split).map(({ label, graphs }) => ({ label, model: lowerGraphs(graphs, ports) })),
    record:
      ids && ((compiled, ports) => recordDecoder({ made, decoder, requests, ids, out: inputs.out, compiled, ports })),
  });
}

/**
 * The same for a graph of any kind, on its samples.
 * @param samples feeds by input name; without them nothing is run
 */
export async function addModelNpu(
  made: ModelTargetManifest,
  quantized: QuantizedGraph,
  samples: readonly Tensors[] | undefined,
  inputs: AddNpuInputs,
): Promise<AddedNpu<ModelTargetManifest>> {
  const module = cloneModule(quantized.module);
  const graph = module.graph();
  graph.name = SIGNATURE;
  return await addAll(made, inputs, {
    lower: (ports) => [{ label: '', model: lowerModel(graph, ports).model }],
    record:
      samples &&
      (async (_, ports) => {
        const encodings = ports === 'quantized' ? encodingsOf([graph]) : new Map<string, Encoding>();
        return { feeds: [new Map([[SIGNATURE, samples.map((feed) => encode(feed, encodings))]])], notes: [] };
      }),
  });
}

/** The signature of a model that is no decoder. */
const SIGNATURE = 'serving_default';

interface Recorded {
  /** For each shard the feeds of its signatures. */
  readonly feeds: readonly ReadonlyMap<string, readonly Tensors[]>[];
  readonly notes: readonly string[];
}

interface Source {
  /** A model for every shard. */
  readonly lower: (ports: PortForm) => readonly { readonly label: string; readonly model: TfliteModel }[];
  readonly record: ((compiled: readonly CompiledNpu[], ports: PortForm) => Promise<Recorded>) | undefined;
}

async function addAll<Target extends { readonly files: readonly string[]; readonly npu?: readonly ManifestNpu[] }>(
  made: Target,
  { npu, out, progress }: AddNpuInputs,
  source: Source,
): Promise<AddedNpu<Target>> {
  const manifests: ManifestNpu[] = [];
  const reports: NpuReport[] = [];
  for (const request of npu.requests) {
    progress.stage(`compile for ${describeNpu(request)}`);
    const work = makeTemporaryFolder();
    try {
      const { ports, about } = VENDOR_FACTS[request.vendor];
      const parts: CompiledNpu[] = [];
      for (const part of source.lower(ports)) parts.push(await compileForNpu(part, request, npu, out, work.path));
      const recorded = npu.claims ? undefined : await source.record?.(parts, ports);
      for (const [i, compiled] of parts.entries()) {
        const compared = recorded && (await compareNpu(compiled, recorded.feeds[i]!));
        const manifest: ManifestNpu = compared ? { ...compiled.manifest, execution: 'executed' } : compiled.manifest;
        manifests.push(manifest);
        reports.push({
          ...manifest,
          bytes: npuBytes(compiled),
          ...(compared ? { engine: compared.engine } : {}),
          runs: compared?.runs ?? [],
          notes: [about, ...(recorded?.notes ?? [])],
        });
        progress.update(i + 1, parts.length);
      }
    } finally {
      work.release();
    }
  }
  const files = manifests.flatMap(({ file }) => (file === undefined ? [] : [file]));
  return { manifest: { ...made, files: [...made.files, ...files], npu: manifests }, reports };
}

/** A report's targets with what the plugins made of the TFLite one. */
export function withNpu<Targets extends { readonly tflite?: object }>(
  targets: Targets,
  npu: readonly NpuReport[],
): Targets {
  return npu.length === 0 || !targets.tflite ? targets : { ...targets, tflite: { ...targets.tflite, npu } };
}

/** Versions of the toolchains that the plugins need. */
export function npuVersions(npu: NpuOptions | undefined): Readonly<Record<string, string>> {
  if (!npu) return {};
  const qualcomm = npu.requests.some(({ vendor }) => vendor === 'qualcomm');
  return { ...(qualcomm ? requireToolchain('qnn').versions : {}), ...requireToolchain('litert').versions };
}

/** `qualcomm SM8750`, as people read it. */
export function describeNpu({ vendor, soc }: NpuRequest): string {
  return `${vendor} ${soc}`;
}

interface RecordInputs {
  readonly made: ManifestTarget;
  readonly decoder: QuantizedDecoder;
  readonly requests: readonly GraphRequest[];
  readonly ids: readonly number[];
  readonly out: string;
  readonly compiled: readonly CompiledNpu[];
  readonly ports: PortForm;
}

/** What a session feeds each graph of the largest cache: a chunk of the text, then token by token. */
async function recordDecoder(inputs: RecordInputs): Promise<Recorded> {
  const { made, decoder, requests, ids, out, compiled, ports } = inputs;
  const slots = requests.map((request) => cacheSlots(request, decoder.contract));
  const cache = Math.max(...slots);
  const largest = requests.filter((_, i) => slots[i] === cache);
  const weights = [...decoder.weightEncodings.keys()].reduce(
    (sum, name) => sum + (decoder.migration.weights.get(name)?.size ?? 0),
    0,
  );
  const simulated = compiled[0]!.manifest.vendor === 'qualcomm';
  const fits = (tokens: number): boolean => !simulated || weights * tokens <= LARGEST_RUN;
  const feeds = compiled.map(() => new Map<string, Tensors[]>());
  const embedding = openEmbedding(join(out, made.embedding!.file), made.embedding!.form);
  const models: LitertModel[] = [];
  try {
    for (const { source } of compiled) models.push(await loadLitert(source));
    const graphs = largest.map(({ name, tokens }) => {
      const parts = models.map((model, i) => listen(model.signatures[name]!, name, feeds[i]!));
      return { tokens, cache, runner: parts.length > 1 ? new ChainRunner(parts) : parts[0]! };
    });
    const encodings = encodingsOf(requests.map((request) => decoder.stamp(request).graph()));
    const session = new DecoderSession({
      protocol: made.protocol,
      graphs,
      encodings: ports === 'quantized' ? encodings : new Map(),
      embedding: embedding.lookup,
    });
    for (const { tokens } of graphs.filter((graph) => graph.tokens > 1 && fits(graph.tokens))) {
      session.reset();
      await session.feed(ids.slice(0, Math.min(tokens + 1, cache)), 'last', [tokens]);
    }
    for (const id of ids.slice(session.length, session.length + DECODED)) {
      if (session.room > 0) await session.feed([id]);
    }
  } finally {
    embedding.close();
    for (const model of models) model.dispose();
  }
  const left = requests.filter(({ name }) => !feeds[0]!.has(name)).map(({ name }) => name);
  return {
    feeds,
    notes: left.length > 0 ? [`not run: ${left.join(', ')} (smaller caches, or too large to simulate)`] : [],
  };
}

/** A signature that remembers what it was fed. */
function listen(
  signature: Pick<Runner, 'inputs' | 'outputs' | 'run'>,
  name: string,
  feeds: Map<string, Tensors[]>,
): Runner {
  return {
    engine: 'litert',
    inputs: signature.inputs,
    outputs: signature.outputs,
    run: async (given) => {
      const copied = Object.entries(given).map(([port, { dtype, shape, data }]) => [
        port,
        { dtype, shape, data: data.slice() },
      ]);
      feeds.set(name, [...(feeds.get(name) ?? []), Object.fromEntries(copied)]);
      return await signature.run(given);
    },
    close: async () => {},
  };
}

/** Encodings of the ports of graphs, by name. */
function encodingsOf(graphs: readonly Graph[]): Map<string, Encoding> {
  const values = graphs.flatMap((graph) => [...graph.inputs, ...graph.outputs]);
  return new Map(values.flatMap(({ name, encoding }) => (encoding ? [[name, encoding] as const] : [])));
}

function encode(feed: Tensors, encodings: ReadonlyMap<string, Encoding>): Tensors {
  return Object.fromEntries(
    Object.entries(feed).map(([name, tensor]) => {
      const encoding = encodings.get(name);
      if (!encoding || tensor.dtype !== 'f32') return [name, tensor];
      const data = quantizeValues(tensor.data as Float32Array, encoding);
      return [name, { dtype: encoding.dtype, shape: tensor.shape, data }];
    }),
  );
}

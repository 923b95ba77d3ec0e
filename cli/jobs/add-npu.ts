import { join } from 'node:path';
import type { QuantizedDecoder } from '../../calibration/quantize-decoder.ts';
import type { QuantizedGraph } from '../../calibration/quantize-graph.ts';
import { cloneModule } from '../../compiler/ir/clone.ts';
import type { Encoding } from '../../compiler/ir/encoding.ts';
import type { Graph } from '../../compiler/ir/graph.ts';
import type { Progress } from '../../compiler/progress.ts';
import { DecoderSession, quantizeValues } from '../../compiler/runtime/decoder-session.ts';
import { makeTemporaryFolder } from '../../compiler/runtime/engine.ts';
import { loadLitert } from '../../compiler/runtime/litert.ts';
import type { Runner, Tensors } from '../../compiler/runtime/runner.ts';
import { compareNpu, type NpuReport } from '../../evaluation/compare-npu.ts';
import { openEmbedding } from '../../targets/embedding-file.ts';
import { graphRequests, type ShapeRequest } from '../../targets/graph-requests.ts';
import type { ModelTargetManifest } from '../../targets/model-target.ts';
import { requireToolchain } from '../../targets/qnn/toolchain.ts';
import type { ManifestTarget } from '../../targets/target.ts';
import { lowerModel } from '../../targets/tflite/graph/lower-model.ts';
import type { TfliteModel } from '../../targets/tflite/model.ts';
import {
  type CompiledNpu,
  compileForNpu,
  type ManifestNpu,
  type NpuOptions,
  npuBytes,
} from '../../targets/tflite/npu/compile-npu.ts';
import { type NpuRequest, VENDOR_FACTS } from '../../targets/tflite/npu/vendors.ts';
import { lowerDecoder } from '../../targets/tflite/tflite-target.ts';

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
  shapes: ShapeRequest,
  ids: readonly number[] | undefined,
  inputs: AddNpuInputs,
): Promise<AddedNpu<ManifestTarget>> {
  const requests = graphRequests(shapes);
  return await addAll(made, inputs, {
    lower: (ports) => lowerDecoder(decoder, requests, ports),
    record: ids && ((compiled, ports) => recordDecoder(made, decoder, shapes, ids, compiled, ports)),
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
    lower: (ports) => lowerModel(graph, ports).model,
    record:
      samples &&
      (async (_, ports) => {
        const encodings = ports === 'quantized' ? encodingsOf([graph]) : new Map<string, Encoding>();
        return { feeds: new Map([[SIGNATURE, samples.map((feed) => encode(feed, encodings))]]), notes: [] };
      }),
  });
}

/** The signature of a model that is no decoder. */
const SIGNATURE = 'serving_default';

interface Recorded {
  readonly feeds: ReadonlyMap<string, readonly Tensors[]>;
  readonly notes: readonly string[];
}

interface Source {
  readonly lower: (ports: 'float' | 'quantized') => TfliteModel;
  readonly record: ((compiled: CompiledNpu, ports: 'float' | 'quantized') => Promise<Recorded>) | undefined;
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
      const compiled = await compileForNpu(source.lower(ports), request, npu, out, work.path);
      const recorded = compiled.path === undefined ? undefined : await source.record?.(compiled, ports);
      const compared = recorded && (await compareNpu(compiled, recorded.feeds));
      const manifest: ManifestNpu = compared ? { ...compiled.manifest, execution: 'executed' } : compiled.manifest;
      manifests.push(manifest);
      reports.push({
        ...manifest,
        bytes: npuBytes(compiled),
        ...(compared ? { engine: compared.engine } : {}),
        runs: compared?.runs ?? [],
        notes: [about, ...(recorded?.notes ?? [])],
      });
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

/** What a session feeds each graph of the largest cache: a chunk of the text, then token by token. */
async function recordDecoder(
  made: ManifestTarget,
  decoder: QuantizedDecoder,
  shapes: ShapeRequest,
  ids: readonly number[],
  compiled: CompiledNpu,
  ports: 'float' | 'quantized',
): Promise<Recorded> {
  const requests = graphRequests(shapes);
  const cache = Math.max(...shapes.caches);
  const weights = [...decoder.weightEncodings.keys()].reduce(
    (sum, name) => sum + (decoder.migration.weights.get(name)?.size ?? 0),
    0,
  );
  const simulated = compiled.manifest.vendor === 'qualcomm';
  const fits = (tokens: number): boolean => !simulated || weights * tokens <= LARGEST_RUN;
  const model = await loadLitert(compiled.source);
  const embedding = openEmbedding(join(compiled.path!, '..', '..', made.embedding!.file), made.embedding!.form);
  const feeds = new Map<string, Tensors[]>();
  try {
    const graphs = requests
      .filter((request) => request.cache === cache)
      .map(({ name, tokens }) => ({ tokens, cache, runner: listen(model.signatures[name]!, name, feeds) }));
    const session = new DecoderSession({
      protocol: made.protocol,
      graphs,
      encodings:
        ports === 'quantized' ? encodingsOf(requests.map((request) => decoder.stamp(request).graph())) : new Map(),
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
    model.dispose();
  }
  const left = requests.filter((request) => !feeds.has(request.name)).map(({ name }) => name);
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

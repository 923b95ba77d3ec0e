import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { GraphRequest, QuantizedDecoder } from '../../calibration/quantize-decoder.ts';
import { hasFloatActivations } from '../../calibration/recipe.ts';
import type { Graph, Value } from '../../compiler/ir/graph.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { ChainRunner } from '../../compiler/runtime/chain-runner.ts';
import { type DecoderProtocol, DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { type LitertModel, loadLitert } from '../../compiler/runtime/litert.ts';
import type { Runner } from '../../compiler/runtime/runner.ts';
import { makeProtocol } from '../../passes/protocol.ts';
import { type OpenedEmbedding, openEmbedding, writeEmbedding } from '../embedding-file.ts';
import { cacheSlots, contractRequests, largestCache } from '../graph-requests.ts';
import { listParts } from '../qnn/bundle-parts.ts';
import {
  type DecoderTarget,
  type EmitContext,
  type ManifestPort,
  type ManifestTarget,
  portEncodings,
} from '../target.ts';
import { lowerGraphs } from './lower-graph.ts';
import type { DecoderPortForm } from './lowering.ts';
import type { TfliteModel } from './model.ts';
import { openNative } from './open-native.ts';
import { shardDecoder } from './shard-decoder.ts';
import { encodeTflite, writeTflite } from './write.ts';

const MODEL = 'tflite/model.tflite';
const QUANTIZED = 'tflite/model.quantized-io.tflite';
const EMBEDDING = 'tflite/embedding.bin';

/** Graphs of a decoder as one TFLite model: a signature each, weight buffers shared. */
export function lowerDecoder(
  decoder: QuantizedDecoder,
  requests: readonly GraphRequest[],
  ports: DecoderPortForm,
): TfliteModel {
  return lowerGraphs(
    requests.map((request) => decoder.stamp(request).graph()),
    ports,
  );
}

/** The file of a shard; a decoder that is whole has none in its name. */
export function shardFile(path: string, label: string): string {
  return label === '' ? path : path.replace(/\.tflite$/, `.${label}.tflite`);
}

/** What the ports of the file that is written first are. */
function portForm({ contract }: QuantizedDecoder): DecoderPortForm {
  return contract.name === 'litert-lm' ? 'litert-lm' : 'float';
}

/**
 * LiteRT: one file with a signature per shape over shared buffers, in the contract that every NPU plugin takes whole. The
 * embedding table is a file of its own, looked up by the host. With `io: quantized` a second file has integer ports and is
 * the one that runs; schemes whose activations are floats have none. In LiteRT-LM's contract the table is in the graphs and
 * the caches alone are integers.
 */
export const tfliteTarget: DecoderTarget = {
  name: 'tflite',
  async emit(decoder: QuantizedDecoder, context: EmitContext): Promise<ManifestTarget> {
    mkdirSync(join(context.out, 'tflite'), { recursive: true });
    const requests = contractRequests(context.shapes, decoder.contract);
    const shards = shardDecoder(decoder, requests, context.split?.split ?? 1);
    const graphs = shards.flatMap((shard) => shard.graphs);
    const ports = portForm(decoder);
    const quantized = context.io === 'quantized' && !hasFloatActivations(decoder.recipe) && ports === 'float';
    const files = (path: string): string[] => shards.map(({ label }) => shardFile(path, label));
    const write = (path: string, form: DecoderPortForm): void => {
      for (const [i, file] of files(path).entries())
        writeTflite(join(context.out, file), lowerGraphs(shards[i]!.graphs, form));
    };
    write(MODEL, ports);
    if (quantized) write(QUANTIZED, 'quantized');
    const run = files(quantized ? QUANTIZED : MODEL);
    const rows = decoder.contract.embedding === 'embeds';
    const form = decoder.recipe.scheme === 'fp16' ? 'f16' : 'i8-per-row';
    if (rows) {
      const table = decoder.migration.weights.get('model.embed_tokens.weight')!;
      writeEmbedding(join(context.out, EMBEDDING), table, form, wasmKernels);
    }
    const protocol = makeProtocol(decoder.config, decoder.contract, largestCache(context.shapes));
    return {
      contract: decoder.contract.name,
      protocol: ports === 'litert-lm' ? nameBySignature(protocol) : protocol,
      ports: quantized
        ? Object.assign({}, ...graphs.map(integerPorts))
        : ports === 'litert-lm'
          ? Object.assign({}, ...graphs.map(cachePorts))
          : {},
      graphs: requests.map((request) => ({
        name: request.name,
        tokens: request.tokens,
        cache: cacheSlots(request, decoder.contract),
        file: run[0]!,
        entry: request.name,
        ...(run.length > 1 ? { parts: run.map((file) => ({ graph: request.name, file })) } : {}),
      })),
      ...(rows ? { embedding: { file: EMBEDDING, form } as const } : {}),
      execution: 'executed',
      facts: { io: quantized ? 'quantized' : ports },
      files: [...files(MODEL), ...(quantized ? files(QUANTIZED) : []), ...(rows ? [EMBEDDING] : [])],
    };
  },
  async open(folder, target, { litert }): Promise<DecoderSession> {
    const embedding = openTable(folder, target);
    const models = new Map<string, LitertModel>();
    for (const { file } of listParts(target.graphs)) {
      if (models.has(file)) continue;
      const path = join(folder, file);
      models.set(file, await (litert ? openNative(path, litert) : loadLitert(path)));
    }
    const open = (file: string, entry: string): Runner => runnerOf(models.get(file)!, entry, embedding);
    return new DecoderSession({
      protocol: target.protocol,
      graphs: target.graphs.map(({ tokens, cache, file, entry, parts }) => ({
        tokens,
        cache,
        runner: parts ? new ChainRunner(parts.map((part) => open(part.file, part.graph))) : open(file, entry!),
      })),
      encodings: portEncodings(target.ports),
      ...(embedding ? { embedding: embedding.lookup } : {}),
    });
  },
  async openForEvaluation(decoder, folder, target, shape): Promise<DecoderSession> {
    const { update } = decoder.contract;
    const cache = update === 'shift' ? shape.cache + shape.tokens : shape.cache;
    const request: GraphRequest = { name: 'score', tokens: shape.tokens, cache, logits: 'all' };
    const model = await loadLitert(encodeTflite(lowerDecoder(decoder, [request], portForm(decoder))));
    const embedding = openTable(folder, target);
    return new DecoderSession({
      protocol: target.protocol,
      graphs: new Map([[shape.tokens, runnerOf(model, 'score', embedding)]]),
      encodings: portEncodings(portForm(decoder) === 'litert-lm' ? target.ports : {}),
      ...(embedding ? { embedding: embedding.lookup } : {}),
    });
  },
};

/** A cache that the graph updates goes out of the signature under the name that it came in by. */
function nameBySignature(protocol: DecoderProtocol): DecoderProtocol {
  const { names } = protocol;
  return { ...protocol, names: { ...names, newKey: names.pastKey, newValue: names.pastValue } };
}

/** The table that the host looks rows up in, where the graphs take rows. */
function openTable(folder: string, { embedding }: ManifestTarget): OpenedEmbedding | undefined {
  return embedding && openEmbedding(join(folder, embedding.file), embedding.form);
}

/** One signature; closing any of a model's signatures closes the model and the embedding file. */
function runnerOf(model: LitertModel, key: string, embedding: OpenedEmbedding | undefined): Runner {
  const signature = model.signatures[key]!;
  return {
    engine: model.engine,
    inputs: signature.inputs,
    outputs: signature.outputs,
    run: (feeds) => signature.run(feeds),
    close: async () => {
      model.dispose();
      embedding?.close();
    },
  };
}

function integerPorts(graph: Graph): Record<string, ManifestPort> {
  return describePorts([...graph.inputs, ...graph.outputs]);
}

/** The caches alone, under the name of either side. */
function cachePorts(graph: Graph): Record<string, ManifestPort> {
  return describePorts([...graph.states.values()].map(({ input }) => input));
}

function describePorts(values: readonly Value[]): Record<string, ManifestPort> {
  const ports: Record<string, ManifestPort> = {};
  for (const { name, encoding } of values) {
    if (!encoding) continue;
    ports[name] = { dtype: encoding.dtype, scale: encoding.scale[0]!, zeroPoint: encoding.zeroPoint?.[0] ?? 0 };
  }
  return ports;
}

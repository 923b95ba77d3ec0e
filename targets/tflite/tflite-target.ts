import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { GraphRequest, QuantizedDecoder } from '../../calibration/quantize-decoder.ts';
import type { Graph } from '../../compiler/ir/graph.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { type LitertModel, loadLitert } from '../../compiler/runtime/litert.ts';
import type { Runner } from '../../compiler/runtime/runner.ts';
import { makeProtocol } from '../../passes/protocol.ts';
import { type OpenedEmbedding, openEmbedding, writeEmbedding } from '../embedding-file.ts';
import { graphRequests, largestCache } from '../graph-requests.ts';
import {
  type DecoderTarget,
  type EmitContext,
  type ManifestPort,
  type ManifestTarget,
  portEncodings,
} from '../target.ts';
import { lowerGraphs } from './lower-graph.ts';
import type { PortForm } from './lowering.ts';
import type { TfliteModel } from './model.ts';
import { encodeTflite, writeTflite } from './write.ts';

const MODEL = 'tflite/model.tflite';
const QUANTIZED = 'tflite/model.quantized-io.tflite';
const EMBEDDING = 'tflite/embedding.bin';

/** Graphs of a decoder as one TFLite model: a signature each, weight buffers shared. */
export function lowerDecoder(
  decoder: QuantizedDecoder,
  requests: readonly GraphRequest[],
  ports: PortForm,
): TfliteModel {
  return lowerGraphs(
    requests.map((request) => decoder.stamp(request).graph()),
    ports,
  );
}

/**
 * LiteRT: one file with a signature per shape over shared buffers, in the contract that every NPU plugin takes whole. The
 * embedding table is a file of its own, looked up by the host. With `io: quantized` a second file has integer ports and is
 * the one that runs; the fp16 scheme has none.
 */
export const tfliteTarget: DecoderTarget = {
  name: 'tflite',
  async emit(decoder: QuantizedDecoder, context: EmitContext): Promise<ManifestTarget> {
    mkdirSync(join(context.out, 'tflite'), { recursive: true });
    const requests = graphRequests(context.shapes);
    const graphs = requests.map((request) => decoder.stamp(request).graph());
    writeTflite(join(context.out, MODEL), lowerGraphs(graphs, 'float'));
    const float = decoder.recipe.scheme === 'fp16';
    const quantized = context.io === 'quantized' && !float;
    if (quantized) writeTflite(join(context.out, QUANTIZED), lowerGraphs(graphs, 'quantized'));
    const form = float ? 'f16' : 'i8-per-row';
    const table = decoder.migration.weights.get('model.embed_tokens.weight')!;
    writeEmbedding(join(context.out, EMBEDDING), table, form, wasmKernels);
    return {
      contract: decoder.contract.name,
      protocol: makeProtocol(decoder.config, decoder.contract, largestCache(context.shapes)),
      ports: quantized ? Object.assign({}, ...graphs.map(integerPorts)) : {},
      graphs: requests.map((request) => ({
        name: request.name,
        tokens: request.tokens,
        cache: request.cache,
        file: quantized ? QUANTIZED : MODEL,
        entry: request.name,
      })),
      embedding: { file: EMBEDDING, form },
      execution: 'executed',
      facts: { io: quantized ? 'quantized' : 'float' },
      files: [MODEL, ...(quantized ? [QUANTIZED] : []), EMBEDDING],
    };
  },
  async open(folder, target): Promise<DecoderSession> {
    const model = await loadLitert(join(folder, target.graphs[0]!.file));
    const embedding = openEmbedding(join(folder, target.embedding!.file), target.embedding!.form);
    return new DecoderSession({
      protocol: target.protocol,
      graphs: target.graphs.map(({ tokens, cache, entry }) => ({
        tokens,
        cache,
        runner: runnerOf(model, entry!, embedding),
      })),
      encodings: portEncodings(target.ports),
      embedding: embedding.lookup,
    });
  },
  async openForEvaluation(decoder, folder, target, shape): Promise<DecoderSession> {
    const request: GraphRequest = { name: 'score', tokens: shape.tokens, cache: shape.cache, logits: 'all' };
    const model = await loadLitert(encodeTflite(lowerDecoder(decoder, [request], 'float')));
    const embedding = openEmbedding(join(folder, target.embedding!.file), target.embedding!.form);
    return new DecoderSession({
      protocol: target.protocol,
      graphs: new Map([[shape.tokens, runnerOf(model, 'score', embedding)]]),
      embedding: embedding.lookup,
    });
  },
};

/** One signature; closing any of a model's signatures closes the model and the embedding file. */
function runnerOf(model: LitertModel, key: string, embedding: OpenedEmbedding): Runner {
  const signature = model.signatures[key]!;
  return {
    engine: model.engine,
    inputs: signature.inputs,
    outputs: signature.outputs,
    run: (feeds) => signature.run(feeds),
    close: async () => {
      model.dispose();
      embedding.close();
    },
  };
}

function integerPorts(graph: Graph): Record<string, ManifestPort> {
  const ports: Record<string, ManifestPort> = {};
  for (const { name, encoding } of [...graph.inputs, ...graph.outputs]) {
    if (!encoding) continue;
    ports[name] = { dtype: encoding.dtype, scale: encoding.scale[0]!, zeroPoint: encoding.zeroPoint?.[0] ?? 0 };
  }
  return ports;
}

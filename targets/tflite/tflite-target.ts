import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { GraphRequest, QuantizedDecoder } from '../../calibration/quantize-decoder.ts';
import { FileSource } from '../../compiler/ir/tensor.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { INT8_SYMMETRIC } from '../../compiler/kernels/kernels.ts';
import { DecoderSession, type EmbeddingLookup } from '../../compiler/runtime/decoder-session.ts';
import { type LitertModel, loadLitert } from '../../compiler/runtime/litert.ts';
import type { Runner } from '../../compiler/runtime/runner.ts';
import { makeProtocol } from '../../passes/protocol.ts';
import { graphRequests } from '../onnx/onnx-target.ts';
import {
  type DecoderTarget,
  type EmitContext,
  type ManifestPort,
  type ManifestTarget,
  portEncodings,
} from '../target.ts';
import { lowerGraph, type PortForm } from './lower-graph.ts';
import type { TfliteModel } from './model.ts';
import { BufferPool } from './subgraph-builder.ts';
import { encodeTflite, writeTflite } from './write.ts';

const MODEL = 'tflite/model.tflite';
const QUANTIZED = 'tflite/model.quantized-io.tflite';
const EMBEDDING = 'tflite/embedding.bin';

/** All graphs of a decoder as one TFLite model: a signature each, weight buffers shared. */
export function lowerDecoder(
  decoder: QuantizedDecoder,
  requests: readonly GraphRequest[],
  ports: PortForm,
): TfliteModel {
  const pool = new BufferPool();
  const model: TfliteModel = {
    version: 3,
    description: 'npuc',
    subgraphs: [],
    buffers: pool.buffers,
    signatures: [],
    metadata: [],
  };
  for (const request of requests) {
    const { builder, signature } = lowerGraph(decoder.stamp(request).graph(), ports, pool);
    model.signatures.push({ ...signature, subgraph: model.subgraphs.length });
    model.subgraphs.push(builder.graph);
  }
  return model;
}

/**
 * LiteRT: one file with a signature per shape over shared buffers, in the contract that every NPU plugin takes whole. The
 * embedding table is a file of its own, integers with a scale per row, looked up by the host.
 */
export const tfliteTarget: DecoderTarget = {
  name: 'tflite',
  async emit(decoder: QuantizedDecoder, context: EmitContext): Promise<ManifestTarget> {
    mkdirSync(join(context.out, 'tflite'), { recursive: true });
    const requests = graphRequests(context.shapes.tokens, context.shapes.cache);
    writeTflite(join(context.out, MODEL), lowerDecoder(decoder, requests, 'float'));
    const quantized = context.io === 'quantized';
    if (quantized) writeTflite(join(context.out, QUANTIZED), lowerDecoder(decoder, requests, 'quantized'));
    writeEmbedding(decoder, join(context.out, EMBEDDING));
    return {
      contract: decoder.contract.name,
      protocol: makeProtocol(decoder.config, decoder.contract, context.shapes.cache),
      ports: quantized ? quantizedPorts(decoder, requests) : {},
      graphs: requests.map((request) => ({
        name: request.name,
        tokens: request.tokens,
        cache: request.cache,
        file: quantized ? QUANTIZED : MODEL,
        entry: request.name,
      })),
      embedding: { file: EMBEDDING, form: 'i8-per-row' },
      execution: 'executed',
      facts: { io: context.io },
      files: [MODEL, ...(quantized ? [QUANTIZED] : []), EMBEDDING],
    };
  },
  async open(folder, target): Promise<DecoderSession> {
    const model = await loadLitert(join(folder, target.graphs[0]!.file));
    const graphs = new Map(target.graphs.map((graph) => [graph.tokens, runnerOf(model, graph.entry!)]));
    return new DecoderSession({
      protocol: target.protocol,
      graphs,
      encodings: portEncodings(target.ports),
      embedding: openEmbedding(join(folder, target.embedding!.file)),
    });
  },
  async openForEvaluation(decoder, folder, target, shape): Promise<DecoderSession> {
    const request: GraphRequest = { name: 'score', tokens: shape.tokens, cache: shape.cache, logits: 'all' };
    const model = await loadLitert(encodeTflite(lowerDecoder(decoder, [request], 'float')));
    return new DecoderSession({
      protocol: target.protocol,
      graphs: new Map([[shape.tokens, runnerOf(model, 'score')]]),
      embedding: openEmbedding(join(folder, target.embedding!.file)),
    });
  },
};

function runnerOf(model: LitertModel, key: string): Runner {
  const signature = model.signatures[key]!;
  return {
    engine: model.engine,
    inputs: signature.inputs,
    outputs: signature.outputs,
    run: (feeds) => signature.run(feeds),
    close: async () => model.dispose(),
  };
}

function quantizedPorts(decoder: QuantizedDecoder, requests: readonly GraphRequest[]): Record<string, ManifestPort> {
  const ports: Record<string, ManifestPort> = {};
  for (const request of requests) {
    const graph = decoder.stamp(request).graph();
    for (const { name, encoding } of [...graph.inputs, ...graph.outputs]) {
      if (encoding)
        ports[name] = { dtype: encoding.dtype, scale: encoding.scale[0]!, zeroPoint: encoding.zeroPoint?.[0] ?? 0 };
    }
  }
  return ports;
}

/**
 * The embedding file: u32 rows, u32 columns, f32 scale of every row, then i8 rows. Little endian.
 * 8 bits per row are the default (facts accuracy: head and embedding at 8 bits cost nothing that shows).
 */
function writeEmbedding(decoder: QuantizedDecoder, path: string): void {
  const table = decoder.migration.weights.get('model.embed_tokens.weight')!;
  const [rows, columns] = table.shape as [number, number];
  const weights = table.toFloats();
  const layout = { rows, columns, block: columns, name: 'model.embed_tokens.weight' };
  const { scales } = wasmKernels.searchScales(weights, layout, { range: INT8_SYMMETRIC });
  const integers = new Int8Array(rows * columns);
  wasmKernels.quantizeI8(weights, layout, scales, INT8_SYMMETRIC, integers);
  writeFileSync(
    path,
    Buffer.concat([
      new Uint8Array(Uint32Array.of(rows, columns).buffer),
      new Uint8Array(scales.buffer),
      new Uint8Array(integers.buffer),
    ]),
  );
}

/** Reads rows of an embedding file as they are asked for. */
function openEmbedding(path: string): EmbeddingLookup {
  const file = new FileSource(path);
  const [rows, columns] = new Uint32Array(file.read(0, 8).buffer) as unknown as [number, number];
  const scales = new Float32Array(file.read(8, rows * 4).buffer);
  return (ids) => {
    const out = new Float32Array(ids.length * columns);
    ids.forEach((id, i) => {
      const row = new Int8Array(file.read(8 + rows * 4 + id * columns, columns).buffer);
      for (let c = 0; c < columns; c++) out[i * columns + c] = row[c]! * scales[id]!;
    });
    return out;
  };
}

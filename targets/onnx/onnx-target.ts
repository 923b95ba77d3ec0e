import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { QuantizedDecoder } from '../../calibration/quantize-decoder.ts';
import { NpucError } from '../../compiler/errors.ts';

import { writeOnnxBundle } from '../../compiler/export/onnx.ts';

import { DecoderSession, type SessionGraph } from '../../compiler/runtime/decoder-session.ts';
import { pickJavaScriptEngine } from '../../compiler/runtime/engine.ts';
import { openWithJavaScript } from '../../compiler/runtime/onnxruntime.ts';
import { makeProtocol } from '../../passes/protocol.ts';
import { graphRequests, largestCache } from '../graph-requests.ts';
import { type DecoderTarget, type ManifestGraph, type ManifestTarget, portEncodings } from '../target.ts';
import { writeEncodings } from './encodings-json.ts';

/**
 * QDQ ONNX with float inputs and outputs, which ONNX Runtime runs anywhere: one model per shape over one weights file,
 * and the encodings as AIMET-style JSON.
 */
export const onnxTarget: DecoderTarget = {
  name: 'onnx',
  async emit(decoder: QuantizedDecoder, context): Promise<ManifestTarget> {
    const folder = join(context.out, 'onnx');
    mkdirSync(folder, { recursive: true });
    const requests = graphRequests(context.shapes);
    const modules = requests.map((request) => decoder.stamp(request));
    writeOnnxBundle(
      modules.map((module, i) => ({ module, path: join(folder, `${requests[i]!.name}.onnx`) })),
      'weights.data',
    );
    writeEncodings(modules.at(-1)!.graph(), join(folder, 'encodings.json'), context.encodings);
    const graphs: ManifestGraph[] = requests.map((request) => ({
      name: request.name,
      tokens: request.tokens,
      cache: request.cache,
      file: `onnx/${request.name}.onnx`,
    }));
    return {
      contract: decoder.contract.name,
      protocol: makeProtocol(decoder.config, decoder.contract, largestCache(context.shapes)),
      ports: {},
      graphs,
      execution: 'executed',
      facts: {},
      files: [...graphs.map((graph) => graph.file), 'onnx/weights.data', 'onnx/encodings.json'],
    };
  },
  async open(folder, target, options): Promise<DecoderSession> {
    const open = options.openOnnx ?? ((path: string) => openWithJavaScript(path, pickJavaScriptEngine()));
    const graphs: SessionGraph[] = [];
    for (const { tokens, cache, file } of target.graphs)
      graphs.push({ tokens, cache, runner: await open(join(folder, file)) });
    if (graphs.length === 0) throw new NpucError('XX001', { message: 'the manifest lists no graph', where: folder });
    return new DecoderSession({ protocol: target.protocol, graphs, encodings: portEncodings(target.ports) });
  },
};

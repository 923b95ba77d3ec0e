import { mkdirSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { QuantizedDecoder } from '../../calibration/quantize-decoder.ts';
import { NpucError } from '../../compiler/errors.ts';
import { writeOnnxBundle } from '../../compiler/export/onnx.ts';
import type { RopeConfig } from '../../compiler/import/huggingface/config.ts';
import type { Graph } from '../../compiler/ir/graph.ts';
import { DecoderSession, type SessionGraph } from '../../compiler/runtime/decoder-session.ts';
import { pickJavaScriptEngine } from '../../compiler/runtime/engine.ts';
import { openWithJavaScript } from '../../compiler/runtime/onnxruntime.ts';
import { NativeHost } from '../../compiler/runtime/ort-native.ts';
import type { Runner } from '../../compiler/runtime/runner.ts';
import { makeProtocol } from '../../passes/protocol.ts';
import { graphRequests, largestCache } from '../graph-requests.ts';
import { requireFeature, socSupports } from '../socs.ts';
import {
  type DecoderTarget,
  type EmitContext,
  type ManifestGraph,
  type ManifestPort,
  type ManifestTarget,
  portEncodings,
} from '../target.ts';
import { type ContextModel, compileContext } from './compile-context.ts';
import { requireToolchain } from './toolchain.ts';
import { provideTwins } from './twins.ts';

/** The weights of all QDQ models. */
const DATA = 'weights.data';
/** Sources up to this size are compiled by the simulator itself, each time they are opened: that takes a second. */
const DIRECT_BYTES = 32 << 20;

/**
 * Makes every quantized input and output an integer port: otherwise Quantize and Dequantize nodes stay in the graph at
 * each boundary (facts qnn-htp, pitfall 9), and Genie wants integers.
 */
export function quantizePorts(graph: Graph): Record<string, ManifestPort> {
  const ports: Record<string, ManifestPort> = {};
  for (const value of [...graph.inputs, ...graph.outputs]) {
    const { encoding } = value;
    if (!encoding) continue;
    graph.quantizedPorts.add(value);
    ports[value.name] = { dtype: encoding.dtype, scale: encoding.scale[0]!, zeroPoint: encoding.zeroPoint?.[0] ?? 0 };
  }
  return ports;
}

/**
 * Qualcomm HTP: QDQ ONNX in Genie's contract with integer ports, compiled to one context binary with shared weights. The
 * QDQ models stay beside it: they are what the binary was made from. A binary of one graph is executed as it is; a shared
 * one cannot be executed on x86, so the simulator runs unshared twins from the same QDQ bytes.
 */
export const qnnTarget: DecoderTarget = {
  name: 'qnn',
  async emit(decoder: QuantizedDecoder, context: EmitContext): Promise<ManifestTarget> {
    const toolchain = context.toolchain ?? requireToolchain('qnn');
    const { soc } = context;
    if (decoder.recipe.scheme === 'fp16') requireFeature(soc, 'fp16', 'use an integer scheme, such as --scheme w8a16');
    if (decoder.recipe.weight.block > 0) requireFeature(soc, 'lpbq', 'use --block 0, or --scheme w8a16');
    if (decoder.recipe.scheme !== 'fp16' && decoder.recipe.cache === 16) requireFeature(soc, 'kv-s16', 'use --kv 8');
    const folder = join(context.out, 'qnn');
    const sources = join(folder, 'qdq');
    mkdirSync(sources, { recursive: true });
    const requests = graphRequests(context.shapes);
    const modules = requests.map((request) => decoder.stamp(request));
    let ports: Record<string, ManifestPort> = {};
    for (const module of modules) ports = { ...ports, ...quantizePorts(module.graph()) };
    writeOnnxBundle(
      modules.map((module, i) => ({ module, path: join(sources, `${requests[i]!.name}.onnx`) })),
      DATA,
    );
    const share = socSupports(soc, 'weight-sharing') && requests.length > 1;
    const compiled = await compileContext(
      toolchain,
      requests.map(({ name }) => ({ name, path: join(sources, `${name}.onnx`), externalData: [DATA] })),
      {
        soc,
        share,
        outputFolder: folder,
        threads: context.threads,
        ...(context.signal ? { signal: context.signal } : {}),
      },
    );
    context.progress.notePeak(compiled.peakRssBytes);
    checkReadBack(compiled.contexts.values(), ports);
    const files = compiled.files;
    return {
      contract: decoder.contract.name,
      protocol: makeProtocol(decoder.config, decoder.contract, largestCache(context.shapes)),
      ports,
      graphs: requests.map((request, i) => ({
        name: request.name,
        tokens: request.tokens,
        cache: request.cache,
        file: `qnn/${basename(files[i]!.onnx)}`,
        source: `qnn/qdq/${request.name}.onnx`,
      })),
      execution: share ? 'executed-as-twin' : 'executed',
      facts: {
        soc: soc.number,
        arch: `v${soc.arch}`,
        shared: share,
        graphs: requests.length,
        ...ropeFacts(decoder.config.rope),
      },
      files: [
        ...new Set(files.flatMap((file) => [`qnn/${basename(file.onnx)}`, `qnn/${basename(file.binary)}`])),
        ...requests.map(({ name }) => `qnn/qdq/${name}.onnx`),
        `qnn/qdq/${DATA}`,
      ],
    };
  },
  async open(folder, target, options): Promise<DecoderSession> {
    const toolchain = options.toolchain ?? requireToolchain('qnn');
    const sources = target.graphs.map((graph) => sourceOf(folder, graph));
    const direct = statSync(join(folder, 'qnn', 'qdq', DATA)).size < DIRECT_BYTES;
    const paths = direct
      ? sources.map((source) => source.path)
      : target.facts.shared
        ? await provideTwins(toolchain, sources, Number(target.facts.soc))
        : target.graphs.map((graph) => join(folder, graph.file));
    const sessions = new Set<Runner>();
    const graphs: SessionGraph[] = [];
    const host = await NativeHost.start(toolchain);
    try {
      for (const [index, graph] of target.graphs.entries()) {
        // A compiled context knows its SoC; asking for one again can refuse it (facts qnn-htp, pitfall 5).
        const session = await host.openSession(paths[index]!, {
          provider: 'qnn',
          ...(direct ? { soc: Number(target.facts.soc) } : {}),
        });
        sessions.add(session);
        graphs.push({ tokens: graph.tokens, cache: graph.cache, runner: closeHostWith(session, sessions, host) });
      }
    } catch (error) {
      await host.close();
      throw error;
    }
    return new DecoderSession({ protocol: target.protocol, graphs, encodings: portEncodings(target.ports) });
  },
  async openReference(folder, target): Promise<DecoderSession> {
    const graphs: SessionGraph[] = [];
    for (const { tokens, cache, source } of target.graphs) {
      const runner = await openWithJavaScript(join(folder, source!), pickJavaScriptEngine());
      graphs.push({ tokens, cache, runner });
    }
    return new DecoderSession({ protocol: target.protocol, graphs, encodings: portEncodings(target.ports) });
  },
};

/** How the rotary frequencies were made: vendor runtimes make them again from these numbers. */
function ropeFacts(rope: RopeConfig): Record<string, string | number> {
  return {
    ropeType: rope.type,
    ropeTheta: rope.theta,
    ropeFactor: rope.factor,
    ropeLowFrequencyFactor: rope.lowFrequencyFactor,
    ropeHighFrequencyFactor: rope.highFrequencyFactor,
    ropeOriginalPositions: rope.originalPositions,
  };
}

/** What a graph was compiled from. @throws TG110 */
export function sourceOf(folder: string, graph: ManifestGraph): ContextModel {
  if (!graph.source)
    throw new NpucError('TG110', { message: `the manifest names no source of ${graph.name}`, where: folder });
  return { name: graph.name, path: join(folder, graph.source), externalData: [DATA] };
}

/** The last session to close takes the host with it. */
function closeHostWith(session: Runner, all: Set<Runner>, host: NativeHost): Runner {
  return {
    engine: session.engine,
    inputs: session.inputs,
    outputs: session.outputs,
    run: (feeds, outputs) => session.run(feeds, outputs),
    close: async () => {
      await session.close();
      all.delete(session);
      if (all.size === 0) await host.close();
    },
  };
}

interface ReadBackTensor {
  readonly name: string;
  readonly scale?: number;
  readonly zeroPoint?: number;
}

/** The binary's ports must carry the scales that were asked for. @throws QN013 */
export function checkReadBack(
  contexts: Iterable<{
    readonly graphs: readonly {
      readonly name: string;
      readonly inputs: readonly ReadBackTensor[];
      readonly outputs: readonly ReadBackTensor[];
    }[];
  }>,
  ports: Readonly<Record<string, ManifestPort>>,
): void {
  for (const { graphs } of contexts) {
    for (const graph of graphs) {
      for (const tensor of [...graph.inputs, ...graph.outputs]) {
        const port = ports[tensor.name];
        if (!port || tensor.scale === undefined) continue;
        if (Math.fround(tensor.scale) !== Math.fround(port.scale!) || tensor.zeroPoint !== port.zeroPoint) {
          throw new NpucError('QN013', {
            message: `${tensor.name} of ${graph.name} has scale ${tensor.scale}, ${port.scale} was asked for`,
            where: tensor.name,
            exitCode: 70,
          });
        }
      }
    }
  }
}

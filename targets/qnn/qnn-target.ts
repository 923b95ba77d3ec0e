import { mkdirSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { QuantizedDecoder } from '../../calibration/quantize-decoder.ts';
import { NpucError } from '../../compiler/errors.ts';
import { writeOnnxBundle } from '../../compiler/export/onnx.ts';
import type { RopeConfig } from '../../compiler/import/huggingface/config.ts';
import type { Graph } from '../../compiler/ir/graph.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { DecoderSession, type SessionGraph } from '../../compiler/runtime/decoder-session.ts';
import { pickJavaScriptEngine } from '../../compiler/runtime/engine.ts';
import { openWithJavaScript } from '../../compiler/runtime/onnxruntime.ts';
import { NativeHost } from '../../compiler/runtime/ort-native.ts';
import type { Runner } from '../../compiler/runtime/runner.ts';
import { makeProtocol } from '../../passes/protocol.ts';
import { type OpenedEmbedding, openEmbedding, requantizeRows, writeEmbedding } from '../embedding-file.ts';
import { graphRequests, largestCache } from '../graph-requests.ts';
import { requireFeature, requireStatic, socSupports } from '../socs.ts';
import {
  type DecoderTarget,
  type EmitContext,
  type ManifestPart,
  type ManifestPort,
  type ManifestTarget,
  portEncodings,
  type Sharing,
} from '../target.ts';
import { type BundlePart, cutBundle, listParts, openGraphs } from './bundle-parts.ts';
import { type CompiledContext, type ContextFiles, type ContextModel, compileContext } from './compile-context.ts';
import { AUTO_SPLIT, countGraphs, measureStages, nameStages, planCompile } from './plan-compile.ts';
import { describeSharing, sharingFacts, WEIGHT_INDEX, writeWeightIndex } from './shared-weights.ts';
import { findToolchain, requireToolchain, type Toolchain } from './toolchain.ts';
import { findTwins, provideTwins } from './twins.ts';

/** The weights of all QDQ models. */
const DATA = 'weights.data';
const EMBEDDING = 'qnn/embedding.bin';
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
    requireStatic(decoder.recipe);
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
    const sharing = socSupports(soc, 'weight-sharing');
    const plan = planCompile(
      // The last request is the decode graph: it has every stage.
      measureStages(modules.at(-1)!.graph(), decoder.plan.weights, decoder.recipe),
      countGraphs(context.shapes, sharing),
      context.split ?? AUTO_SPLIT,
    );
    const { parts, chains } = cutBundle(modules, requests, plan);
    const graphs = parts.flatMap((part) => part.graphs);
    let ports: Record<string, ManifestPort> = {};
    for (const { module } of graphs) ports = { ...ports, ...quantizePorts(module.graph()) };
    const { tensors } = writeOnnxBundle(
      graphs.map(({ name, module }) => ({ module, path: join(sources, `${name}.onnx`) })),
      DATA,
    );
    const binaries = new Map<string, ContextFiles>();
    for (const part of parts) {
      const compiled = await compilePart(toolchain, part, folder, context);
      checkReadBack(compiled.contexts.values(), ports);
      for (const file of compiled.files) binaries.set(file.name, file);
    }
    const index = writeWeightIndex(context.out, `qnn/qdq/${DATA}`, tensors);
    const binaryPaths = new Set([...binaries.values()].map(({ binary }) => binary));
    const binaryBytes = [...binaryPaths].reduce((sum, path) => sum + statSync(path).size, 0);
    const embedding = writeTable(decoder, context);
    const share = sharing && parts.some((part) => part.graphs.length > 1);
    const describe = (name: string): ManifestPart => ({
      graph: binaries.get(name)!.graph,
      file: `qnn/${basename(binaries.get(name)!.onnx)}`,
      source: `qnn/qdq/${name}.onnx`,
    });
    return {
      contract: decoder.contract.name,
      protocol: makeProtocol(decoder.config, decoder.contract, largestCache(context.shapes)),
      ports,
      graphs: requests.map(({ name, tokens, cache }, i) => {
        const chain = chains[i]!.map(describe);
        const [first] = chain;
        const whole = { file: first!.file, ...(chain.length === 1 ? { source: first!.source! } : { parts: chain }) };
        return { name, tokens, cache, ...whole };
      }),
      ...(embedding ? { embedding } : {}),
      execution: share ? 'executed-as-twin' : 'executed',
      facts: {
        soc: soc.number,
        arch: `v${soc.arch}`,
        shared: share,
        graphs: requests.length,
        ...(parts.length > 1 ? { parts: parts.length } : {}),
        ...(share ? sharingFacts(index, binaryBytes) : {}),
        ...ropeFacts(decoder.config.rope),
      },
      files: [
        ...new Set(
          [...binaries.values()].flatMap(({ onnx, binary }) => [onnx, binary].map((path) => `qnn/${basename(path)}`)),
        ),
        ...graphs.map(({ name }) => `qnn/qdq/${name}.onnx`),
        `qnn/qdq/${DATA}`,
        WEIGHT_INDEX,
        ...(embedding ? [embedding.file] : []),
      ],
    };
  },
  async open(folder, target, options): Promise<DecoderSession> {
    const toolchain = options.toolchain ?? requireToolchain('qnn');
    const parts = listParts(target.graphs);
    const sources = parts.map((part) => sourceOf(folder, part));
    const direct = statSync(join(folder, 'qnn', 'qdq', DATA)).size < DIRECT_BYTES;
    const paths = direct
      ? sources.map((source) => source.path)
      : target.facts.shared
        ? await provideTwins(toolchain, sources, Number(target.facts.soc))
        : parts.map(({ file }) => join(folder, file));
    const pathOf = new Map(parts.map(({ file }, index) => [file, paths[index]!]));
    const sessions = new Set<Runner>();
    const rows = target.embedding && openEmbedding(join(folder, target.embedding.file), target.embedding.form);
    const host = await NativeHost.start(toolchain);
    try {
      const graphs = await openGraphs(target.graphs, async ({ file }) => {
        // A compiled context knows its SoC; asking for one again can refuse it (facts qnn-htp, pitfall 5).
        const session = await host.openSession(pathOf.get(file)!, {
          provider: 'qnn',
          ...(direct ? { soc: Number(target.facts.soc) } : {}),
        });
        sessions.add(session);
        return closeHostWith(session, sessions, async () => {
          rows?.close();
          await host.close();
        });
      });
      return openSession(target, graphs, rows);
    } catch (error) {
      rows?.close();
      await host.close();
      throw error;
    }
  },
  readSharing(folder, target, toolchain = findToolchain('qnn')): Sharing | undefined {
    const sources = listParts(target.graphs).map((part) => sourceOf(folder, part));
    return describeSharing(target, toolchain && findTwins(toolchain, sources, Number(target.facts.soc)));
  },
  async openReference(folder, target): Promise<DecoderSession> {
    const sessions = new Set<Runner>();
    const rows = target.embedding && openEmbedding(join(folder, target.embedding.file), target.embedding.form);
    const graphs = await openGraphs(target.graphs, async (part) => {
      const session = await openWithJavaScript(sourceOf(folder, part).path, pickJavaScriptEngine());
      sessions.add(session);
      return closeHostWith(session, sessions, async () => rows?.close());
    });
    return openSession(target, graphs, rows);
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

/** Compiles one part in a process of its own, and keeps what that needed beside what was foretold. */
async function compilePart(
  toolchain: Toolchain,
  { plan, graphs }: BundlePart,
  folder: string,
  { soc, threads, signal, split, progress }: EmitContext,
): Promise<CompiledContext> {
  const compiled = await compileContext(
    toolchain,
    graphs.map(({ name }) => ({ name, path: join(folder, 'qdq', `${name}.onnx`), externalData: [DATA] })),
    {
      soc,
      share: socSupports(soc, 'weight-sharing') && graphs.length > 1,
      outputFolder: folder,
      threads,
      ...(signal ? { signal } : {}),
      ...(split?.maxMemory === undefined ? {} : { memoryLimit: split.maxMemory }),
    },
  );
  progress.notePart({
    name: nameStages(plan.stages),
    weights: plan.weights,
    graphs: graphs.length,
    seconds: compiled.seconds,
    peakRssBytes: compiled.peakRssBytes,
    predictedPeakRssBytes: plan.peakBytes,
    cpuSeconds: compiled.cpuSeconds,
    predictedCpuSeconds: plan.cpuSeconds,
  });
  return compiled;
}

/** What a part of a graph was compiled from. @throws TG110 */
export function sourceOf(folder: string, part: ManifestPart): ContextModel {
  if (!part.source)
    throw new NpucError('TG110', { message: `the manifest names no source of ${part.graph}`, where: folder });
  return { name: basename(part.source, '.onnx'), path: join(folder, part.source), externalData: [DATA] };
}

function openSession(
  { protocol, ports }: ManifestTarget,
  graphs: readonly SessionGraph[],
  rows: OpenedEmbedding | undefined,
): DecoderSession {
  const raw = rows?.raw;
  return new DecoderSession({
    protocol,
    graphs,
    encodings: portEncodings(ports),
    ...(rows ? { embedding: rows.lookup } : {}),
    ...(raw ? { integerRows: (ids, port) => requantizeRows(raw, ids, port) } : {}),
  });
}

/** The table beside graphs that take rows. */
function writeTable(decoder: QuantizedDecoder, { out, embedding = 'f16' }: EmitContext): ManifestTarget['embedding'] {
  if (decoder.contract.embedding === 'ids') return undefined;
  const table = decoder.migration.weights.get('model.embed_tokens.weight')!;
  writeEmbedding(join(out, EMBEDDING), table, embedding, wasmKernels);
  return { file: EMBEDDING, form: embedding };
}

/** The last session to close ends what they have in common. */
function closeHostWith(session: Runner, all: Set<Runner>, end: () => Promise<void>): Runner {
  return {
    engine: session.engine,
    inputs: session.inputs,
    outputs: session.outputs,
    run: (feeds, outputs) => session.run(feeds, outputs),
    close: async () => {
      await session.close();
      all.delete(session);
      if (all.size === 0) await end();
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

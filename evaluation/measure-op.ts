import { join } from 'node:path';
import { quantizeGraph } from '../calibration/quantize-graph.ts';
import { makeRecipe, type NumberFormat, type Scheme } from '../calibration/recipe.ts';
import { randomSamples } from '../calibration/samples.ts';
import { NpucError } from '../compiler/errors.ts';
import { writeOnnx } from '../compiler/export/onnx.ts';
import { cloneModule } from '../compiler/ir/clone.ts';
import type { Graph, Module } from '../compiler/ir/graph.ts';
import { printModule } from '../compiler/ir/text.ts';
import { wasmKernels } from '../compiler/kernels/index.ts';
import { runPasses } from '../compiler/pass.ts';
import { makeTemporaryFolder, openModule } from '../compiler/runtime/engine.ts';
import { NativeHost } from '../compiler/runtime/ort-native.ts';
import { withRealPorts } from '../compiler/runtime/real-ports.ts';
import type { Runner, Tensors } from '../compiler/runtime/runner.ts';
import { fuse, simplify } from '../passes/pipelines.ts';
import { modelEncodings, modelPorts } from '../targets/model-target.ts';
import { parseCompilerErrors, parseRefusals } from '../targets/qnn/parse-log.ts';
import { qnnModelTarget } from '../targets/qnn/qnn-model.ts';
import { quantizePorts } from '../targets/qnn/qnn-target.ts';
import type { Toolchain } from '../targets/qnn/toolchain.ts';
import type { Soc } from '../targets/socs.ts';
import { compareResults, runSamples, worstSqnr } from './compare-runs.ts';

/** The widths that a form is measured at, and the scheme that gives each. */
export const WIDTHS = { u8: 'w8a8', u16: 'w8a16', fp16: 'fp16' } as const satisfies Readonly<Record<string, Scheme>>;
export type Width = keyof typeof WIDTHS;

/** What the simulator made of a graph. */
export type Measurement =
  | {
      readonly kind: 'computed';
      /** dB of the worst output against ONNX Runtime on the same QDQ model, every Quantize and Dequantize taken literally. */
      readonly twin: number;
      /** dB of the worst output against the float graph. */
      readonly float: number;
    }
  /** The plugin or the vendor's compiler does not take it, or its run fails. */
  | { readonly kind: 'refused'; readonly reason: string }
  /** The vendor's library died. */
  | { readonly kind: 'crashed'; readonly reason: string };

export interface PreparedForm {
  readonly module: Module;
  readonly format: NumberFormat;
  /** Kinds of nodes that are left, in order, each once. */
  readonly ops: readonly string[];
  /** Identifies the graph and what is asked of it: equal ones are measured once. */
  readonly key: string;
}

const CALIBRATION = { count: 4, seed: 7 };

/** A graph as a model has it: nothing is lowered, every op takes the width asked for. */
export function prepareRaw(source: Module, soc: Soc): PreparedForm {
  const module = cloneModule(source);
  runPasses(module, simplify, { untilStable: true });
  return describe(module, { ...qnnModelTarget.format(soc), widths: {} });
}

/** A graph as `npuc compile` hands it to HTP. */
export function prepareLowered(source: Module, soc: Soc): PreparedForm {
  const module = cloneModule(source);
  runPasses(module, simplify, { untilStable: true });
  runPasses(module, [...fuse, ...simplify], { untilStable: true });
  qnnModelTarget.lower(module, soc);
  return describe(module, qnnModelTarget.format(soc));
}

function describe(module: Module, format: NumberFormat): PreparedForm {
  const ops = [...new Set(module.graph().nodes.map((node) => node.op))];
  const widths = ops.map((op) => `${op} ${format.widths[op] ?? ''}`);
  return { module, format, ops, key: `${printModule(module)}${widths}` };
}

/**
 * Measures small graphs on the HTP simulator, many in one process: a graph that kills it costs a new one. Graphs with inputs
 * of integers or booleans are fed 0 and 1.
 */
export class OpMeter {
  readonly #toolchain: Toolchain;
  readonly #soc: Soc;
  readonly #folder = makeTemporaryFolder();
  #host: NativeHost | undefined;
  #verbose: NativeHost | undefined;
  #count = 0;

  constructor(toolchain: Toolchain, soc: Soc) {
    this.#toolchain = toolchain;
    this.#soc = soc;
  }

  /** Quantizes a form at a width and measures it. */
  async measure({ module: source, format }: PreparedForm, width: Width): Promise<Measurement> {
    const { feeds } = randomSamples(source.graph(), CALIBRATION.count, CALIBRATION.seed);
    const quantized = await quantizeGraph({
      module: source,
      feeds,
      recipe: makeRecipe(WIDTHS[width]),
      format,
      kernels: wasmKernels,
      promote: false,
    });
    const float = await openModule(quantized.float);
    const expected = await runSamples(float, feeds, outputNames(source.graph()));
    await float.close();
    return await this.measureEncoded(quantized.module, feeds, expected);
  }

  /**
   * Measures a graph with the encodings that it has.
   * @param expected outputs of the float graph; without them the QDQ model's own are taken for it
   */
  async measureEncoded(module: Module, feeds: readonly Tensors[], expected?: readonly Tensors[]): Promise<Measurement> {
    const graph = module.graph();
    quantizePorts(graph);
    const path = join(this.#folder.path, `form_${this.#count++}.onnx`);
    writeOnnx(module, path);
    const names = outputNames(graph);
    const encodings = modelEncodings(modelPorts(graph));
    this.#host ??= await NativeHost.start(this.#toolchain, { workFolder: this.#folder.path });
    const run = async (open: Promise<Runner>): Promise<Tensors[]> => {
      const runner = withRealPorts(await open, encodings);
      const results = await runSamples(runner, feeds, names);
      await runner.close();
      return results;
    };
    const twin = await run(this.#host.openSession(path, { provider: 'cpu', optimization: 'none' }));
    try {
      const found = await run(this.#host.openSession(path, { provider: 'qnn', soc: this.#soc.number }));
      const worst = (reference: readonly Tensors[]): number =>
        worstSqnr(compareResults(names, reference, found, wasmKernels));
      return { kind: 'computed', twin: worst(twin), float: worst(expected ?? twin) };
    } catch (error) {
      if (!(error instanceof NpucError)) throw error;
      if (error.code === 'RT202') {
        this.#host = undefined;
        return { kind: 'crashed', reason: error.message.split('\n')[0]!.replace(/ \(peak.*/, '') };
      }
      if (error.code === 'RT110') return { kind: 'refused', reason: await this.#findReason(path) };
      if (error.code === 'RT111') return { kind: 'refused', reason: 'it compiles, and its run fails' };
      throw error;
    }
  }

  async close(): Promise<void> {
    await this.#host?.close();
    await this.#verbose?.close();
    this.#folder.release();
  }

  /** Only the verbose log says why a graph is not taken. */
  async #findReason(path: string): Promise<string> {
    this.#verbose ??= await NativeHost.start(this.#toolchain, { workFolder: this.#folder.path, logSeverity: 0 });
    const before = this.#verbose.log().length;
    try {
      const session = await this.#verbose.openSession(path, { provider: 'qnn', soc: this.#soc.number });
      await session.close();
      return 'it was refused once and taken the second time';
    } catch (error) {
      if (!(error instanceof NpucError)) throw error;
      const log = this.#verbose.log().slice(before);
      if (error.code === 'RT202') this.#verbose = undefined;
      const refusals = parseRefusals(log);
      if (refusals.length > 0) return [...new Set(refusals.map(({ op, reason }) => `${op}: ${reason}`))].join('; ');
      const errors = parseCompilerErrors(log);
      return `the graph does not compile: ${errors[0] ?? error.message.split('\n')[0]}`;
    }
  }
}

function outputNames(graph: Graph): string[] {
  return graph.outputs.map(({ name }) => name);
}

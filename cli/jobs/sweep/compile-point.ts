import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { readTokens, startTokens } from '../../../calibration/texts.ts';
import type { DecoderModel } from '../../../compiler/import/decoder-model.ts';
import { openOnnx } from '../../../compiler/import/onnx.ts';
import { FileSource } from '../../../compiler/ir/tensor.ts';
import type { StageTiming } from '../../../compiler/progress.ts';
import { readPeakRss } from '../../../compiler/runtime/native-process.ts';
import { compareTwin } from '../../../evaluation/compare-chunk.ts';
import type { PointResult, SimulatorFigures, SweepTarget } from '../../../evaluation/sweep/sweep-report.ts';
import { digestWeights } from '../../../targets/digest-weights.ts';
import { decoderTargets } from '../../../targets/index.ts';
import type { Manifest } from '../../../targets/manifest.ts';
import { readContextBinaries } from '../../../targets/qnn/read-context.ts';
import { requireToolchain } from '../../../targets/qnn/toolchain.ts';
import type { ManifestTarget } from '../../../targets/target.ts';
import { readTflite } from '../../../targets/tflite/read.ts';
import { type CompileOptions, compileDecoder, openDecoder } from '../compile-decoder.ts';
import type { JobContext } from './job-context.ts';

/** What depends on the machine and the day, and is no part of an artifact. */
const NOT_STORED: ReadonlySet<string> = new Set(['timings.json']);

/** What compiling a point gives, its processor time apart. */
export type CompiledPoint = Omit<PointResult, 'cpuSeconds'>;

/**
 * Compiles a point as `npuc compile` does, reads back what was written, runs a chunk on the simulator where that is asked for,
 * and puts the files into the store.
 * @param out a folder of its own, which is removed
 */
export async function compilePoint(
  out: string,
  name: SweepTarget,
  simulated: boolean,
  options: CompileOptions,
  { store, work, progress }: JobContext,
): Promise<CompiledPoint> {
  resetPeak();
  const started = performance.now();
  try {
    mkdirSync(work, { recursive: true });
    const { manifest } = await compileDecoder(options);
    const seconds = (performance.now() - started) / 1000;
    const target = manifest.targets[name]!;
    const peakRssBytes = peakOf(progress.stages);
    const simulator = simulated && name === 'qnn' ? await simulate(out, manifest, options) : undefined;
    return {
      artifactBytes: shippedBytes(manifest, target),
      ...(name === 'qnn' ? { spillFill: await readSpillFill(out, target) } : {}),
      ops: countOps(out, name, target),
      weightsDigest: digestWeights(out, name, target),
      ...(simulator ? { simulator } : {}),
      seconds,
      vendorCpuSeconds: vendorSeconds(progress.stages),
      peakRssBytes,
      files: store.put(out, NOT_STORED),
    };
  } finally {
    rmSync(out, { recursive: true, force: true });
  }
}

/** Processor time of the vendor's compiler. */
export function vendorSeconds(stages: readonly StageTiming[]): number {
  return stages.reduce((sum, { parts = [] }) => sum + parts.reduce((total, part) => total + part.cpuSeconds, 0), 0);
}

/** Lets the kernel count the peak of this process anew, where it can (Linux): a worker does one point after the other. */
function resetPeak(): void {
  try {
    writeFileSync('/proc/self/clear_refs', '5');
  } catch {
    // Then the peak is that of the process's whole life.
  }
}

/** The larger of this process's peak and that of the largest child. */
function peakOf(stages: readonly StageTiming[]): number {
  const children = stages.map(({ childPeakRssBytes = 0 }) => childPeakRssBytes);
  try {
    return Math.max(readPeakRss(process.pid), ...children);
  } catch {
    return Math.max(...stages.map(({ peakRssBytes }) => peakRssBytes), ...children);
  }
}

/** Bytes that go to the phone: sources and decisions stay at home. */
function shippedBytes({ files }: Manifest, target: ManifestTarget): number {
  const shipped = new Set(target.files.filter((path) => !/\/qdq\//.test(path) && !path.endsWith('encodings.json')));
  return files.filter(({ path }) => shipped.has(path)).reduce((sum, { bytes }) => sum + bytes, 0);
}

async function readSpillFill(out: string, target: ManifestTarget): Promise<{ prefill: number; decode: number }> {
  const binaries = target.files.filter((path) => path.endsWith('_qnn.bin')).map((path) => join(out, path));
  const contexts = await readContextBinaries(requireToolchain('qnn'), binaries);
  const largest = (one: boolean): number =>
    contexts
      .flatMap(({ graphs }) => graphs)
      .filter(({ name }) => /prefill|_ar(?!1_)/.test(name) !== one)
      .reduce((most, { spillFillBytes }) => Math.max(most, spillFillBytes), 0);
  return { prefill: largest(false), decode: largest(true) };
}

/** Ops of the decode graph. A target that does not take one refuses the whole graph, so all that there are were taken. */
function countOps(out: string, name: SweepTarget, target: ManifestTarget): PointResult['ops'] {
  const decode = target.graphs.find(({ tokens }) => tokens === 1)!;
  if (name === 'tflite') {
    const count = countOperators(join(out, decode.file), decode.entry!);
    return { taken: count, all: count };
  }
  const sources = decode.parts?.map(({ source, file }) => source ?? file) ?? [decode.source ?? decode.file];
  const count = sources.reduce(
    (sum, path) =>
      sum +
      openOnnx(join(out, path))
        .graph()
        .nodes.filter(({ op }) => !/^(De)?[Qq]uantizeLinear$/.test(op)).length,
    0,
  );
  return { taken: count, all: count };
}

/** One chunk and the logits after it, on the simulator and on ONNX Runtime with the same integers. */
async function simulate(out: string, manifest: Manifest, options: CompileOptions): Promise<SimulatorFigures> {
  options.progress.stage('simulate');
  const started = performance.now();
  const target = manifest.targets.qnn!;
  const model = await openDecoder(options);
  const window = chunkOf(model, options, options.shapes.tokens[0]!);
  model.checkpoint.close();
  const session = await decoderTargets.qnn.open(out, target, { soc: options.soc });
  try {
    const reference = await decoderTargets.qnn.openReference!(out, target);
    try {
      return { ...(await compareTwin(reference, session, window)), seconds: (performance.now() - started) / 1000 };
    } finally {
      await reference.close();
    }
  } finally {
    await session.close();
  }
}

/** The first tokens of the calibration text: a chunk that the graph takes. */
function chunkOf({ checkpoint }: DecoderModel, { calibrationText }: CompileOptions, tokens: number): number[] {
  const prefix = startTokens(checkpoint.tokenizer!);
  const { ids } = readTokens(calibrationText, checkpoint.tokenizer!, tokens, 1);
  return [...prefix, ...ids].slice(0, tokens);
}

/** Operators of the subgraph of a signature. */
function countOperators(path: string, entry: string): number {
  const file = new FileSource(path);
  try {
    const model = readTflite(file, path);
    const signature = model.signatures.find(({ key }) => key === entry)!;
    return model.subgraphs[signature.subgraph]!.operators.length;
  } finally {
    file.close();
  }
}

import { buildPlainDecoder } from '../calibration/decoder-statistics.ts';
import type { QuantizedDecoder } from '../calibration/quantize-decoder.ts';
import type { TokenText } from '../calibration/texts.ts';
import { NpucError } from '../compiler/errors.ts';
import type { DecoderModel } from '../compiler/import/decoder-model.ts';
import type { Progress } from '../compiler/progress.ts';
import { DecoderSession } from '../compiler/runtime/decoder-session.ts';
import { openModules } from '../compiler/runtime/engine.ts';
import { generateGreedy } from '../compiler/runtime/generate.ts';
import type { Tokenizer } from '../compiler/runtime/tokenizer.ts';
import { plainContract } from '../passes/io-contract.ts';
import { makeProtocol } from '../passes/protocol.ts';
import { largestCache, type ShapeRequest } from '../targets/graph-requests.ts';
import { decoderTargets } from '../targets/index.ts';
import type { ManifestFile } from '../targets/manifest.ts';
import type { ManifestTarget, TargetName } from '../targets/target.ts';
import { compareCaches, compareChunk, compareTwin, decodeSqnr, runGreedy } from './compare-chunk.ts';
import { compareGraphValues } from './compare-graph-values.ts';
import type { ValueComparison } from './compare-values.ts';
import type { LogitReport } from './logits.ts';
import { listFiles, mergePlans } from './merge-plans.ts';
import { evaluateLogits } from './perplexity.ts';
import type { Report, TargetReport } from './report.ts';

export interface EvaluationOptions {
  /** Held-out text. */
  readonly text: string;
  /** Tokens of it that engines fast enough are evaluated on. */
  readonly tokens: number;
  readonly prompt: string;
  readonly sampleTokens: number;
  /** Weights above which an engine that simulates runs one chunk and a few tokens instead of the text. */
  readonly simulateBelow: number;
}

export interface EvaluationInputs {
  readonly model: DecoderModel;
  readonly decoders: ReadonlyMap<TargetName, QuantizedDecoder>;
  readonly targets: Readonly<Partial<Record<TargetName, ManifestTarget>>>;
  /** Opens an emitted artifact; one is open at a time. */
  readonly open: (name: TargetName) => Promise<DecoderSession>;
  readonly bytes: Readonly<Partial<Record<TargetName, number>>>;
  /** Every file that was written; those of a target are listed in its report. */
  readonly files?: readonly ManifestFile[];
  readonly shapes: ShapeRequest;
  readonly soc: string;
  /** The output folder being written. */
  readonly folder: string;
  /** Put before every window of text. */
  readonly prefix: readonly number[];
  /** Held-out text. */
  readonly text: TokenText;
  readonly options: EvaluationOptions;
  readonly progress: Progress;
}

/** Tokens of the chunk whose values are compared. */
const PROBE_TOKENS = 64;

/** Values under this SQNR are where a run is said to part from the float model. */
const DIVERGENCE_DB = 20;

/** Runs every emitted target beside the float model and says how far each is from it. */
export async function evaluateTargets(inputs: EvaluationInputs): Promise<Report> {
  const { model, options, progress, shapes, prefix, text } = inputs;
  const cache = largestCache(shapes);
  const { config, weights, checkpoint } = model;
  const tokenizer = checkpoint.tokenizer!;
  const chunk = Math.max(...shapes.tokens);
  // Before the float model is opened for text: at most two graphs with float weights are open at a time.
  const values = new Map<TargetName, ValueComparison[]>();
  // A runtime keeps every tapped value of a graph: a smaller shape of the same graph shows the same errors in less memory.
  const probe = Math.min(chunk, PROBE_TOKENS);
  const probeCache = Math.min(cache, 2 * probe);
  for (const [name, decoder] of inputs.decoders) {
    if (decoderTargets[name].weightsOnly) continue;
    progress.stage(`compare values of ${name}`);
    values.set(name, await compareGraphValues(decoder, probe, probeCache, [...prefix, ...text.ids].slice(0, probe)));
  }
  progress.stage('open float model');
  const sizes = [...new Set([chunk, 1])];
  const runners = await openModules(sizes.map((size) => buildPlainDecoder(config, weights, size, cache)));
  const float = new DecoderSession({
    protocol: makeProtocol(config, plainContract, cache),
    graphs: new Map(sizes.map((size, i) => [size, runners[i]!])),
  });
  const parameters = [...weights]
    .filter(([name]) => !(config.tiedEmbeddings && name === 'lm_head.weight'))
    .reduce((sum, [, tensor]) => sum + tensor.size, 0);
  const reports: Partial<Record<TargetName, TargetReport>> = {};
  const samples: Record<string, string> = {};
  let floatPerplexity = Number.NaN;
  try {
    const prompt = [...prefix, ...tokenizer.encode(options.prompt, { addSpecialTokens: false })];
    samples.float = await writeSample(float, prompt, options.sampleTokens, tokenizer);
    const shared = { inputs, values, float, ids: text.ids, prompt, chunk, parameters };
    for (const [name, target] of Object.entries(inputs.targets) as [TargetName, ManifestTarget][]) {
      progress.stage(`evaluate ${name}`);
      const { report, sample } = await evaluateTarget(name, target, shared);
      reports[name] = report;
      if (sample !== undefined) samples[name] = sample;
      if (report.logits) floatPerplexity = report.logits.referencePerplexity;
    }
  } finally {
    await float.close();
  }
  const [decoder] = inputs.decoders.values();
  return {
    format: 2,
    source: checkpoint.name,
    soc: inputs.soc,
    scheme: decoder?.recipe.scheme ?? '',
    tokens: shapes.tokens,
    caches: shapes.caches,
    parameters,
    floatPerplexity,
    evaluationTokens: text.ids.length,
    targets: reports,
    prompt: options.prompt,
    samples,
    plan: mergePlans(inputs.decoders),
    remarks: [...new Set([...inputs.decoders.values()].flatMap((each) => each.plan.remarks))],
    divergenceThreshold: DIVERGENCE_DB,
  };
}

/** The greedy continuation as text; a broken artifact has a report like any other. */
async function writeSample(
  session: DecoderSession,
  prompt: readonly number[],
  count: number,
  tokenizer: Tokenizer,
): Promise<string> {
  try {
    return tokenizer.decode(await generateGreedy(session, prompt, count, tokenizer.eosIds));
  } catch (error) {
    if (error instanceof NpucError && error.code === 'RT112') return `(no text: ${error.message})`;
    throw error;
  }
}

interface Shared {
  readonly inputs: EvaluationInputs;
  readonly values: ReadonlyMap<TargetName, readonly ValueComparison[]>;
  readonly float: DecoderSession;
  /** The held-out text. */
  readonly ids: readonly number[];
  readonly prompt: readonly number[];
  readonly chunk: number;
  readonly parameters: number;
}

/** One target: its values through taps, its artifact on text (or a chunk, where it is only simulated), and a sample. */
async function evaluateTarget(
  name: TargetName,
  target: ManifestTarget,
  shared: Shared,
): Promise<{ report: TargetReport; sample?: string }> {
  const { inputs, float, ids, prompt, chunk, parameters } = shared;
  const { model, options, progress, prefix } = inputs;
  const cache = largestCache(inputs.shapes);
  const values = shared.values.get(name) ?? [];
  const decoder = inputs.decoders.get(name)!;
  const tokenizer = model.checkpoint.tokenizer!;
  const started = performance.now();
  const firstChunk = [...prefix, ...ids].slice(0, chunk);
  const session = await inputs.open(name);
  let reference: DecoderSession | undefined;
  try {
    reference = await decoderTargets[name].openReference?.(inputs.folder, target);
    // A text that fits a smaller cache would be run there.
    for (const each of [session, reference]) each?.pinCache(cache);
    const slow = name === 'qnn' && parameters > options.simulateBelow;
    const text = slow ? undefined : await evaluateText(name, target, session, shared);
    // A slow engine runs the chunk once: for its own figures and for those against its reference.
    const {
      chunk: chunkReport,
      twin,
      run,
    } = slow
      ? await compareChunk({ float, session, reference }, firstChunk.slice(prefix.length), prefix)
      : { chunk: undefined, run: undefined, twin: reference && (await compareTwin(reference, session, firstChunk)) };
    const caches =
      session.cacheSizes.length > 1
        ? await compareCaches(session, run ?? (await runGreedy(session, firstChunk)))
        : undefined;
    const sample = slow ? undefined : await writeSample(session, prompt, options.sampleTokens, tokenizer);
    progress.update(1, 1);
    const sharing = decoderTargets[name].readSharing?.(inputs.folder, target);
    const report: TargetReport = {
      engine: session.engine,
      execution: target.execution,
      bytes: inputs.bytes[name] ?? 0,
      ...(inputs.files ? { files: listFiles(target, inputs.files) } : {}),
      ...(text ? { logits: text.logits } : {}),
      ...(chunkReport ? { chunk: chunkReport } : {}),
      ...(twin ? { twinSqnr: twin.sqnr, twinAgreement: twin.topAgreement } : {}),
      ...(caches ? { caches } : {}),
      ...(sharing ? { sharing } : {}),
      values,
      ...firstDivergence(values),
      seconds: (performance.now() - started) / 1000,
      notes: [
        ...(text?.notes ?? []),
        ...(decoderTargets[name].weightsOnly ? ['its weights are quantized, its activations are not'] : []),
        ...describeLimits(name, decoder, slow, chunk, cache),
      ],
    };
    return sample === undefined ? { report } : { report, sample };
  } finally {
    await reference?.close();
    await session.close();
  }
}

async function evaluateText(
  name: TargetName,
  target: ManifestTarget,
  session: DecoderSession,
  { inputs, float, ids, prompt, chunk }: Shared,
): Promise<{ logits: LogitReport; notes: string[] }> {
  const { prefix, progress } = inputs;
  const cache = largestCache(inputs.shapes);
  const twin = await decoderTargets[name].openForEvaluation?.(inputs.decoders.get(name)!, inputs.folder, target, {
    tokens: chunk,
    cache,
  });
  try {
    const reports = await evaluateLogits(float, new Map([[name, twin ?? session]]), ids, {
      window: Math.min(cache, 512),
      prefix,
      onProgress: (done, total) => progress.update(done, total),
    });
    const notes = twin ? [describeArtifact(await decodeSqnr(twin, session, prompt))] : [];
    return { logits: reports.get(name)!, notes };
  } finally {
    await twin?.close();
  }
}

/** How the artifact's own graphs, which give logits for the last token only, compare with the twin that text was run on. */
function describeArtifact(sqnr: number): string {
  const agreement = sqnr === Number.POSITIVE_INFINITY ? 'exactly' : `to ${sqnr.toFixed(1)} dB`;
  return `text was run on a twin that gives logits for every token; the artifact's own graphs agree with it ${agreement}`;
}

function firstDivergence(values: readonly ValueComparison[]): { firstDivergence?: string } {
  const first = values.find((value) => !(value.sqnr >= DIVERGENCE_DB));
  return first ? { firstDivergence: `${first.name} (${first.sqnr.toFixed(1)} dB)` } : {};
}

/** What a reader must know to judge a target's figures. */
function describeLimits(
  name: TargetName,
  decoder: QuantizedDecoder,
  slow: boolean,
  chunk: number,
  cache: number,
): string[] {
  const notes: string[] = [];
  if (slow) {
    notes.push(
      `simulated on one chunk of ${chunk} tokens with a cache of ${cache}: a whole text would take hours at this size`,
    );
  }
  if (
    name === 'qnn' &&
    decoder.recipe.scheme !== 'fp16' &&
    decoder.recipe.activation === 16 &&
    decoder.recipe.cache === 8
  ) {
    notes.push(
      'the 8-bit cache bounds the agreement with the QDQ twin: the simulator rounds 16-bit keys and values to 8 bits in ' +
        'another way than ONNX Runtime (by truncation for single rows); --kv 16 has no such step',
    );
  }
  return notes;
}

import { buildPlainDecoder } from '../calibration/decoder-statistics.ts';
import type { QuantizedDecoder } from '../calibration/quantize-decoder.ts';
import { readTokens } from '../calibration/texts.ts';
import type { DecoderModel } from '../compiler/import/decoder-model.ts';
import type { Encoding } from '../compiler/ir/encoding.ts';
import type { Module } from '../compiler/ir/graph.ts';
import { wasmKernels } from '../compiler/kernels/index.ts';
import type { Progress } from '../compiler/progress.ts';
import { DecoderSession } from '../compiler/runtime/decoder-session.ts';
import { openModule } from '../compiler/runtime/engine.ts';
import { generateGreedy } from '../compiler/runtime/generate.ts';
import type { Runner } from '../compiler/runtime/runner.ts';
import { plainContract } from '../passes/io-contract.ts';
import { makeProtocol } from '../passes/protocol.ts';
import { decoderTargets } from '../targets/index.ts';
import type { ManifestFile } from '../targets/manifest.ts';
import type { ManifestTarget, TargetName } from '../targets/target.ts';
import { chunkSqnr, compareChunk } from './compare-chunk.ts';
import { addDrops, comparedInputs, compareValues, tapModule, type ValueComparison } from './compare-values.ts';
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
  /** Sessions over the emitted artifacts. */
  readonly sessions: ReadonlyMap<TargetName, DecoderSession>;
  readonly bytes: Readonly<Partial<Record<TargetName, number>>>;
  /** Every file that was written; those of a target are listed in its report. */
  readonly files?: readonly ManifestFile[];
  readonly tokens: readonly number[];
  readonly cache: number;
  readonly soc: string;
  /** The output folder being written. */
  readonly folder: string;
  readonly prefix: readonly number[];
  readonly options: EvaluationOptions;
  readonly progress: Progress;
}

/** Values under this SQNR are where a run is said to part from the float model. */
const DIVERGENCE_DB = 20;

/** Runs every emitted target beside the float model and says how far each is from it. */
export async function evaluateTargets(inputs: EvaluationInputs): Promise<Report> {
  const { model, options, progress, cache, prefix } = inputs;
  const { config, weights, checkpoint } = model;
  const tokenizer = checkpoint.tokenizer!;
  const chunk = Math.max(...inputs.tokens);
  const text = readTokens(options.text, tokenizer, options.tokens, Math.min(options.tokens, 64));
  const window = Math.min(cache, 512);
  const graphs = new Map<number, Runner>();
  for (const size of [chunk, 1]) graphs.set(size, await openModule(buildPlainDecoder(config, weights, size, cache)));
  const float = new DecoderSession({ protocol: makeProtocol(config, plainContract, cache), graphs });
  const parameters = [...weights.values()].reduce((sum, tensor) => sum + tensor.size, 0);
  const reports: Partial<Record<TargetName, TargetReport>> = {};
  const samples: Record<string, string> = {};
  let floatPerplexity = Number.NaN;
  try {
    const prompt = [...prefix, ...tokenizer.encode(options.prompt, { addSpecialTokens: false })];
    samples.float = tokenizer.decode(await generateGreedy(float, prompt, options.sampleTokens, tokenizer.eosIds));
    for (const [name, session] of inputs.sessions) {
      const target = inputs.targets[name]!;
      const decoder = inputs.decoders.get(name)!;
      progress.stage(`evaluate ${name}`);
      const started = performance.now();
      const notes: string[] = [];
      const simulated = name === 'qnn';
      const values = await compareGraphValues(decoder, model, chunk, cache, text.ids, prefix);
      const slow = simulated && parameters > options.simulateBelow;
      const short = Math.min(text.ids.length, slow ? chunk - prefix.length : text.ids.length);
      let logits: TargetReport['logits'];
      let chunkReport: TargetReport['chunk'];
      if (slow) {
        chunkReport = await compareChunk(float, session, text.ids.slice(0, short), prefix);
        notes.push(
          `simulated on one chunk of ${chunk} tokens: the simulator needs minutes per chunk on a model of this size`,
        );
      } else {
        const twin = await decoderTargets[name].openForEvaluation?.(decoder, inputs.folder, target, {
          tokens: chunk,
          cache,
        });
        const result = await evaluateLogits(float, new Map([[name, twin ?? session]]), text.ids, {
          window,
          prefix,
          onProgress: (done, total) => progress.update(done, total),
        });
        await twin?.close();
        logits = result.get(name)!;
        floatPerplexity = logits.referencePerplexity;
        session.reset();
        samples[name] = tokenizer.decode(await generateGreedy(session, prompt, options.sampleTokens, tokenizer.eosIds));
      }
      const twin = await decoderTargets[name].openReference?.(inputs.folder, target);
      const twinSqnr = twin && (await chunkSqnr(twin, session, [...prefix, ...text.ids].slice(0, chunk)));
      await twin?.close();
      reports[name] = {
        engine: session.engine,
        execution: target.execution,
        bytes: inputs.bytes[name] ?? 0,
        ...(inputs.files ? { files: listFiles(target, inputs.files) } : {}),
        ...(logits ? { logits } : {}),
        ...(chunkReport ? { chunk: chunkReport } : {}),
        ...(twinSqnr === undefined ? {} : { twinSqnr }),
        values,
        ...firstDivergence(values),
        seconds: (performance.now() - started) / 1000,
        notes,
      };
    }
  } finally {
    await float.close();
  }
  const [decoder] = inputs.decoders.values();
  return {
    format: 1,
    source: checkpoint.name,
    soc: inputs.soc,
    scheme: decoder?.recipe.scheme ?? '',
    tokens: inputs.tokens,
    cache,
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

function firstDivergence(values: readonly ValueComparison[]): { firstDivergence?: string } {
  const first = values.find((value) => !(value.sqnr >= DIVERGENCE_DB));
  return first ? { firstDivergence: `${first.name} (${first.sqnr.toFixed(1)} dB)` } : {};
}

/**
 * Every value of one prefill chunk, the target's QDQ graph against the float graph in the same contract, through taps.
 * Both run on ONNX Runtime from an empty cache.
 */
async function compareGraphValues(
  decoder: QuantizedDecoder,
  model: DecoderModel,
  chunk: number,
  cache: number,
  ids: readonly number[],
  prefix: readonly number[],
): Promise<ValueComparison[]> {
  const request = { name: 'taps', tokens: chunk, cache, logits: 'all' as const };
  const quantized = decoder.stamp(request);
  const float = decoder.lowerFloat(request);
  const names = float.graph().nodes.flatMap((node) => node.outputs.map((output) => output!.name));
  const common = names.filter((name) => {
    const value = quantized.graph().find(name);
    return value?.encoding && float.graph().find(name)?.dtype === 'f32';
  });
  const encodings = new Map<string, Encoding>(common.map((name) => [name, quantized.graph().find(name)!.encoding!]));
  const from = new Map(common.map((name) => [name, quantized.graph().find(name)!.producer?.from ?? []]));
  const feed = [...prefix, ...ids].slice(0, chunk);
  const run = async (module: Module): Promise<Record<string, import('../compiler/ir/tensor.ts').TensorData>> => {
    const runner = await openModule(tapModule(module, common));
    let seen: Record<string, import('../compiler/ir/tensor.ts').TensorData> = {};
    const tapped: Runner = {
      engine: runner.engine,
      inputs: runner.inputs,
      outputs: runner.outputs,
      run: async (feeds) => {
        seen = await runner.run(feeds, [...new Set([...common, ...runner.outputs.map((output) => output.name)])]);
        return seen;
      },
      close: () => runner.close(),
    };
    const embedding = decoder.contract.embedding === 'embeds' ? { embedding: model.embed } : {};
    const session = new DecoderSession({
      protocol: makeProtocol(decoder.config, decoder.contract, cache),
      graphs: new Map([[chunk, tapped]]),
      ...embedding,
    });
    await session.feed(feed, 'all');
    await session.close();
    return seen;
  };
  const reference = await run(float);
  const other = await run(quantized);
  const values = compareValues(common, reference, other, encodings, from, wasmKernels);
  return addDrops(values, comparedInputs(quantized.graph(), new Set(common)));
}

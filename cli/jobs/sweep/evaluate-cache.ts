import { join } from 'node:path';
import type { QuantizedDecoder } from '../../../calibration/quantize-decoder.ts';
import { defaultText, readTokens, startTokens } from '../../../calibration/texts.ts';
import { NpucError } from '../../../compiler/errors.ts';
import { buildDecoder, type DecoderModel } from '../../../compiler/import/decoder-model.ts';
import { wasmKernels } from '../../../compiler/kernels/index.ts';
import { DecoderSession } from '../../../compiler/runtime/decoder-session.ts';
import { makeTemporaryFolder, openModules, pickJavaScriptEngine } from '../../../compiler/runtime/engine.ts';
import { describeEngine } from '../../../compiler/runtime/onnxruntime.ts';
import { streamChunk, streamPerplexity } from '../../../evaluation/sweep/stream-perplexity.ts';
import type { CacheQuality, SweepTarget } from '../../../evaluation/sweep/sweep-report.ts';
import { applyIoContract } from '../../../passes/apply-io-contract.ts';
import { plainContract } from '../../../passes/io-contract.ts';
import { makeProtocol } from '../../../passes/protocol.ts';
import { openEmbedding, writeEmbedding } from '../../../targets/embedding-file.ts';
import { calibrateDecoder } from '../calibrate-decoder.ts';
import { type CompileOptions, openDecoder, quantize, readCalibration } from '../compile-decoder.ts';
import type { EvaluateJob } from './sweep-job.ts';

/** Every encoding of a checkpoint for a target; searched scales and chosen integers come from the cache folder, or go there. */
export async function quantizeFor(
  model: DecoderModel,
  options: CompileOptions,
  target: SweepTarget,
): Promise<QuantizedDecoder> {
  const calibration = readCalibration(options, model);
  const key = {
    checkpoint: await model.checkpoint.digest(),
    windows: calibration.windows,
    engine: await describeEngine(pickJavaScriptEngine()),
  };
  const source = await calibrateDecoder(model, key, options);
  options.progress.stage(`quantize for ${target}`);
  return await quantize(source, options, target);
}

/** The text through a cache of the job's size, the float model and the target's QDQ graph side by side on ONNX Runtime. */
export async function evaluateCache(
  { config, sinks, positions }: EvaluateJob,
  options: CompileOptions,
): Promise<Omit<CacheQuality, 'ratio' | 'seconds'>> {
  const { progress } = options;
  const model = await openDecoder(options);
  const name = config.target![0] as SweepTarget;
  const [cache] = config.cache as [number];
  const chunk = streamChunk(cache);
  const prefix = startTokens(model.checkpoint.tokenizer!);
  const { ids } = readTokens(
    config.evaluate ?? defaultText('evaluation'),
    model.checkpoint.tokenizer!,
    config.evalTokens,
    2,
  );
  // Global positions go as far as the text.
  const context = positions === 'global' ? Math.max(cache, prefix.length + ids.length) : cache;
  checkContext(model, context, options.allowExtrapolation);
  const decoder = await quantizeFor(model, options, name);
  progress.stage('stream text');
  const opened: { close(): Promise<void> | void }[] = [model.checkpoint];
  try {
    const float = await openFloat(model, chunk, cache, context);
    opened.push(float);
    const quantized = await openQuantized(decoder, chunk, cache, context);
    opened.push(quantized);
    const report = await streamPerplexity(float, quantized.session, ids, {
      chunk,
      cache,
      sinks,
      positions,
      prefix,
      onProgress: (done, total) => progress.update(done, total),
    });
    return {
      perplexity: report.perplexity,
      floatPerplexity: report.referencePerplexity,
      divergence: report.divergence,
      topAgreement: report.topAgreement,
      predictions: report.predictions,
      slides: report.slides,
    };
  } finally {
    for (const each of opened.reverse()) await each.close();
  }
}

/** @throws IM411 where positions would go beyond what the checkpoint was trained for */
function checkContext({ config }: DecoderModel, context: number, allowed: boolean): void {
  if (allowed || context <= config.maxPositions) return;
  throw new NpucError('IM411', {
    message: `--positions global reaches position ${context}, max_position_embeddings is ${config.maxPositions}`,
    hint: `--eval-tokens ${config.maxPositions - 1}, --positions cache, or --allow-extrapolation`,
  });
}

async function openFloat(
  { config, weights }: DecoderModel,
  chunk: number,
  cache: number,
  context: number,
): Promise<DecoderSession> {
  const module = buildDecoder(config, weights, context, true);
  applyIoContract(module, plainContract, { tokens: chunk, cache, logits: 'all' });
  const [runner] = await openModules([module]);
  const session = new DecoderSession({
    protocol: makeProtocol(config, plainContract, context),
    graphs: [{ tokens: chunk, cache, runner: runner! }],
  });
  session.pinCache(cache);
  return session;
}

/** The target's QDQ graph with float ports, and the table beside it where it takes rows. */
async function openQuantized(
  decoder: QuantizedDecoder,
  chunk: number,
  cache: number,
  context: number,
): Promise<{ readonly session: DecoderSession; close(): Promise<void> }> {
  const { contract, config } = decoder;
  const folder = makeTemporaryFolder();
  const table = join(folder.path, 'embedding.bin');
  const form = decoder.recipe.scheme === 'fp16' || contract.name === 'genie' ? 'f16' : 'i8-per-row';
  const rows = (() => {
    if (contract.embedding === 'ids') return undefined;
    writeEmbedding(table, decoder.migration.weights.get('model.embed_tokens.weight')!, form, wasmKernels);
    return openEmbedding(table, form);
  })();
  try {
    const [runner] = await openModules([
      decoder.stamp({ name: 'stream', tokens: chunk, cache, context, logits: 'all' }),
    ]);
    const session = new DecoderSession({
      protocol: makeProtocol(config, contract, context),
      graphs: [{ tokens: chunk, cache, runner: runner! }],
      ...(rows ? { embedding: rows.lookup } : {}),
    });
    session.pinCache(cache);
    return {
      session,
      close: async () => {
        await session.close();
        rows?.close();
        folder.release();
      },
    };
  } catch (error) {
    rows?.close();
    folder.release();
    throw error;
  }
}

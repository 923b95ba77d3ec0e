// Decoders in LiteRT: what each scheme costs, and how far LiteRT is from the imitation of its own kernels; written to
// bench/results/tflite-decoders.md with --write.
//
//     npm run -s build && node bench/tflite-decoders.mjs [--model smollm2] [--scheme w8a8,dynamic-int8] [--tokens 512] [--write]
//
// SmolLM2 takes an hour on two cores: 16-bit kernels are slow on a CPU, and 4-bit weights are rounded first.
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import {
  buildPlainDecoder,
  calibrationShape,
  collectDecoderStatistics,
  cutWindows,
} from '../dist/calibration/decoder-statistics.js';
import { quantizeDecoder } from '../dist/calibration/quantize-decoder.js';
import { isDynamic, makeRecipe } from '../dist/calibration/recipe.js';
import { hasStreamOutliers, rotateDecoder } from '../dist/calibration/rotate-decoder.js';
import { cachedStatistics } from '../dist/calibration/statistics-cache.js';
import { defaultText, readTokens, startTokens } from '../dist/calibration/texts.js';
import { cacheFolder } from '../dist/compiler/cache.js';
import { openCheckpoint } from '../dist/compiler/import/checkpoint.js';
import { readDecoderModel } from '../dist/compiler/import/decoder-model.js';
import { wasmKernels } from '../dist/compiler/kernels/index.js';
import { runPasses } from '../dist/compiler/pass.js';
import { DecoderSession } from '../dist/compiler/runtime/decoder-session.js';
import { openModule } from '../dist/compiler/runtime/engine.js';
import { loadLitert, openLitert } from '../dist/compiler/runtime/litert.js';
import { addLogits, emptyLogitSums, reportLogits } from '../dist/evaluation/logits.js';
import { plainContract } from '../dist/passes/io-contract.js';
import { lowerForTflite } from '../dist/passes/pipelines.js';
import { makeProtocol } from '../dist/passes/protocol.js';
import { openEmbedding, writeEmbedding } from '../dist/targets/embedding-file.js';
import { formatOf } from '../dist/targets/index.js';
import { lowerModel } from '../dist/targets/tflite/graph/lower-model.js';
import { imitateKernels } from '../dist/targets/tflite/imitate/imitate-kernels.js';
import { lowerDecoder } from '../dist/targets/tflite/tflite-target.js';
import { writeTflite } from '../dist/targets/tflite/write.js';
import { root } from './material-models.mjs';

const { values: flags } = parseArgs({
  options: {
    model: { type: 'string', default: 'stories260k,smollm2' },
    scheme: { type: 'string', default: 'w8a8,w8a16,w4a16,dynamic-int8,dynamic-int4' },
    tokens: { type: 'string', default: '512' },
    cache: { type: 'string', default: '512' },
    write: { type: 'boolean', default: false },
  },
});

const MODELS = {
  stories260k: { path: join(root, '..', 'shared', 'material', 'stories260k', 'hf'), calibration: 16 },
  smollm2: {
    path: cacheFolder('models', 'smollm2-135m-instruct', 'SmolLM2-135M-Instruct.Q4_1.gguf'),
    calibration: 16,
  },
};

const TOKENS = 128;
const CACHE = Number(flags.cache);

/** Logits of every token of the text, windows of the cache's size. */
async function runText(session, ids, prefix) {
  const logits = [];
  const step = CACHE - prefix.length;
  for (let start = 0; start < ids.length; start += step) {
    const part = ids.slice(start, start + step);
    session.reset();
    const got = await session.feed([...prefix, ...part], 'all');
    for (let i = 0; i + 1 < part.length; i++)
      logits.push({ logits: got[prefix.length + i].slice(), next: part[i + 1] });
  }
  await session.close();
  return logits;
}

function compare(reference, other) {
  const sums = emptyLogitSums();
  reference.forEach(({ logits, next }, i) => addLogits(sums, logits, other[i].logits, next));
  return reportLogits(sums);
}

async function openImitation(decoder, request) {
  const module = imitateKernels(decoder.stamp(request));
  if (!isDynamic(decoder.recipe)) return openModule(module);
  runPasses(module, lowerForTflite);
  return openTemporary(lowerModel(module.graph(), 'float').model, request.name);
}

/** Large models go through a file: the bytes of one in memory and LiteRT's copy are one too many. */
async function openTemporary(model, signature) {
  const path = join(tmpdir(), `npuc-bench-${process.pid}.tflite`);
  writeTflite(path, model);
  return openLitert(path, signature);
}

async function measureModel(name) {
  const { path, calibration } = MODELS[name];
  if (!existsSync(path)) throw new Error(`${path} is absent`);
  const model = readDecoderModel(await openCheckpoint(path));
  const { tokenizer } = model.checkpoint;
  const shape = calibrationShape(model.config);
  const prefix = startTokens(tokenizer);
  const text = readTokens(defaultText('calibration'), tokenizer, calibration * shape.window, shape.window);
  const windows = cutWindows(text.ids, shape, calibration, prefix);
  const ids = readTokens(defaultText('evaluation'), tokenizer, Number(flags.tokens), 64).ids;
  const key = { checkpoint: await model.checkpoint.digest({}), windows, engine: 'bench' };
  const collect = (config, weights, extra) =>
    cachedStatistics({ ...key, ...extra }, () => collectDecoderStatistics(config, weights, windows)).then(
      ({ statistics }) => statistics,
    );
  const statistics = await collect(model.config, model.weights, {});
  const float = new DecoderSession({
    protocol: makeProtocol(model.config, plainContract, CACHE),
    graphs: new Map([[TOKENS, await openModule(buildPlainDecoder(model.config, model.weights, TOKENS, CACHE))]]),
  });
  const floatLogits = await runText(float, ids, prefix);
  const rows = [];
  for (const scheme of flags.scheme.split(',')) {
    const started = performance.now();
    const recipe = makeRecipe(scheme);
    const rotated = recipe.rotation === 'auto' && hasStreamOutliers(model.config, statistics);
    const source = rotated ? rotateDecoder(model) : { ...model };
    const own = rotated ? await collect(source.config, source.weights, { rotation: 'hadamard' }) : statistics;
    const decoder = await quantizeDecoder({
      config: source.config,
      weights: source.weights,
      embed: source.embed,
      statistics: own,
      windows,
      recipe: { ...recipe, rotation: rotated ? 'hadamard' : 'none' },
      ...formatOf('tflite'),
      kernels: wasmKernels,
      threads: 2,
      cacheKey: rotated ? { ...key, rotation: 'hadamard' } : key,
    });
    const quantized = (performance.now() - started) / 1000;
    const table = join(tmpdir(), `npuc-bench-${process.pid}.bin`);
    writeEmbedding(table, decoder.migration.weights.get('model.embed_tokens.weight'), 'i8-per-row', wasmKernels);
    const embedding = openEmbedding(table, 'i8-per-row');
    const session = (graphs) =>
      new DecoderSession({
        protocol: makeProtocol(decoder.config, decoder.contract, CACHE),
        graphs,
        embedding: embedding.lookup,
      });
    const request = { name: 'score', tokens: TOKENS, cache: CACHE, logits: 'all' };
    const runner = await openTemporary(lowerDecoder(decoder, [request], 'float'), 'score');
    const litert = await runText(session(new Map([[TOKENS, runner]])), ids, prefix);
    const imitated = await runText(session(new Map([[TOKENS, await openImitation(decoder, request)]])), ids, prefix);
    const artifact = await measureArtifact(decoder, session, ids, prefix, litert);
    // The same encodings as real numbers, without the kernels' tables and multipliers.
    const exact = isDynamic(recipe)
      ? undefined
      : await runText(session(new Map([[TOKENS, await openModule(decoder.stamp(request))]])), ids, prefix);
    embedding.close();
    const back = compare(litert, imitated);
    const cost = compare(imitated, floatLogits).divergence;
    const real = compare(floatLogits, litert);
    const row = {
      model: name,
      scheme,
      rotated,
      tokens: litert.length,
      ratio: real.ratio,
      divergence: real.divergence,
      top: real.topAgreement,
      cost,
      ...(exact ? { exact: compare(floatLogits, exact).divergence } : {}),
      back: back.divergence,
      dB: back.sqnr,
      artifact,
      quantized,
      seconds: (performance.now() - started) / 1000,
    };
    console.error(JSON.stringify(row));
    rows.push(row);
  }
  model.checkpoint.close();
  return rows;
}

/** The artifact's own three signatures on a prompt of 128 + 32 + 2 tokens, against the logits of the text: the largest dB. */
async function measureArtifact(decoder, session, ids, prefix, expected) {
  const requests = [
    { name: 'prefill_128', tokens: 128, cache: CACHE, logits: 'none' },
    { name: 'prefill_32', tokens: 32, cache: CACHE, logits: 'none' },
    { name: 'decode', tokens: 1, cache: CACHE, logits: 'all' },
  ];
  const path = join(tmpdir(), `npuc-bench-${process.pid}.tflite`);
  writeTflite(path, lowerDecoder(decoder, requests, 'float'));
  const model = await loadLitert(path);
  const graphs = requests.map(({ name, tokens, cache }) => {
    const signature = model.signatures[name];
    const { inputs, outputs } = signature;
    const close = async () => {};
    return { tokens, cache, runner: { engine: model.engine, inputs, outputs, run: signature.run, close } };
  });
  const opened = session(graphs);
  const count = 128 + 32 + 2 - prefix.length;
  const got = await opened.feed([...prefix, ...ids.slice(0, count)], 'last');
  model.dispose();
  const logits = Array.isArray(got) ? got.at(-1) : got;
  const wanted = expected[count - 1].logits;
  let [signal, noise] = [0, 0];
  wanted.forEach((each, i) => {
    signal += each * each;
    noise += (each - logits[i]) ** 2;
  });
  return 10 * Math.log10(signal / noise);
}

const rows = [];
for (const name of flags.model.split(',')) rows.push(...(await measureModel(name)));
const exponent = (x) => (x === 0 ? '0' : x.toExponential(1));
const decibels = (x) => (x === Number.POSITIVE_INFINITY ? 'exact' : x.toFixed(1));
const lines = rows.map((row) =>
  [
    row.model,
    row.scheme + (row.rotated ? ', rotated' : ''),
    row.ratio.toFixed(4),
    row.divergence.toFixed(4),
    row.exact === undefined ? '' : row.exact.toFixed(4),
    `${(100 * row.top).toFixed(1)} %`,
    exponent(row.cost),
    exponent(row.back),
    (row.back / row.cost).toFixed(4),
    decibels(row.dB),
    decibels(row.artifact),
  ].join(' | '),
);
const report = `# Decoders in LiteRT

    ${`node bench/tflite-decoders.mjs --model ${flags.model} --tokens ${flags.tokens} --cache ${flags.cache} --write`}

Held-out text of ${flags.tokens} tokens, windows of ${CACHE}. KL in nats a token. "Imitation" is the same integers computed by plain
arithmetic (docs/litert.md), "real" the encodings without the kernels' tables; the share is what LiteRT differs from the
imitation by, of what quantization costs. The last column: the artifact's prefill_128, prefill_32 and decode signatures against the graph that the text was run on.

| model | scheme | perplexity ratio | KL(float, LiteRT) | KL(float, real) | same top token | KL(imitation, float) | KL(LiteRT, imitation) | share | dB to the imitation | signatures, dB |
|---|---|---|---|---|---|---|---|---|---|---|
${lines.map((line) => `| ${line} |`).join('\n')}
`;
console.log(report);
if (flags.write) {
  const path = fileURLToPath(new URL('results/tflite-decoders.md', import.meta.url));
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, report);
}

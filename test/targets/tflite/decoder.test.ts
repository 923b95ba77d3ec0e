import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { GraphRequest, QuantizedDecoder } from '../../../calibration/quantize-decoder.ts';
import { hasFloatActivations } from '../../../calibration/recipe.ts';
import { describePath } from '../../../cli/jobs/describe-file.ts';
import { halfToNumber } from '../../../compiler/ir/dtype.ts';
import { wasmKernels } from '../../../compiler/kernels/index.ts';
import { DecoderSession, quantizeValues } from '../../../compiler/runtime/decoder-session.ts';
import { generateGreedy } from '../../../compiler/runtime/generate.ts';
import { loadLitert, openLitert } from '../../../compiler/runtime/litert.ts';
import type { Runner } from '../../../compiler/runtime/runner.ts';
import type { LogitReport } from '../../../evaluation/logits.ts';
import { evaluateLogits } from '../../../evaluation/perplexity.ts';
import { makeProtocol } from '../../../passes/protocol.ts';
import { openEmbedding, writeEmbedding } from '../../../targets/embedding-file.ts';
import { graphRequests } from '../../../targets/graph-requests.ts';
import type { TfliteModel, TfliteSubgraph, TfliteTensor } from '../../../targets/tflite/model.ts';
import { readTflite } from '../../../targets/tflite/read.ts';
import { operatorName, tensorTypeName } from '../../../targets/tflite/schema-enums.ts';
import { lowerDecoder, tfliteTarget } from '../../../targets/tflite/tflite-target.ts';
import { encodeTflite } from '../../../targets/tflite/write.ts';
import { CHECKPOINTS, emitContext, makeBiasedDecoder, openSmallDecoder, type SmallDecoder } from '../small-decoder.ts';
import { openImitation } from './imitation.ts';

const [TOKENS, CACHE] = [32, 128];

/** Tokens of text: predictions are a few less. */
const HELD_OUT = 256;

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-tflite-'));
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

interface Comparison {
  readonly litert: LogitReport;
  readonly imitated: LogitReport;
  /** KL(imitated || float): what quantization costs. */
  readonly cost: number;
  /** The imitation against LiteRT: its divergence is KL(LiteRT || imitated). */
  readonly twin: LogitReport;
}

/**
 * Logits of held-out text: LiteRT against an imitation of its quantized kernels, and both against the float model.
 */
async function compare(
  small: SmallDecoder,
  decoder: QuantizedDecoder,
  tokens = TOKENS,
  cache = CACHE,
): Promise<Comparison> {
  const request: GraphRequest = { name: 'score', tokens, cache, logits: 'all' };
  const path = join(work, 'embedding.bin');
  const form = decoder.recipe.scheme === 'fp16' ? 'f16' : 'i8-per-row';
  writeEmbedding(path, decoder.migration.weights.get('model.embed_tokens.weight')!, form, wasmKernels);
  const embedding = openEmbedding(path, form);
  const sessionOf = (runner: Runner): DecoderSession =>
    new DecoderSession({
      protocol: makeProtocol(small.config, decoder.contract, cache),
      graphs: new Map([[tokens, runner]]),
      embedding: embedding.lookup,
    });
  const litert = sessionOf(await openLitert(encodeTflite(lowerDecoder(decoder, [request], 'float')), 'score'));
  const imitated = sessionOf(await openImitation(decoder, request));
  const text = small.text.slice(0, HELD_OUT);
  const float = await small.openFloat(tokens, cache);
  const options = { window: cache, prefix: small.prefix };
  const against = await evaluateLogits(
    float,
    new Map([
      ['litert', litert],
      ['imitated', imitated],
    ]),
    text,
    options,
  );
  const twin = await evaluateLogits(litert, new Map([['imitated', imitated]]), text, options);
  const cost = await evaluateLogits(imitated, new Map([['float', float]]), text, options);
  for (const session of [litert, imitated, float]) await session.close();
  embedding.close();
  return {
    litert: against.get('litert')!,
    imitated: against.get('imitated')!,
    cost: cost.get('float')!.divergence,
    twin: twin.get('imitated')!,
  };
}

/**
 * dB to the imitation that a scheme must keep, and how far its perplexity may be from the float model's and the imitation's.
 * Of integers it is all or nothing: after the first one that falls to the other side of a tie, two runs part. Sums of blocks are
 * of floats.
 */
const SCHEMES = [
  ['w8a16', 120, 0.02, 0.0001],
  ['w4a16', 120, 0.1, 0.0001],
  ['w8a8', 120, 0.1, 0.0001],
  ['dynamic-int8', 120, 0.02, 0.0001],
  ['dynamic-int4', 30, 0.1, 0.01],
  ['fp16', 100, 0.001, 0.0001],
] as const;

/** FULLY_CONNECTED of 8-bit weights under a scheme's activations. */
const VERSIONS: Readonly<Record<string, number>> = { w8a16: 7, w4a16: 7, fp16: 5, 'dynamic-int8': 12 };

/** Whether a number is one that the upper half of its 32 bits holds. */
function isBfloat(value: number): boolean {
  return (new Uint32Array(Float32Array.of(value).buffer)[0]! & 0xffff) === 0;
}

/** What LiteRT may differ from the imitation by, as a share of what quantization costs. */
const SHARE = 0.1;

describe.each(CHECKPOINTS)('$name', { timeout: 300_000 }, ({ source }) => {
  let small: SmallDecoder;
  const decoders = new Map<string, QuantizedDecoder>();
  beforeAll(async () => {
    small = await openSmallDecoder(source());
    for (const [scheme] of SCHEMES) decoders.set(scheme, await small.quantize(scheme, 'tflite'));
  }, 300_000);
  afterAll(() => small.model!.checkpoint.close());

  test.each(SCHEMES)(
    '%s computes in LiteRT what the imitation of its kernels computes',
    async (scheme, decibels, slack, twinSlack) => {
      const { litert, imitated, twin, cost } = await compare(small, decoders.get(scheme)!);
      console.log(
        `${scheme}: ${twin.sqnr.toFixed(1)} dB, KL ${twin.divergence.toExponential(1)} to the imitation, which costs ` +
          `${cost.toExponential(1)}; to float LiteRT ${litert.ratio.toFixed(4)}, imitation ${imitated.ratio.toFixed(4)}`,
      );
      expect(twin.predictions).toBeGreaterThan(200);
      expect(twin.sqnr).toBeGreaterThan(decibels);
      expect(Math.abs(litert.ratio - 1)).toBeLessThan(slack);
      expect(Math.abs(litert.ratio / imitated.ratio - 1)).toBeLessThan(twinSlack);
      // Half floats cost next to nothing: what is left is the order of sums.
      if (scheme !== 'fp16') expect(twin.divergence).toBeLessThan(SHARE * cost);
    },
  );

  test.each(SCHEMES)('%s generates from its folder, with float and with integer ports', async (scheme) => {
    const decoder = decoders.get(scheme)!;
    const prompt = [...small.prefix, ...small.text.slice(0, TOKENS + 5)];
    const float = await small.openFloat(TOKENS, CACHE);
    const expected = await generateGreedy(float, prompt, 12);
    await float.close();
    const texts: number[][] = [];
    for (const io of ['float', 'quantized'] as const) {
      const out = join(work, `${scheme}-${io}`);
      const target = await tfliteTarget.emit(decoder, emitContext(out, TOKENS, CACHE, io));
      const isInteger = io === 'quantized' && !hasFloatActivations({ scheme });
      expect(target.files).toHaveLength(isInteger ? 3 : 2);
      expect(target.graphs[0]!.file).toBe(isInteger ? 'tflite/model.quantized-io.tflite' : 'tflite/model.tflite');
      expect(Object.keys(target.ports).length > 0).toBe(isInteger);
      const session = await tfliteTarget.open(out, target, {});
      texts.push(await generateGreedy(session, prompt, 12));
      await session.close();
    }
    const agreeing = texts.map((ids) => ids.findIndex((id, i) => id !== expected[i]));
    console.log(`${scheme}: same tokens as float ${agreeing.map((at) => (at < 0 ? 12 : at)).join(' and ')} of 12`);
    expect(texts[0]).toHaveLength(12);
    if (scheme === 'w8a16' || scheme === 'fp16') {
      expect(texts[0]).toEqual(expected);
      expect(texts[1]).toEqual(expected);
    }
  });

  test('prefill and decode share every weight, and store each once', () => {
    for (const [scheme] of SCHEMES) {
      const decoder = decoders.get(scheme)!;
      const both = lowerDecoder(decoder, graphRequests({ tokens: [TOKENS], caches: [CACHE] }), 'float');
      const decode = lowerDecoder(decoder, graphRequests({ tokens: [], caches: [CACHE] }), 'float');
      const [prefill, single] = both.subgraphs;
      const names = new Map(single!.tensors.map((tensor) => [tensor.name.replace('decode/', ''), tensor]));
      const shared = prefill!.tensors.filter(({ buffer }) => sizeOf(both, buffer) >= 64);
      expect(shared.length).toBeGreaterThan(small.config.layers * 6);
      // Scales of blocks are a tensor of each subgraph over one buffer.
      const formOf = (graph: TfliteSubgraph, { buffer, type, quantization }: TfliteTensor): unknown => {
        const details = quantization?.details;
        if (details?.kind !== 'BlockwiseQuantization') return [buffer, type, quantization];
        return [buffer, type, details.blockSize, graph.tensors[details.scales!]!.buffer];
      };
      for (const tensor of shared) {
        const other = names.get(tensor.name.replace(`prefill_${TOKENS}/`, ''))!;
        expect(formOf(single!, other), tensor.name).toEqual(formOf(prefill!, tensor));
      }
      // What a second signature adds to the constants is its shapes, permutations and the like.
      const added = totalBytes(both) - totalBytes(decode);
      expect(added).toBeLessThan(2048);
      expect(new Set(both.buffers.slice(1).map((bytes) => digestOf(bytes!))).size).toBe(both.buffers.length - 1);
    }
  });

  test('every cache has one scale in all signatures, past and new', () => {
    for (const scheme of ['w8a16', 'w8a8'] as const) {
      const model = lowerDecoder(
        decoders.get(scheme)!,
        graphRequests({ tokens: [TOKENS], caches: [CACHE] }),
        'quantized',
      );
      for (let layer = 0; layer < small.config.layers; layer++) {
        for (const kind of ['k', 'v']) {
          const tensors = model.signatures.flatMap(({ subgraph, inputs, outputs }) =>
            [...inputs, ...outputs]
              .filter(({ name }) => name === `kv_cache_${kind}_${layer}` || name === `kv_slice_${kind}_${layer}`)
              .map(({ tensor }) => model.subgraphs[subgraph]!.tensors[tensor]!),
          );
          // The last layer's past is no input of a prefill graph that gives no logits.
          expect(tensors.length).toBe(layer === small.config.layers - 1 ? 3 : 4);
          const forms = new Set(
            tensors.map(
              ({ type, quantization }) => `${type} ${quantization!.scale![0]} ${quantization!.zeroPoint![0]}`,
            ),
          );
          expect(forms.size, `${kind}_${layer}`).toBe(1);
        }
      }
    }
  });

  test('signatures list their subgraph exactly, in the order of the contract', () => {
    const model = lowerDecoder(decoders.get('w8a16')!, graphRequests({ tokens: [TOKENS], caches: [CACHE] }), 'float');
    expect(model.signatures.map(({ key, subgraph }) => [key, subgraph])).toEqual([
      [`prefill_${TOKENS}`, 0],
      ['decode', 1],
    ]);
    for (const { subgraph, inputs, outputs } of model.signatures) {
      const graph = model.subgraphs[subgraph]!;
      expect(inputs.map(({ tensor }) => tensor)).toEqual(graph.inputs);
      expect(outputs.map(({ tensor }) => tensor)).toEqual(graph.outputs);
    }
    const layers = Array.from({ length: small.config.layers }, (_, layer) => layer);
    const decode = model.signatures[1]!;
    expect(decode.inputs.map(({ name }) => name)).toEqual([
      'embeds',
      'mask',
      'pos_emb_cos',
      'pos_emb_sin',
      ...layers.flatMap((layer) => [`kv_cache_k_${layer}`, `kv_cache_v_${layer}`]),
    ]);
    expect(decode.outputs.map(({ name }) => name)).toEqual([
      'logits',
      ...layers.flatMap((layer) => [`kv_slice_k_${layer}`, `kv_slice_v_${layer}`]),
    ]);
  });

  test('integer ports give the bits that stand between the conversions of float ports', async () => {
    for (const scheme of ['w8a16', 'w8a8'] as const) {
      const decoder = decoders.get(scheme)!;
      const requests = graphRequests({ tokens: [TOKENS], caches: [CACHE] });
      const [float, integer] = (['float', 'quantized'] as const).map((ports) =>
        lowerDecoder(decoder, requests, ports),
      ) as [TfliteModel, TfliteModel];
      expect(integer.signatures.map(portNames)).toEqual(float.signatures.map(portNames));
      expect(coreOperators(float)).toEqual(coreOperators(integer));
      const [floats, integers] = await Promise.all([float, integer].map((model) => loadLitert(encodeTflite(model))));
      for (const request of requests) {
        const graph = decoder.stamp(request).graph();
        const encodings = new Map([...graph.inputs, ...graph.outputs].map((value) => [value.name, value.encoding!]));
        const [a, b] = [floats!.signatures[request.name]!, integers!.signatures[request.name]!];
        let seed = 1;
        const feeds = a.inputs.map(({ name, shape }) => {
          const encoding = encodings.get(name)!;
          const size = shape.reduce((product, dim) => product * dim, 1);
          const [scale, zero] = [encoding.scale[0]!, encoding.zeroPoint?.[0] ?? 0];
          const data = quantizeValues(
            Float32Array.from({ length: size }, () => {
              seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
              return ((seed / 2 ** 31 - 1) * 100 - zero) * scale;
            }),
            encoding,
          );
          return { name, shape, encoding, data };
        });
        const asFloats = await a.run(
          Object.fromEntries(
            feeds.map(({ name, shape, encoding, data }) => {
              const zero = encoding.zeroPoint?.[0] ?? 0;
              const real = Float32Array.from(data as Int16Array, (q) => Math.fround((q - zero) * encoding.scale[0]!));
              return [name, { dtype: 'f32' as const, shape, data: real }];
            }),
          ),
        );
        const asIntegers = await b.run(
          Object.fromEntries(
            feeds.map(({ name, shape, encoding, data }) => [name, { dtype: encoding.dtype, shape, data }]),
          ),
        );
        for (const { name } of a.outputs) {
          const encoding = encodings.get(name)!;
          expect(asIntegers[name]!.dtype).toBe(encoding.dtype);
          const back = quantizeValues(asFloats[name]!.data as Float32Array, encoding);
          expect(Buffer.from(back.buffer).equals(Buffer.from(asIntegers[name]!.data.buffer)), `${scheme} ${name}`).toBe(
            true,
          );
          expect(new Set(back as Int16Array).size, `${name} varies`).toBeGreaterThan(8);
        }
      }
      floats!.dispose();
      integers!.dispose();
    }
  });

  test('is the same bytes in any folder', async () => {
    const decoder = await small.quantize('w4a16', 'tflite');
    const digests = [];
    for (const name of ['here', 'another folder']) {
      const out = join(work, name);
      mkdirSync(out);
      const { files } = await tfliteTarget.emit(
        name === 'here' ? decoder : decoders.get('w4a16')!,
        emitContext(out, TOKENS, CACHE, 'quantized'),
      );
      digests.push(
        files.map((file) =>
          createHash('sha256')
            .update(readFileSync(join(out, file)))
            .digest('hex'),
        ),
      );
      rmSync(out, { recursive: true });
    }
    expect(digests[0]).toHaveLength(3);
    expect(digests[1]).toEqual(digests[0]);
  });

  test('dynamic int4 has blocks of half-float scales that the kernel does not round', () => {
    const decoder = decoders.get('dynamic-int4')!;
    const model = lowerDecoder(decoder, graphRequests({ tokens: [], caches: [CACHE] }), 'float');
    const [graph] = model.subgraphs;
    const products = graph!.operators.filter(({ code }) => operatorName(code) === 'FULLY_CONNECTED');
    const kinds = new Map<string, number>();
    for (const product of products) {
      const weight = graph!.tensors[product.inputs[1]!]!;
      const details = weight.quantization!.details;
      const blocks = details?.kind === 'BlockwiseQuantization' ? details : undefined;
      const kind = `${tensorTypeName(weight.type)}${blocks ? ` block ${blocks.blockSize}` : ''}`;
      kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
      if (!blocks) continue;
      const scales = graph!.tensors[blocks.scales!]!;
      expect([tensorTypeName(scales.type), scales.shape]).toEqual([
        'FLOAT16',
        [weight.shape[0], weight.shape[1]! / blocks.blockSize!],
      ]);
      const bytes = model.buffers[scales.buffer] as Uint8Array | { write(sink: (chunk: Uint8Array) => void): void };
      const halves: number[] = [];
      const read = (chunk: Uint8Array): void => {
        halves.push(...new Uint16Array(chunk.slice().buffer));
      };
      if (bytes instanceof Uint8Array) read(bytes);
      else bytes.write(read);
      // XNNPACK packs scales as bfloat16: 7 bits behind the first.
      expect(halves).toHaveLength(scales.shape[0]! * scales.shape[1]!);
      expect(halves.every((half) => isBfloat(halfToNumber(half)))).toBe(true);
    }
    // What 32 does not divide has 8 bits: down_proj of stories260k has 172 inputs.
    const whole = small.config.intermediateSize % 32 === 0 ? 7 : 6;
    expect(kinds.get('INT4 block 32')).toBe(whole * small.config.layers);
    expect(kinds.get('INT8')).toBe((7 - whole) * small.config.layers + 1);
    expect(decoder.plan.remarks).toHaveLength((7 - whole) * small.config.layers);
  });

  test('reads back with the types that the scheme names', async () => {
    const expected: Readonly<Record<string, { activation: string; weight: string; head: string; bias?: string }>> = {
      w8a16: { activation: 'INT16', weight: 'INT8', head: 'INT8' },
      w4a16: { activation: 'INT16', weight: 'INT4', head: 'INT8' },
      fp16: { activation: 'FLOAT32', weight: 'FLOAT32', head: 'FLOAT32' },
      'dynamic-int8': { activation: 'FLOAT32', weight: 'INT8', head: 'INT8' },
    };
    for (const [scheme, types] of Object.entries(expected)) {
      const out = join(work, `types-${scheme}`);
      await tfliteTarget.emit(decoders.get(scheme)!, emitContext(out, TOKENS, CACHE));
      const path = join(out, 'tflite/model.tflite');
      const model = readTflite(readFileSync(path), path);
      const decode = model.subgraphs[1]!;
      const products = decode.operators.filter(({ code }) => operatorName(code) === 'FULLY_CONNECTED');
      expect(products).toHaveLength(7 * small.config.layers + 1);
      const typeOf = (index: number): string => tensorTypeName(decode.tensors[index]!.type);
      for (const [i, product] of products.entries()) {
        expect(typeOf(product.inputs[0]!)).toBe(types.activation);
        expect(typeOf(product.outputs[0]!)).toBe(types.activation);
        expect(typeOf(product.inputs[1]!)).toBe(i === products.length - 1 ? types.head : types.weight);
        expect(product.version).toBe(scheme === 'w4a16' && i < products.length - 1 ? 13 : VERSIONS[scheme]);
        const weight = decode.tensors[product.inputs[1]!]!;
        const bytes = sizeOf(model, weight.buffer);
        const elements = weight.shape.reduce((a, b) => a * b, 1);
        if (scheme === 'fp16') expect(bytes).toBe(0);
        else expect(bytes).toBe(typeOf(product.inputs[1]!) === 'INT4' ? Math.ceil(elements / 2) : elements);
      }
      if (scheme === 'fp16') {
        const halves = decode.tensors.filter((tensor) => tensorTypeName(tensor.type) === 'FLOAT16');
        expect(halves).toHaveLength(products.length);
        for (const half of halves) expect(sizeOf(model, half.buffer)).toBe(2 * half.shape.reduce((a, b) => a * b, 1));
      }
      const { kind, lines } = await describePath(path, false);
      expect(kind).toBe('tflite');
      const text = lines.join('\n');
      expect(text).toContain(`signature prefill_${TOKENS}`);
      expect(text).toContain(`FULLY_CONNECTED ${products.length}`);
      expect(text).toMatch(/composite odml.rms_norm {2}\d+ bodies of .*RSQRT 1/);
      expect(text).toContain(`in   embeds FLOAT32[1,1,${small.config.hiddenSize}]`);
    }
  });
});

describe('a decoder with attention biases', { timeout: 120_000 }, () => {
  let small: SmallDecoder;
  beforeAll(async () => {
    small = await makeBiasedDecoder();
  });

  test.each([
    ['w8a16', 45],
    ['w8a8', 12],
    ['fp16', 100],
  ] as const)('%s adds them inside FULLY_CONNECTED', async (scheme, decibels) => {
    const decoder = await small.quantize(scheme, 'tflite');
    const model = lowerDecoder(decoder, [{ name: 'g', tokens: 1, cache: 16, logits: 'all' }], 'float');
    const graph = model.subgraphs[0]!;
    const biases = graph.operators
      .filter(({ code, inputs }) => operatorName(code) === 'FULLY_CONNECTED' && inputs[2] !== -1)
      .map(({ inputs }) => tensorTypeName(graph.tensors[inputs[2]!]!.type));
    const type = { w8a16: 'INT64', w8a8: 'INT32', fp16: 'FLOAT32' }[scheme];
    expect(biases).toEqual(new Array(3 * small.config.layers).fill(type));
    const { litert, imitated, twin } = await compare(small, decoder, 8, 48);
    console.log(
      `${scheme}: ${twin.sqnr.toFixed(1)} dB to the imitation; to float LiteRT ${litert.sqnr.toFixed(1)} dB, imitation ${imitated.sqnr.toFixed(1)} dB`,
    );
    expect(twin.sqnr).toBeGreaterThan(decibels);
    expect(litert.sqnr).toBeGreaterThan(imitated.sqnr - 3);
  });

  test('keys and values at 16 bits are converted before an 8-bit cache', async () => {
    const overrides = [{ match: 'k_rope|v_proj', activation: 16 }] as const;
    const decoder = await small.quantize('w8a8', 'tflite', { overrides });
    const { twin } = await compare(small, decoder, 8, 48);
    expect(twin.sqnr).toBeGreaterThan(12);
    const { inputs } = decoder.stamp({ name: 'g', tokens: 1, cache: 16 }).graph();
    expect(inputs.filter(({ name }) => name.startsWith('kv_cache')).map(({ encoding }) => encoding!.dtype)).toEqual(
      new Array(4).fill('i8'),
    );
  });
});

function sizeOf(model: TfliteModel, buffer: number): number {
  return model.buffers[buffer]?.byteLength ?? 0;
}

function totalBytes(model: TfliteModel): number {
  return model.buffers.reduce((sum, bytes) => sum + (bytes?.byteLength ?? 0), 0);
}

function digestOf(bytes: NonNullable<TfliteModel['buffers'][number]>): string {
  const hash = createHash('sha256');
  if (bytes instanceof Uint8Array) hash.update(bytes);
  else bytes.write((chunk) => hash.update(chunk));
  return hash.digest('hex');
}

function portNames({ key, inputs, outputs }: TfliteModel['signatures'][number]): unknown {
  return [key, inputs.map(({ name }) => name), outputs.map(({ name }) => name)];
}

/** Operators of every subgraph but the conversions at its ports. */
function coreOperators(model: TfliteModel): unknown {
  return model.subgraphs.map((graph) => {
    const isFloat = (index: number): boolean =>
      tensorTypeName((graph.tensors[index] as TfliteTensor).type) === 'FLOAT32';
    return graph.operators
      .filter(({ inputs, outputs }) => {
        const atInput = graph.inputs.includes(inputs[0]!) && isFloat(inputs[0]!);
        const atOutput = graph.outputs.includes(outputs[0]!) && isFloat(outputs[0]!);
        return !(atInput || atOutput);
      })
      .map(({ code, version }) => `${operatorName(code)} ${version}`);
  });
}

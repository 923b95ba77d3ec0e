import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { quantizeGraph } from '../../../../calibration/quantize-graph.ts';
import { litertFormat, makeRecipe } from '../../../../calibration/recipe.ts';
import { randomSamples } from '../../../../calibration/samples.ts';
import { type AddNpuInputs, addDecoderNpu, addModelNpu } from '../../../../cli/jobs/add-npu.ts';
import { describePath } from '../../../../cli/jobs/describe-file.ts';
import { parseModule } from '../../../../compiler/ir/text.ts';
import { wasmKernels } from '../../../../compiler/kernels/index.ts';
import { createProgress } from '../../../../compiler/progress.ts';
import type { NpuReport } from '../../../../evaluation/compare-npu.ts';
import { describeNpu } from '../../../../evaluation/describe-npu.ts';
import { contractRequests } from '../../../../targets/graph-requests.ts';
import { requireToolchain } from '../../../../targets/qnn/toolchain.ts';
import { findSoc } from '../../../../targets/socs.ts';
import type { ManifestTarget } from '../../../../targets/target.ts';
import { lowerGraphs } from '../../../../targets/tflite/lower-graph.ts';
import { applyPlugin } from '../../../../targets/tflite/npu/apply-plugin.ts';
import { checkNpu, type NpuOptions } from '../../../../targets/tflite/npu/compile-npu.ts';
import { writeElf } from '../../../../targets/tflite/npu/write-elf.ts';
import { tfliteModelTarget } from '../../../../targets/tflite/tflite-model.ts';
import { tfliteTarget } from '../../../../targets/tflite/tflite-target.ts';
import { writeTflite } from '../../../../targets/tflite/write.ts';
import { hasMaterial, materialPath } from '../../../material.ts';
import { emitContext, openSmallDecoder, type SmallDecoder } from '../../small-decoder.ts';
import { hasPlugins } from './litert-or-skip.ts';

const [TOKENS, CACHE] = [16, 64];
const SHAPES = { shapes: { tokens: [TOKENS], caches: [CACHE] }, split: 'auto' } as const;
const BOTH: NpuOptions['requests'] = [
  { vendor: 'qualcomm', soc: 'SM8750' },
  { vendor: 'openvino', soc: 'LNL' },
];

let work: string;
let made = 0;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-npu-'));
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

function freshFolder(): string {
  const folder = join(work, String(made++));
  mkdirSync(join(folder, 'tflite'), { recursive: true });
  return folder;
}

function inputs(npu: Partial<NpuOptions>, out: string): AddNpuInputs {
  return { npu: { requests: BOTH, claims: false, ...npu }, out, progress: createProgress('quiet') };
}

async function compileDecoder(
  small: SmallDecoder,
  scheme: string,
  npu: Partial<NpuOptions> = {},
  ids: readonly number[] | null = [...small.prefix, ...small.text],
): Promise<{ out: string; manifest: ManifestTarget; reports: readonly NpuReport[] }> {
  const decoder = await small.quantize(scheme, 'tflite');
  const out = freshFolder();
  const plain = await tfliteTarget.emit(decoder, emitContext(out, TOKENS, CACHE));
  return { out, ...(await addDecoderNpu(plain, decoder, SHAPES, ids ?? undefined, inputs(npu, out))) };
}

/** dB of the logits that each vendor's engine must keep: both compute int16 and int8 otherwise than LiteRT's kernels. */
const SCHEMES = [
  ['w8a16', 45, 38],
  ['w4a16', 41, 38],
  ['w8a8', 22, 22],
  // Blocks of 32, which no plugin has: sums of products.
  ['dynamic-int4', 40, 36],
] as const;

describe.skipIf(!hasPlugins || !hasMaterial)('stories260k', () => {
  let small: SmallDecoder;
  /** Output folder of the first compile at w8a16. */
  let first: string;
  beforeAll(async () => {
    small = await openSmallDecoder(materialPath('stories260k', 'hf'));
  }, 60_000);

  test.each(SCHEMES)(
    '%s is one partition a signature for Qualcomm and OpenVINO, and runs',
    async (scheme, ...least) => {
      const { out, manifest, reports } = await compileDecoder(small, scheme);
      if (scheme === 'w8a16') first = out;
      expect(manifest.files).toEqual(
        expect.arrayContaining(['tflite/model.qualcomm-sm8750.tflite', 'tflite/model.openvino-lnl.tflite']),
      );
      expect(reports).toHaveLength(2);
      for (const [i, report] of reports.entries()) {
        expect(report.execution).toBe('executed');
        expect(report.signatures.map(({ name }) => name)).toEqual([`prefill_${TOKENS}`, 'decode']);
        for (const { operators, claimed, partitions, fallback } of report.signatures) {
          expect(operators).toBeGreaterThan(100);
          expect({ claimed, partitions, fallback }).toEqual({ claimed: operators, partitions: 1, fallback: [] });
        }
        const decode = report.runs.find(({ signature }) => signature === 'decode')!;
        expect(decode.runs).toBeGreaterThan(3);
        expect(decode.outputs.find(({ name }) => name.includes('logits'))!.sqnr).toBeGreaterThan(least[i]!);
        const prefill = report.runs.find(({ signature }) => signature !== 'decode')!;
        // New keys and values of the first layer come out of a few operators.
        expect(prefill.outputs.find(({ name }) => /_k_0/.test(name))!.sqnr).toBeGreaterThan(least[i]!);
      }
    },
    60_000,
  );

  test('the same model gives the same bytes in every folder', async () => {
    const { out, manifest } = await compileDecoder(small, 'w8a16', {}, null);
    for (const { file } of manifest.npu!)
      expect(readFileSync(join(out, file!)).equals(readFileSync(join(first, file!)))).toBe(true);
  }, 60_000);

  test('an old HTP leaves 16-bit products to the CPU, and says so', async () => {
    const { reports } = await compileDecoder(small, 'w8a16', { requests: [{ vendor: 'qualcomm', soc: 'SM8450' }] });
    const [report] = reports;
    const decode = report!.signatures.find(({ name }) => name === 'decode')!;
    expect(decode.partitions).toBeGreaterThan(2);
    expect(decode.claimed).toBe(decode.operators - decode.fallback.length);
    expect(new Set(decode.fallback.map(({ op }) => op))).toEqual(new Set(['BATCH_MATMUL']));
    for (const { reason } of decode.fallback) expect(reason).toMatch(/MatMul.* \(inputs i16\[.*\], i16\[.*\]\)$/);
    // Every partition ran from LiteRT's own values in front of it.
    expect(report!.runs[1]!.sqnr).toBeGreaterThan(25);
    expect(describeNpu(report!).join('\n')).toMatch(/qualcomm SM8450 leaves \d+ BATCH_MATMUL to the CPU/);
  }, 60_000);

  test("OpenVINO's plugin misreads the composite that is written out for it", async () => {
    const decoder = await small.quantize('w8a16', 'tflite');
    const requests = contractRequests(SHAPES.shapes, decoder.contract);
    const source = join(freshFolder(), 'composite.tflite');
    writeTflite(
      source,
      lowerGraphs(
        requests.map((request) => decoder.stamp(request).graph()),
        'float',
      ),
    );
    const options = { litert: requireToolchain('litert'), stage: 'compile' } as const;
    await expect(
      applyPlugin(source, `${source}.out`, { vendor: 'openvino', soc: 'LNL' }, options),
    ).rejects.toMatchObject({ code: 'TF302', message: expect.stringMatching(/do not have the same element type/) });
  }, 60_000);

  test("MediaTek's and Samsung's plugins say what they take; their compilers are missing by name", async () => {
    const requests: NpuOptions['requests'] = [
      { vendor: 'mediatek', soc: 'mt6989' },
      { vendor: 'samsung', soc: 'E9965' },
    ];
    const { manifest, reports } = await compileDecoder(small, 'w8a16', { requests, claims: true });
    for (const report of reports) {
      expect(report.execution).toBe('claims-only');
      expect(report.file).toBeUndefined();
      for (const { operators, claimed, partitions } of report.signatures)
        expect({ claimed, partitions }).toEqual({ claimed: operators, partitions: 1 });
      expect(describeNpu(report).join('\n')).toMatch(/claims only, nothing compiled/);
    }
    expect(manifest.files.filter((file) => /mediatek|samsung/.test(file))).toEqual([]);
    for (const [i, library] of ['libneuron_adapter.so', 'libgraph_wrapper.so'].entries()) {
      const wanted = { requests: requests.slice(i, i + 1), claims: false };
      const error = expect.objectContaining({ code: 'TF303', message: expect.stringContaining(library) });
      // Known before any work, and known from the plugin's own log where a folder does not have it.
      expect(() => checkNpu(wanted)).toThrow(error);
      await expect(compileDecoder(small, 'w8a16', { ...wanted, sdk: freshFolder() }, null)).rejects.toEqual(error);
    }
  }, 60_000);

  test("a vendor's own library is found where --npu-sdk says", async () => {
    const sdk = freshFolder();
    // Every function gives 0 and does nothing; the size of the result is written, because the plugin makes room for it.
    const nothing = Uint8Array.of(0x31, 0xc0, 0xc3);
    const sizeZero = Uint8Array.of(0x48, 0xc7, 0x06, 0, 0, 0, 0, 0x31, 0xc0, 0xc3);
    writeFileSync(
      join(sdk, 'libneuron_adapter.so'),
      writeElf(
        'libneuron_adapter.so',
        NEURON.map((name) => ({ name, kind: 'function', bytes: /Size$/.test(name) ? sizeZero : nothing })),
      ),
    );
    const requests: NpuOptions['requests'] = [{ vendor: 'mediatek', soc: 'mt6989' }];
    const { out, reports } = await compileDecoder(small, 'w8a16', { requests, sdk }, null);
    // Nothing that is compiled for MediaTek can be run here.
    expect(reports[0]).toMatchObject({
      execution: 'read-back-only',
      file: 'tflite/model.mediatek-mt6989.tflite',
      runs: [],
    });
    const { lines } = await describePath(join(out, reports[0]!.file!), false);
    expect(lines.filter((line) => / {4}Partition_\d {2}.* of byte code/.test(line))).toHaveLength(2);
  }, 60_000);
});

/** What the plugin looks up in MediaTek's library before it compiles. */
const NEURON = [
  ...['create', 'createWithOptions', 'finish', 'free', 'getCompiledNetworkSize', 'storeCompiledNetwork'].map(
    (name) => `NeuronCompilation_${name}`,
  ),
  ...['setOptimizationString', 'setPreference', 'setPriority', 'setOptimizationHint', 'getSupportedOperations'].map(
    (name) => `NeuronCompilation_${name}`,
  ),
  ...['addOperand', 'addOperation', 'create', 'finish', 'free', 'getExtensionOperandType'].map(
    (name) => `NeuronModel_${name}`,
  ),
  ...['getExtensionOperationType', 'identifyInputsAndOutputs', 'setName', 'setOperandValue'].map(
    (name) => `NeuronModel_${name}`,
  ),
  ...['setOperandSymmPerChannelQuantParams', 'setOperandPerChannelQuantParams', 'relaxComputationFloat32toFloat16'].map(
    (name) => `NeuronModel_${name}`,
  ),
  'Neuron_getVersion',
];

const graphOf = (middle: string): string => `npuir 1
opset 21

graph @main
  in %x : f32[1,8,16]
  %w : f32[16,16] = const rand(7, uniform -0.5 0.5)
  %h : f32[1,8,16] = MatMul(%x, %w)
  %e : f32[1,8,16] = ${middle}
  %v : f32[16,16] = const rand(8, uniform -0.5 0.5)
  %y : f32[1,8,16] = MatMul(%e, %v)
  out %y
`;

describe.skipIf(!hasPlugins)('a graph of any kind', () => {
  const compile = async (text: string, scheme: string, npu: Partial<NpuOptions> = {}) => {
    const module = parseModule(text);
    const { feeds } = randomSamples(module.graph(), 2, 1);
    const recipe = makeRecipe(scheme);
    tfliteModelTarget.lower(module, findSoc('SM8750'), recipe);
    const quantized = await quantizeGraph({ module, feeds, recipe, format: litertFormat, kernels: wasmKernels });
    const out = freshFolder();
    const soc = findSoc('SM8750');
    const plain = await tfliteModelTarget.emit(quantized, { out, soc, threads: 1 });
    return await addModelNpu(plain, quantized, feeds, inputs(npu, out));
  };

  test.each([
    ['w8a16', 60],
    ['w8a8', 30],
  ] as const)(
    '%s: whole on both, and close to LiteRT',
    async (scheme, least) => {
      const { reports } = await compile(graphOf('Tanh(%h)'), scheme);
      for (const { signatures, runs } of reports) {
        expect(signatures[0]).toMatchObject({ name: 'serving_default', partitions: 1, fallback: [] });
        expect(runs[0]!.runs).toBe(2);
        expect(runs[0]!.sqnr).toBeGreaterThan(least - 15);
      }
      expect(reports[0]!.runs[0]!.sqnr).toBeGreaterThan(least);
    },
    30_000,
  );

  test('a 16-bit depthwise convolution is taken as a convolution of groups', async () => {
    const text = `npuir 1
opset 21

graph @main
  in %x : f32[1,8,12,12]
  %w : f32[8,1,3,3] = const rand(7, uniform -0.5 0.5)
  %b : f32[8] = const rand(8, uniform -0.5 0.5)
  %y : f32[1,8,12,12] = Conv(%x, %w, %b) {group 8, pads [1,1,1,1]}
  out %y
`;
    const { reports } = await compile(text, 'w8a16', { requests: BOTH.slice(0, 1) });
    expect(reports[0]!.signatures[0]).toMatchObject({ partitions: 1, fallback: [] });
    expect(reports[0]!.runs[0]!.sqnr).toBeGreaterThan(55);
  }, 30_000);

  test('an operator without a form stays on the CPU between two partitions', async () => {
    const { reports } = await compile(graphOf('Exp(%h)'), 'w8a8', { requests: BOTH.slice(0, 1) });
    const [signature] = reports[0]!.signatures;
    expect(signature).toMatchObject({ partitions: 2, fallback: [{ op: 'EXP' }] });
    expect(signature!.claimed).toBe(signature!.operators - 1);
    expect(reports[0]!.runs[0]!.sqnr).toBeGreaterThan(25);
  }, 30_000);

  test('a graph of which nothing is taken is TF301, with the reason', async () => {
    const text = `npuir 1
opset 21

graph @main
  in %x : f32[1,8,16]
  %y : f32[1,8,16] = Exp(%x)
  out %y
`;
    await expect(compile(text, 'w8a8', { requests: BOTH.slice(0, 1) })).rejects.toMatchObject({
      code: 'TF301',
      message: expect.stringMatching(/takes no operator for SM8750\n {2}serving_default\/y: .*\[1,8,16\]/),
    });
  }, 30_000);
});

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { randomSamples } from '../../../calibration/samples.ts';
import { writeOnnx } from '../../../compiler/export/onnx.ts';
import { openOnnx } from '../../../compiler/import/onnx.ts';
import type { Module } from '../../../compiler/ir/graph.ts';
import { parseModule } from '../../../compiler/ir/text.ts';
import { wasmKernels } from '../../../compiler/kernels/index.ts';
import { runPasses } from '../../../compiler/pass.ts';
import { NativeHost } from '../../../compiler/runtime/ort-native.ts';
import { compareResults, worstSqnr } from '../../../evaluation/compare-runs.ts';
import {
  type Measurement,
  OpMeter,
  prepareLowered,
  prepareRaw,
  WIDTHS,
  type Width,
} from '../../../evaluation/measure-op.ts';
import { foldQdq } from '../../../passes/fold-qdq.ts';
import { PASSES } from '../../../passes/pipelines.ts';
import { checkGraph } from '../../../targets/qnn/check-graph.ts';
import { findSoc } from '../../../targets/socs.ts';
import { noise, perChannelMatmul, writeModel } from './tiny-onnx.ts';
import { toolchain } from './toolchain-or-skip.ts';

/**
 * Forms that the vendor's compiler refuses, or takes and computes wrongly. For each one: that it still is so (when a new
 * toolchain mends it, the test says so, and the rule can go), that the linter names it, and that what npuc makes of the same op
 * is right. `SOC=SM8850` asks another part.
 */
const SOC = findSoc(process.env.SOC ?? 'SM8650');

/** dB against ONNX Runtime on the same QDQ model, or that there are none. */
type Expected =
  | { readonly below: number /** Against float: the integers themselves are bad. */; readonly float?: true }
  | 'refused';

interface WrongForm {
  readonly name: string;
  /** The linter's code. */
  readonly code: string;
  readonly graph: string;
  readonly opset?: number;
  /** What comes of it as it is, by the width that it is quantized to. */
  readonly bad: Readonly<Partial<Record<Width, Expected>>>;
  /** dB that our lowering keeps, by width; absent: there is none, and the linter says so. */
  readonly good?: Readonly<Partial<Record<Width, number>>>;
}

const image = 'in %x : f32[1,8,12,12]';

/** Float graphs, as models have them. */
const FLOAT_FORMS: readonly WrongForm[] = [
  {
    name: 'Log at 16 bits',
    code: 'HTP013',
    graph: `${image}\n%a = Abs(%x)\n%k : f32[] = const 0.5\n%p = Add(%a, %k)\n%y = Log(%p)`,
    bad: { u16: { below: 10 } },
    good: { u8: 35, u16: 35, fp16: 55 },
  },
  {
    name: 'CumSum at 8 bits',
    code: 'HTP014',
    graph: 'in %x : f32[1,4,1024]\n%a = Abs(%x)\n%axis : i64[] = const 2\n%y = CumSum(%a, %axis)',
    bad: { u8: { below: 20 } },
    good: { u8: 60, u16: 60 },
  },
  {
    name: 'Softplus at 16 bits',
    code: 'HTP015',
    graph: `${image}\n%y = Softplus(%x)`,
    bad: { u16: { below: 45 } },
    good: { u8: 45, u16: 45 },
  },
  {
    name: 'Swish',
    code: 'HTP010',
    opset: 24,
    graph: `${image}\n%y = Swish(%x)`,
    bad: { u8: { below: 10 }, u16: { below: 10 } },
    good: { u8: 40, u16: 75 },
  },
  {
    name: 'Mish',
    code: 'HTP002',
    graph: `${image}\n%y = Mish(%x)`,
    bad: { u8: 'refused', u16: 'refused' },
    good: { u8: 40, u16: 50 },
  },
  {
    name: 'Pad with edges',
    code: 'HTP011',
    graph: `${image}\n%pads : i64[8] = const [0, 0, 1, 2, 0, 0, 1, 2]\n%y = Pad(%x, %pads) {mode "edge"}`,
    bad: { fp16: { below: 20 } },
    good: { u8: 40, u16: 70, fp16: 60 },
  },
  {
    name: 'nearest neighbours of a halved image',
    code: 'HTP012',
    graph: `${image}\n%s : f32[4] = const [1.0, 1.0, 0.5, 0.5]\n%y = Resize(%x, _, %s) {mode "nearest"}`,
    bad: { u16: { below: 10 } },
    good: { u8: 40, u16: 70, fp16: 60 },
  },
  {
    name: 'LayerNormalization without a bias',
    code: 'HTP017',
    graph: 'in %x : f32[1,6,16]\n%s : f32[16] = const rand(1, uniform 0.5 1.5)\n%y = LayerNormalization(%x, %s)',
    bad: { u16: 'refused' },
    good: { u16: 60 },
  },
  {
    name: 'LRN at 16 bits',
    code: 'HTP020',
    graph: `${image}\n%y = LRN(%x) {size 3, alpha 0.01, beta 0.75}`,
    bad: { u16: 'refused' },
    good: { u16: 35 },
  },
  {
    name: 'PRelu at 16 bits',
    code: 'HTP021',
    graph: `${image}\n%s : f32[8,1,1] = const rand(2, uniform 0.1 0.5)\n%y = PRelu(%x, %s)`,
    bad: { u16: 'refused' },
    good: { u16: 35 },
  },
  {
    name: 'Einsum at 16 bits',
    code: 'HTP022',
    graph: 'in %a : f32[1,4,8,16]\nin %b : f32[1,4,8,16]\n%y = Einsum(%a, %b) {equation "bhid,bhjd->bhij"}',
    bad: { u16: 'refused' },
    good: { u8: 35, u16: 65 },
  },
  {
    name: 'a sum from the end',
    code: 'HTP023',
    graph: `${image}\n%axis : i64[] = const 3\n%y = CumSum(%x, %axis) {reverse 1, exclusive 1}`,
    bad: { u16: 'refused' },
    good: { u16: 60 },
  },
  {
    name: 'Gemm with a factor',
    code: 'HTP026',
    graph: 'in %x : f32[6,32]\n%w : f32[32,24] = const rand(1, normal 0.2)\n%y = Gemm(%x, %w) {alpha 0.5}',
    bad: { u16: 'refused' },
    good: { u8: 35, u16: 65 },
  },
  {
    name: 'BatchNormalization behind a Relu',
    code: 'HTP016',
    graph: `${image}
%s : f32[8] = const rand(1, uniform 0.5 1.5)
%t : f32[8] = const rand(2, normal 0.5)
%m : f32[8] = const rand(3, normal 0.5)
%v : f32[8] = const rand(4, uniform 0.5 1.5)
%r = Relu(%x)
%y = BatchNormalization(%r, %s, %t, %m, %v)`,
    bad: { u16: 'refused' },
    good: { u8: 35, u16: 65 },
  },
  {
    name: 'a mask of the lowest number of a half float',
    code: 'HTP036',
    graph:
      'in %x : f32[1,4,8,8]\n%m : f32[8,8] = const rand(1, int 0 2)\n%k : f32[] = const -65504.0\n%n = Mul(%m, %k)\n%a = Add(%x, %n)\n%y = Softmax(%a)',
    bad: { u16: { below: 20, float: true } },
    good: { u16: 50 },
  },
  {
    name: 'Attention with a past',
    code: 'HTP027',
    opset: 23,
    graph:
      'in %q : f32[1,4,4,16]\nin %k : f32[1,2,4,16]\nin %v : f32[1,2,4,16]\nin %pk : f32[1,2,4,16]\nin %pv : f32[1,2,4,16]\n%y, %nk, %nv = Attention(%q, %k, %v, _, %pk, %pv)\nout %y\nout %nk\nout %nv',
    bad: { u16: 'refused' },
  },
];

interface EncodedForm {
  readonly name: string;
  /** The linter's code; absent where the form cannot leave the exporter, which writes zero points. */
  readonly code: string;
  readonly bad: { readonly graph: string; readonly expected: Expected };
  /** What is emitted in its place: a graph of its own, or the bad one after a pass. */
  readonly good: { readonly graph?: string; readonly pass?: string; readonly least: number };
}

const list = (count: number, at: (i: number) => number): string =>
  `[${Array.from({ length: count }, (_, i) => at(i)).join(', ')}]`;
const activation = 'q(u16, scale 0.00006, zero 32768)';
const wide = 'q(u16, scale 0.0006, zero 32768)';
const weightValues = (rows: number, columns: number): string => `f32[${rows},${columns}]`;
const uniform = 'const rand(3, uniform -0.7 0.7)';
const lpbq = `q(i4, axis 0, block 32, channel 1, scale ${list(32, (i) => (6 + (i % 5)) / 1000)}, blockscale ${list(64, (i) => 8 + (i % 7))})`;
const floatBlocks = `q(i4, axis 0, block 32, scale ${list(64, (i) => 0.09 + (i % 7) / 200)})`;

const matmul = (encoding: string, x = activation): string =>
  `in %x : f32[1,8,64] ${x}\n%w : ${weightValues(64, 32)} ${encoding} = ${uniform}\n%y : f32[1,8,32] ${wide} = MatMul(%x, %w)`;
const product = (a: string, b: string, y = wide): string =>
  `in %a : f32[1,4,8,16] ${a}\nin %b : f32[1,4,16,8] ${b}\n%y : f32[1,4,8,8] ${y} = MatMul(%a, %b)`;
const eight = 'q(u8, scale 0.008, zero 128)';

/** Graphs with encodings, as other tools write them. */
const ENCODED_FORMS: readonly EncodedForm[] = [
  {
    name: 'a product of two unsigned 16-bit values',
    code: 'HTP030',
    bad: { graph: product(activation, activation), expected: { below: 60 } },
    good: { pass: 'repair-encodings', least: 65 },
  },
  {
    name: 'a product of 8 with 16 bits',
    code: 'HTP031',
    bad: { graph: product(eight, activation, 'q(u8, scale 0.08, zero 128)'), expected: 'refused' },
    good: { graph: product(eight, activation), least: 55 },
  },
  {
    name: 'two-level weights in a Gemm with a bias',
    code: 'HTP034',
    bad: {
      graph: `in %x : f32[8,64] ${activation}\n%w : ${weightValues(64, 32)} ${lpbq} = ${uniform}\n%b : f32[32] = const rand(4, normal 0.2)\n%y : f32[8,32] ${wide} = Gemm(%x, %w, %b)`,
      expected: { below: 20 },
    },
    good: {
      graph: `in %x : f32[8,64] ${activation}\n%w : ${weightValues(64, 32)} ${lpbq} = ${uniform}\n%b : f32[32] q(u16, scale 0.00003, zero 32768) = const rand(4, normal 0.2)\n%m : f32[8,32] ${wide} = MatMul(%x, %w)\n%y : f32[8,32] ${wide} = Add(%m, %b)`,
      least: 70,
    },
  },
  {
    name: 'float block scales, in half floats',
    code: 'HTP035',
    bad: { graph: matmul(floatBlocks), expected: { below: 74 } },
    good: { graph: matmul(lpbq), least: 77 },
  },
  {
    name: 'float block scales with 8-bit activations',
    code: 'HTP035',
    bad: {
      graph: `in %x : f32[1,8,64] ${eight}\n%w : ${weightValues(64, 32)} ${floatBlocks} = ${uniform}\n%y : f32[1,8,32] q(u8, scale 0.08, zero 128) = MatMul(%x, %w)`,
      expected: 'refused',
    },
    good: {
      graph: `in %x : f32[1,8,64] ${eight}\n%w : ${weightValues(64, 32)} q(i8, axis 1, scale ${list(32, (i) => 0.006 + (i % 5) / 1000)}) = ${uniform}\n%y : f32[1,8,32] q(u8, scale 0.08, zero 128) = MatMul(%x, %w)`,
      least: 35,
    },
  },
];

const parse = (graph: string, opset = 21): Module =>
  parseModule(
    `npuir 1\nopset ${opset}\n\ngraph @form\n${graph}\n${/^out /m.test(graph) ? '' : 'out %y\n'}`.replace(
      /^(?!npuir|opset|graph)/gm,
      '  ',
    ),
  );

function expectBad(measurement: Measurement, expected: Expected): void {
  if (expected === 'refused') expect(measurement).toMatchObject({ kind: 'refused' });
  else
    expect(measurement.kind === 'computed' ? measurement[expected.float ? 'float' : 'twin'] : measurement).toBeLessThan(
      expected.below,
    );
}

function expectGood(measurement: Measurement, least: number): void {
  expect(measurement.kind === 'computed' ? measurement.twin : measurement).toBeGreaterThan(least);
}

describe.skipIf(!toolchain)('what HTP computes wrongly', { timeout: 60_000 }, () => {
  const meter = toolchain ? new OpMeter(toolchain, SOC) : undefined;
  const folder = mkdtempSync(join(tmpdir(), 'npuc-forms-'));
  afterAll(async () => {
    rmSync(folder, { recursive: true, force: true });
    await meter?.close();
  });

  describe.each(FLOAT_FORMS)('$name', ({ code, graph, opset, bad, good }) => {
    test.each(Object.entries(bad) as [Width, Expected][])(
      '%s: it is as bad as ever, and the linter says so',
      async (width, expected) => {
        const raw = prepareRaw(parse(graph, opset), SOC);
        expectBad(await meter!.measure(raw, width), expected);
        expect(checkGraph(raw.module, SOC, { scheme: WIDTHS[width] }).map((finding) => finding.code)).toContain(code);
      },
    );

    test.each(Object.entries(good ?? {}) as [Width, number][])('%s: ours is right', async (width, least) => {
      const lowered = prepareLowered(parse(graph, opset), SOC);
      expectGood(await meter!.measure(lowered, width), least);
      const left = checkGraph(lowered.module, SOC, { scheme: WIDTHS[width] });
      expect(left.filter(({ mend }) => mend?.kind !== 'quantization')).toEqual([]);
    });
  });

  test('4-bit weights without an input of zero points, as other exporters write them', async () => {
    // Ours writes them always, so this one file is made by hand.
    const write = (zeros: boolean): string => {
      const full = perChannelMatmul(8, 'i4');
      const nodes = full.nodes.map((node) =>
        zeros || node.name !== 'w_DQ' ? node : { ...node, inputs: ['w', 'w_scale'] },
      );
      const weights = full.weights.filter(({ name }) => zeros || name !== 'w_zero');
      return writeModel(join(folder, `zeros-${zeros}.onnx`), { ...full, nodes, weights });
    };
    const host = await NativeHost.start(toolchain!);
    const decibels = async (path: string): Promise<number> => {
      const feeds = { x: { dtype: 'f32', shape: [1, 8, 128], data: noise(8 * 128, 9) } } as const;
      const cpu = await host.openSession(path, { provider: 'cpu', optimization: 'none' });
      const htp = await host.openSession(path, { provider: 'qnn', soc: SOC.number });
      const [wanted, found] = [[await cpu.run(feeds)], [await htp.run(feeds)]];
      return worstSqnr(compareResults(['y_dq'], wanted, found, wasmKernels));
    };
    try {
      expect(await decibels(write(false))).toBeLessThan(10);
      expect(await decibels(write(true))).toBeGreaterThan(60);
    } finally {
      await host.close();
    }
    const codes = checkGraph(openOnnx(write(false)), SOC, { scheme: 'w8a16' }).map((finding) => finding.code);
    expect(codes).toEqual(['HTP033']);
    expect(checkGraph(openOnnx(write(true)), SOC, { scheme: 'w8a16' })).toEqual([]);
    // Read as encodings and written again, it has them.
    const module = openOnnx(write(false));
    runPasses(module, [foldQdq]);
    writeOnnx(module, join(folder, 'again.onnx'));
    expect(checkGraph(openOnnx(join(folder, 'again.onnx')), SOC, { scheme: 'w8a16' })).toEqual([]);
  });

  describe.each(ENCODED_FORMS)('$name', ({ code, bad, good }) => {
    const measure = async (module: Module): Promise<Measurement> =>
      await meter!.measureEncoded(module, randomSamples(module.graph(), 4, 7).feeds);

    test('it is as bad as ever, and the linter says so', async () => {
      const module = parse(bad.graph);
      expect(checkGraph(module, SOC, { scheme: 'w8a16' }).map((finding) => finding.code)).toContain(code);
      expectBad(await measure(module), bad.expected);
    });

    test('ours is right', async () => {
      const module = parse(good.graph ?? bad.graph);
      if (good.pass) runPasses(module, [PASSES.get(good.pass)!]);
      expect(checkGraph(module, SOC, { scheme: 'w8a16' })).toEqual([]);
      expectGood(await measure(module), good.least);
    });
  });
});

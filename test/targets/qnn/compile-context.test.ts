import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { NativeHost } from '../../../compiler/runtime/ort-native.ts';
import { checkGraphPorts } from '../../../targets/qnn/check-ports.ts';
import { compileContext } from '../../../targets/qnn/compile-context.ts';
import { readContextBinary } from '../../../targets/qnn/read-context.ts';
import { findSoc, listSocs } from '../../../targets/socs.ts';
import { lpbqMatmul, noise, perChannelMatmul, qdq, rawBytes, type TinyModel, writeModel } from './tiny-onnx.ts';
import { toolchain } from './toolchain-or-skip.ts';

const soc = findSoc('SM8750');

function digest(path: string): string {
  return createHash('sha256').update(readFileSync(path)).digest('hex');
}

/** The native children of this process, by /proc. */
function childrenOfThis(): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        const status = readFileSync(`/proc/${pid}/status`, 'utf8');
        const mine = new RegExp(`^PPid:\\s+${process.pid}$`, 'm').test(status);
        return mine && readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('native-host');
      } catch {
        return false;
      }
    });
}

/** Takes u16 integers in and out, so that the binary's ports are quantized. */
function integerPorts(rows: number): TinyModel {
  const model = lpbqMatmul(rows);
  const rename = (name: string) => (name === 'x_q' ? 'x_in' : name === 'y_q' ? 'y_out' : name);
  return {
    ...model,
    inputs: [{ name: 'x_in', dtype: 'u16', shape: [1, rows, 128] }],
    outputs: [{ name: 'y_out', dtype: 'u16', shape: [1, rows, 64] }],
    nodes: model.nodes
      .filter((node) => node.name !== 'x_Q' && node.name !== 'y_DQ')
      .map((node) => ({ ...node, inputs: node.inputs.map(rename), outputs: node.outputs.map(rename) })),
  };
}

describe.skipIf(!toolchain)('context binaries', () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'npuc-test-'));
    // The toolchain was found before; the logs of failed compiles go here.
    vi.stubEnv('NPUC_CACHE', join(folder, 'cache'));
  });
  afterAll(() => vi.unstubAllEnvs());
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  const source = (name: string, model: TinyModel) => ({ name, path: writeModel(join(folder, `${name}.onnx`), model) });
  const output = (name: string) => join(folder, name);

  test('the same bytes in any folder and with any number of threads', async () => {
    const digests: string[][] = [];
    for (const [name, threads] of [
      ['here', 1],
      ['a much longer name of a folder', 2],
      ['third', undefined],
    ] as const) {
      const elsewhere = join(folder, `sources of ${name}`);
      mkdirSync(elsewhere);
      const models = [8, 1].map((rows) => ({
        name: `rows${rows}`,
        path: writeModel(join(elsewhere, `some ${name} file ${rows}.onnx`), lpbqMatmul(rows)),
      }));
      const common = { soc, ...(threads === undefined ? {} : { threads }) };
      const alone = await compileContext(toolchain!, models, {
        ...common,
        share: false,
        outputFolder: output(`a ${name}`),
      });
      const shared = await compileContext(toolchain!, models, {
        ...common,
        share: true,
        outputFolder: output(`s ${name}`),
      });
      digests.push([...alone.files, ...shared.files].flatMap((file) => [digest(file.binary), digest(file.onnx)]));
    }
    expect(new Set(digests[0]).size).toBeGreaterThan(5);
    expect(digests[1]).toEqual(digests[0]);
    expect(digests[2]).toEqual(digests[0]);
  });

  test('reads back ports, scales, SoC and sizes; the compiled context runs as the model does', async () => {
    const model = source('ports', integerPorts(4));
    const result = await compileContext(toolchain!, [model], { soc, share: false, outputFolder: output('ports') });
    const [file] = result.files;
    expect(result.peakRssBytes).toBeGreaterThan(50 << 20);
    expect(result.cpuSeconds).toBeGreaterThan(0.01);
    const info = await readContextBinary(toolchain!, file!.binary);
    expect(result.contexts.get(file!.binary)).toEqual(info);
    expect(info).toMatchObject({ soc: 69, dspArch: 79, buildId: expect.stringMatching(/^v2\.51\./) });
    const [graph] = info.graphs;
    expect(graph!.name).toBe(file!.graph);
    const scale = Math.fround(4 / 65535);
    expect(graph!.inputs).toEqual([{ name: 'x_in', dtype: 'u16', shape: [1, 4, 128], scale, zeroPoint: 32768 }]);
    const wider = Math.fround(16 / 65535);
    expect(graph!.outputs).toEqual([
      { name: 'y_out', dtype: 'u16', shape: [1, 4, 64], scale: wider, zeroPoint: 32768 },
    ]);
    expect(graph!).toMatchObject({ vtcmBytes: 4 << 20, optimizationLevel: 3, spillFillBytes: 0 });

    const host = await NativeHost.start(toolchain!);
    const data = new Uint16Array(noise(512, 2).map((value) => 32768 + value * 30000));
    const feeds = { x_in: { dtype: 'u16', shape: [1, 4, 128], data } } as const;
    const cpu = await host.openSession(model.path, { provider: 'cpu' });
    const context = await host.openSession(file!.onnx, { provider: 'qnn' });
    const a = (await cpu.run(feeds)).y_out!.data as Uint16Array;
    const b = (await context.run(feeds)).y_out!.data as Uint16Array;
    expect(Math.max(...a.map((value, i) => Math.abs(value - b[i]!)))).toBeLessThanOrEqual(1);
    expect(new Set(a).size).toBeGreaterThan(200);
    await host.close();
  });

  test('ports that are not those of the model are named, all of them', async () => {
    const model = source('named', lpbqMatmul(4));
    const result = await compileContext(toolchain!, [model], { soc, share: false, outputFolder: output('named') });
    const [graph] = [...result.contexts.values()][0]!.graphs;
    const { inputs, outputs } = graph!;
    const check = (change: object) => () =>
      checkGraphPorts({ ...graph!, ...change }, { inputs, outputs }, 'model.onnx');
    expect(check({})).not.toThrow();
    const changed = { inputs: [{ ...inputs[0]!, shape: [1, 5, 128] }], outputs: [{ ...outputs[0]!, name: 'z' }] };
    expect(check(changed)).toThrow(
      expect.objectContaining({
        code: 'QN013',
        message: expect.stringMatching(
          /x is f32\[1,5,128\], the model has f32\[1,4,128\][\s\S]*z is not[\s\S]*y_dq is miss/,
        ),
      }),
    );
    expect(check({ inputs: [{ ...inputs[0]!, dtype: 'u16' }] })).toThrow(/u16/);
    // Scalars have an axis in a binary; nothing else may.
    const scalar = { inputs: [{ ...inputs[0]!, shape: [] }], outputs };
    const found = (shape: number[]) => ({ ...graph!, inputs: [{ ...inputs[0]!, shape }] });
    expect(() => checkGraphPorts(found([1]), scalar, 'model.onnx')).not.toThrow();
    expect(() => checkGraphPorts(found([1, 1]), scalar, 'model.onnx')).toThrow(/f32\[1,1\], the model has f32\[\]/);
  });

  test('two graphs share one binary with the weights once', async () => {
    const models = [source('prefill', lpbqMatmul(16, 1024, 1024)), source('decode', lpbqMatmul(1, 1024, 1024))];
    const alone = await compileContext(toolchain!, models, { soc, share: false, outputFolder: output('alone') });
    const shared = await compileContext(toolchain!, models, { soc, share: true, outputFolder: output('shared') });
    expect(readdirSync(output('shared')).sort()).toEqual([
      'decode_ctx.onnx',
      'prefill_ctx.onnx',
      'prefill_ctx_qnn.bin',
    ]);
    expect(new Set(shared.files.map((file) => file.binary)).size).toBe(1);
    const info = await readContextBinary(toolchain!, shared.files[0]!.binary);
    const byName = new Map(info.graphs.map((graph) => [graph.name, graph]));
    expect(shared.files.map((file) => byName.get(file.graph)!.inputs[0]!.shape)).toEqual([
      [1, 16, 1024],
      [1, 1, 1024],
    ]);
    const weightBytes = (1024 * 1024) / 2;
    // Each graph says that it uses the whole of the shared weights, and next to none of its own.
    for (const graph of info.graphs) {
      expect(graph.sharedWeightBytes).toBeGreaterThanOrEqual(weightBytes);
      expect(graph.sharedWeightBytes).toBeLessThan(info.fileBytes);
      expect(graph.ownWeightBytes).toBeLessThan(weightBytes / 10);
    }
    for (const context of alone.contexts.values()) {
      expect(context.graphs[0]!.ownWeightBytes).toBeGreaterThanOrEqual(weightBytes);
      expect(context.graphs[0]!.sharedWeightBytes).toBe(0);
    }
    const sizes = [...alone.contexts.values()].map((context) => context.fileBytes);
    const saved = sizes[0]! + sizes[1]! - info.fileBytes;
    expect(saved).toBeGreaterThan(weightBytes * 0.95);
    // The simulator crashes on shared binaries; that must be an error of the call.
    const host = await NativeHost.start(toolchain!);
    await expect(
      (async () => {
        const session = await host.openSession(shared.files[1]!.onnx, { provider: 'qnn' });
        await session.run({ x: { dtype: 'f32', shape: [1, 1, 1024], data: new Float32Array(1024) } });
      })(),
    ).rejects.toMatchObject({ code: expect.stringMatching(/^RT(202|110|111)$/) });
    await host.close();
  });

  test('external data is found under its own relative name, and a missing file is named', async () => {
    const inline = perChannelMatmul(8, 'i8');
    const weights = inline.weights.map((weight) =>
      weight.name === 'w' ? { ...weight, external: 'data/w.bin' } : weight,
    );
    mkdirSync(join(folder, 'data'));
    writeFileSync(join(folder, 'data/w.bin'), rawBytes(weights.find((weight) => weight.name === 'w')!));
    const model = { ...source('external', { ...inline, weights }), externalData: ['data/w.bin'] };
    const options = { soc, share: false, outputFolder: output('external') };
    const { files } = await compileContext(toolchain!, [model], options);
    const other = await compileContext(toolchain!, [source('inline', inline)], options);
    const sizes = [files[0]!.binary, other.files[0]!.binary].map((path) => readFileSync(path).length);
    expect(sizes[0]).toBe(sizes[1]);
    const missing = { ...model, externalData: ['missing.data'] };
    await expect(compileContext(toolchain!, [missing], options)).rejects.toMatchObject({
      code: 'IO001',
      where: join(folder, 'missing.data'),
    });
  });

  test('names the nodes that the HTP refuses, with the reasons, and leaves nothing', async () => {
    const refused: TinyModel = {
      inputs: [{ name: 'x', dtype: 'f32', shape: [1, 8] }],
      outputs: [{ name: 'y', dtype: 'f32', shape: [1, 8] }],
      nodes: [
        { op: 'Relu', name: 'good', inputs: ['x'], outputs: ['a'] },
        { op: 'Celu', name: 'the_celu', inputs: ['a'], outputs: ['b'] },
        { op: 'Erf', name: 'the_erf', inputs: ['b'], outputs: ['y'] },
      ],
      weights: [],
    };
    const error = await compileContext(toolchain!, [source('refused', refused)], {
      soc,
      share: false,
      outputFolder: output('refused'),
    }).catch((cause: unknown) => cause);
    expect(error).toMatchObject({
      code: 'QN010',
      message: expect.stringMatching(
        /SM8750 \(v79\) does not take 2 nodes of refused\n {2}the_celu \(Celu\): .*`Celu`/,
      ),
    });
    expect((error as Error).message).toMatch(/the_erf \(Erf\)/);
    const log = /\n {2}log: (.*)$/.exec((error as Error).message)![1]!;
    expect(readFileSync(log, 'utf8')).toContain('Validation FAILED');
    expect((error as Error).message).not.toMatch(/good/);
    expect(readdirSync(output('refused'))).toEqual([]);
  });

  test('names the operator that passes the validation and does not compile', async () => {
    const input = qdq('x', 'u16', 8 / 65535, 32768);
    const result = qdq('y', 'u16', 8 / 65535, 32768);
    const slope = qdq('s', 'u16', 0.03, 0);
    const prelu: TinyModel = {
      inputs: [{ name: 'x', dtype: 'f32', shape: [1, 8, 16, 16] }],
      outputs: [{ name: 'y_dq', dtype: 'f32', shape: [1, 8, 16, 16] }],
      nodes: [
        ...input.nodes,
        slope.nodes[1]!,
        { op: 'PRelu', name: 'the_prelu', inputs: ['x_dq', 's_dq'], outputs: ['y'] },
        ...result.nodes,
      ],
      weights: [
        ...[input, result, slope].flatMap((part) => part.weights),
        { name: 's_q', dtype: 'u16', shape: [8, 1, 1], data: [1, 2, 3, 4, 5, 6, 7, 8] },
      ],
    };
    await expect(
      compileContext(toolchain!, [source('prelu', prelu)], { soc, share: false, outputFolder: output('prelu') }),
    ).rejects.toMatchObject({
      code: 'QN011',
      message: expect.stringMatching(/the_prelu: could not create op[\s\S]*\n {2}log: /),
      hint: expect.stringMatching(/no implementation in this form.*\(QNN 1002/),
    });
    expect(readdirSync(output('prelu'))).toEqual([]);
  });

  test('a graph that exceeds the ranks or the on-chip memory says which node and why', async () => {
    const input = qdq('x', 'u16', 0.001, 100);
    const result = qdq('y', 'u16', 0.001, 100);
    const one = (op: string, shape: readonly number[]): TinyModel => ({
      inputs: [{ name: 'x', dtype: 'f32', shape }],
      outputs: [{ name: 'y_dq', dtype: 'f32', shape }],
      nodes: [...input.nodes, { op, name: 'the_node', inputs: ['x_dq'], outputs: ['y'] }, ...result.nodes],
      weights: [...input.weights, ...result.weights],
    });
    const compile = (name: string, model: TinyModel, providerOptions: Record<string, string> = {}) =>
      compileContext(toolchain!, [source(name, model)], {
        soc,
        share: false,
        outputFolder: output(name),
        providerOptions,
      });
    await expect(compile('rank', one('Relu', [1, 2, 2, 2, 2, 2]))).rejects.toMatchObject({
      code: 'QN010',
      message: expect.stringMatching(/the_node \(Relu\): .*\(QNN 3110, .*\): a tensor of rank 6, fewer/),
    });
    await expect(compile('vtcm', one('Softmax', [1, 300_000]), { vtcm_mb: '1' })).rejects.toMatchObject({
      code: 'QN011',
      message: expect.stringMatching(/\n {2}x_Q: it needs 1\.1 MiB of on-chip memory \(VTCM\) at once/),
      hint: expect.stringMatching(/QNN 1002/),
    });
    await expect(compile('udma', one('Relu', [1, 8]), { extended_udma: '1' })).rejects.toMatchObject({
      code: 'QN011',
      message: expect.stringMatching(/extended UDMA which is only available for DSP architectures >= 81/),
    });
    for (const name of ['rank', 'vtcm', 'udma']) expect(readdirSync(output(name))).toEqual([]);
  });

  test('a killed compile is a coded error and leaves nothing half-written', async () => {
    const model = source('large', lpbqMatmul(32, 2048, 2048));
    const outputFolder = output('killed');
    const compiling = compileContext(toolchain!, [model], { soc, share: false, outputFolder });
    const outcome = expect(compiling).rejects.toMatchObject({
      code: 'RT202',
      message: expect.stringContaining('SIGKILL'),
      hint: expect.stringContaining('--max-memory, --split'),
    });
    // The model is placed when the libraries are up and the compile is about to start.
    const placed = () =>
      existsSync(outputFolder) &&
      readdirSync(outputFolder, { recursive: true }).some((path) => String(path).endsWith('large.onnx'));
    while (!placed()) await sleep(5);
    await sleep(50);
    const [pid] = childrenOfThis();
    process.kill(pid!, 'SIGKILL');
    await outcome;
    expect(readdirSync(outputFolder)).toEqual([]);
  });

  test('a compile that outgrows its limit is ended with the advice, and leaves nothing half-written', async () => {
    const model = source('outgrown', lpbqMatmul(32, 2048, 2048));
    const outputFolder = output('outgrown');
    await expect(
      compileContext(toolchain!, [model], { soc, share: false, outputFolder, memoryLimit: 64 << 20 }),
    ).rejects.toMatchObject({
      code: 'RT203',
      message: expect.stringContaining('needed more than 64 MiB'),
      hint: expect.stringContaining('--split'),
    });
    expect(readdirSync(outputFolder)).toEqual([]);
  });

  test('a SoC that the vendor library does not know is not compiled for a default one', async () => {
    const unknown = { ...soc, name: 'SM9999', number: 9999 };
    const outputFolder = output('unknown');
    await expect(
      compileContext(toolchain!, [source('unknown', lpbqMatmul(8))], { soc: unknown, share: false, outputFolder }),
    ).rejects.toMatchObject({ code: expect.stringMatching(/^QN01[012]$/) });
    const wrongArch = { ...soc, arch: 75 } as const;
    await expect(
      compileContext(toolchain!, [source('unknown', lpbqMatmul(8))], { soc: wrongArch, share: false, outputFolder }),
    ).rejects.toMatchObject({ code: 'QN012' });
    expect(readdirSync(outputFolder)).toEqual([]);
  });

  test('every SoC of the table compiles to its own number and architecture', async () => {
    const model = source('every', lpbqMatmul(1, 32, 32));
    for (const each of listSocs()) {
      const result = await compileContext(toolchain!, [model], {
        soc: each,
        share: false,
        outputFolder: output('every'),
      });
      // compileContext has compared them already; this names the row if that ever changes.
      const [context] = [...result.contexts.values()];
      expect([each.name, context!.soc, context!.dspArch]).toEqual([each.name, each.number, each.arch]);
    }
  });

  test('files that are no context binary are refused', async () => {
    const garbage = join(folder, 'garbage.bin');
    writeFileSync(garbage, Buffer.alloc(5000, 7));
    const empty = join(folder, 'empty.bin');
    writeFileSync(empty, '');
    const good = (await compileContext(toolchain!, [source('cut', lpbqMatmul(8))], {
      soc,
      share: false,
      outputFolder: output('cut'),
    }))!.files[0]!.binary;
    const truncated = join(folder, 'truncated.bin');
    writeFileSync(truncated, readFileSync(good).subarray(0, 3000));
    await expect(readContextBinary(toolchain!, garbage)).rejects.toMatchObject({
      code: 'QN014',
      hint: expect.stringMatching(/no context binary .*\(QNN 30010\)/),
    });
    for (const path of [garbage, empty, truncated, join(folder, 'absent.bin')])
      await expect(readContextBinary(toolchain!, path), path).rejects.toMatchObject({
        code: expect.stringMatching(/^(QN014|RT202)$/),
      });
  });
});

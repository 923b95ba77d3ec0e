import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { DTYPES, type DType, numberToHalf } from '../../../compiler/ir/dtype.ts';
import type { TensorData } from '../../../compiler/ir/tensor.ts';
import { NativeHost } from '../../../compiler/runtime/ort-native.ts';
import { lpbqMatmul, noise, perChannelMatmul, type TinyModel, writeModel } from './tiny-onnx.ts';
import { toolchain } from './toolchain-or-skip.ts';

const SM8750 = 69;

function sqnr(reference: TensorData, actual: TensorData): number {
  let signal = 0;
  let error = 0;
  const a = reference.data as Float32Array;
  const b = actual.data as Float32Array;
  expect(b.length).toBe(a.length);
  for (let i = 0; i < a.length; i++) {
    signal += a[i]! ** 2;
    error += (a[i]! - b[i]!) ** 2;
  }
  return 10 * Math.log10(signal / error);
}

/** Squares a matrix many times: a few seconds of work from a small file. */
function slowModel(): TinyModel {
  const steps = 60;
  return {
    inputs: [{ name: 'x', dtype: 'f32', shape: [1200, 1200] }],
    outputs: [{ name: `v${steps}`, dtype: 'f32', shape: [1200, 1200] }],
    nodes: Array.from({ length: steps }, (_, i) => ({
      op: 'MatMul',
      inputs: [i === 0 ? 'x' : `v${i}`, 'x'],
      outputs: [`v${i + 1}`],
    })),
    weights: [],
  };
}

/** A process that has ended may stay a zombie where nothing reaps orphans, as in containers. */
function isAlive(pid: number): boolean {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

describe.skipIf(!toolchain)('native host', () => {
  let folder: string;
  let host: NativeHost;
  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'npuc-test-'));
    host = await NativeHost.start(toolchain!);
  });
  afterAll(async () => {
    await host?.close();
    rmSync(folder, { recursive: true, force: true });
  });

  test('takes and gives every element type', async () => {
    const values: Partial<Record<DType, number[]>> = {
      f32: [0.5, -1e30, 3],
      f64: [0.5, -1e300, 3],
      f16: [1.5, -2, 65504].map(numberToHalf),
      i8: [-128, 0, 127],
      u8: [0, 128, 255],
      i16: [-32768, 0, 32767],
      u16: [0, 32768, 65535],
      i32: [-(2 ** 31), 0, 2 ** 31 - 1],
      u32: [0, 1, 2 ** 32 - 1],
      i64: [-1, 0, 2 ** 40],
      u64: [0, 1, 2 ** 40],
      bool: [0, 1, 1],
    };
    const dtypes = Object.keys(values) as DType[];
    const path = writeModel(join(folder, 'identity.onnx'), {
      inputs: dtypes.map((dtype) => ({ name: `in_${dtype}`, dtype, shape: [3] })),
      outputs: dtypes.map((dtype) => ({ name: `out_${dtype}`, dtype, shape: [3] })),
      nodes: dtypes.map((dtype) => ({ op: 'Identity', inputs: [`in_${dtype}`], outputs: [`out_${dtype}`] })),
      weights: [],
    });
    const session = await host.openSession(path, { provider: 'cpu' });
    expect(session.inputs.map((port) => port.dtype)).toEqual(dtypes);
    const feeds = Object.fromEntries(
      dtypes.map((dtype) => {
        const { array, bits } = DTYPES[dtype];
        const data = new array(new ArrayBuffer((3 * bits) / 8), 0, 3) as Float32Array;
        const wide = dtype === 'i64' || dtype === 'u64';
        values[dtype]!.forEach((value, i) => {
          data[i] = (wide ? BigInt(value) : value) as number;
        });
        return [`in_${dtype}`, { dtype, shape: [3], data }];
      }),
    );
    const results = await session.run(feeds);
    for (const dtype of dtypes) expect(results[`out_${dtype}`]).toEqual(feeds[`in_${dtype}`]);
    const one = await session.run(feeds, ['out_u16']);
    expect(Object.keys(one)).toEqual(['out_u16']);
    await session.close();
    await expect(session.run(feeds)).rejects.toMatchObject({ code: 'RT111' });
  });

  test('runs dynamic shapes, empty tensors and growing inputs', async () => {
    const path = writeModel(join(folder, 'dynamic.onnx'), {
      inputs: [{ name: 'x', dtype: 'f32', shape: [-1, 2] }],
      outputs: [{ name: 'y', dtype: 'f32', shape: [-1, 2] }],
      nodes: [{ op: 'Neg', inputs: ['x'], outputs: ['y'] }],
      weights: [],
    });
    const session = await host.openSession(path, { provider: 'cpu' });
    expect(session.inputs[0]!.shape).toEqual([-1, 2]);
    for (const rows of [1, 5, 0, 3000, 2]) {
      const data = noise(rows * 2, rows);
      const { y } = await session.run({ x: { dtype: 'f32', shape: [rows, 2], data } });
      expect(y!.shape).toEqual([rows, 2]);
      expect(y!.data).toEqual(data.map((value) => -value));
    }
    await session.close();
  });

  test('refuses feeds that do not fit, by name', async () => {
    const session = await host.openSession(writeModel(join(folder, 'm.onnx'), lpbqMatmul(8)), { provider: 'cpu' });
    const x: TensorData = { dtype: 'f32', shape: [1, 8, 128], data: noise(1024, 5) };
    const bad = async (feeds: Record<string, TensorData>, outputs?: string[]) =>
      expect(session.run(feeds, outputs)).rejects.toMatchObject({ code: 'RT011' });
    await bad({});
    await bad({ x, z: x });
    await bad({ x: { ...x, shape: [1, 7, 128] } });
    await bad({ x: { ...x, dtype: 'u32' } });
    await bad({ x: { ...x, data: noise(1000, 5) } });
    await bad({ x }, ['nothing']);
    await session.close();
  });

  test('the HTP simulator agrees with the CPU on quantized MatMuls', async () => {
    const models = {
      lpbq: lpbqMatmul(8),
      'lpbq one row': lpbqMatmul(1),
      'int4 per channel': perChannelMatmul(8, 'i4'),
      'int8 per channel': perChannelMatmul(8, 'i8'),
    };
    for (const [name, model] of Object.entries(models)) {
      const path = writeModel(join(folder, 'q.onnx'), model);
      const cpu = await host.openSession(path, { provider: 'cpu' });
      const exact = await host.openSession(path, { provider: 'cpu', optimization: 'none' });
      const htp = await host.openSession(path, { provider: 'qnn', soc: SM8750 });
      const { shape } = cpu.inputs[0]!;
      const x: TensorData = {
        dtype: 'f32',
        shape,
        data: noise(
          shape.reduce((a, b) => a * b),
          9,
        ).map((v) => v * 2),
      };
      const reference = (await cpu.run({ x })).y_dq!;
      const simulated = (await htp.run({ x })).y_dq!;
      expect(Math.max(...(reference.data as Float32Array).map(Math.abs)), name).toBeGreaterThan(0.5);
      expect(sqnr(reference, simulated), name).toBeGreaterThan(60);
      // Fusions must not change what the QDQ model means.
      expect(sqnr((await exact.run({ x })).y_dq!, reference), name).toBeGreaterThan(100);
      expect(htp.engine).toMatch(/htp simulator/);
      await exact.close();
      await cpu.close();
      await htp.close();
    }
  });

  test('says what is wrong with a model that cannot be loaded', async () => {
    await expect(host.openSession(join(folder, 'absent.onnx'), { provider: 'cpu' })).rejects.toMatchObject({
      code: 'RT110',
      message: expect.stringMatching(/absent\.onnx/),
    });
    writeFileSync(join(folder, 'garbage.onnx'), 'this is not a model');
    await expect(host.openSession(join(folder, 'garbage.onnx'), { provider: 'cpu' })).rejects.toMatchObject({
      code: 'RT110',
    });
    // The host survives both.
    expect(await host.peakRssBytes()).toBeGreaterThan(20 << 20);
  });

  test('a killed or crashing child is an error of the calls in flight and of later ones', async () => {
    const path = writeModel(join(folder, 'slow.onnx'), slowModel());
    const x: TensorData = { dtype: 'f32', shape: [1200, 1200], data: noise(1200 * 1200, 1) };
    for (const signal of ['SIGKILL', 'SIGSEGV'] as const) {
      const victim = await NativeHost.start(toolchain!);
      const session = await victim.openSession(path, { provider: 'cpu' });
      const running = session.run({ x });
      const outcome = expect(running).rejects.toMatchObject({
        code: 'RT202',
        message: expect.stringContaining(signal),
      });
      await sleep(300);
      process.kill(victim.pid, signal);
      await outcome;
      await expect(session.run({ x })).rejects.toMatchObject({ code: 'RT202' });
      await expect(victim.openSession(path, { provider: 'cpu' })).rejects.toMatchObject({ code: 'RT202' });
      expect(await victim.peakRssBytes()).toBeGreaterThan(20 << 20);
      await session.close();
      await victim.close();
      expect(existsSync(victim.folder)).toBe(false);
    }
  });

  test('a child that outgrows its memory limit is ended, and the error says the limit', async () => {
    const path = writeModel(join(folder, 'slow.onnx'), slowModel());
    const run = async (): Promise<void> => {
      // On a busy machine it is seen while it starts, else while it runs.
      const victim = await NativeHost.start(toolchain!, { memoryLimit: 32 << 20 });
      const session = await victim.openSession(path, { provider: 'cpu' });
      await session.run({ x: { dtype: 'f32', shape: [1200, 1200], data: noise(1200 * 1200, 1) } });
    };
    await expect(run()).rejects.toMatchObject({ code: 'RT203', message: expect.stringContaining('more than 32 MiB') });
  });

  test('an abort signal ends a run', async () => {
    const path = writeModel(join(folder, 'slow.onnx'), slowModel());
    const controller = new AbortController();
    const victim = await NativeHost.start(toolchain!, { signal: controller.signal });
    const session = await victim.openSession(path, { provider: 'cpu' });
    const running = session.run({ x: { dtype: 'f32', shape: [1200, 1200], data: noise(1200 * 1200, 1) } });
    const outcome = expect(running).rejects.toMatchObject({ code: 'RT202' });
    await sleep(200);
    controller.abort();
    await outcome;
    await victim.close();
  });

  test('the child dies with its parent, even when that is killed', async () => {
    let root = dirname(fileURLToPath(import.meta.url));
    while (!existsSync(join(root, 'package.json'))) root = dirname(root);
    const path = writeModel(join(folder, 'slow.onnx'), slowModel());
    const script = `
      import { NativeHost } from ${JSON.stringify(join(root, 'dist/compiler/runtime/ort-native.js'))};
      const host = await NativeHost.start(${JSON.stringify(toolchain)});
      const session = await host.openSession(${JSON.stringify(path)}, { provider: 'cpu' });
      session.run({ x: { dtype: 'f32', shape: [1200, 1200], data: new Float32Array(1200 * 1200) } });
      console.log(host.pid);`;
    // What a killed process cannot remove itself goes with the test's folder.
    const parent = spawn(process.execPath, ['--input-type=module', '-e', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...process.env, TMPDIR: folder },
    });
    const ended = new Promise<void>((done) => parent.once('exit', () => done()));
    const pid = await new Promise<number>((done, fail) => {
      parent.stdout.once('data', (text) => done(Number(String(text))));
      void ended.then(() => fail(new Error('the parent ended before it had a child')));
    });
    expect(isAlive(pid)).toBe(true);
    parent.kill('SIGKILL');
    await ended;
    for (let i = 0; i < 50 && isAlive(pid); i++) await sleep(20);
    expect(isAlive(pid)).toBe(false);
  });

  test('a library of another version is refused', async () => {
    const wrong = { ...toolchain!, onnxruntimeLibrary: join(toolchain!.qnnLibraryFolder, 'libQnnSystem.so') };
    await expect(NativeHost.start(wrong)).rejects.toMatchObject({ code: 'RT201' });
    let root = dirname(fileURLToPath(import.meta.url));
    while (!existsSync(join(root, 'package.json'))) root = dirname(root);
    // The npm package carries ONNX Runtime 1.30.
    const older = join(root, 'node_modules/onnxruntime-node/bin/napi-v6/linux/x64/libonnxruntime.so.1');
    await expect(NativeHost.start({ ...toolchain!, onnxruntimeLibrary: older })).rejects.toMatchObject({
      code: 'QN006',
      message: expect.stringMatching(/1\.30\.\d+, expected 1\.32\.0/),
    });
  });
});

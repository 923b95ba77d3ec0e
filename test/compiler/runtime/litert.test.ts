import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterAll, describe, expect, it } from 'vitest';
import { NpucError } from '../../../compiler/errors.ts';
import { DTYPES, type DType } from '../../../compiler/ir/dtype.ts';
import { elementCount, type TensorData } from '../../../compiler/ir/tensor.ts';
import { type LitertModel, loadLitert, openLitert } from '../../../compiler/runtime/litert.ts';
import type { TfliteModel } from '../../../targets/tflite/model.ts';
import { BuiltinOperator, TensorType } from '../../../targets/tflite/schema-enums.ts';
import { encodeTflite, writeTflite } from '../../../targets/tflite/write.ts';
import { expected, K, N, SCALES, seededNumbers, TOKENS, twoSignatures } from '../../targets/tflite/tiny-models.ts';

const folder = mkdtempSync(join(tmpdir(), 'npuc-litert-'));
afterAll(() => rmSync(folder, { recursive: true }));

function feed(dtype: DType, shape: readonly number[], values: ArrayLike<number>): TensorData {
  const { array, bits } = DTYPES[dtype];
  const count = elementCount(shape);
  const data = new array(new ArrayBuffer((count * bits) / 8), 0, count);
  for (let i = 0; i < count; i++) data[i] = values[i]!;
  return { dtype, shape, data };
}

async function failure(promise: Promise<unknown>): Promise<NpucError> {
  const error = await promise.then(
    () => new Error('no error'),
    (cause: unknown) => cause,
  );
  if (error instanceof NpucError) return error;
  throw error;
}

/** Integers on the input's grid, small enough that no output saturates. */
function integers(seed: number, count: number): number[] {
  return seededNumbers(seed, count).map((value) => Math.trunc(value * 8000));
}

describe('a model with two signatures over the same weight buffers', () => {
  for (const form of ['inside', 'outside'] as const) {
    const options = { externalBuffers: form === 'outside' };

    it(`computes a float FULLY_CONNECTED (buffers ${form} the FlatBuffer)`, async () => {
      const model = await loadLitert(encodeTflite(twoSignatures('f32'), options));
      expect(Object.keys(model.signatures)).toEqual(['prefill_4', 'decode']);
      for (const [key, tokens] of Object.entries(TOKENS)) {
        const signature = model.signatures[key]!;
        expect(signature.inputs).toEqual([{ name: 'x', dtype: 'f32', shape: [tokens, K] }]);
        expect(signature.outputs).toEqual([{ name: 'y', dtype: 'f32', shape: [tokens, N] }]);
        const x = seededNumbers(3, tokens * K);
        const { y } = await signature.run({ x: feed('f32', [tokens, K], x) });
        expect(y!.shape).toEqual([tokens, N]);
        expected('f32', Float32Array.from(x), tokens).forEach((value, i) => {
          expect(y!.data[i]).toBeCloseTo(value, 3);
        });
      }
      model.dispose();
    });

    it.each(['a16w8', 'a16w4'] as const)(`computes an int16 FULLY_CONNECTED, %s (buffers ${form})`, async (kind) => {
      const model = await loadLitert(encodeTflite(twoSignatures(kind), options));
      for (const [key, tokens] of Object.entries(TOKENS)) {
        const x = integers(5, tokens * K);
        const real = x.map((value) => value * SCALES.input);
        const { y } = await model.signatures[key]!.run({ x: feed('f32', [tokens, K], real) });
        const exact = expected(kind, x, tokens);
        expect(Math.max(...exact.map(Math.abs))).toBeGreaterThan(200);
        // The nearest integer, whichever way a tie goes.
        exact.forEach((value, i) => {
          expect(Math.abs(Number(y!.data[i]) / SCALES.output - value)).toBeLessThanOrEqual(0.5);
        });
      }
      model.dispose();
    });

    it(`takes and gives int16 (buffers ${form})`, async () => {
      const path = join(folder, `io-${form}.tflite`);
      writeTflite(path, twoSignatures('a16w8-io'), options);
      const runner = await openLitert(path, 'prefill_4');
      expect(runner.engine).toMatch(/^litert\.js \d+\.\d+\.\d+ wasm$/);
      expect(runner.inputs).toEqual([{ name: 'x', dtype: 'i16', shape: [4, K] }]);
      const x = integers(6, 4 * K);
      const { y } = await runner.run({ x: feed('i16', [4, K], x) });
      expect(y!.dtype).toBe('i16');
      expected('a16w8-io', x, 4).forEach((value, i) => {
        expect(Math.abs(Number(y!.data[i]) - value)).toBeLessThanOrEqual(0.5);
      });
      await runner.close();
    });
  }

  it('runs beside another model, each in a memory of its own', async () => {
    const [a, b] = await Promise.all([
      loadLitert(encodeTflite(twoSignatures('f32'))),
      loadLitert(encodeTflite(twoSignatures('a16w8'))),
    ]);
    const x = feed(
      'f32',
      [1, K],
      integers(8, K).map((value) => value * SCALES.input),
    );
    const first = await a.signatures.decode!.run({ x });
    await b.signatures.decode!.run({ x });
    b.dispose();
    b.dispose();
    expect(await a.signatures.decode!.run({ x })).toEqual(first);
    a.dispose();
    expect((await failure(a.signatures.decode!.run({ x }))).code).toBe('RT111');
  });

  it('leaves no memory behind in 1,000 runs', async () => {
    const tokens = 2048;
    const source = twoSignatures('f32');
    const graph = source.subgraphs[0]!;
    graph.tensors[0]!.shape = [tokens, K];
    graph.tensors[3]!.shape = [tokens, N];
    const model = await loadLitert(encodeTflite(source));
    const x = feed('f32', [tokens, K], seededNumbers(1, tokens * K));
    const run = () => model.signatures.prefill_4!.run({ x });
    for (let i = 0; i < 20; i++) await run();
    // What the garbage collector has not got round to is no leak, and on a fast machine it would be most of the memory.
    setFlagsFromString('--expose-gc');
    const collect = runInNewContext('gc') as () => void;
    collect();
    const before = process.memoryUsage().rss;
    for (let i = 0; i < 1000; i++) {
      await run();
      if (i % 100 === 99) collect();
    }
    // A run's tensors are 96 KiB in the runtime: kept, they would be 98 MB.
    expect(process.memoryUsage().rss - before).toBeLessThan(50e6);
    model.dispose();
  });
});

describe('what LiteRT does not take', () => {
  const tiny = (change: (model: TfliteModel) => void = () => {}): Promise<LitertModel> => {
    const model = twoSignatures('f32');
    change(model);
    return loadLitert(encodeTflite(model));
  };

  it('is a model that it refuses: RT110 with what the runtime says', async () => {
    const noise = await failure(loadLitert(new TextEncoder().encode('no model at all, only some text')));
    expect([noise.code, noise.message]).toEqual(['RT110', expect.stringContaining('Failed to load model from buffer')]);
    expect(noise.hint).toBeTruthy();
    expect((await failure(loadLitert(join(folder, 'missing.tflite')))).code).toBe('IO001');
    const unknown = await failure(openLitert(encodeTflite(twoSignatures('f32')), 'prefill_8'));
    expect(unknown.message).toBe('the model has no signature prefill_8; it has prefill_4, decode');
    const short = await failure(
      tiny((model) => {
        model.buffers[1] = new Uint8Array(8);
      }),
    );
    expect(short.message).toMatch(/^LiteRT cannot load the model: .*; Tensor 1 is invalidly specified in schema$/);
    // The runtime compares a signature with its subgraph, as our writer does.
    const model = twoSignatures('f32');
    model.signatures[0]!.outputs = [];
    const mismatch = await failure(loadLitert(encodeTflite(model, { foreign: true })));
    expect(mismatch.message).toContain('Signature has incorrect number of input/outputs');
  });

  it('is an element type without a typed array: RT110', async () => {
    const error = await failure(
      tiny((model) => {
        const graph = model.subgraphs[0]!;
        graph.tensors.push({ name: 'z', type: TensorType.STRING, shape: [1], buffer: 0 });
        graph.inputs = [...graph.inputs, 4];
        model.signatures[0]!.inputs = [...model.signatures[0]!.inputs, { name: 'z', tensor: 4 }];
      }),
    );
    expect([error.code, error.message]).toEqual(['RT110', expect.stringContaining('z has')]);
  });

  it('is a failure that the runtime only prints: RT111, never the garbage that it returns', async () => {
    const model = await tiny((source) => {
      const operator = source.subgraphs[0]!.operators[0]!;
      operator.code = BuiltinOperator.CUSTOM;
      operator.customCode = 'Nonsense';
      delete operator.options;
    });
    const error = await failure(model.signatures.prefill_4!.run({ x: feed('f32', [4, K], seededNumbers(1, 4 * K)) }));
    expect([error.code, error.message]).toEqual(['RT111', expect.stringContaining('unresolved custom op: Nonsense')]);
    expect(error.hint).toContain('NPU');
    model.dispose();
  });

  it('is a feed that does not fit: RT011', async () => {
    const model = await tiny();
    const run = (x?: TensorData) => failure(model.signatures.decode!.run(x ? { x } : {}));
    const good = feed('f32', [1, K], seededNumbers(1, K));
    for (const bad of [
      undefined,
      feed('i32', [1, K], new Int32Array(K)),
      { ...good, shape: [K] },
      { ...good, shape: [2, K] },
      { ...good, data: new Float32Array(K - 1) },
    ]) {
      const error = await run(bad);
      expect([error.code, error.where]).toEqual(['RT011', 'input x of signature decode']);
    }
    expect(Object.keys(await model.signatures.decode!.run({ x: good }))).toEqual(['y']);
    model.dispose();
  });

  it('is a dynamic dimension other than 1', async () => {
    const model = await tiny((source) => {
      for (const graph of source.subgraphs) graph.tensors[0]!.shapeSignature = [-1, K];
    });
    // It runs at 1, whether the file has 1 (decode) or 4 (prefill_4) behind its -1.
    const x = feed('f32', [1, K], seededNumbers(1, K));
    expect(model.signatures.decode!.inputs[0]!.shape).toEqual([1, K]);
    expect((await model.signatures.decode!.run({ x })).y!.shape).toEqual([1, N]);
    const longer = feed('f32', [3, K], seededNumbers(1, 3 * K));
    expect((await failure(model.signatures.decode!.run({ x: longer }))).code).toBe('RT011');
    const { y } = await model.signatures.prefill_4!.run({ x });
    expect(y!.shape).toEqual([1, N]);
    expected('f32', x.data as Float32Array, 1).forEach((value, i) => {
      expect(y!.data[i]).toBeCloseTo(value, 3);
    });
    model.dispose();
  });
});

describe('the process', () => {
  it('keeps its globals and ends by itself', () => {
    const path = join(folder, 'child.tflite');
    writeTflite(path, twoSignatures('f32'));
    const module = join(packageRoot(), 'dist/compiler/runtime/litert.js');
    if (!existsSync(module)) throw new Error('dist is not built: run npm run build');
    const script = `
      const before = Object.getOwnPropertyNames(globalThis).sort().join();
      const { loadLitert } = await import(${JSON.stringify(module)});
      const model = await loadLitert(${JSON.stringify(path)});
      const data = new Float32Array(${K});
      const { y } = await model.signatures.decode.run({ x: { dtype: 'f32', shape: [1, ${K}], data } });
      console.log(Object.getOwnPropertyNames(globalThis).sort().join() === before, y.data.length);
    `;
    // Nothing on standard error: the runtime's chatter is kept back. The time limit is what fails a process that hangs.
    const output = execFileSync(process.execPath, ['--input-type=module', '-e', script], {
      timeout: 30_000,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    expect(output.toString()).toBe(`true ${N}\n`);
  });
});

function packageRoot(): string {
  let at = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(at, 'package.json'))) at = dirname(at);
  return at;
}

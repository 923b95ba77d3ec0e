import { execFile } from 'node:child_process';
import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterEach, describe, expect, it } from 'vitest';
import { createKernelPool, INT4, INT8_SYMMETRIC, type KernelPool, wasmKernels } from '../../compiler/kernels/index.ts';
import { bitsOf, gaussian } from './arbitraries.ts';

const dist = fileURLToPath(new URL('../../dist', import.meta.url));
const pools: KernelPool[] = [];

function open(threads: number): KernelPool {
  const pool = createKernelPool(threads);
  pools.push(pool);
  return pool;
}

/** A copy in shared memory. */
function shared(values: Float32Array): Float32Array {
  const copy = new Float32Array(new SharedArrayBuffer(values.byteLength));
  copy.set(values);
  return copy;
}

afterEach(async () => {
  await Promise.all(pools.splice(0).map((pool) => pool.close()));
});

// Several tasks: 2^20 values each. The odd number of columns makes int4 rows start inside bytes.
const layout = { rows: 1203, columns: 2625, block: 175 };
const weights = gaussian(layout.rows * layout.columns, 31, 0.05);
const importance = gaussian(layout.columns, 32).map((value) => value * value);

describe('kernel pool', () => {
  it('gives the same bytes on 1, 2 and 3 threads as without threads', async () => {
    const search = { range: INT8_SYMMETRIC, importance };
    const direct = wasmKernels.searchScales(weights, layout, search);
    const integers = new Int8Array(weights.length);
    wasmKernels.quantizeI8(weights, layout, direct.scales, INT8_SYMMETRIC, integers);
    const packed = new Uint8Array(Math.ceil(weights.length / 2));
    const scales4 = direct.scales.map((scale) => scale * 18);
    wasmKernels.quantizeI4(weights, layout, scales4, INT4, packed);
    for (const threads of [1, 2, 3]) {
      const pool = open(threads);
      const input = threads === 2 ? weights : shared(weights);
      let rows = 0;
      const found = await pool.searchScales(input, layout, search, (done) => {
        rows += done;
      });
      expect(rows).toBe(layout.rows);
      expect(Buffer.compare(bitsOf(found.scales), bitsOf(direct.scales))).toBe(0);
      expect(Buffer.compare(bitsOf(found.errors), bitsOf(direct.errors))).toBe(0);
      const [quantized, quantized4] = await Promise.all([
        pool.quantizeI8(input, layout, found.scales, INT8_SYMMETRIC),
        pool.quantizeI4(input, layout, scales4, INT4),
      ]);
      expect(Buffer.compare(bitsOf(quantized), bitsOf(integers))).toBe(0);
      expect(Buffer.compare(bitsOf(quantized4), packed)).toBe(0);
    }
  });

  it('gives the same two-level scales on 1, 2 and 3 threads', async () => {
    const small = { rows: 1100, columns: 1024, block: 64 };
    const matrix = shared(gaussian(small.rows * small.columns, 33));
    const direct = wasmKernels.searchLpbq(matrix, small, { range: INT4 });
    for (const threads of [1, 2, 3]) {
      const found = await open(threads).searchLpbq(matrix, small, { range: INT4 });
      expect(Buffer.compare(bitsOf(found.channelScales), bitsOf(direct.channelScales))).toBe(0);
      expect(Buffer.compare(found.blockScales, direct.blockScales)).toBe(0);
      expect(Buffer.compare(bitsOf(found.errors), bitsOf(direct.errors))).toBe(0);
    }
  });

  it('reports the first wrong weight in row order, and works on', async () => {
    const broken = weights.slice();
    broken[1100 * layout.columns + 4] = Number.NaN;
    broken[500 * layout.columns + 9] = Infinity;
    const named = { ...layout, name: 'layers.3.up_proj' };
    for (const threads of [1, 3]) {
      const pool = open(threads);
      await expect(pool.searchScales(broken, named, { range: INT4 })).rejects.toMatchObject({
        code: 'QT010',
        where: 'layers.3.up_proj',
        message: expect.stringContaining('Infinity at [500, 9]'),
      });
      const part = { rows: 2, columns: 8, block: 8 };
      const found = await pool.searchScales(gaussian(16, 1), part, { range: INT4 });
      expect(found.scales.length).toBe(2);
    }
  });

  it('checks arguments before any worker starts', async () => {
    const pool = open(1);
    await expect(pool.searchLpbq(weights, { ...layout, block: 64 }, { range: INT4 })).rejects.toMatchObject({
      code: 'QT104',
    });
    const none = new Float32Array(layout.rows * 15);
    await expect(pool.quantizeI4(weights, layout, none, INT4)).rejects.toMatchObject({ code: 'QT012' });
    expect(() => createKernelPool(0)).toThrow(expect.objectContaining({ code: 'XX001' }));
  });

  it('fails what runs when it is closed, and everything after', async () => {
    const pool = open(2);
    const running = pool.searchScales(weights, layout, { range: INT4 });
    const failed = expect(running).rejects.toMatchObject({ code: 'QT016', exitCode: 70 });
    await pool.close();
    await failed;
    await expect(pool.searchScales(weights, layout, { range: INT4 })).rejects.toMatchObject({ code: 'QT016' });
  });

  it('lets the process exit, closed or not', async () => {
    const search = 'console.log((await pool.searchScales(weights, layout, { range: INT4 })).scales.length);';
    expect(await runWithPool(dist, search)).toBe('128');
    expect(await runWithPool(dist, `${search} await pool.close();`)).toBe('128');
  });

  it.each(['process.exit(3)', 'throw new Error("out of luck")', 'this is not a program'])(
    'reports a worker that dies by %s, now and later',
    async (program) => {
      const copy = await mkdtemp(join(tmpdir(), 'npuc-pool-'));
      try {
        for (const part of ['errors.js', 'ir', 'kernels']) {
          await cp(join(dist, 'compiler', part), join(copy, 'compiler', part), { recursive: true });
        }
        await writeFile(join(copy, 'package.json'), '{"type":"module"}');
        await writeFile(join(copy, 'compiler', 'kernels', 'pool-worker.js'), program);
        const search = `
          for (const attempt of [1, 2]) {
            await pool.searchScales(weights, layout, { range: INT4 }).catch((error) => console.log(error.code));
          }`;
        expect(await runWithPool(copy, search)).toBe('QT016\nQT016');
      } finally {
        await rm(copy, { recursive: true });
      }
    },
  );
});

/** Runs `body` in a process of its own, with a pool of two from the compiled files under `folder`. */
async function runWithPool(folder: string, body: string): Promise<string> {
  const script = `
    const { createKernelPool, INT4 } = await import(${JSON.stringify(join(folder, 'compiler', 'kernels', 'index.js'))});
    const pool = createKernelPool(2);
    const layout = { rows: 64, columns: 64, block: 32 };
    const weights = new Float32Array(4096).fill(0.5);
    ${body}`;
  const run = promisify(execFile)(process.execPath, ['--input-type=module', '-e', script], { timeout: 20_000 });
  return (await run).stdout.trim();
}

import { mkdtempSync, readFileSync, rmSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { halfToNumber, numberToHalf } from '../../compiler/ir/dtype.ts';
import { Tensor } from '../../compiler/ir/tensor.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { openEmbedding, requantizeRows, writeEmbedding } from '../../targets/embedding-file.ts';
import { seededNumbers } from './tflite/tiny-models.ts';

const [ROWS, COLUMNS] = [5000, 7];
const table = Tensor.of('f32', [ROWS, COLUMNS], Float32Array.from(seededNumbers(5, ROWS * COLUMNS)));

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'npuc-embedding-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe('an embedding file', () => {
  it.each([
    ['f16', 8 + ROWS * COLUMNS * 2],
    ['i8-per-row', 8 + ROWS * 4 + ROWS * COLUMNS],
  ] as const)('%s gives back the rows that are asked for, in that order', (form, bytes) => {
    const path = join(folder, form);
    writeEmbedding(path, table, form, wasmKernels);
    expect(readFileSync(path).byteLength).toBe(bytes);
    const embedding = openEmbedding(path, form);
    const ids = [4999, 0, 4097, 4096, 0];
    const rows = embedding.lookup(ids);
    const source = table.toFloats();
    ids.forEach((id, i) => {
      const expected = source.subarray(id * COLUMNS, (id + 1) * COLUMNS);
      const reach = expected.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      expected.forEach((value, c) => {
        const got = rows[i * COLUMNS + c]!;
        if (form === 'f16') expect(got).toBe(halfToNumber(numberToHalf(value)));
        else expect(Math.abs(got - value)).toBeLessThan(reach / 127);
      });
    });
    embedding.close();
  });

  it('that was cut short is refused', () => {
    const path = join(folder, 'short');
    writeEmbedding(path, table, 'f16', wasmKernels);
    truncateSync(path, 1000);
    expect(() => openEmbedding(path, 'f16')).toThrow(expect.objectContaining({ code: 'IO003' }));
    expect(() => openEmbedding(join(folder, 'nothing'), 'f16')).toThrow(expect.objectContaining({ code: 'IO001' }));
  });

  it('cannot hold what half floats cannot, nor be written where there is no folder', () => {
    const large = Tensor.of('f32', [1, 2], [1, 1e5]);
    expect(() => writeEmbedding(join(folder, 'large'), large, 'f16', wasmKernels)).toThrow(
      expect.objectContaining({ code: 'QT011' }),
    );
    expect(() => writeEmbedding(join(folder, 'no', 'where'), table, 'f16', wasmKernels)).toThrow(
      expect.objectContaining({ code: 'IO002' }),
    );
  });
});

describe('rows of 8 bits as integers of a port', () => {
  // What Genie made of three rows of the demo model, read from its tensor dumps: scales over the port's, and numbers.
  const port = (zeroPoint: number, dtype: 'u8' | 'u16' = 'u16') => ({
    dtype,
    scale: Float32Array.of(1),
    zeroPoint: Int32Array.of(zeroPoint),
  });
  const raw = (scale: number, integers: number[]) => ({
    scales: Float32Array.of(scale),
    rows: () => Int8Array.from(integers),
  });
  it('cuts off the product and the zero point that is left, each for itself', () => {
    // 120.8 * 128 leaves 25022 - 15466.1 = 9555.9, cut to 9555; (-128 + 128) * 120.8 = 0; 129 * 120.8 = 15586.9.
    const ratio = Math.fround(120.82879395283297);
    expect([...requantizeRows(raw(ratio, [-128, 1, 127]), [0], port(25022))]).toEqual([9555, 25141, 40366]);
    // Rounding the real number would give one more each time.
    expect([-128, 1, 127].map((q) => Math.floor(q * ratio + 0.5) + 25022)).toEqual([9556, 25143, 40367]);
  });
  it('stays within the type', () => {
    expect([...requantizeRows(raw(400, [-128, 0, 127]), [0], port(25022))]).toEqual([0, 25022, 65535]);
    expect([...requantizeRows(raw(2, [-128, 0, 127]), [0], port(128, 'u8'))]).toEqual([0, 128, 255]);
  });
});

import { mkdtempSync, readFileSync, rmSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { halfToNumber, numberToHalf } from '../../compiler/ir/dtype.ts';
import { Tensor } from '../../compiler/ir/tensor.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { openEmbedding, writeEmbedding } from '../../targets/embedding-file.ts';
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

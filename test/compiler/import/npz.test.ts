import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { NpucError } from '../../../compiler/errors.ts';
import { readNpz } from '../../../compiler/import/npz.ts';
import type { TensorData } from '../../../compiler/ir/tensor.ts';
import { hasMaterial, materialPath } from '../../material.ts';
import { encodeNpy, encodeNpz, floats } from './write-npz.ts';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'npuc-npz-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function read(bytes: Buffer): Record<string, TensorData> {
  const path = join(folder, 'arrays.npz');
  writeFileSync(path, bytes);
  return readNpz(path);
}

/** The coded error of reading bytes. */
function refusal(bytes: Buffer): string {
  try {
    read(bytes);
  } catch (error) {
    if (error instanceof NpucError) return `${error.code} ${error.message}`;
    throw error;
  }
  throw new Error('nothing was refused');
}

const wave = floats([2, 3, 4], (i) => Math.sin(i));

describe('readNpz', () => {
  const scalar: TensorData = { dtype: 'i64', shape: [], data: BigInt64Array.of(16000n) };
  const empty: TensorData = { dtype: 'f64', shape: [0, 3], data: new Float64Array(0) };
  const flags: TensorData = { dtype: 'bool', shape: [3], data: Uint8Array.of(1, 0, 1) };

  test.each([false, true])('reads stored and deflated arrays back, bit by bit (deflate %s)', (deflate) => {
    const arrays = { wave, scalar, empty, flags, 'a:0/b': wave };
    expect(read(encodeNpz(arrays, deflate))).toEqual(arrays);
  });

  test('turns Fortran order into row-major', () => {
    const turned = floats([2, 3], (i) => [1, 4, 2, 5, 3, 6][i]!);
    const { a } = read(encodeNpz({ a: encodeNpy(turned, { order: 'True' }) }));
    expect([...(a!.data as Float32Array)]).toEqual([1, 2, 3, 4, 5, 6]);
  });

  test('reads strings', () => {
    const codes = Uint32Array.from([...'ab', '\0', ...'\u{1f600}', '\0', '\0'].map((each) => each.codePointAt(0)!));
    const raw: TensorData = { dtype: 'u8', shape: [2], data: new Uint8Array(codes.buffer) };
    expect(read(encodeNpz({ a: encodeNpy(raw, { descr: '<U3' }) })).a!.strings).toEqual(['ab', '\u{1f600}']);
  });

  test.skipIf(!hasMaterial)('reads what NumPy itself wrote', () => {
    const { input_ids, logits } = readNpz(materialPath('stories260k', 'hf_reference.npz'));
    expect(input_ids).toMatchObject({ dtype: 'i64', shape: [1, 12] });
    expect(logits).toMatchObject({ dtype: 'f32', shape: [1, 12, 512] });
  });
});

describe('a damaged file', () => {
  const good = encodeNpz({ wave });
  const edited = (edit: (bytes: Buffer) => void): Buffer => {
    const bytes = Buffer.from(good);
    edit(bytes);
    return bytes;
  };
  const array = encodeNpy(wave);

  test.each<[string, Buffer, RegExp]>([
    ['empty', Buffer.alloc(0), /^IO003 .*no end record/],
    ['no zip at all', Buffer.from('just text'), /^IO003 .*no end record/],
    ['cut at its end', good.subarray(0, good.length - 10), /^IO003/],
    ['with a directory outside', edited((bytes) => bytes.writeUInt32LE(1e9, bytes.length - 6)), /^IO003 .*directory/],
    ['with a broken entry', edited((bytes) => bytes.write('XX', good.length - 22 - 55)), /^IO003/],
    ['with another checksum', edited((bytes) => bytes.writeUInt8(bytes[200]! ^ 1, 200)), /^IO003 .*checksum/],
    ['with a broken local header', edited((bytes) => bytes.write('XX', 0)), /^IO003/],
    ['of zip64', edited((bytes) => bytes.writeUInt16LE(0xffff, bytes.length - 12)), /^IO003 .*zip64/],
    ['without the magic', encodeNpz({ a: Buffer.from('not an array at all') }), /^IO003 .*no \.npy/],
    ['with a header past its end', encodeNpz({ a: array.subarray(0, 40) }), /^IO003 .*header/],
    ['with fewer elements', encodeNpz({ a: array.subarray(0, array.length - 4) }), /^IO003 92 bytes .* 96 are needed/],
    ['with more elements', encodeNpz({ a: Buffer.concat([array, Buffer.alloc(4)]) }), /^IO003 100 bytes/],
    ['of Python objects', encodeNpz({ a: encodeNpy(wave, { descr: '|O' }) }), /^IO003 .*\|O are not read/],
    ['of big-endian numbers', encodeNpz({ a: encodeNpy(wave, { descr: '>f4' }) }), /^IO003 .*>f4/],
  ])('%s is refused with its reason', (_, bytes, reason) => {
    expect(refusal(bytes)).toMatch(reason);
  });

  test('a deflated array that is no deflate stream is refused', () => {
    const bytes = encodeNpz({ wave }, true);
    bytes.fill(0xff, 40, 60);
    expect(refusal(bytes)).toMatch(/^IO003/);
  });

  test('a missing file is named', () => {
    expect(() => readNpz(join(folder, 'nowhere.npz'))).toThrow(expect.objectContaining({ code: 'IO001' }));
  });

  test('one changed byte, wherever it is, gives the same arrays or a coded error', () => {
    const arrays = read(good);
    fc.assert(
      fc.property(fc.nat(good.length - 1), fc.integer({ min: 1, max: 255 }), (at, mask) => {
        const bytes = edited((copy) => copy.writeUInt8(copy[at]! ^ mask, at));
        try {
          const found = Object.values(read(bytes));
          if (found.length > 0) expect(found).toEqual(Object.values(arrays));
        } catch (error) {
          if (!(error instanceof NpucError)) throw error;
          expect(error.code).toMatch(/^IO00[13]$/);
        }
      }),
      { numRuns: 300 },
    );
  });
});

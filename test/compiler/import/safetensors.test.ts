import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { findDuplicateKey } from '../../../compiler/import/json.ts';
import { listSafetensorsFiles, openSafetensors } from '../../../compiler/import/safetensors.ts';
import { hasMaterial, materialPath } from '../../material.ts';
import { encodeSafetensors, entry } from './write-safetensors.ts';

const folder = mkdtempSync(join(tmpdir(), 'npuc-safetensors-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function write(bytes: Uint8Array | string, name = 'model.safetensors'): string {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
}

const coded = (code: string, part = '') =>
  expect.objectContaining({ name: 'NpucError', code, message: expect.stringContaining(part) });

const four = new Uint8Array(Float32Array.of(1, -2, 3.5, 0).buffer);

describe('reading', () => {
  test('types, shapes and bytes, in the order of their bytes', () => {
    const header = {
      __metadata__: { format: 'pt' },
      b: entry('F32', [2, 2], 4, 20),
      a: entry('BF16', [1, 2], 0, 4),
      scalar: entry('I64', [], 20, 28),
      none: entry('F16', [0, 5], 28, 28),
    };
    const data = Buffer.concat([Buffer.from([0x80, 0x3f, 0x00, 0xc0]), four, Buffer.from([7, 0, 0, 0, 0, 0, 0, 0])]);
    const tensors = openSafetensors(write(encodeSafetensors(header, data)));
    expect([...tensors.keys()]).toEqual(['a', 'b', 'scalar', 'none']);
    expect([...tensors.values()].map(({ dtype, shape }) => [dtype, shape])).toEqual([
      ['bf16', [1, 2]],
      ['f32', [2, 2]],
      ['i64', []],
      ['f16', [0, 5]],
    ]);
    expect(Array.from(tensors.get('a')!.toFloats())).toEqual([1, -2]);
    expect(Array.from(tensors.get('b')!.toFloats())).toEqual([1, -2, 3.5, 0]);
    expect(tensors.get('scalar')!.toNumbers()).toEqual([7]);
    expect(tensors.get('none')!.read().length).toBe(0);
    for (const tensor of tensors.values()) expect(tensor.storage.kind).toBe('file');
  });

  test('every type of the format has its width', () => {
    const widths = { F64: 8, I64: 8, U64: 8, C64: 8, F32: 4, I32: 4, U32: 4, F16: 2, BF16: 2, I16: 2, U16: 2 };
    const bytes = {
      F8_E4M3: 1,
      F8_E5M2: 1,
      F8_E8M0: 1,
      F8_E4M3FNUZ: 1,
      F8_E5M2FNUZ: 1,
      I8: 1,
      U8: 1,
      BOOL: 1,
      F4: 0.5,
    };
    for (const [name, width] of Object.entries({ ...widths, ...bytes })) {
      const data = new Uint8Array(2 * width);
      const tensors = openSafetensors(write(encodeSafetensors({ x: entry(name, [2], 0, 2 * width) }, data)));
      expect(tensors.get('x')!.read().length, name).toBe(2 * width);
    }
  });

  test('names that JavaScript objects have a meaning for', () => {
    const header = '{"__proto__":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}';
    expect([...openSafetensors(write(encodeSafetensors(header, four))).keys()]).toEqual(['__proto__']);
  });

  test.skipIf(!hasMaterial)('a real checkpoint', () => {
    const tensors = openSafetensors(materialPath('stories260k/hf/model.safetensors'));
    expect(tensors.size).toBe(47);
    let elements = 0;
    for (const tensor of tensors.values()) elements += tensor.size;
    expect(elements).toBe(260_032);
    const floats = tensors.get('model.norm.weight')!.toFloats();
    expect(floats.length).toBe(64);
    expect(floats.every((value) => Number.isFinite(value) && value !== 0)).toBe(true);
  });
});

describe('headers that lie', () => {
  const cases: [string, Uint8Array, string, string?][] = [
    ['an empty file', new Uint8Array(0), 'IO003', 'too few'],
    ['seven bytes', new Uint8Array(7), 'IO003', 'too few'],
    ['a header length of 2^64 - 1', encodeSafetensors('{}', four, 2n ** 64n - 1n), 'IM101', '18446744073709551615'],
    ['a header length of 100,000,001', encodeSafetensors('{}', four, 100_000_001n), 'IM101'],
    ['a header beyond the file', encodeSafetensors('{}', four, 1000n), 'IO003', 'byte 1008'],
    ['a header length of zero', encodeSafetensors('', four), 'IO003', 'not JSON'],
    ['a header that is no JSON', encodeSafetensors('{"x":', four), 'IO003', 'not JSON'],
    ['NaN', encodeSafetensors('{"x":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}', four), 'IO003', 'not JSON'],
    ['a list', encodeSafetensors('[1]', four), 'IO003', 'object'],
    ['null', encodeSafetensors('null', four), 'IO003', 'object'],
    [
      'bytes that are no UTF-8',
      encodeSafetensors('{"\xff":1}', four).map((byte) => (byte === 0xc3 ? 0xff : byte)),
      'IO003',
    ],
    ['an entry that is a number', encodeSafetensors({ x: 1 }, four), 'IM101', 'not an object'],
    ['no dtype', encodeSafetensors({ x: { shape: [4], data_offsets: [0, 16] } }, four), 'IM101', 'dtype'],
    ['an unknown dtype', encodeSafetensors({ x: entry('F32X', [4], 0, 16) }, four), 'IM102', 'F32X'],
    ['a dtype of Object.prototype', encodeSafetensors({ x: entry('toString', [4], 0, 16) }, four), 'IM102'],
    ['a wrong dtype', encodeSafetensors({ x: entry('F16', [4], 0, 16) }, four), 'IM101', '8 bytes'],
    ['a negative dim', encodeSafetensors({ x: entry('F32', [-4], 0, 16) }, four), 'IM101', 'shape'],
    ['a fraction as dim', encodeSafetensors({ x: entry('F32', [4.5], 0, 16) }, four), 'IM101', 'shape'],
    ['a string as shape', encodeSafetensors({ x: entry('F32', '4', 0, 16) }, four), 'IM101', 'shape'],
    ['dims beyond 2^53', encodeSafetensors({ x: entry('F32', [2 ** 40, 2 ** 40], 0, 16) }, four), 'IM101', 'span 16'],
    ['three offsets', encodeSafetensors({ x: { dtype: 'F32', shape: [4], data_offsets: [0, 16, 20] } }, four), 'IM101'],
    ['offsets the wrong way round', encodeSafetensors({ x: entry('F32', [4], 16, 0) }, four), 'IM101', '-16'],
    ['a range that is too short', encodeSafetensors({ x: entry('F32', [4], 0, 12) }, four), 'IM101', 'span 12'],
    ['a tensor past the end', encodeSafetensors({ x: entry('F32', [5], 0, 20) }, four), 'IO003', '20 bytes'],
    [
      'overlapping tensors',
      encodeSafetensors({ x: entry('F32', [3], 0, 12), y: entry('F32', [2], 8, 16) }, four),
      'IM101',
      'overlaps',
    ],
    ['a hole', encodeSafetensors({ x: entry('F32', [1], 0, 4), y: entry('F32', [2], 8, 16) }, four), 'IM101', 'gap'],
    ['a rest', encodeSafetensors({ x: entry('F32', [3], 0, 12) }, four), 'IM101', '4 bytes after'],
    [
      'a name that is there twice',
      encodeSafetensors(
        '{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"\\u0078":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        four,
      ),
      'IM101',
      'twice',
    ],
  ];
  test.each(cases)('%s', (_, bytes, code, part) => {
    expect(() => openSafetensors(write(bytes))).toThrow(coded(code, part));
  });

  test('a file that is not there, and a folder', () => {
    expect(() => openSafetensors(join(folder, 'absent.safetensors'))).toThrow(coded('IO001'));
    mkdirSync(join(folder, 'd.safetensors'));
    expect(() => openSafetensors(join(folder, 'd.safetensors'))).toThrow(coded('IO001'));
  });

  test('a file that shrinks after it was opened', () => {
    const path = write(encodeSafetensors({ x: entry('F32', [4], 0, 16) }, four), 'shrinks.safetensors');
    const tensor = openSafetensors(path).get('x')!;
    truncateSync(path, 70);
    expect(() => tensor.read()).toThrow(coded('IO003', 'shorter'));
  });

  test('flipped bytes give tensors or a coded error, never anything else', () => {
    const header = { __metadata__: { format: 'pt' }, a: entry('F32', [2, 1], 0, 8), b: entry('BF16', [2, 2], 8, 16) };
    const good = encodeSafetensors(header, four);
    const flips = fc.array(fc.tuple(fc.nat(good.length - 1), fc.integer({ min: 1, max: 255 })), {
      minLength: 1,
      maxLength: 3,
    });
    fc.assert(
      fc.property(flips, fc.nat(good.length), (changes, length) => {
        const bytes = Uint8Array.from(good).subarray(0, changes.length === 3 ? length : good.length);
        for (const [at, value] of changes) if (at < bytes.length) bytes[at] ^= value;
        try {
          for (const tensor of openSafetensors(write(bytes)).values()) tensor.read();
        } catch (error) {
          expect(error).toMatchObject({ name: 'NpucError', code: expect.stringMatching(/^(IM10[12]|IO003)$/) });
        }
      }),
      { numRuns: 500, seed: 5 },
    );
  });
});

describe('keys that are there twice', () => {
  test.each([
    ['{}', undefined],
    ['{"a":1,"b":{"a":2,"a":3},"c":["a","a"]}', undefined],
    ['{"a":"a","b":1}', undefined],
    ['{"a":{"x":1},"b":2,"a":3}', 'a'],
    ['{"a\\"":1,"a":2,"a\\\\":3}', undefined],
    ['{"\\"":1, "\\u0022":2}', '"'],
    ['{"":1,"":2}', ''],
  ])('%s', (text, expected) => {
    JSON.parse(text);
    expect(findDuplicateKey(text)).toBe(expected);
  });
});

describe('shards', () => {
  const shard = (name: string) => encodeSafetensors({ [name]: entry('F32', [4], 0, 16) }, four);
  const index = (map: unknown) =>
    write(JSON.stringify({ metadata: {}, weight_map: map }), 'model.safetensors.index.json');
  write(shard('a'), 's1.safetensors');
  write(shard('b'), 's2.safetensors');

  test('tensors come from the shard that the index names', () => {
    const path = index({ b: 's2.safetensors', a: 's1.safetensors' });
    const tensors = openSafetensors(path);
    expect([...tensors.keys()]).toEqual(['b', 'a']);
    expect(Array.from(tensors.get('a')!.toFloats())).toEqual([1, -2, 3.5, 0]);
    expect(listSafetensorsFiles(path)).toEqual([path, join(folder, 's1.safetensors'), join(folder, 's2.safetensors')]);
  });

  test('a shard may be a link, as in the hub cache', () => {
    symlinkSync(join(folder, 's1.safetensors'), join(folder, 'link.safetensors'));
    expect(openSafetensors(index({ a: 'link.safetensors' })).size).toBe(1);
  });

  const wrong: [string, unknown, string, string][] = [
    ['no weight_map', undefined, 'IM103', 'weight_map'],
    ['a shard that is missing', { a: 's1.safetensors', c: 's3.safetensors' }, 'IM103', 's3.safetensors'],
    ['a tensor in another shard', { a: 's2.safetensors' }, 'IM103', '"a"'],
    ['a shard outside of the folder', { a: '../s1.safetensors' }, 'IM103', 'beside'],
    ['an absolute shard', { a: '/etc/s1.safetensors' }, 'IM103', 'beside'],
    ['a Windows path', { a: '..\\s1.safetensors' }, 'IM103', 'beside'],
    ['another kind of file', { a: 'pytorch_model.bin' }, 'IM103', 'beside'],
    ['a number', { a: 1 }, 'IM103', 'beside'],
  ];
  test.each(wrong)('%s', (_, map, code, part) => {
    expect(() => openSafetensors(index(map))).toThrow(coded(code, part));
  });

  test('a shard that is truncated keeps its own error', () => {
    const bytes = readFileSync(join(folder, 's1.safetensors'));
    write(bytes.subarray(0, bytes.length - 4), 's4.safetensors');
    expect(() => openSafetensors(index({ a: 's4.safetensors' }))).toThrow(coded('IO003', '16 bytes'));
  });

  test('an index that is no JSON', () => {
    expect(() => openSafetensors(write('{"weight_map": NaN}', 'model.safetensors.index.json'))).toThrow(coded('IO003'));
  });
});

import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { readEncodings } from '../../../calibration/read-encodings.ts';
import type { Encoding } from '../../../compiler/ir/encoding.ts';
import { Graph, tensorType } from '../../../compiler/ir/graph.ts';
import { Tensor } from '../../../compiler/ir/tensor.ts';
import { writeEncodings } from '../../../targets/onnx/encodings-json.ts';

const folder = mkdtempSync(join(tmpdir(), 'npuc-encodings-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function write(graph: Graph): unknown {
  const path = join(folder, 'encodings.json');
  writeEncodings(graph, path);
  return JSON.parse(readFileSync(path, 'utf8'));
}

const lpbq = (blockScale: number[], axis: number): Encoding => ({
  dtype: 'i4',
  axis,
  block: 16,
  channelAxis: 1 - axis,
  scale: Float32Array.of(0.5, 0.25, 0.125),
  blockScale: Uint8Array.from(blockScale),
});

test('every form of encoding, in the fields of AIMET 1.0.0', () => {
  const graph = new Graph('g');
  const x = graph.addInput('x', tensorType('f32', [4]));
  x.encoding = { dtype: 'u16', scale: Float32Array.of(0.5), zeroPoint: Int32Array.of(100) };
  const cache = graph.addInput('cache', tensorType('f32', [4]));
  cache.encoding = { dtype: 'i16', scale: Float32Array.of(0.25) };
  const unsigned = graph.addInput('unsigned', tensorType('f32', [4]));
  unsigned.encoding = { dtype: 'u8', scale: Float32Array.of(0.25), zeroPoint: Int32Array.of(128) };
  graph.addInput('plain', tensorType('f32', [4]));
  const constant = (name: string, shape: number[], encoding: Encoding): void => {
    const size = shape.reduce((a, b) => a * b, 1);
    graph.addConstant(name, Tensor.of('f32', shape, new Float32Array(size))).encoding = encoding;
  };
  constant('rows', [2, 3], { dtype: 'i8', scale: Float32Array.of(1, 2), axis: 0 });
  // Two blocks of 16 along K, three channels: [K / 16, N] is 1 2 3 / 4 5 6.
  constant('k_by_n', [32, 3], lpbq([1, 2, 3, 4, 5, 6], 0));
  constant('n_by_k', [3, 32], lpbq([1, 4, 2, 5, 3, 6], 1));
  const blocks = {
    dtype: 'INT',
    bw: 8,
    enc_type: 'LPBQ',
    is_sym: true,
    scale: [0.5, 0.25, 0.125],
    offset: [-128, -128, -128],
    block_size: 16,
    compressed_bw: 4,
    per_block_int_scale: [1, 4, 2, 5, 3, 6],
  };
  expect(write(graph)).toEqual({
    version: '1.0.0',
    activation_encodings: [
      { name: 'x', dtype: 'INT', bw: 16, enc_type: 'PER_TENSOR', is_sym: false, scale: [0.5], offset: [-100] },
      { name: 'cache', dtype: 'INT', bw: 16, enc_type: 'PER_TENSOR', is_sym: true, scale: [0.25], offset: [-32768] },
      { name: 'unsigned', dtype: 'INT', bw: 8, enc_type: 'PER_TENSOR', is_sym: true, scale: [0.25], offset: [-128] },
    ],
    param_encodings: [
      { name: 'rows', dtype: 'INT', bw: 8, enc_type: 'PER_CHANNEL', is_sym: true, scale: [1, 2], offset: [-128, -128] },
      { name: 'k_by_n', ...blocks },
      { name: 'n_by_k', ...blocks },
    ],
  });
});

test('without encodings the lists are empty', () => {
  expect(write(new Graph('g'))).toEqual({ version: '1.0.0', activation_encodings: [], param_encodings: [] });
  expect(readdirSync(folder)).toEqual(['encodings.json']);
});

test('version 0.6.1 has an entry per channel with its range, by name', () => {
  const graph = new Graph('g');
  const x = graph.addInput('x', tensorType('f32', [4]));
  x.encoding = { dtype: 'u8', scale: Float32Array.of(0.5), zeroPoint: Int32Array.of(10) };
  const rows = graph.addConstant('rows', Tensor.of('f32', [2, 3], new Float32Array(6)));
  rows.encoding = { dtype: 'i8', scale: Float32Array.of(1, 2), axis: 0 };
  const path = join(folder, 'older.json');
  writeEncodings(graph, path, '0.6.1');
  const channel = { bitwidth: 8, dtype: 'int', is_symmetric: 'True', offset: -128 };
  expect(JSON.parse(readFileSync(path, 'utf8'))).toEqual({
    version: '0.6.1',
    activation_encodings: {
      x: [{ bitwidth: 8, dtype: 'int', is_symmetric: 'False', max: 122.5, min: -5, offset: -10, scale: 0.5 }],
    },
    param_encodings: {
      rows: [
        { ...channel, max: 127, min: -128, scale: 1 },
        { ...channel, max: 254, min: -256, scale: 2 },
      ],
    },
  });
  const read = readEncodings(path);
  expect(read.activations.get('x')).toEqual({ bits: 8, scale: [0.5], offset: [-10] });
  expect(read.params.get('rows')).toEqual({ bits: 8, scale: [1, 2], offset: [-128, -128] });
  const blocks = graph.addConstant('blocks', Tensor.of('f32', [32, 3], new Float32Array(96)));
  blocks.encoding = lpbq([1, 2, 3, 4, 5, 6], 0);
  rmSync(path);
  expect(() => writeEncodings(graph, path, '0.6.1')).toThrow(expect.objectContaining({ code: 'QT132' }));
  expect(existsSync(path)).toBe(false);
});

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { afterAll, beforeEach, describe, expect, it } from 'vitest';
import { encodeOnnx, writeOnnx } from '../../../compiler/export/onnx.ts';
import { decodeOnnx, openOnnx } from '../../../compiler/import/onnx.ts';
import { Graph, Module, tensorType } from '../../../compiler/ir/graph.ts';
import { Tensor, transposeTensor } from '../../../compiler/ir/tensor.ts';
import { describeModule, describeTensors } from '../describe-module.ts';
import { makeFeeds, runOnnx } from '../run-onnx.ts';

const root = mkdtempSync(join(tmpdir(), 'npuc-write-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));
let folder = '';
beforeEach(() => {
  folder = mkdtempSync(join(root, 'case-'));
});

const tensor = (rows: number, columns: number, phase: number): Tensor =>
  Tensor.of(
    'f32',
    [rows, columns],
    Float32Array.from({ length: rows * columns }, (_, i) => Math.sin(i + phase)),
  );

/** y = ((x W) W^T) + b, W in memory and its transpose derived; W is a constant twice under two names. */
function makeModule(size = 160): Module {
  const graph = new Graph('g');
  const module = new Module();
  module.graphs.push(graph);
  const weight = tensor(size, size, 0);
  const x = graph.addInput('x', tensorType('f32', ['n', size]));
  const w = graph.addConstant('w', weight);
  const again = graph.addConstant('again', weight);
  const t = graph.addConstant('t', transposeTensor(tensor(size, size, 1)));
  const b = graph.addConstant('b', tensor(1, size, 2));
  const first = graph.emit('MatMul', [x, w], { name: 'first' });
  const second = graph.emit('MatMul', [first, t], { name: 'second' });
  const third = graph.emit('MatMul', [second, again], { name: 'third' });
  graph.outputs.push(graph.emit('Add', [third, b], { name: 'y', type: tensorType('f32', ['n', size]) }));
  return module;
}

async function outputsOf(model: string | Uint8Array): Promise<Record<string, string>> {
  return describeTensors((await runOnnx(model, (inputs) => makeFeeds(inputs, 3))).outputs);
}

describe('one file', () => {
  it('is what encodeOnnx gives, runs, and is the same every time', async () => {
    const path = join(folder, 'model.onnx');
    const written = writeOnnx(makeModule(), path);
    const bytes = readFileSync(path);
    expect(written).toEqual({ files: [{ path, bytes: bytes.length }] });
    expect(Buffer.compare(bytes, encodeOnnx(makeModule(), { inline: true }))).toBe(0);
    expect(readdirSync(folder)).toEqual(['model.onnx']);
    expect(await outputsOf(path)).toEqual(await outputsOf(bytes));
    expect(describeModule(openOnnx(path))).toEqual(describeModule(decodeOnnx(bytes)));
  });

  it('may be the file that the model was read from; what was read before says so', () => {
    const path = join(folder, 'model.onnx');
    writeOnnx(makeModule(), path);
    const module = openOnnx(path);
    module.doc = 'a longer text than before';
    writeOnnx(module, path);
    expect(openOnnx(path).doc).toBe(module.doc);
    expect(() => module.graph().find('w')!.data!.read()).toThrow(expect.objectContaining({ code: 'IO001' }));
  });

  it('is refused from 2 GiB on', () => {
    const graph = new Graph('g');
    const huge = new Tensor('u8', [2 ** 31], { kind: 'derived', compute: () => new Uint8Array(0) });
    graph.outputs.push(graph.emit('Identity', [graph.addConstant('w', huge)], { name: 'y' }));
    const module = new Module();
    module.graphs.push(graph);
    const path = join(folder, 'model.onnx');
    expect(() => writeOnnx(module, path, { externalData: 'never' })).toThrow(
      expect.objectContaining({ code: 'IO004' }),
    );
    expect(() => encodeOnnx(module)).toThrow(expect.objectContaining({ code: 'IO004' }));
    expect(readdirSync(folder)).toEqual([]);
  });
});

describe('external data', () => {
  it('holds each tensor once, aligned, and runs', async () => {
    const path = join(folder, 'model.onnx');
    const written = writeOnnx(makeModule(), path, { externalData: 'always', externalName: 'weights.bin' });
    expect(written.files.map((file) => basename(file.path))).toEqual(['model.onnx', 'weights.bin']);
    for (const file of written.files) expect(readFileSync(file.path).length).toBe(file.bytes);
    const constants = openOnnx(path).graph().constants;
    const places = constants.map(({ name, data }) => [name, data!.storage.kind === 'file' ? data!.storage.offset : -1]);
    // 160 x 160 f32 is above the page threshold; b is small, and inline (640 bytes).
    expect(places).toEqual([
      ['w', 0],
      ['again', 0],
      ['t', 25 * 4096],
      ['b', -1],
    ]);
    expect(await outputsOf(path)).toEqual(await outputsOf(encodeOnnx(makeModule())));
  });

  it('comes by itself above the threshold', () => {
    const path = join(folder, 'model.onnx');
    expect(writeOnnx(makeModule(), path, { threshold: 1e6 }).files.length).toBe(1);
    expect(writeOnnx(makeModule(), path, { threshold: 1e5 }).files.map((file) => basename(file.path))).toEqual([
      'model.onnx',
      'model.onnx.data',
    ]);
  });

  it('is the same in any folder, and copies from external data', () => {
    const other = join(folder, 'other');
    mkdirSync(other);
    writeOnnx(makeModule(), join(folder, 'm.onnx'), { externalData: 'always' });
    writeOnnx(openOnnx(join(folder, 'm.onnx')), join(other, 'm.onnx'), { externalData: 'always' });
    for (const name of ['m.onnx', 'm.onnx.data']) {
      expect(Buffer.compare(readFileSync(join(folder, name)), readFileSync(join(other, name))), name).toBe(0);
    }
    const [first, second] = [folder, other].map((place) => describeModule(openOnnx(join(place, 'm.onnx'))));
    expect(second).toEqual(first);
  });

  it.each(['../w.bin', 'sub/w.bin', 'model.onnx'])('cannot be called %s', (externalName) => {
    const write = (): unknown =>
      writeOnnx(makeModule(), join(folder, 'model.onnx'), { externalData: 'always', externalName });
    expect(write).toThrow(expect.objectContaining({ code: 'IO002' }));
    expect(readdirSync(folder)).toEqual([]);
  });
});

describe('failure', () => {
  it('leaves what was there when a tensor cannot be read', () => {
    const path = join(folder, 'model.onnx');
    writeFileSync(path, 'before');
    const module = makeModule();
    module.graph().find('b')!.data = new Tensor('f32', [1, 160], {
      kind: 'derived',
      compute: () => {
        throw new Error('no such weights');
      },
    });
    for (const externalData of ['never', 'always'] as const) {
      expect(() => writeOnnx(module, path, { externalData })).toThrow('no such weights');
      expect(readdirSync(folder)).toEqual(['model.onnx']);
      expect(readFileSync(path, 'utf8')).toBe('before');
    }
  });

  it('is ours when a tensor gives another length than it said', () => {
    const module = makeModule();
    module.graph().find('b')!.data = new Tensor('f32', [1, 160], { kind: 'derived', compute: () => new Uint8Array(3) });
    expect(() => writeOnnx(module, join(folder, 'm.onnx'))).toThrow(expect.objectContaining({ code: 'XX001' }));
    expect(readdirSync(folder)).toEqual([]);
  });

  it('is IO002 where the folder is not there', () => {
    const write = (): unknown => writeOnnx(makeModule(), join(folder, 'none', 'model.onnx'));
    expect(write).toThrow(expect.objectContaining({ code: 'IO002' }));
  });

  it('leaves nothing behind on a full disk', () => {
    const dist = fileURLToPath(new URL('../../../dist/compiler/', import.meta.url));
    if (!existsSync(dist)) throw new Error('run `npm run build` first: this test writes from a process of its own');
    writeOnnx(makeModule(400), join(root, 'source.onnx'));
    const script = `
      import { openOnnx } from ${JSON.stringify(pathToFileURL(join(dist, 'import/onnx.js')).href)};
      import { writeOnnx } from ${JSON.stringify(pathToFileURL(join(dist, 'export/onnx.js')).href)};
      const module = openOnnx(${JSON.stringify(join(root, 'source.onnx'))});
      for (const externalData of ['never', 'always']) {
        try {
          writeOnnx(module, ${JSON.stringify(join(folder, 'model.onnx'))}, { externalData });
        } catch (error) {
          console.log(error.code);
        }
      }`;
    // A limit on file size fails writes as a full disk does (EFBIG for ENOSPC), after some were accepted.
    const limited = ['-c', 'ulimit -f 1024; exec "$0" --input-type=module --eval "$1"', process.execPath, script];
    const { stdout, stderr } = spawnSync('bash', limited, { encoding: 'utf8' });
    expect(stderr).toBe('');
    expect(stdout.trim().split('\n')).toEqual(['IO002', 'IO002']);
    expect(readdirSync(folder)).toEqual([]);
  });
});

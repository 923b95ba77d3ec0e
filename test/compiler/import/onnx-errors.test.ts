import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { encodeMessage } from '../../../compiler/export/protobuf.ts';
import { decodeOnnx, openOnnx } from '../../../compiler/import/onnx.ts';
import {
  MODEL,
  type ModelMessage,
  type NodeMessage,
  type TensorMessage,
} from '../../../compiler/import/onnx-schema.ts';

const folder = mkdtempSync(join(tmpdir(), 'npuc-onnx-errors-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

interface Parts {
  nodes?: NodeMessage[];
  initializers?: TensorMessage[];
  outputs?: string[];
  model?: Partial<ModelMessage>;
}

/** A model with an input `x`; by default it is valid and has no nodes. */
function modelBytes({ nodes, initializers, outputs, model }: Parts): Uint8Array {
  const graph = {
    name: 'g',
    nodes,
    initializers,
    inputs: [{ name: 'x', type: { tensor: { elementType: 1, shape: { dims: [{ value: 2 }] } } } }],
    outputs: (outputs ?? ['x']).map((name) => ({ name })),
  };
  return encodeMessage(MODEL, { irVersion: 8, opsets: [{ version: 17 }], graph, ...model }).toBytes();
}

function failure(action: () => unknown): object {
  try {
    action();
  } catch (error) {
    const { code, where, message } = error as { code?: string; where?: string; message: string };
    return { code, where, message };
  }
  return { code: 'none' };
}

const bytesOf = (...values: number[]): { byteLength: number; read: () => Uint8Array } => ({
  byteLength: values.length,
  read: () => Uint8Array.from(values),
});
const relu = (name: string, from: string, to: string): NodeMessage => ({
  op: 'Relu',
  name,
  inputs: [from],
  outputs: [to],
});

describe('bad graphs', () => {
  it.each<[string, Parts, object]>([
    ['a name that nothing produces', { nodes: [relu('r', 'nope', 'y')] }, { code: 'IM304', where: 'r' }],
    ['an output that nothing produces', { outputs: ['y'] }, { code: 'IM304', where: 'g' }],
    ['two producers', { nodes: [relu('a', 'x', 'y'), relu('b', 'x', 'y')] }, { code: 'IM303', where: 'y' }],
    ['a producer of an input', { nodes: [relu('a', 'x', 'x')] }, { code: 'IM303', where: 'x' }],
    ['a circle', { nodes: [relu('a', 'c', 'b'), relu('d', 'b', 'c')] }, { code: 'IM305' }],
    ['a node that reads itself', { nodes: [relu('self', 'y', 'y')] }, { code: 'IM305', where: 'self' }],
    ['an unnamed initializer', { initializers: [{ dataType: 1, rawData: bytesOf(0, 0, 0, 0) }] }, { code: 'IM302' }],
    [
      'the same attribute twice',
      {
        nodes: [
          {
            ...relu('a', 'x', 'y'),
            attributes: [
              { name: 'k', int: 1, type: 2 },
              { name: 'k', int: 2, type: 2 },
            ],
          },
        ],
      },
      { code: 'IM303', where: 'a' },
    ],
    [
      'an attribute without its tensor',
      { nodes: [{ ...relu('a', 'x', 'y'), attributes: [{ name: 'value', type: 4 }] }] },
      { code: 'IM302', where: 'a' },
    ],
    ['no graph', { model: { graph: undefined } }, { code: 'IM302' }],
    [
      'opset 6',
      { model: { opsets: [{ version: 6 }] } },
      { code: 'IM301', message: 'opset 6 is not supported (7 to 25)' },
    ],
    ['opset 26', { model: { opsets: [{ domain: 'ai.onnx', version: 26 }] } }, { code: 'IM301' }],
    ['IR version 14', { model: { irVersion: 14 } }, { code: 'IM301' }],
    ['no IR version', { model: { irVersion: undefined } }, { code: 'IM301' }],
  ])('%s', (_, parts, expected) => {
    expect(failure(() => decodeOnnx(modelBytes(parts)))).toMatchObject(expected);
  });

  it('accepts what is merely unusual', () => {
    expect(decodeOnnx(modelBytes({})).graph().outputs[0]!.name).toBe('x');
    const unsorted = decodeOnnx(modelBytes({ nodes: [relu('b', 'y', 'z'), relu('a', 'x', 'y')], outputs: ['z'] }));
    expect(unsorted.graph().nodes.map((node) => node.name)).toEqual(['a', 'b']);
  });
});

describe('bad tensors', () => {
  const raw = bytesOf(0, 0, 128, 63);
  const packed = (...values: number[]): { byteLength: number; read: () => Uint8Array }[] => [bytesOf(...values)];
  it.each<[string, object, string]>([
    ['raw data that is too short', { dims: [2], dataType: 1, rawData: raw }, 'IM306'],
    ['raw data that is too long', { dims: [0], dataType: 1, rawData: raw }, 'IM306'],
    ['no data', { dims: [1], dataType: 1 }, 'IM306'],
    ['a shape beyond all memory', { dims: [2 ** 40, 2 ** 40], dataType: 1, rawData: raw }, 'IM306'],
    ['a negative dimension', { dims: [-1], dataType: 1, rawData: raw }, 'IM306'],
    ['an unknown element type', { dims: [1], dataType: 99, rawData: raw }, 'IM306'],
    ['no element type', { dims: [1], rawData: raw }, 'IM306'],
    ['too few typed elements', { dims: [3], dataType: 7, int64Data: packed(1, 2) }, 'IM306'],
    ['too many typed elements', { dims: [1], dataType: 7, int64Data: packed(1, 2) }, 'IM306'],
    ['a lying typed shape', { dims: [2 ** 45], dataType: 7, int64Data: packed(1) }, 'IM306'],
    ['a torn varint', { dims: [1], dataType: 6, int32Data: packed(0x80) }, 'IO003'],
    ['too few strings', { dims: [2], dataType: 8, stringData: [Buffer.from('a')] }, 'IM306'],
    ['segments', { dims: [1], dataType: 1, segment: bytesOf(8, 0), rawData: raw }, 'IM306'],
  ])('%s', (_, tensor, code) => {
    const initializer = { name: 'w', ...tensor } as unknown as TensorMessage;
    expect(failure(() => decodeOnnx(modelBytes({ initializers: [initializer] })))).toMatchObject({ code });
  });
});

describe('external data', () => {
  const models = join(folder, 'models');
  mkdirSync(join(models, 'sub'), { recursive: true });
  writeFileSync(join(folder, 'secret.bin'), Buffer.alloc(64, 7));
  writeFileSync(join(models, 'data.bin'), Buffer.alloc(64, 1));
  writeFileSync(join(models, 'sub', 'data.bin'), Buffer.alloc(64, 2));
  symlinkSync(join(folder, 'secret.bin'), join(models, 'link.bin'));
  symlinkSync(folder, join(models, 'linked'));
  symlinkSync('data.bin', join(models, 'inside.bin'));

  function open(entries: Record<string, string>, tensor: Partial<TensorMessage> = {}): Uint8Array {
    const externalData = Object.entries(entries).map(([key, value]) => ({ key, value }));
    const initializer = { name: 'w', dims: [4], dataType: 1, dataLocation: 1, externalData, ...tensor };
    const path = join(models, 'model.onnx');
    writeFileSync(path, modelBytes({ initializers: [initializer] }));
    return openOnnx(path).graph().find('w')!.data!.read();
  }

  it('may lie in the folder or below it', () => {
    expect(open({ location: 'data.bin', offset: '48' })).toEqual(new Uint8Array(16).fill(1));
    expect(open({ location: 'sub/data.bin', length: '16' })).toEqual(new Uint8Array(16).fill(2));
    expect(open({ location: 'inside.bin' })).toEqual(new Uint8Array(16).fill(1));
  });

  it('may lie beside what the model links to, as in the cache of a hub', () => {
    const snapshot = join(folder, 'snapshot');
    mkdirSync(snapshot);
    open({ location: 'data.bin' });
    symlinkSync(join(models, 'model.onnx'), join(snapshot, 'model.onnx'));
    symlinkSync(join(models, 'data.bin'), join(snapshot, 'data.bin'));
    const data = openOnnx(join(snapshot, 'model.onnx')).graph().find('w')!.data!;
    expect(data.read()).toEqual(new Uint8Array(16).fill(1));
  });

  it.each<[string, Record<string, string>, string]>([
    ['a parent folder', { location: '../secret.bin' }, 'IM307'],
    ['a parent folder on the way', { location: 'sub/../../secret.bin' }, 'IM307'],
    ['a parent folder, Windows style', { location: '..\\secret.bin' }, 'IM307'],
    ['an absolute path', { location: join(folder, 'secret.bin') }, 'IM307'],
    ['a drive', { location: 'C:\\secret.bin' }, 'IM307'],
    ['a zero byte', { location: 'data.bin\0x' }, 'IM307'],
    ['no location', { offset: '0' }, 'IM307'],
    ['a link that leaves the folder', { location: 'link.bin' }, 'IM307'],
    ['a folder link that leaves the folder', { location: 'linked/secret.bin' }, 'IM307'],
    ['a missing file', { location: 'none.bin' }, 'IO001'],
    ['a folder', { location: 'sub' }, 'IO001'],
    ['a range past the end', { location: 'data.bin', offset: '56' }, 'IM308'],
    ['an offset beyond 2^53', { location: 'data.bin', offset: '99999999999999999999' }, 'IM308'],
    ['a negative offset', { location: 'data.bin', offset: '-4' }, 'IM308'],
    ['an offset that is no number', { location: 'data.bin', offset: '0x10' }, 'IM308'],
    ['a length that is not that of the tensor', { location: 'data.bin', length: '12' }, 'IM308'],
  ])('is refused with %s', (_, entries, code) => {
    expect(failure(() => open(entries))).toMatchObject({ code });
  });

  it('cannot hold strings', () => {
    expect(failure(() => open({ location: 'data.bin' }, { dataType: 8 }))).toMatchObject({ code: 'IM308' });
  });

  it('is not read after it was replaced', () => {
    open({ location: 'data.bin' });
    const data = openOnnx(join(models, 'model.onnx')).graph().find('w')!.data!;
    writeFileSync(join(models, 'data.bin'), Buffer.alloc(63, 3));
    expect(failure(() => data.read())).toMatchObject({ code: 'IO001' });
    writeFileSync(join(models, 'data.bin'), Buffer.alloc(64, 1));
  });
});

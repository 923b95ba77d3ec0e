import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { NativeHost } from '../../../compiler/runtime/ort-native.ts';
import { compileContext } from '../../../targets/qnn/compile-context.ts';
import { renameGraphs } from '../../../targets/qnn/name-graphs.ts';
import { readContextBinary } from '../../../targets/qnn/read-context.ts';
import { findSoc } from '../../../targets/socs.ts';
import { lpbqMatmul, noise, writeModel } from './tiny-onnx.ts';
import { toolchain } from './toolchain-or-skip.ts';

const soc = findSoc('SM8750');

describe.skipIf(!toolchain)('names of graphs', () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'npuc-names-'));
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  const models = () =>
    ['prefill_8', 'decode'].map((name, index) => ({
      name,
      path: writeModel(join(folder, `${name}.onnx`), lpbqMatmul([8, 1][index]!)),
    }));

  test('an unshared binary has the name of its model, loads by it, and computes what it computed', async () => {
    const outputFolder = join(folder, 'alone');
    const { files, contexts } = await compileContext(toolchain!, models(), { soc, share: false, outputFolder });
    expect(files.map(({ graph }) => graph)).toEqual(['prefill_8', 'decode']);
    expect([...contexts.values()].flatMap(({ graphs }) => graphs.map(({ name }) => name))).toEqual([
      'prefill_8',
      'decode',
    ]);
    for (const { onnx, binary } of files) {
      for (const path of [onnx, binary]) expect(readFileSync(path).includes('QNNExecutionProvider_QNN')).toBe(false);
    }
    const host = await NativeHost.start(toolchain!);
    const feeds = { x: { dtype: 'f32', shape: [1, 1, 128], data: noise(128, 3) } } as const;
    // The simulator compiles the model itself here, under the vendor's own name.
    const direct = await host.openSession(models()[1]!.path, { provider: 'qnn', soc: soc.number });
    const named = await host.openSession(files[1]!.onnx, { provider: 'qnn' });
    expect((await named.run(feeds)).y_dq!.data).toEqual((await direct.run(feeds)).y_dq!.data);
    await host.close();
  });

  test('two graphs of one binary keep their own names, and either order of names reads back', async () => {
    const outputFolder = join(folder, 'shared');
    const { files } = await compileContext(toolchain!, models(), { soc, share: true, outputFolder });
    const rows = async (path: string) =>
      Object.fromEntries(
        (await readContextBinary(toolchain!, path)).graphs.map(({ name, inputs }) => [name, inputs[0]!.shape[1]]),
      );
    expect(await rows(files[0]!.binary)).toEqual({ prefill_8: 8, decode: 1 });
    const copy = join(folder, 'copy.bin');
    copyFileSync(files[0]!.binary, copy);
    renameGraphs(
      copy,
      new Map([
        ['prefill_8', 'b'],
        ['decode', 'a'],
      ]),
    );
    expect(await rows(copy)).toEqual({ b: 8, a: 1 });
  });

  test('what is not laid out as a binary is refused and stays as it is', () => {
    mkdirSync(join(folder, 'bad'));
    const path = join(folder, 'bad', 'a.bin');
    const bytes = Buffer.from('....graph_one....graph_one....graph_one');
    writeFileSync(path, bytes);
    const rename = (old: string, name: string) => () => renameGraphs(path, new Map([[old, name]]));
    const refusal = (message: RegExp) =>
      expect.objectContaining({ code: 'QN013', message: expect.stringMatching(message) });
    expect(rename('graph_one', 'a')).toThrow(refusal(/byte 4 is not a string/));
    expect(rename('graph_one', 'a_longer_name')).toThrow(refusal(/longer than 9/));
    expect(rename('absent', 'a')).toThrow(refusal(/occurs 0 times/));
    expect(readFileSync(path)).toEqual(bytes);
  });

  test('names that lie across the windows of a large file are found once', () => {
    const path = join(folder, 'large.bin');
    const name = 'a_name_of_a_graph';
    const window = 32 << 20;
    const bytes = Buffer.alloc(window + 1000);
    const places = [100, window - 5, window - name.length + 500];
    for (const place of places) {
      bytes.writeUInt32LE(name.length, place - 4);
      bytes.write(name, place);
    }
    writeFileSync(path, bytes);
    renameGraphs(path, new Map([[name, 'short']]));
    const renamed = readFileSync(path);
    expect(renamed).toHaveLength(bytes.length);
    for (const place of places) {
      expect(renamed.readUInt32LE(place - 4)).toBe(5);
      expect(renamed.toString('latin1', place, place + name.length)).toBe('short'.padEnd(name.length, '\0'));
    }
    expect(renamed.includes(name)).toBe(false);
  });
});

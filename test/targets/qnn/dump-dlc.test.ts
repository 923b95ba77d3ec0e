import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { dumpDlc } from '../../../targets/qnn/dump-dlc.ts';
import { findSoc } from '../../../targets/socs.ts';
import { lpbqMatmul, type TinyModel, writeModel } from './tiny-onnx.ts';
import { toolchain } from './toolchain-or-skip.ts';

const soc = findSoc('SM8750');

describe.skipIf(!toolchain)('DLC files', () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'npuc-dlc-'));
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  test('hold the whole graph with its weights, the same bytes a second later', async () => {
    const models = [
      { name: 'prefill', path: writeModel(join(folder, 'p.onnx'), lpbqMatmul(8)) },
      { name: 'decode', path: writeModel(join(folder, 'd.onnx'), lpbqMatmul(1)) },
    ];
    const dump = (name: string) => dumpDlc(toolchain!, models, { soc, outputFolder: join(folder, name) });
    const first = await dump('first');
    expect(readdirSync(join(folder, 'first')).sort()).toEqual(['decode.dlc', 'prefill.dlc']);
    // The vendor's clock has whole seconds.
    await sleep(1100);
    const second = await dump('second');
    for (const [index, path] of first.entries()) expect(readFileSync(second[index]!)).toEqual(readFileSync(path));
    const bytes = readFileSync(first[1]!);
    expect(bytes.includes('NETD')).toBe(true);
    // The MatMul with its weights in it, under its own name, and the ports; nothing was cut off.
    for (const name of ['the_matmul', 'y_dq', 'MatMul']) expect(bytes.includes(name), name).toBe(true);
    // 4-bit weights, one byte each.
    expect(bytes.length).toBeGreaterThan(128 * 64);
  });

  test('a graph that the HTP does not take is refused with the node, and nothing is left', async () => {
    const refused: TinyModel = {
      inputs: [{ name: 'x', dtype: 'f32', shape: [1, 8] }],
      outputs: [{ name: 'y', dtype: 'f32', shape: [1, 8] }],
      nodes: [{ op: 'Celu', name: 'the_celu', inputs: ['x'], outputs: ['y'] }],
      weights: [],
    };
    const model = { name: 'refused', path: writeModel(join(folder, 'refused.onnx'), refused) };
    const outputFolder = join(folder, 'refused');
    await expect(dumpDlc(toolchain!, [model], { soc, outputFolder })).rejects.toMatchObject({
      code: 'QN010',
      message: expect.stringContaining('the_celu'),
    });
    expect(readdirSync(outputFolder)).toEqual([]);
  });
});

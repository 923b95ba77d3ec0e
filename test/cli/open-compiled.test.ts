import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { describePath } from '../../cli/jobs/describe-file.ts';
import { openCompiled } from '../../cli/jobs/open-compiled.ts';
import { openSide } from '../../cli/jobs/open-side.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'npuc-compiled-'));
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

const write = (manifest: unknown): void => {
  writeFileSync(join(folder, 'manifest.json'), typeof manifest === 'string' ? manifest : JSON.stringify(manifest));
};
const whole = { format: 2, npuc: '0.1.0', targets: {}, files: [] };
const sha256 = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855';

describe('a manifest that cannot be opened for running', () => {
  test.each<[string, unknown, RegExp]>([
    ['cut off', '{"format": 1, "npuc"', /no compiled model/],
    ['null', 'null', /not npuc's/],
    ['of another program', { name: 'my app' }, /not npuc's/],
    ['of a newer version', { ...whole, format: 3, npuc: '9.0.0' }, /compiled by npuc 9\.0\.0/],
    ['of a version that knew one cache only', { ...whole, format: 1 }, /compiled by npuc 0\.1\.0/],
    ['without targets', { ...whole, targets: undefined }, /not whole/],
    ['of an ONNX model', { ...whole, format: 1, kind: 'model' }, /not a language model/],
  ])('%s', async (_, manifest, message) => {
    write(manifest);
    const refusal = { code: 'TG110', message: expect.stringMatching(message) };
    await expect(openCompiled(folder, undefined)).rejects.toMatchObject(refusal);
  });
  test('a file that was changed, one that is missing', async () => {
    writeFileSync(join(folder, 'a.bin'), '');
    const file = { path: 'a.bin', bytes: 0, sha256 };
    write({ ...whole, files: [file] });
    // Whole files, but no target in them.
    await expect(openCompiled(folder, undefined)).rejects.toMatchObject({ code: 'CL001' });
    writeFileSync(join(folder, 'a.bin'), 'x');
    await expect(openCompiled(folder, undefined)).rejects.toMatchObject({ code: 'TG111', message: /changed/ });
    rmSync(join(folder, 'a.bin'));
    await expect(openCompiled(folder, undefined)).rejects.toMatchObject({ code: 'TG111', message: /missing/ });
  });
  test('a target that this version does not know', async () => {
    write({ ...whole, targets: { abacus: {} } });
    await expect(openCompiled(folder, 'abacus')).rejects.toMatchObject({ code: 'CL001' });
    await expect(openCompiled(folder, undefined)).rejects.toMatchObject({ code: 'CL001' });
  });
  test('a side of a comparison that is neither compiled nor a checkpoint', async () => {
    await expect(openSide(`${folder}:onnx`, 64)).rejects.toMatchObject({ code: 'IM110' });
    await expect(openSide(folder, 64)).rejects.toMatchObject({ code: 'IM110' });
  });
});

describe('inspect', () => {
  test('an output folder of an ONNX model', async () => {
    write({
      ...whole,
      format: 1,
      kind: 'model',
      source: { name: 'net.onnx', digest: '0' },
      soc: { name: 'SM8750', arch: 'v79' },
      recipe: { scheme: 'w8a8' },
      bindings: { batch: 1, input: [1, 3, 8, 8] },
      targets: { onnx: { file: 'onnx/model.onnx', execution: 'executed', files: ['onnx/model.onnx'] } },
      files: [{ path: 'onnx/model.onnx', bytes: 2048, sha256 }],
    });
    const { kind, lines } = await describePath(folder, false);
    expect(kind).toBe('compiled');
    expect(lines).toEqual([
      'compiled net.onnx  SM8750 (v79)  w8a8  batch 1  input 1x3x8x8',
      '  onnx  executed',
      '    onnx/model.onnx  2.00 KiB',
    ]);
  });
  test("a folder with another program's manifest.json is no compiled model", async () => {
    write({ name: 'my app' });
    await expect(describePath(folder, false)).rejects.toMatchObject({ code: 'IM110' });
  });
});

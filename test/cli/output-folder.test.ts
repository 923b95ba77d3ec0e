import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { openOutputFolder } from '../../cli/jobs/output-folder.ts';

let work: string;
beforeEach(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-output-'));
});
afterEach(() => {
  rmSync(work, { recursive: true, force: true });
});

const refusal = expect.objectContaining({ code: 'CL003' });
const ours = '{"format": 1, "npuc": "0.1.0", "targets": {}, "files": []}';
const make = (name: string, files: Readonly<Record<string, string>>): string => {
  const folder = join(work, name);
  mkdirSync(folder, { recursive: true });
  for (const [file, text] of Object.entries(files)) writeFileSync(join(folder, file), text);
  return folder;
};

describe('what is there already', () => {
  test("a folder whose manifest.json is another program's is not ours", () => {
    const folder = make('web-app', { 'manifest.json': '{"name": "my app", "version": "1"}', thesis: 'years of work' });
    expect(() => openOutputFolder(folder, false, [])).toThrowError(refusal);
    writeFileSync(join(folder, 'manifest.json'), 'no json at all');
    expect(() => openOutputFolder(folder, false, [])).toThrowError(refusal);
    expect(readFileSync(join(folder, 'thesis'), 'utf8')).toBe('years of work');
  });
  test('an older output is replaced when the new one is whole, and stays when it is not', () => {
    const folder = make('out', { 'manifest.json': ours, 'old.bin': 'old' });
    const discarded = openOutputFolder(folder, false, []);
    writeFileSync(join(discarded.partial, 'new.bin'), 'new');
    discarded.discard();
    expect(readdirSync(folder)).toEqual(['manifest.json', 'old.bin']);
    const kept = openOutputFolder(folder, false, []);
    writeFileSync(join(kept.partial, 'new.bin'), 'new');
    kept.commit();
    expect(readdirSync(folder)).toEqual(['new.bin']);
    expect(readdirSync(work)).toEqual(['out']);
  });
  test('a file in the place of the folder', () => {
    writeFileSync(join(work, 'file'), 'a file');
    for (const force of [false, true]) {
      expect(() => openOutputFolder(join(work, 'file'), force, [])).toThrowError(refusal);
    }
    expect(readFileSync(join(work, 'file'), 'utf8')).toBe('a file');
  });
  test('a link stays, and the folder that it leads to is replaced', () => {
    const far = make('far/out', { 'manifest.json': ours });
    const link = join(work, 'link');
    symlinkSync(far, link);
    const output = openOutputFolder(link, false, []);
    writeFileSync(join(output.partial, 'new.bin'), 'new');
    output.commit();
    expect(readdirSync(far)).toEqual(['new.bin']);
    expect(readdirSync(link)).toEqual(['new.bin']);
    expect(readdirSync(work).sort()).toEqual(['far', 'link']);
  });
  test('a link that leads nowhere, or to itself', () => {
    for (const to of ['nowhere', 'link']) {
      const link = join(work, 'link');
      symlinkSync(to, link);
      expect(() => openOutputFolder(link, true, [])).toThrowError(refusal);
      rmSync(link);
    }
  });
  test.skipIf(process.platform !== 'linux')('a mount point cannot be replaced', () => {
    expect(() => openOutputFolder('/proc', true, [])).toThrowError(refusal);
  });
  test('a folder below a file cannot be made', () => {
    writeFileSync(join(work, 'file'), 'a file');
    expect(() => openOutputFolder(join(work, 'file', 'out'), false, [])).toThrowError(
      expect.objectContaining({ code: 'IO002' }),
    );
  });
});

describe('an output folder that holds what the compile reads is refused even with --force', () => {
  test.each([true, false])('force %s', (force) => {
    const model = make('model', { 'manifest.json': ours, 'config.json': '{}' });
    const other = make('out', { 'manifest.json': ours });
    const inner = join(model, 'config.json');
    for (const input of [model, inner, join(model, '.')]) {
      expect(() => openOutputFolder(model, force, [input])).toThrowError(refusal);
    }
    expect(() => openOutputFolder(work, true, [model])).toThrowError(refusal);
    expect(existsSync(inner)).toBe(true);
    // Beside it, and names that are no paths at all, are fine.
    openOutputFolder(other, force, [model, 'hf:org/name', join(work, 'outside')]).discard();
  });
  test('through a link', () => {
    const model = make('model', { 'manifest.json': ours });
    symlinkSync(model, join(work, 'link'));
    expect(() => openOutputFolder(join(work, 'link'), true, [model])).toThrowError(refusal);
    expect(() => openOutputFolder(model, true, [join(work, 'link')])).toThrowError(refusal);
  });
  test("the user's home", () => {
    const before = process.env.HOME;
    process.env.HOME = make('home', { 'manifest.json': ours });
    try {
      expect(() => openOutputFolder(process.env.HOME!, true, [])).toThrowError(refusal);
    } finally {
      process.env.HOME = before;
    }
  });
  test('the working folder', () => {
    const before = process.cwd();
    const folder = make('here', {});
    process.chdir(folder);
    try {
      expect(() => openOutputFolder('.', true, [])).toThrowError(refusal);
      expect(() => openOutputFolder('..', true, [])).toThrowError(refusal);
    } finally {
      process.chdir(before);
    }
  });
});

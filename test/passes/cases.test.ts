import { readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { parseModule, printModule } from '../../compiler/ir/text.ts';
import { verify } from '../../compiler/ir/verify.ts';
import type { Pass } from '../../compiler/pass.ts';
import { runPasses } from '../../compiler/pass.ts';
import type { ValueCheck } from '../../compiler/pass-values.ts';
import { PASSES } from '../../passes/pipelines.ts';
import { type PassCase, printCase, readCase } from './read-case.ts';

const FIXTURES = fileURLToPath(new URL('../../fixtures/passes/', import.meta.url));

/** Passes made from options, by the name of their folder. */
const MADE: Readonly<Record<string, (options: PassCase['options']) => Pass>> = {};

function passFor(folder: string, options: PassCase['options']): Pass {
  const pass = PASSES.get(folder) ?? MADE[folder]?.(options);
  if (!pass) throw new Error(`no pass is called ${folder}`);
  return pass;
}

/** Runs a case's pass and gives the case as it turned out. */
function play(entry: PassCase, folder: string, file: string): PassCase {
  const module = parseModule(entry.input, { file });
  verify(module);
  const before = printModule(module);
  const check = (entry.options.evaluate ?? {}) as ValueCheck;
  const { remarks } = runPasses(module, [passFor(folder, entry.options)], { verifyValues: check });
  const after = printModule(module);
  return {
    ...entry,
    output: after === before || after === inferred(entry) ? 'unchanged' : after.trim(),
    remarks: remarks.map(({ where, text }) => `${where}: ${text}`),
  };
}

/** The input as it prints once its shapes are inferred. */
function inferred(entry: PassCase): string {
  const module = parseModule(entry.input);
  runPasses(module, []);
  return printModule(module);
}

describe.each(readdirSync(FIXTURES).sort())('%s', (folder) => {
  const files = readdirSync(join(FIXTURES, folder)).sort();

  it('has at least three cases, one of them a refusal', () => {
    expect(files.length).toBeGreaterThanOrEqual(3);
    expect(files.some((file) => file.startsWith('refuses-'))).toBe(true);
  });

  it.each(files)('%s', (file) => {
    const path = join(FIXTURES, folder, file);
    const entry = readCase(path);
    const result = play(entry, folder, path);
    if (process.env.UPDATE_CASES && !process.env.CI) writeFileSync(path, printCase(result));
    else {
      expect(result.output).toBe(entry.output);
      expect(result.remarks).toEqual(entry.remarks);
    }
    expect(entry.about, 'a case says why it is there').not.toBe('');
    if (file.startsWith('refuses-')) expect(result.output).toBe('unchanged');
    else expect(result.output).not.toBe('unchanged');
    expect(result.remarks.filter((remark) => remark.includes('values are not compared'))).toEqual([]);
  });
});

describe('cases', () => {
  it('cover every pass', () => {
    const folders = new Set(readdirSync(FIXTURES));
    expect([...PASSES.keys(), ...Object.keys(MADE)].filter((name) => !folders.has(name))).toEqual([]);
  });
});

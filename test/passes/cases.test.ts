import { readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { formatError, NpucError } from '../../compiler/errors.ts';
import type { Module } from '../../compiler/ir/graph.ts';
import { parseModule, printModule } from '../../compiler/ir/text.ts';
import { verify } from '../../compiler/ir/verify.ts';
import { type Pass, type Remark, runPasses } from '../../compiler/pass.ts';
import { findDifference, randomFeeds, type ValueCheck } from '../../compiler/pass-values.ts';
import { openModule } from '../../compiler/runtime/engine.ts';
import { type FreezeOptions, freezeShapes } from '../../passes/freeze-shapes.ts';
import { liftOpset } from '../../passes/lift-opset.ts';
import { PASSES } from '../../passes/pipelines.ts';
import { storeWeightsF16 } from '../../passes/store-weights-f16.ts';
import { type PassCase, printCase, readCase } from './read-case.ts';

const FIXTURES = fileURLToPath(new URL('../../fixtures/passes/', import.meta.url));

/** Passes made from options, by the name of their folder. */
const MADE: Readonly<Record<string, (options: PassCase['options']) => Pass>> = {
  'lift-opset': (options) => liftOpset(options.target as number),
  'freeze-shapes': (options) => freezeShapes(options as FreezeOptions),
  'store-weights-f16': (options) => storeWeightsF16(new Set(options.tables as string[] | undefined)),
};

function passFor(folder: string, options: PassCase['options']): Pass {
  const pass = PASSES.get(folder) ?? MADE[folder]?.(options);
  if (!pass) throw new Error(`no pass is called ${folder}`);
  return pass;
}

/** Runs a case's pass and gives the case as it turned out. */
async function play(entry: PassCase, folder: string, file: string): Promise<PassCase> {
  const module = parseModule(entry.input, { file });
  verify(module);
  // The reference engine knows no local functions: there ONNX Runtime compares.
  const usesFunctions = module.functions.length > 0;
  const before = printModule(module);
  const check = (entry.options.evaluate ?? {}) as ValueCheck;
  let remarks: readonly Remark[];
  try {
    ({ remarks } = runPasses(module, [passFor(folder, entry.options)], {
      verifyValues: usesFunctions ? false : check,
    }));
  } catch (error) {
    // What the user did wrong is a case; what the pass did wrong (PS101 to PS103) fails the test.
    if (!(error instanceof NpucError) || error.exitCode === 70) throw error;
    return { ...entry, output: `throws\n${formatError(error)}`, remarks: [] };
  }
  const after = printModule(module);
  const isUnchanged = after === before || after === inferred(entry);
  if (usesFunctions && !isUnchanged) await compareInOnnxRuntime(parseModule(entry.input), module);
  return {
    ...entry,
    output: isUnchanged ? 'unchanged' : after.trim(),
    remarks: remarks.map(({ where, text }) => `${where}: ${text}`),
  };
}

async function compareInOnnxRuntime(before: Module, after: Module): Promise<void> {
  const feeds = randomFeeds(after.graph());
  const [expected, actual] = await Promise.all(
    [before, after].map(async (module) => {
      const runner = await openModule(module);
      const outputs = await runner.run(feeds);
      await runner.close();
      return outputs;
    }),
  );
  for (const [name, wanted] of Object.entries(expected!))
    expect(findDifference(wanted, actual![name]!, 1e-6), name).toBeUndefined();
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

  it.each(files)('%s', async (file) => {
    const path = join(FIXTURES, folder, file);
    const entry = readCase(path);
    const result = await play(entry, folder, path);
    if (process.env.UPDATE_CASES && !process.env.CI) writeFileSync(path, printCase(result));
    else {
      expect(result.output).toBe(entry.output);
      expect(result.remarks).toEqual(entry.remarks);
    }
    expect(entry.about, 'a case says why it is there').not.toBe('');
    if (file.startsWith('refuses-')) expect(result.output).toMatch(/^(unchanged$|throws\n)/);
    else expect(result.output).not.toMatch(/^(unchanged$|throws\n)/);
    expect(result.remarks.filter((remark) => remark.includes('values are not compared'))).toEqual([]);
  });
});

describe('cases', () => {
  it('cover every pass', () => {
    const folders = new Set(readdirSync(FIXTURES));
    expect([...PASSES.keys(), ...Object.keys(MADE)].filter((name) => !folders.has(name))).toEqual([]);
  });
});
